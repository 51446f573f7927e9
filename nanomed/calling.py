"""How a function of Python is called as a command is: its parameters checked as flags are, what data is at
hand put where --data finds it; and how it ends: in an exception that speaks of parameters."""

import csv
import io
import os
import re
import signal
from contextlib import contextmanager

from nanomed import cli, flags
from nanomed.errors import Interrupted, UserError
from nanomed.text import at_hand
from nanomed.training.settings import PHASES


def model_name(model) -> str:
    """Of a model, as --model takes it."""
    if not isinstance(model, str | os.PathLike):
        raise UserError(f"model: its name, its directory or a Run, not {at_hand.in_short(model)}")
    return os.fspath(model)


def parsed(add_flags, where: str, settings: dict):
    """Settings as a command's flags would have them, checked as they are."""
    p = cli.Parser()
    add_flags(p)
    flags.add_flags(p, flags.Running, "seed")
    cli.preset(p, plain(settings), where, "_")
    return p.parse_args([])


def plain(settings: dict, files=(), kept=None) -> dict:
    """Settings as a recipe could hold them; None is left out, as if it were not given. files, kept: the names
    of those that are data, and what at_hand.names() says of it."""
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
            value = os.path.expanduser(value)
        found[name] = value
    return found


# --- how a call ends ----------------------------------------------------------------------------------------

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
SWITCHES = {
    name
    for kind in PHASES.values()
    for name, flag in flags.flags_of(kind).items()
    if isinstance(flag.default, bool) or flag.two_way
}


@contextmanager
def from_python(kept=None):
    """A command's code, called from Python: its errors speak of parameters, and Ctrl-C is Python's own. kept:
    {path: the parameter} of data that was at hand."""
    cli.prepare()
    try:
        yield
    except UserError as e:
        said = str(e)
        for path, what in (kept or {}).items():
            said = said.replace(path, what)
        raise UserError(in_python(said)) from None
    except Interrupted as e:
        if e.signum != signal.SIGINT:
            signal.raise_signal(e.signum)  # to the caller's handlers, which are back
        raise KeyboardInterrupt(str(e)) from None


def in_python(message: str) -> str:
    """A message about flags, as one about parameters."""

    def parameter(found) -> str:
        name = found[1].replace("-", "_")
        no, _, rest = name.partition("no_")
        if name in SWITCHES:
            return f"{name}=True"
        return f"{rest}=False" if not no and rest in SWITCHES else name

    return FLAG.sub(parameter, message)
