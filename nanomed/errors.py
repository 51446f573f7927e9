"""How a run can end before its end, other than by a bug."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# What ends a run in order. A hang-up does not where the program was told to outlive it (nohup).
STOPS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    STOPS.append(signal.SIGHUP)
# In the environment of a command that a program runs: that program, which passes its signals on.
RUN_BY = "NANOMED_RUN_BY"


class UserError(Exception):
    """Something the user can mend: one line that names the file, the row or the setting, and the mend. Exit
    status 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: where it was raised mends nothing."""
        return [f"UserError: {self}"]


class Unencodable(UserError):
    """A text that has no ids."""


@contextmanager
def naming(where, *kinds: type[Exception]) -> Iterator[None]:
    """Put where something stands, if that is known, before a UserError that does not say it; an error of
    `kinds` becomes one."""
    try:
        yield
    except (UserError, *kinds) as e:
        raise UserError(f"{where}: {e}" if where else str(e)) from e


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or a hang-up, after what could be saved was saved. Exit status 128 + signum."""

    def __init__(self, signum: int, message: str = "interrupted"):
        super().__init__(message)
        self.signum = signum


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and numpy have a class for it (PyTorch's is told by its name, so that PyTorch is not loaded for
    this); PyTorch's CPU allocator raises a plain RuntimeError."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "allocate memory" in str(error)
