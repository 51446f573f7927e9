"""The project's scripts, run by its own programs as a user would type them."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

from nanomed.errors import Interrupted, UserError

ROOT = Path(__file__).parent.parent
GO_ON = "the same command goes on from there"


def shown(path: Path) -> str:
    """A path as commands in the project's directory take it."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def run(command: list) -> None:
    """Print a command, `train_clm.py --model ...` say, and run it in the project's directory. Ctrl-C and
    SIGTERM reach it, and it is waited for, since a training saves before it ends. Raises Interrupted then,
    and UserError if it does not end well."""
    command = [str(word) for word in command]
    print(f"$ python {shlex.join(command)}", flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise Interrupted(signal.SIGINT, GO_ON) from None
    except Interrupted as e:
        process.terminate()
        process.wait()
        raise Interrupted(e.signum, GO_ON) from None
    if process.returncode > 128:
        raise Interrupted(process.returncode - 128, GO_ON)
    if process.returncode < 0:
        mend = f"if that was for want of memory, close other programs; {GO_ON}"
        raise UserError(f"{command[0]} was killed by signal {-process.returncode}; {mend}")
    if process.returncode:
        raise UserError(f"{command[0]} ended with status {process.returncode}: see above")
