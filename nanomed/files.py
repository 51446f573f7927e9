"""Files that are read with a clear error and written whole or not at all; what may be written where; and a
directory that one process has to itself."""

import contextlib
import fcntl
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from nanomed.errors import UserError

# What stands in a directory only while a process is at work there: temporary directories, and the lock.
PASSING = ".nanomed-"
LOCK = PASSING + "lock"
# What a model's directory, or a run's, consists of; a file of another name in it is the user's affair.
PARTS = """*.safetensors *.safetensors.index.json *.bin config.json generation_config.json adapter_config.json tokenizer*.json
    vocab.json merges.txt special_tokens_map.json added_tokens.json chat_template* template.json run.json held_out.json
    summary.json metrics.jsonl loss.png nanomed.json""".split()

# path: the open end of a named pipe that a result is to go into; without it its reader would see the end at
# once
_pipes = {}
_locks = {}  # path: the open file's number; a lock lasts as long as that
_made = []  # directories that were not there before they were locked


def read_json(path: Path):
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"), path)  # Windows puts a mark before it
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not valid JSON ({e})") from e


def parse_json(text: str, where):
    """The value of a text that stands in the file, or the line, `where`. Raises UserError if it is no
    JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not valid JSON ({e})") from e


def read_toml(path: Path) -> dict:
    """Raises UserError for a file that is no TOML; OSError for one that cannot be read: who asks for it knows
    what would do."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid TOML ({e})") from e


def read_object(path: Path) -> dict:
    """read_json() of a file that must hold an object. Raises UserError if it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        kind = {type(None): "null", str: "text", bool: "true or false", list: "a list"}.get(
            type(value), "a number"
        )
        raise UserError(f"{path}: must hold a JSON object, not {kind}")
    return value


def typed(kind, value, where):
    """A value read from the file `where` (or a part of it, as its name says), as a `kind`: a dataclass, whose
    other keys are left out, or a type. Raises UserError that names the key, what should stand there and what
    does."""
    import msgspec

    try:
        # Half a character would fail somewhere; what stands for an odd byte of a file's name does not.
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        what, _, key = str(e).partition(" - at `$")
        key = key.strip("`").lstrip(".")
        raise UserError(
            f"{where}: {key + ': ' if key else ''}{what[:1].lower()}{what[1:]}".replace("`", "")
        ) from e
    except (RecursionError, UnicodeError) as e:
        raise UserError(f"{where}: {e}") from e


# --- writing ------------------------------------------------------------------------------------------------


def write_json(value, path: Path) -> None:
    write_text(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def finite(value):
    """The value with null for every NaN and infinity, which JSON does not know and most readers refuse."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(text: str, path: Path) -> None:
    """A device or a named pipe is written in place, and what the program prints to is printed to; all else is
    replaced. Of a file's name that is not UTF-8, an odd byte is written as \\udcff, which JSON reads as what
    Python holds for it."""
    if not _in_place(path):
        replace_file(path, lambda tmp: tmp.write_text(text, encoding="utf-8", errors="backslashreplace"))
        return
    try:
        with _stream(path) or open(path, "w", encoding="utf-8", errors="backslashreplace") as f:
            f.write(text)
    except OSError as e:
        raise UserError(f"{path}: could not be written ({e})") from e
    if path in _pipes:
        os.close(_pipes.pop(path))


def _in_place(path: Path) -> bool:
    return path.exists() and (not path.is_file() or _stream(path) is not None)


def _stream(path: Path):
    """sys.stdout or sys.stderr, if `path` is another name for it (/dev/stdout, say); as a context that leaves
    it open."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError):  # it is closed
            if os.path.samestat(os.stat(path), os.fstat(number)):
                return contextlib.nullcontext(stream)
    return None


def replace_file(path: Path, write) -> None:
    """Write beside `path` (or beside what it links to), force it to the disk, then rename over it: a reader
    sees the old file or the new one, and a full disk or a lost power supply costs the new one only."""
    path, tmp = Path(os.path.realpath(path)), None
    try:
        _sweep(path.parent)
        tmp = make_temporary(path.parent)
        write(tmp / path.name)
        (tmp / "new").touch()
        os.chmod(
            tmp / path.name, (tmp / "new").stat().st_mode
        )  # as any new file's; safetensors makes its own for the owner alone
        with open(tmp / path.name, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp / path.name, path)
        sync_directory(path.parent)
    except OSError as e:
        raise UserError(f"{path}: could not be written ({e})") from e
    finally:
        if tmp:
            shutil.rmtree(tmp, ignore_errors=True)


def make_temporary(directory: Path) -> Path:
    """A directory of this process's own, so that whatever is left of it can be told from a file of the
    user's: safetensors too makes a temporary file of its own, beside the one that it was asked for."""
    return Path(tempfile.mkdtemp(dir=directory, prefix=f"{PASSING}{platform.node()}-{os.getpid()}-"))


