"""A folder that one process fills while others wait, and that is known for a leftover once that process is
gone.

In it lies a file `lock`, which its holder keeps locked (flock): the kernel takes the lock back when the
process ends, however it ends. A locked folder has a living owner, on whatever machine; no process number has
to be asked after."""

import fcntl
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanomed.files import sync_directory

LOCK = "lock"
OLD = 24 * 3600  # seconds; a leftover without a lock could be one whose owner is about to make it


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone, made if need be; wait while another holds it. What a killed
    process left in it is still there. The holder may rename it to where it belongs; otherwise it is removed
    at the end. Raises OSError."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (
            FileExistsError
        ):  # a file or a dead link is there, or a folder was until just now: then once more
            if _is_no_folder(folder):
                raise
            continue
        try:
            lock = open(folder / LOCK, "ab")  # noqa: SIM115 (closed below)
        except FileNotFoundError:  # removed in between
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"{folder}: waiting for another process, which is at work there",
                    file=sys.stderr,
                    flush=True,
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_in(
                lock, folder
            ):  # renamed or removed by its last holder, with the lock that was waited for
                continue
            try:
                yield
            finally:
                if _is_in(lock, folder):
                    _remove(folder)
            return


def sweep(folders: Iterable[Path], files: tuple[str, ...]) -> None:
    """Remove those of `folders` that nobody holds, if they have nothing but `files` in them, under these
    names or temporary ones made of them. One without a lock is taken for a leftover once it is a day old.
    What cannot be removed stays."""
    for folder in folders:
        try:
            if not all(p.name == LOCK or any(name in p.name for name in files) for p in folder.iterdir()):
                continue
            with open(folder / LOCK, "r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_in(lock, folder):
                    _remove(folder)
        except FileNotFoundError:
            if folder.exists() and time.time() - _last_written(folder) > OLD:
                _remove(folder)
        except OSError:  # held (BlockingIOError), another user's, or no folder
            continue


def filled(directory: Path, kind: str, files: tuple[str, ...], read, fill):
    """What read(directory) gives of a folder of the cache; where that is None (it is not there, or damaged),
    fill(folder) makes it anew under the name KIND-..., in one process while others wait, and it gets its own
    name once it is whole. files: what is in it. Raises OSError if it cannot be written, and what `fill`
    raises."""
    found = read(directory)
    if found is not None:
        return found
    sweep(directory.parent.glob(f"{kind}-*"), files)
    unfinished = directory.with_name(f"{kind}-{directory.name}")
    with claimed(unfinished):
        if read(directory) is None:  # another process may have been faster
            fill(unfinished)
            (
                shutil.rmtree(directory) if directory.is_dir() else directory.unlink(missing_ok=True)
            )  # a damaged one
            os.replace(unfinished, directory)
            (directory / LOCK).unlink(missing_ok=True)
            sync_directory(directory.parent)
        found = read(directory)
        if found is None:
            raise OSError("it is gone again, or is not what was written")
        return found


def _is_in(lock, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK))
    except OSError:
        return False


def _is_no_folder(folder: Path) -> bool:
    """Something that is no folder."""
    try:
        return not stat.S_ISDIR(os.lstat(folder).st_mode)
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    """Under another name: else a process that comes to claim the folder could begin in what is being
    removed."""
    gone = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    try:
        os.rename(folder, gone)
    except OSError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def _last_written(folder: Path) -> float:
    try:
        return max(p.stat().st_mtime for p in (folder, *folder.iterdir()))
    except OSError:
        return time.time()
