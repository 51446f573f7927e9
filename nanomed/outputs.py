"""A directory that a program writes: it has it to itself, what is not ours there is left alone, and what it
makes is whole or says that it is not.

A file of ours, the directory's record, says by its content whose it is: {"program": ..., "format": 1, ...},
what the program keeps there, and "files" that it may replace; "unfinished" is in it until all are in place.

One process at a time: it holds the lock of a file in the directory (flock). The kernel takes the lock back
when the process ends, however it ends, on whatever machine; no process number has to be asked after."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanomed.errors import RUN_BY, UserError
from nanomed.files import PASSING, make_temporary, read_object, sync, write_json

FORMAT = 1
RECORD = "nanomed.json"  # of programs that have no file of their own for it
LOCK = PASSING + "lock"

_locks = {}  # {directory: open file}; a lock lasts as long as that
_made = {}  # as keys, directories that were not there before they were locked


def check_directory(name, flag: str = "--out") -> None:
    """Refuse a directory for results that is none, or could not be made. Raises UserError."""
    path = Path(name)
    if not str(name).strip():
        raise UserError(f"{flag} {name}: name a directory")
    there = next(p for p in (path, *Path(os.path.abspath(path)).parents) if os.path.lexists(p))
    if not there.is_dir():
        what = "a file" if there.exists() else f"a link to {os.readlink(there)}, which is not there"
        subject = "it" if there == path else there
        raise UserError(f"{flag} {name}: {subject} is {what}; choose another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {name}: no permission to write {there}")


def names_in(directory: Path) -> set[str]:
    """What a directory holds, if it is there, without what is there only while a process is at work."""
    found = directory.iterdir() if directory.is_dir() else ()
    return {p.name for p in found if not p.name.startswith(PASSING)}


# --- one process a directory --------------------------------------------------------------------------------


def locked(path: Path, wait: bool = False):
    """A file, made if need be, open and locked. Raises BlockingIOError if another process holds it, and
    FileNotFoundError if its folder is gone."""
    while True:
        f = open(path, "a+b")  # noqa: SIM115 (held by the caller)
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            f.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(f.fileno()), os.stat(path)):
                return f
        f.close()  # its last holder removed it between the two calls above


def lock(directory: Path, flag: str = "--out") -> None:
    """Make `directory` and hold it until release(), or until this process ends. What killed holders left half
    written goes. The commands that a holder runs may use it too. Raises UserError if another process holds
    it."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        _made[directory.resolve()] = True
    place = directory.resolve()
    path = place / LOCK
    if place not in _locks:
        try:
            _locks[place] = locked(path)
        except BlockingIOError as e:
            pid = path.read_text(errors="replace") if path.exists() else ""
            if pid == os.environ.get(RUN_BY):
                return
            who, mend = f"another process ({pid or 'unknown'})", "let it end, or choose another directory"
            raise UserError(f"{flag} {directory}: {who} is at work there; {mend}") from e
        except OSError as e:
            mend = "see to it that only one process writes there"
            print(f"{directory}: the file system knows no locks ({e.strerror}); {mend}", file=sys.stderr)
            _locks[place] = open(path, "a+b")  # noqa: SIM115 (until release)
    _locks[place].truncate(0)
    _locks[place].write(str(os.getpid()).encode())
    _locks[place].flush()
    for place in (directory, directory / "state", directory / "base"):
        for left in place.glob(PASSING + "*/"):
            shutil.rmtree(left, ignore_errors=True)


def locked_files() -> list[int]:
    """Of the locks that this process holds: a child that inherits them holds them with it."""
    return [f.fileno() for f in _locks.values()]


def release(directory: Path | None = None) -> None:
    """Let go of a directory, or of all that this process holds; one that it made and left empty goes."""
    for place in [directory.resolve()] if directory else reversed([*(_locks | _made)]):
        if f := _locks.pop(place, None):
            (place / LOCK).unlink(missing_ok=True)
            f.close()
        if _made.pop(place, False):
            with contextlib.suppress(OSError):
                place.rmdir()


# --- results ------------------------------------------------------------------------------------------------


def stamp(program: str) -> dict:
    """What every record says."""
    return {"program": program, "format": FORMAT}


def unfinished(held: dict) -> bool:
    return "unfinished" in held


def is_whole(out: Path, held: dict) -> bool:
    """Whether all that a record names is in its directory."""
    there = all((out / name).exists() for name in held.get("files", ()))
    return bool(held) and not unfinished(held) and there


def take(
    out: Path,
    program: str,
    record: str = RECORD,
    *,
    writes: Iterable[str] = (),
    beside: bool = False,
    flag: str = "--out",
) -> dict:
    """Hold `out` (made if need be) until this process ends; gives its record, {} if nothing of ours is there.

    writes: what will be written there, as far as it is known; beside: other files may be there too. Raises
    UserError, with nothing touched, if another process holds the directory, or for the first file there that
    is not the program's."""

    def look() -> dict:
        there, held = names_in(out), read_record(out / record, program)
        if held is None:
            foreign = there & {record, *writes} if beside else there
        else:
            foreign = (there & {*writes}) - {*held.get("files", writes)}
        if foreign:
            whose = f"{min(foreign)} is none of {program}'s files"
            raise UserError(f"{flag} {out}: not empty: {whose}; choose another directory")
        return held or {}

    check_directory(out, flag)
    look()
    lock(out, flag)
    return look()  # again, now that no other process changes it any more


def read_record(path: Path, program: str) -> dict | None:
    """None if there is none of this program's. Raises UserError for a format that it does not know."""
    try:
        held = read_object(path, {})
    except UserError:
        return None
    if held.get("program") != program:
        return None
    files = held.get("files", [])
    named = isinstance(files, list) and all(Path(str(f)).name == f for f in files)
    if held.get("format") != FORMAT or not named:
        raise UserError(f"{path}: of another version of this program, or damaged; choose another directory")
    return held


@contextmanager
def built(out: Path, program: str, held: dict, record: str = RECORD) -> Iterator[Path]:
    """A directory to write into. At the end its files take their places in `out`, instead of those that the
    record (`held`, as take() gave it) names; the record comes last, with what was written under its name. A
    process that ends in between leaves what was there, or a directory that says that it is unfinished. Raises
    UserError if a file of somebody else came to lie where one belongs."""
    made = make_temporary(out)
    try:
        yield made
        content = read_object(made / record, {})
        new, old = names_in(made) - {record}, set(held.get("files", []))
        if foreign := [name for name in new - old if os.path.lexists(out / name)]:
            mend = "move it away, and run the same command again"
            raise UserError(f"{out}: {min(foreign)} came to lie there meanwhile; {mend}")
        for name in new:
            sync(made / name)
        mend = {"unfinished": "the same command again makes it whole"}
        write_json(stamp(program) | mend | {"files": sorted(new | old)}, out / record)
        for name in old - new:
            (out / name).unlink(missing_ok=True)
        for name in sorted(new):
            if (out / name).is_dir():  # which nothing replaces as long as it holds something
                shutil.rmtree(out / name)
            os.replace(made / name, out / name)
        sync(out)
        write_json(stamp(program) | {"files": sorted(new)} | content, out / record)
    finally:
        shutil.rmtree(made, ignore_errors=True)
