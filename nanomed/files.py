"""Files that are read with a clear error and written whole or not at all."""

import contextlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from nanomed.errors import UserError

PASSING = ".nanomed-"  # begins the name of what is in a directory only while a process is at work there
# What a model's directory, or a run's, consists of; a file of another name in it is the user's affair.
PARTS = """*.safetensors *.safetensors.index.json *.bin config.json generation_config.json adapter_config.json
    tokenizer*.json vocab.json merges.txt special_tokens_map.json added_tokens.json chat_template*
    template.json run.json held_out.json summary.json metrics.jsonl loss.png nanomed.json""".split()

_pipes = {}  # path: the open end of a named pipe for a result; without it its reader would see the end


def no_pipe(path: Path) -> Path:
    """The path. Raises UserError for a named pipe, which may never be written to. The pipe that a shell makes
    of <(command) has no name, and may be read."""
    if path.is_fifo() and os.path.exists(os.path.realpath(path)):
        raise UserError(f"{path}: a named pipe; give a file")
    return path


def read_text(path: Path) -> str:
    """Raises UserError for a file that cannot be read, or is not UTF-8."""
    try:
        return no_pipe(path).read_text(encoding="utf-8-sig")  # Windows puts a mark before it
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 ({e})") from e


def read_json(path: Path):
    return parse_json(read_text(path), path)


def parse_json(text: str, where):
    """The value of the JSON in the file, or the line, `where`. Raises UserError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not valid JSON ({e})") from e


def read_toml(path: Path, flag: str = "", mend: str = "") -> dict:
    """Raises UserError for a file that is no TOML, or cannot be read, which is said after `flag` and before
    `mend`."""
    try:
        return tomllib.loads(no_pipe(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{flag}{path}: {e.strerror}{mend}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid TOML ({e})") from e


def read_object(path: Path, missing=None) -> dict:
    """read_json() of a file that must hold an object. missing: in place of a file that is not there."""
    if missing is not None and not path.exists():
        return missing
    value = read_json(path)
    if not isinstance(value, dict):
        names = {type(None): "null", str: "text", bool: "true or false", list: "a list"}
        raise UserError(f"{path}: must hold a JSON object, not {names.get(type(value), 'a number')}")
    return value


def typed(kind, value, where):
    """A value that was read from `where`, as a `kind`: a type, or a dataclass, whose other keys are left out.
    Raises UserError that names the key, what should be there and what is."""
    try:
        # A lone surrogate would fail later; what stands for an odd byte of a file's name would not.
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        what, _, key = str(e).replace("`", "").partition(" - at $")
        key = key.lstrip(".")
        raise UserError(f"{where}: {key + ': ' if key else ''}{what[:1].lower()}{what[1:]}") from e
    except (RecursionError, UnicodeError) as e:
        raise UserError(f"{where}: {e}") from e


def read_section(kind, section, where: str):
    """A section's keys and values as the dataclass `kind`. Raises UserError, naming the key, for an unknown
    one and for a value of another kind."""
    known = [f.name for f in fields(kind)]
    if unknown := typed(dict, section, where).keys() - set(known):
        raise UserError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(known)}")
    return typed(kind, section, where)


# --- writing ------------------------------------------------------------------------------------------------


def write_json(value, path: Path) -> None:
    write_text(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def json_lines(rows) -> str:
    """The text of a .jsonl file: a row a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def finite(value):
    """The value, with None for every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(text: str, path: Path) -> None:
    """A device or a named pipe is written in place, standard output is printed to, all else is replaced.
    An odd byte of a file's name (not UTF-8) is written as \\udcff, which JSON reads as Python does."""
    how = {"encoding": "utf-8", "errors": "backslashreplace"}
    if not _in_place(path):
        replace_file(path, lambda tmp: tmp.write_text(text, **how))
        return
    try:
        with _stream(path) or open(path, "w", **how) as f:
            f.write(text)
    except OSError as e:
        raise UserError(f"{path}: could not be written ({e})") from e
    if path in _pipes:
        os.close(_pipes.pop(path))


