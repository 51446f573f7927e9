"""How a run can end before its end, other than by a bug."""


class UserError(Exception):
    """Something the user can mend: one line that names the file, the row or the setting, and the mend. Exit status 2."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after what could be saved was saved. Exit status 128 + signum."""

    def __init__(self, signum: int, message: str = "interrupted"):
        super().__init__(message)
        self.signum = signum


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and numpy have a class for it (PyTorch's by its name: who never came to load it does not do so here); PyTorch's CPU
    allocator raises a plain RuntimeError."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
