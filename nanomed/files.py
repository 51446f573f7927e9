"""Files that are read with a clear error and written whole or not at all: JSON and safetensors."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanomed.errors import UserError


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON ({e})") from e


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file") from e
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: truncated, corrupt or not safetensors ({e})") from e


def write_json(value, path: Path) -> None:
    write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    _replace(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def write_safetensors(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    _replace(path, lambda tmp: save_file(state, tmp, metadata={"format": "pt"} | (metadata or {})))


def _replace(path: Path, write) -> None:
    """Write beside `path`, force it to the disk, then rename over it: a reader sees the old file or the new one, and
    a full disk or a lost power supply costs the new one only."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        write(tmp)
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
        sync_directory(path.parent)
    except (OSError, SafetensorError) as e:
        tmp.unlink(missing_ok=True)
        raise UserError(f"{path}: could not be written ({e})") from e


def sync_directory(directory: Path) -> None:
    """Force a directory's entries to the disk: without it, a lost power supply can undo a rename."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
