"""Tensors in safetensors files, read with a clear error and written whole or not at all."""

import contextlib
import json
import math
import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanomed.errors import UserError
from nanomed.files import no_pipe, replace_file

SMALL = 2**17  # bytes: what is less is copied; each mapping holds one of the files that a process may open
MAPPED = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U8": torch.uint8,
    "I8": torch.int8,
}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    return dict(tensors(path))


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) of a safetensors file. A large one is a view of the file, mapped into memory by itself:
    what is not used is never read, and what is dropped takes no memory any more. Raises UserError for a file
    that is none."""
    with _safetensors(path) as f, open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))  # which safetensors has checked
        for key in f.keys():  # noqa: SIM118 (not a dict)
            dtype, (begin, end) = MAPPED.get(header[key]["dtype"]), header[key]["data_offsets"]
            if dtype is None or end - begin < SMALL or (start + begin) % dtype.itemsize:
                yield key, f.get_tensor(key).clone()
                continue
            page = (start + begin) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            there = mmap.mmap(file.fileno(), start + end - page, access=mmap.ACCESS_COPY, offset=page)
            values = torch.frombuffer(there, dtype=dtype, offset=start + begin - page)
            yield key, values.view(header[key]["shape"])


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a file, by their names, none of which is read. Raises UserError as
    tensors() does."""
    with _safetensors(path) as f:
        return {key: tuple(f.get_slice(key).get_shape()) for key in f.keys()}  # noqa: SIM118 (not a dict)


def safetensors_dtypes(path: Path) -> Counter[str]:
    """How many numbers of a file's weights and biases are stored as F32, BF16, F16 and so on. Raises
    UserError as tensors() does."""
    found = Counter()
    with _safetensors(path) as f:
        for key in f.keys():  # noqa: SIM118 (not a dict)
            if key.endswith((".weight", ".bias")):
                stored = f.get_slice(key)
                found[stored.get_dtype()] += math.prod(stored.get_shape())
    return found


@contextlib.contextmanager
def _safetensors(path: Path):
    if no_pipe(path).exists() and not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        with safe_open(path, "pt") as f:
            yield f
    except FileNotFoundError as e:
        raise UserError(f"{path}: {'no permission to read it' if path.exists() else 'no such file'}") from e
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: truncated, corrupt or not safetensors ({e})") from e


def write_safetensors(state: dict[str, torch.Tensor], path: Path, metadata: dict | None = None) -> None:
    """Raises UserError if it could not be written; what was there before is there still."""

    def save(tmp: Path) -> None:
        try:
            save_file(state, tmp, metadata={"format": "pt"} | (metadata or {}))
        except SafetensorError as e:
            raise OSError(str(e)) from e

    replace_file(path, save)