def _in_place(path: Path) -> bool:
    return path.exists() and (not path.is_file() or _stream(path) is not None)


def _stream(path: Path):
    """sys.stdout or sys.stderr, in a context that leaves it open, if `path` (/dev/stdout, say) names it."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError):  # it is closed
            if os.path.samestat(os.stat(path), os.fstat(number)):
                return contextlib.nullcontext(stream)
    return None


def replace_file(path: Path, write) -> None:
    """Write beside `path` (or beside what it links to), force it to the disk, then rename: a reader sees the
    old file or the new one, and a full disk or a lost power supply costs only the new one."""
    path, tmp = Path(os.path.realpath(path)), None
    try:
        _sweep(path.parent)
        tmp = make_temporary(path.parent)
        write(tmp / path.name)
        (tmp / "new").touch()  # safetensors makes its files for the owner alone: give them a new file's mode
        os.chmod(tmp / path.name, (tmp / "new").stat().st_mode)
        sync(tmp / path.name)
        os.replace(tmp / path.name, path)
        sync(path.parent)
    except OSError as e:
        raise UserError(f"{path}: could not be written ({e})") from e
    finally:
        if tmp:
            shutil.rmtree(tmp, ignore_errors=True)


def make_temporary(directory: Path) -> Path:
    """A directory of this process's own, which can be told from the user's. (safetensors, too, makes a
    temporary file beside the one that it writes.)"""
    return Path(tempfile.mkdtemp(dir=directory, prefix=f"{PASSING}{platform.node()}-{os.getpid()}-"))


def _sweep(directory: Path) -> None:
    """Remove what writers that were killed on this machine left in a directory."""
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


def sync(path: Path) -> None:
    """Force a file to the disk, or a directory's entries: a lost power supply could undo a rename."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- what may be written where ------------------------------------------------------------------------------


def check_output(name, inputs=(), flag: str = "--json") -> None:
    """Refuse a result file before the work is done. Raises UserError if it could not be written, or is one
    of `inputs`: the files that this command reads, and the directories of its models."""
    path, target = Path(name), Path(os.path.realpath(name))

    def refuse(why: str):
        raise UserError(f"{flag} {name}: {why}")

    if not str(name).strip():
        refuse("name a file")
    if path.is_dir() or str(name).endswith("/"):
        refuse("it is a directory; name a file in it")
    if not target.parent.is_dir() and not path.exists():  # what a pipe links to has no name
        refuse("no such directory")
    for i in map(Path, inputs):
        parts = [f for f in i.iterdir() if is_part(f.name)] if i.is_dir() else [i]
        new_part = i.is_dir() and os.path.realpath(i) == str(target.parent) and is_part(target.name)
        if new_part or any(f.exists() and path.exists() and f.samefile(path) for f in parts):
            refuse(f"this command reads {i}; name a file that is no part of it")
    records = ("config.json", "adapter_config.json", "run.json")
    if is_part(target.name) and any((target.parent / f).exists() for f in records):
        refuse("it would be a part of the model or the run in that directory; choose another name")
    if path.is_fifo() and path not in _pipes:
        try:
            _pipes[path] = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as e:
            refuse(f"a named pipe that no program reads ({e.strerror})")
    for p in [path] if _in_place(path) else [target.parent, path]:
        if p.exists() and not os.access(p, os.W_OK):
            refuse(f"no permission to write {p}")


def check_name(name: str, where) -> None:
    """Raises UserError for a name, given in the file or section `where`, that cannot be a file's."""
    if not name.isprintable() or not name or "/" in name or name.startswith(".") or len(name.encode()) > 200:
        raise UserError(f"{str(where) if name.isprintable() else repr(where)}: a name becomes a file's")


def is_part(name: str) -> bool:
    """Whether a file of this name in a model's or a run's directory belongs to it."""
    return any(fnmatch(name, pattern) for pattern in PARTS)
