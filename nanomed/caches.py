"""Folders of the cache, which all processes of a user share: each is filled by one of them, and whole or not
there."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import sync
from nanomed.outputs import is_at, locked

FILLING = "lock"  # the lock of a folder that is being filled
OLD = 24 * 3600  # seconds; a leftover without a lock could be one whose owner is about to make it


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


def filled(name: str, kind: str, files: tuple[str, ...], read, fill):
    """What read(folder) gives of the folder of this name in the cache. Where that is None (it is not there,
    or damaged), fill(folder) makes it anew under the name KIND-..., in one process while others wait, and it
    gets its own name once it is whole. files: what is in it. Raises UserError if it cannot be written, and
    what `fill` raises."""
    directory = cache_directory() / name
    try:
        return _filled(directory, kind, files, read, fill)
    except OSError as e:
        raise UserError(f"{directory}: could not be written ({e}); NANOMED_CACHE names another place") from e


def _filled(directory: Path, kind: str, files: tuple[str, ...], read, fill):
    if (found := read(directory)) is not None:
        return found
    for left in directory.parent.glob(f"{kind}-*"):
        _sweep(left, files)
    unfinished = directory.with_name(f"{kind}-{directory.name}")
    with claimed(unfinished):
        if read(directory) is None:  # another process may have been faster
            fill(unfinished)
            if directory.is_dir():  # a damaged one
                shutil.rmtree(directory)
            directory.unlink(missing_ok=True)
            os.replace(unfinished, directory)
            (directory / FILLING).unlink(missing_ok=True)
            sync(directory.parent)
        if (found := read(directory)) is None:
            raise OSError("it is gone again, or is not what was written")
        return found


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone, made if need be; wait while another holds it. What a killed
    process left in it is still there. The holder may rename it; otherwise it is removed at the end. Raises
    OSError."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = locked(folder / FILLING)
        except BlockingIOError:
            print(f"{folder}: waiting for another process, which is at work there", file=sys.stderr)
            with contextlib.suppress(FileNotFoundError):  # its holder renamed it
                lock = locked(folder / FILLING, wait=True)
                break
        except FileNotFoundError:  # removed in between
            continue
        except FileExistsError:
            if os.path.lexists(folder) and not folder.is_dir():  # a file, or a dead link
                raise
        else:
            break
    with lock:
        try:
            yield
        finally:
            if is_at(lock, folder / FILLING):
                _remove(folder)


def _sweep(folder: Path, files: tuple[str, ...]) -> None:
    """Remove a folder that nobody holds, if it has nothing but `files` in it, under these names or temporary
    ones made of them. One without a lock is a leftover once it is a day old. What cannot be removed stays."""
    try:
        inside = list(folder.iterdir())
        if not all(p.name == FILLING or any(name in p.name for name in files) for p in inside):
            return
        if (folder / FILLING).exists():
            with locked(folder / FILLING):
                _remove(folder)
        elif time.time() - max(p.stat().st_mtime for p in (folder, *inside)) > OLD:
            _remove(folder)
    except OSError:  # held (BlockingIOError), another user's, no folder, or gone meanwhile
        pass


def _remove(folder: Path) -> None:
    """Under another name: a process that comes to claim the folder could begin in what is being removed."""
    gone = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
