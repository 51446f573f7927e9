"""The memory of this machine, and of this process: what the C library does with what is freed, and the most
that was held."""

import ctypes
import os
import resource
import sys
from pathlib import Path


def reuse_memory() -> None:
    """Let the C library keep the memory that tensors free, instead of giving it back to the system and taking
    it again, page by page, at every step: on a CPU that was a quarter of a small model's training time. Only
    glibc knows how."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give back only what is free beyond 2 GiB


def peak_rss() -> int:
    """The most memory, in bytes, that this process has held at once. Linux's own count of it, where there is
    one: ru_maxrss begins with the peak of the process that started this one, if that was larger."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    if own:
        return own[0] * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def physical() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def shortage(size: float) -> str | None:
    """What to say of weights of `size` bytes if this machine has no memory for them."""
    if size > physical():
        return f"{in_words(size)} of weights do not fit this machine's {in_words(physical())} of memory"
    return None


def in_words(n: float) -> str:
    return f"{n / 1e9:,.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
