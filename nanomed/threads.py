"""Several processes or one; how many threads, and how they wait: said to the OpenMP library, which reads it
once, when PyTorch is loaded."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SPIN = 2000  # turns of an empty loop, some microseconds
# Of a token that is written, the products lie some 100 microseconds apart.
WRITING_SPIN = 10_000


def of_torchrun() -> bool:
    """Whether torchrun started this process, beside others; one of its variables alone may be left over in a
    shell."""
    return {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def share_cores(writes: bool = False) -> None:
    """Call it before PyTorch is loaded; writes: this process writes for someone who waits. What the user has
    set in the environment stays.

    Threads: PyTorch counts the cores of the machine; in a container that may use two of its 64, 64 threads
    would take turns. Waiting: a thread that is done with its part spins, by default for milliseconds, in
    which another run could have had the core: two runs with a thread a core each fall to a tenth of their
    speed. Asleep at once, it would be woken too late, many thousand times a second. So it spins for a little,
    and sleeps (docs/notebook/speed.md)."""
    if "OMP_NUM_THREADS" not in os.environ and (n := quota()) and n < cores():
        os.environ["OMP_NUM_THREADS"] = str(n)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(WRITING_SPIN if writes else SPIN))


def cores() -> int:
    """Of this machine, those that this process may run on (all, where the system cannot say: macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(cgroups: Path = CGROUPS) -> int | None:
    """Cores' worth of time that this process's control group may use (Linux, version 2 or 1), rounded up;
    None if there is no limit."""
    try:
        used, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            files = (cgroups / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
            used, period = (file.read_text() for file in files)
        except OSError:
            return None
    try:
        return math.ceil(int(used) / int(period)) if int(used) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None
