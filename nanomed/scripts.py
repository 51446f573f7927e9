"""The project's scripts, run by its own programs as a user would type them."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

from nanomed.errors import RUN_BY, Interrupted, UserError
from nanomed.outputs import locked_files

ROOT = Path(__file__).parent.parent
GO_ON = "the same command goes on from there"
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # no other system has prctl()
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def shown(path: Path) -> str:
    """A path as commands in the project's directory take it."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _die_with(parent: int) -> None:
    """In a child, before it becomes its command: kill it when its parent is killed."""
    if LIBC:
        LIBC.prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # before that
        os._exit(1)


def run(command: list) -> None:
    """Print a command, `train_clm.py --model ...` say, and run it in the project's directory. Ctrl-C and
    SIGTERM are passed on to it, and it is waited for, since a training saves before it ends. It does not
    outlive this process; where it could, nobody else works in the meantime in what this one has locked.
    Raises Interrupted then, and UserError if it does not end well."""
    command, came = [str(word) for word in command], None
    words = " ".join(shlex.quote(word).replace(" ", "\0") for word in command)  # a quoted blank is no end
    lines = textwrap.wrap(words, 68, break_long_words=False, break_on_hyphens=False)
    print("$ python", " \\\n    ".join(lines).replace("\0", " "), flush=True)
    how = {"cwd": ROOT, "env": os.environ | {RUN_BY: str(os.getpid())}, "pass_fds": locked_files()}
    process = subprocess.Popen([sys.executable, *command], preexec_fn=partial(_die_with, os.getpid()), **how)
    while process.returncode is None:
        try:
            process.wait()
        except (KeyboardInterrupt, Interrupted) as e:
            came = e.signum if isinstance(e, Interrupted) else signal.SIGINT
            process.send_signal(came)
    if came:
        raise Interrupted(came, GO_ON)
    if process.returncode > 128:
        raise Interrupted(process.returncode - 128, GO_ON)
    if process.returncode < 0:
        mend = f"if that was for want of memory, close other programs; {GO_ON}"
        raise UserError(f"{command[0]} was killed by signal {-process.returncode}; {mend}")
    if process.returncode:
        raise UserError(f"{command[0]} ended with status {process.returncode}: see above")
