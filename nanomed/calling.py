"""A command, called as a function of Python: its parameters are checked as flags are, data that is at hand is
put where --data finds it, and what it prints or raises speaks of parameters."""

import csv
import io
import os
import re
import signal
import sys
from contextlib import contextmanager
from functools import cache

from nanomed import cli, flags
from nanomed.errors import Interrupted, UserError
from nanomed.text import at_hand
from nanomed.training.settings import PHASES


def model_name(model) -> str:
    """A model's name, as --model takes it. Raises UserError for what is none."""
    if not isinstance(model, str | os.PathLike):
        raise UserError(f"model: its name, its directory or a Run, not {at_hand.in_short(model)}")
    return os.fspath(model)


def parsed(add_flags, where: str, settings: dict, *rows: str):
    """Settings, checked as a command's flags are and with their defaults. rows: names of flags.Rows that the
    command has too."""
    p = cli.Parser()
    add_flags(p)
    for name in rows:
        flags.add_flags(p, flags.Rows, name)
    flags.add_flags(p, flags.Running, "seed")
    cli.preset(p, plain(settings), where, "_")
    return p.parse_args([])


def plain(settings: dict, files=(), kept=None) -> dict:
    """Settings as a recipe could hold them, without those that are None. files: the names of those that are
    data; kept: filled as at_hand.names() has it."""
    found = {}
    for name, value in settings.items():
        if value is None:
            continue
        if name in files:
            value = at_hand.names(value, name, kept)
        elif isinstance(value, list | tuple):  # of names, which a flag takes as a line of CSV
            csv.writer(line := io.StringIO(), lineterminator="").writerow(value)
            value = line.getvalue()
        elif isinstance(value, os.PathLike) or name == "out":  # ~ is the shell's, which is not at work here
            value = os.path.expanduser(str(value))
        found[name] = value
    return found


# --- what a call says, and how it ends ----------------------------------------------------------------------

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


@contextmanager
def from_python(kept=None):
    """A command's code, called from Python: its lines and errors speak of parameters, and Ctrl-C is Python's
    own. kept: {path: the parameter} of data that was at hand."""

    def said(text: str, every: bool) -> str:
        for path, what in (kept or {}).items():
            text = text.replace(path, what)
        return in_python(text, every)

    cli.prepare()
    streams = sys.stdout, sys.stderr
    own = not isinstance(sys.stdout, Saying)  # else another thread's call sees to it
    if own:
        sys.stdout, sys.stderr = (Saying(stream, said) for stream in streams)
    try:
        yield
    except UserError as e:
        if network := sys.modules.get("nanomed.network"):
            network.forget()
        raise UserError(said(str(e), True).removesuffix(" (help lists the flags)")) from None
    except Interrupted as e:
        if e.signum != signal.SIGINT:
            signal.raise_signal(e.signum)  # to the caller's handlers, which are back
        raise KeyboardInterrupt(said(str(e), True)) from None
    finally:
        if own:
            sys.stdout, sys.stderr = streams


class Saying:
    """Standard output or error, through which lines come out in other words."""

    def __init__(self, stream, said):
        self.stream, self.said = stream, said

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str):
        return self.stream.write(self.said(text, False))


@cache
def actions() -> dict:
    """{flag: what argparse does with it} of all trainings."""
    p = cli.Parser(add_help=False, conflict_handler="resolve")
    for kind in PHASES.values():
        flags.add_flags(p, kind)
    return p._option_string_actions


def in_python(message: str, every: bool = True) -> str:
    """A message about flags, as one about parameters: `--lora-r` is lora_r, `--no-merge` merge=False. every:
    also about flags that no training has; what a line shows of a text may look like one."""

    def parameter(found) -> str:
        action, name = actions().get(found[0]), found[1].replace("-", "_")
        if action and action.nargs == 0:
            return f"{action.dest}={name == action.dest}"
        return name if action or every else found[0]

    return FLAG.sub(parameter, message)
