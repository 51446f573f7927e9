"""What a run has done so far, and how it tells of it: the counts, metrics.jsonl, the bar, and signals."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from nanomed.errors import RUN_BY, STOPS, Interrupted, UserError
from nanomed.files import finite, no_pipe, parse_json, typed, write_text
from nanomed.limits import Whole
from nanomed.streams import in_notebook, progress_bar
from nanomed.training import distributed
from nanomed.training.curves import Record

LONG = {"ppl": "perplexity"}  # of a measure's name, for people
SAME_SIGNAL = 2.0  # seconds within which two of several processes' signals are one


@dataclass
class Sums:
    """Over the updates since the last line of metrics.jsonl."""

    loss: float
    tokens: Whole
    seconds: float
    parts: dict[str, tuple[float, int]]  # {name: (summed loss, tokens)} of what loss_fn tells apart

    @classmethod
    def none(cls) -> "Sums":
        return cls(0.0, 0, 0.0, {})


@dataclass
class Measured:
    """What a validation holds, besides other measures."""

    loss: float
    step: Whole = 0


@dataclass
class Progress:
    """What the loop counts in, and what a checkpoint keeps, as JSON under these names."""

    step: Whole  # updates
    consumed: Whole  # windows of the data: more than updates where fp16 has skipped some
    tokens: Whole  # that were supervised
    seconds: float
    bad_evals: Whole  # validations since the best one
    since_log: Sums
    first_val: dict | None  # {"step", "loss", ...}
    best_val: dict | None
    last_val: dict | None
    stopped_early: bool
    train_loss: float = 0.0  # of the last line of metrics.jsonl

    @classmethod
    def new(cls) -> "Progress":
        return cls(0, 0, 0, 0.0, 0, Sums.none(), None, None, None, False)

    @classmethod
    def read(cls, record, where) -> "Progress":
        """From the JSON of a checkpoint, the file `where`. Raises UserError for anything else."""
        progress = typed(cls, record, where)
        for name in ("first_val", "best_val", "last_val"):
            if record[name] is not None:
                typed(Measured, record[name], f"{where}: {name}")
        return progress

    def count(self, done, seconds: float) -> None:
        """One more window of the data and, unless fp16 overflowed in it, one more update. done: what it did
        (nanomed.training.loop.Update)."""
        self.consumed += 1
        self.seconds += seconds
        if not done.stepped:
            return
        self.step += 1
        self.tokens += done.count
        since = self.since_log
        since.loss += sum(done.losses)
        since.tokens += done.count
        since.seconds += seconds
        for name, (loss, n) in done.parts.items():
            before = since.parts.get(name, (0.0, 0))
            since.parts[name] = (before[0] + loss, before[1] + n)

    def speed(self, unit: str) -> str:
        since = self.since_log
        return f"loss {since.loss / since.tokens:.3f}, {since.tokens / since.seconds:,.0f} {unit}/s"

    def line(self, lr: float, done) -> dict:
        """What metrics.jsonl is to say of the updates since its last line."""
        since, self.since_log = self.since_log, Sums.none()
        self.train_loss = since.loss / since.tokens
        line = {"step": self.step, "tokens": self.tokens, "loss": self.train_loss, "lr": lr}
        line["grad_norm"] = done.grad_norm
        if done.penalty is not None:
            line["penalty"] = done.penalty
        line |= {f"{name}_loss": loss / n for name, (loss, n) in since.parts.items() if n}
        return line | {"tokens_per_s": since.tokens / since.seconds}

    def validated(self, sets: dict) -> dict:
        """Take note of {name: {"loss", ...}} of the held-out sets, of which the first decides what is best;
        returns what metrics.jsonl is to say of them."""
        first = next(iter(sets.values()))
        named = sets if len(sets) > 1 or "validation" not in sets else {}
        self.last_val = {"step": self.step, **first} | ({"sets": named} if named else {})
        self.first_val = self.first_val or self.last_val
        self.bad_evals += 1
        if self.best_val is None or first["loss"] < self.best_val["loss"]:
            self.best_val, self.bad_evals = self.last_val, 0
        said = "; ".join(f"{name} {_in_words(val)}" for name, val in sets.items())
        tqdm.write(f"after update {self.step:,}: {said}")
        return {f"val_{k}": v for k, v in first.items()} | ({"val": named} if named else {})

    def summary(self, steps: int) -> dict:
        record = asdict(self)
        del record["since_log"]
        return record | {"steps": steps, "tokens_per_s": self.tokens / self.seconds}


def _in_words(val: dict) -> str:
    """`loss 3.21, perplexity 24.8`"""
    more = [f", {LONG.get(k, k)} {v:.4g}" for k, v in val.items() if k != "loss"]
    return f"loss {val['loss']:.4f}" + "".join(more)


class Metrics:
    """metrics.jsonl: one JSON object a logged update. Of several processes the first alone writes."""

    def __init__(self, path: Path, progress: Progress):
        """Lines after `progress`, from a run that was killed, are dropped."""
        self.path, lines, stay = path, [], []
        if path.exists() and (progress.consumed or progress.first_val):
            lines = no_pipe(path).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for k, line in enumerate(lines, 1):
            where = f"{path}, line {k}"
            if line.endswith("\n") and typed(Record, parse_json(line, where), where).step <= progress.step:
                stay.append(line)
        if distributed.rank() == 0:
            write_text("".join(stay), path)

    def write(self, record: dict) -> None:
        if distributed.rank():
            return
        try:
            with open(self.path, "a") as f:
                f.write(json.dumps(finite(record), allow_nan=False) + "\n")
        except OSError as e:
            raise UserError(f"{self.path}: could not be written ({e.strerror})") from e


def make_bar(done: int, steps: int):
    """Of updates, on stderr; a log file gets a line now and then."""
    how = {"total": steps, "initial": done, "desc": "training", "leave": True, "delay": 0}
    if not in_notebook():
        form = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        how |= {"disable": False, "dynamic_ncols": True, "bar_format": form}
        how["mininterval"] = 0.5 if sys.stderr.isatty() else 30
    return progress_bar(**how)


@contextmanager
def stopping():
    """Ctrl-C, SIGTERM and a hang-up wait for the end of an update: gives a function that says which of them
    came, to this process or another, or 0. A second one raises Interrupted at once."""
    came = []  # (signal, when)

    def handler(signum, frame):
        # The shell and the system may both send a hang-up; torchrun, and a program that runs the scripts,
        # pass on what the terminal sent to all.
        hang_up = signum == getattr(signal, "SIGHUP", None)
        twice = distributed.world() > 1 or RUN_BY in os.environ
        passed_on = twice and came and time.monotonic() - came[0][1] < SAME_SIGNAL
        if came and not (hang_up or passed_on):
            raise Interrupted(signum, "stopped at once")
        if not came:
            came.append((signum, time.monotonic()))
            tqdm.write("stopping after this update (again: at once, without saving)")

    main = threading.current_thread() is threading.main_thread()  # which alone hears of signals
    before = {sig: signal.signal(sig, handler) for sig in STOPS} if main else {}
    try:
        yield lambda: distributed.most(came[0][0] if came else 0)  # all stop after the same update
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler or signal.SIG_DFL)  # None: of no Python program (an embedding one)
