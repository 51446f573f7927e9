"""Folders of the cache, which all processes of a user share: each is filled by one of them, and whole or not
there."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import sync
from nanomed.outputs import locked


class Watched:
    """A file of the cache that is read little by little: such a file is never changed once it is whole, and
    mapped memory behind its end would kill the process."""

    def __init__(self, path: Path):
        self.path, self.file = path, open(path, "rb")  # noqa: SIM115
        self.was = self._now()

    def _now(self) -> tuple[int, int]:
        now = os.fstat(self.file.fileno())
        return now.st_size, now.st_mtime_ns

    def check(self) -> None:
        """Raises UserError if somebody changed it since."""
        if self._now() != self.was:
            what = "changed while it was read, which nothing here does; start again, and it is made anew"
            raise UserError(f"{self.path}: {what}")


def cache_directory() -> Path:
    """NANOMED_CACHE, or nanomed/ in the user's cache; for a user without a home (of a number only, in a
    container) in the place for temporary files."""
    if named := os.environ.get("NANOMED_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanomed"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"nanomed-{os.getuid()}"


def filled(name: str, kind: str, read, fill):
    """What read(folder) gives of the folder of this name in the cache. Where that is None (it is not there,
    or damaged), fill(folder) makes it anew as KIND-NAME, in one process while others wait, and it gets its
    own name once it is whole. Raises UserError if it cannot be written, and what `fill` raises."""
    directory = cache_directory() / name
    try:
        if (found := read(directory)) is not None:
            return found
        _sweep(directory.parent, kind)
        with claimed(directory.with_name(f"{kind}-{name}")) as unfinished:
            if read(directory) is None:  # another process may have been faster
                fill(unfinished)
                if directory.is_dir():  # a damaged one
                    shutil.rmtree(directory)
                directory.unlink(missing_ok=True)
                os.replace(unfinished, directory)
                sync(directory.parent)
            if (found := read(directory)) is None:
                raise OSError("it is gone again, or is not what was written")
            return found
    except OSError as e:
        raise UserError(f"{directory}: could not be written ({e}); NANOMED_CACHE names another place") from e


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """A new, empty folder for this process alone; while another has it, this one waits. It is removed at the
    end, unless it was renamed. Its lock lies beside it. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = Path(f"{folder}.lock")
    try:
        held = locked(lock)
    except BlockingIOError:
        print(f"{folder}: waiting for another process, which is at work there", file=sys.stderr)
        held = locked(lock, wait=True)
    with held:
        try:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _sweep(directory: Path, kind: str) -> None:
    """Remove what killed processes left unfinished, whose locks nobody holds any more; names begin with a
    hash, so that nothing of others is meant."""
    for lock in directory.glob(f"{kind}-{'[0-9a-f]' * 32}*.lock"):
        with contextlib.suppress(OSError), locked(lock):  # held (BlockingIOError), or another user's
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