def _sweep(directory: Path) -> None:
    """Remove what writers left in a directory that were killed on this machine."""
    mine = f"{PASSING}{platform.node()}-"
    for entry in list(os.scandir(directory)):
        pid = entry.name.removeprefix(mine).split("-")[0]
        if entry.name.startswith(mine) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def sync_directory(directory: Path) -> None:
    """Force a directory's entries to the disk: without it, a lost power supply can undo a rename."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- what may be written where ------------------------------------------------------------------------------


def check_output(name, inputs=(), flag: str = "--json") -> None:
    """Refuse a result file before the work that it is to hold is done. inputs: the files that this command
    reads, and the directories of its models. Raises UserError if the file is one of them, or could not be
    written."""
    path, target = Path(name), Path(os.path.realpath(name))
    if not str(name).strip():
        raise UserError(f"{flag} {name}: name a file")
    if path.is_dir() or str(name).endswith("/"):
        raise UserError(f"{flag} {name}: it is a directory; name a file in it")
    if not target.parent.is_dir() and not path.exists():  # what a pipe links to has no name
        raise UserError(f"{flag} {name}: no such directory")
    for i in map(Path, inputs):
        parts = [f for f in i.iterdir() if is_part(f.name)] if i.is_dir() else [i]
        new_part = i.is_dir() and os.path.realpath(i) == str(target.parent) and is_part(target.name)
        if new_part or any(f.exists() and path.exists() and f.samefile(path) for f in parts):
            raise UserError(f"{flag} {name}: this command reads {i}; name a file that is no part of it")
    if is_part(target.name) and any(
        (target.parent / f).exists() for f in ("config.json", "adapter_config.json", "run.json")
    ):
        raise UserError(
            f"{flag} {name}: a model or a run lies there, of which it would be a part; choose another name"
        )
    needed = [path] if _in_place(path) else [target.parent, *([path] if path.exists() else [])]
    if path.is_fifo() and path not in _pipes:
        try:
            _pipes[path] = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as e:
            raise UserError(f"{flag} {name}: a named pipe that no program reads ({e.strerror})") from e
    for p in needed:
        if not os.access(p, os.W_OK):
            raise UserError(f"{flag} {name}: no permission to write {p}")


def check_directory(name, flag: str = "--out") -> None:
    """Refuse a directory for results that is none, or could not be made. Raises UserError."""
    path = Path(name)
    if not str(name).strip():
        raise UserError(f"{flag} {name}: name a directory")
    there = next(p for p in (path, *Path(os.path.abspath(path)).parents) if os.path.lexists(p))
    if not there.is_dir():
        what = "a file" if there.exists() else f"a link to {os.readlink(there)}, which is not there"
        raise UserError(
            f"{flag} {name}: {'it' if there == path else there} is {what}; choose another directory"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {name}: no permission to write {there}")


def check_name(name: str, where) -> None:
    """Raises UserError for a name, said in the file or section `where`, that cannot become a file's."""
    if not name.isprintable() or not name or "/" in name or name.startswith(".") or len(name.encode()) > 200:
        raise UserError(
            f"{where!r}: a name becomes a file's"
            if not name.isprintable()
            else f"{where}: a name becomes a file's"
        )


def is_part(name: str) -> bool:
    """Whether a file of this name in a model's or a run's directory belongs to it."""
    return any(fnmatch(name, pattern) for pattern in PARTS)


def names_in(directory: Path) -> set[str]:
    """What a directory holds, but for what is there only while a process is at work; nothing if it is not
    there."""
    return (
        {p.name for p in directory.iterdir() if not p.name.startswith(PASSING)}
        if directory.is_dir()
        else set()
    )


# --- one process a directory --------------------------------------------------------------------------------


def lock(directory: Path, flag: str = "--out") -> None:
    """Make `directory` and hold it until release(), or until this process ends, however it ends. What killed
    holders left half written goes. What a program holds, the commands that it runs may use. Raises UserError
    if another process holds it."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        _made.append(directory.resolve())
    path = directory.resolve() / LOCK
    while path not in _locks:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            pid = os.read(fd, 20).decode(errors="replace") or "unknown"
            os.close(fd)
            if pid == str(os.getppid()):
                return
            raise UserError(
                f"{flag} {directory}: another process ({pid}) is at work there; let it end, or choose another"
                " directory"
            ) from e
        except OSError as e:
            print(
                f"{directory}: the file system knows no locks ({e.strerror}); see to it that only one process"
                " writes there",
                file=sys.stderr,
            )
        if path.exists() and os.path.samestat(os.fstat(fd), os.stat(path)):
            _locks[path] = fd
        else:  # the last holder took the file away between the two calls above
            os.close(fd)
    os.ftruncate(_locks[path], 0)
    os.pwrite(_locks[path], str(os.getpid()).encode(), 0)
    for place in (directory, directory / "state", directory / "base"):
        for left in place.glob(PASSING + "*/"):
            shutil.rmtree(left, ignore_errors=True)


def release() -> None:
    """Let go of every directory that this process holds; one that it made and left empty goes."""
    while _locks:
        path, fd = _locks.popitem()
        path.unlink(missing_ok=True)
        os.close(fd)
    while _made:
        with contextlib.suppress(OSError):
            _made.pop().rmdir()
