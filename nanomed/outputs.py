"""The one door to a directory that a program fills: this process has it to itself, and what is not ours there
is left alone.

A file of ours, the directory's record, says by its content whose it is: {"program": ..., "format": 1, ...},
what the program keeps there, and "files" that it may replace; "unfinished" stands in it until all of them are
in place."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import (
    check_directory,
    lock,
    make_temporary,
    names_in,
    read_object,
    sync_directory,
    write_json,
)

FORMAT = 1
RECORD = "nanomed.json"  # of programs that have no file of their own for it


def stamp(program: str) -> dict:
    """What every record says."""
    return {"program": program, "format": FORMAT}


def unfinished(held: dict) -> bool:
    return "unfinished" in held


def take(
    out: Path,
    program: str,
    record: str = RECORD,
    *,
    writes: Iterable[str] = (),
    beside: bool = False,
    older: Callable[[dict], dict | None] = lambda held: None,
    flag: str = "--out",
) -> dict:
    """Hold `out` (made if need be) until this process ends; gives its record, {} if nothing of ours is there
    yet.

    writes: what will be written there, as far as it is known; beside: other files may lie there too; older:
    today's record for what an earlier version's says, None for what is not this program's. Raises UserError,
    with nothing touched, if another process holds the directory, or for the first thing there that is not the
    program's."""
    check_directory(out, flag)
    _owned(out, program, record, writes, beside, older, flag)
    lock(out, flag)
    return _owned(
        out, program, record, writes, beside, older, flag
    )  # again, now that no other process changes it any more


def _owned(out, program, record, writes, beside, older, flag) -> dict:
    there, held = names_in(out), read_record(out / record, program, older)
    if held is None:
        foreign = there & {record, *writes} if beside else there
    else:
        foreign = (there & {*writes}) - {*held.get("files", writes)}
    if foreign:
        raise UserError(
            f"{flag} {out}: not empty: {min(foreign)} is none of {program}'s files; choose another directory"
        )
    return held or {}


def read_record(
    path: Path, program: str, older: Callable[[dict], dict | None] = lambda held: None
) -> dict | None:
    """None if there is none of this program's. Raises UserError for a later format than this program
    knows."""
    try:
        held = read_object(path)
    except UserError:
        return None
    if "program" not in held:
        return older(held)
    if held["program"] != program:
        return None
    files = held.get("files", [])
    if (
        held.get("format") != FORMAT
        or not isinstance(files, list)
        or not all(Path(str(f)).name == f for f in files)
    ):
        raise UserError(f"{path}: of another version of this program, or damaged; choose another directory")
    return held


@contextmanager
def built(out: Path, program: str, held: dict, record: str = RECORD) -> Iterator[Path]:
    """A directory to write into, whose files take their places in `out` at the end, in place of the record's
    (`held`, as take() gave it): the record last, with what was written under its name. A process that ends in
    between leaves what was there, or a directory that says that it is unfinished. Raises UserError if a file
    that is not ours came to lie where one belongs."""
    made = make_temporary(out)
    try:
        yield made
        content = read_object(made / record) if (made / record).exists() else {}
        new, old = names_in(made) - {record}, set(held.get("files", []))
        if foreign := [name for name in new - old if os.path.lexists(out / name)]:
            raise UserError(
                f"{out}: {min(foreign)} came to lie there meanwhile; move it away, and run the same command"
                " again"
            )
        for name in new:
            with open(made / name, "rb") as f:
                os.fsync(f.fileno())
        mend = {"unfinished": "the same command again makes it whole"}
        write_json(stamp(program) | mend | {"files": sorted(new | old)}, out / record)
        for name in old - new:
            (out / name).unlink(missing_ok=True)
        for name in sorted(new):
            os.replace(made / name, out / name)
        sync_directory(out)
        write_json(stamp(program) | {"files": sorted(new)} | content, out / record)
    finally:
        shutil.rmtree(made, ignore_errors=True)
