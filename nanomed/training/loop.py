"""The training loop, to be read from top to bottom.

It knows nothing of phases: `data` deals out the micro-batches of each update (nanomed.text.batch),
`loss_fn(model, batch)` gives the summed loss of one and of its parts, `validate()` measures the model on
held-out data."""

import math
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from nanomed.errors import Interrupted, UserError
from nanomed.precision import autocast
from nanomed.training import checkpoint, distributed
from nanomed.training.failures import check_finite, explained
from nanomed.training.progress import Metrics, Progress, make_bar, stopping
from nanomed.training.settings import Settings


def total_steps(data, s: Settings) -> int:
    return s.max_steps or max(1, _ceil(s.epochs, data.windows_per_epoch))


def _ceil(factor: float, n: int) -> int:
    """factor x n, rounded up, of the factor as it is written: in floats, 0.07 x 100 is more than 7."""
    return math.ceil(Fraction(str(factor)) * n)


def learning_rate(step: int, steps: int, s: Settings) -> float:
    """Linear warm-up, then half a cosine towards 0 (Loshchilov & Hutter 2017, without restarts), for update
    `step` of 0..steps-1. Neither the first update nor the last has a rate of 0, which would waste it."""
    warmup = _ceil(s.warmup_ratio, steps)
    if step < warmup:
        return s.lr * (step + 1) / warmup
    return s.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model, s: Settings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases and layer norms, of one dimension, are not decayed."""
    params = list(checkpoint.trainable(model).values())
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": s.weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=s.lr, betas=(0.9, 0.95), fused=True)


def make_scaler(model, s: Settings) -> torch.amp.GradScaler:
    """For fp16 alone, whose small gradients would be lost; else it is off, and scales by 1."""
    return torch.amp.GradScaler(next(model.parameters()).device.type, enabled=s.dtype == "fp16")


@dataclass(frozen=True)
class Update:
    """What one_update did."""

    losses: list[float]  # the summed loss of each micro-batch
    count: int  # targets of all of them: tokens; in phase 3, texts or decisions
    grad_norm: float  # before clipping
    stepped: bool  # False if fp16 overflowed
    parts: dict[str, tuple[float, int]]  # {name: (summed loss, tokens)} of what loss_fn tells apart
    penalty: float | None  # what the anchor added to the loss


def one_update(model, window: list, loss_fn, optimizer, scaler, s: Settings, anchor=None) -> Update:
    """Gradients of all micro-batches of `window`, and of what `anchor` adds to the loss, clipped, and one
    step of the optimizer.

    The supervised tokens are counted before the first backward, so that every micro-batch is divided by the
    same number and the gradient is that of the mean over all of them, however they are dealt out: to
    micro-batches, and to processes (nanomed.training.distributed), of which each takes some rows of every
    micro-batch."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    device = params[0].device
    count = sum(batch.supervised for batch in window)
    losses, parts = [], {}
    for batch in window:
        with autocast(device, s.dtype):
            nll, named = loss_fn(model, distributed.own_rows(batch))
        scaler.scale(nll / count).backward()
        losses.append(nll.detach())
        for name, (part, n) in named.items():
            before = parts.get(name, (0.0, 0))
            parts[name] = (before[0] + part, before[1] + n)
    scaler.unscale_(optimizer)
    penalty = anchor.pull().item() if anchor else None
    grad_norm = torch.nn.utils.clip_grad_norm_(params, s.grad_clip or math.inf).item()
    losses = distributed.total(torch.stack(losses)).tolist()
    sound = all(map(math.isfinite, losses)) and (math.isfinite(grad_norm) or scaler.is_enabled())
    scale = scaler.get_scale()
    if sound:
        scaler.step(optimizer)  # does nothing if fp16 overflowed
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    stepped = sound and scaler.get_scale() >= scale
    parts = {k: (float(distributed.total(loss)), distributed.total(n)) for k, (loss, n) in parts.items()}
    return Update(losses, count, grad_norm, stepped, parts, penalty)


def fit(model, data, loss_fn, s: Settings, out: Path, validate=None, anchor=None) -> dict:
    """Train the parameters that require a gradient, in place; returns a summary as a dict.

    Goes on from the newest checkpoint in out/state, if there is one, and keeps its own there; appends to
    out/metrics.jsonl. validate() returns (sets, sample): {name: {"loss", ...}} of each held-out set, of
    which the first decides what is best; and a text that the model wrote, or None. anchor: an Anchor, or
    None. Raises UserError for a non-finite loss or gradient and when memory runs out, Interrupted after
    Ctrl-C, SIGTERM or a hang-up."""
    steps, eval_every = total_steps(data, s), s.eval_every or data.windows_per_epoch
    optimizer, scaler = make_optimizer(model, s), make_scaler(model, s)
    progress = checkpoint.restore(out, model, optimizer, scaler)
    if progress.step > steps:
        raise UserError(f"{out}: its checkpoint is of update {progress.step}, and the run has {steps}")
    metrics = Metrics(out / "metrics.jsonl", progress)
    save = partial(checkpoint.save, out, progress, model, optimizer, scaler)
    measure = partial(_measure, validate, progress, model, s, out)
    model.train()
    with stopping() as stopped_by, explained(progress, out), make_bar(progress.step, steps) as bar:
        if validate and not progress.first_val:
            metrics.write({"step": 0, "tokens": 0, **measure()})
        while progress.step < steps and not progress.stopped_early:
            if signum := stopped_by():
                save()
                raise Interrupted(signum, f"stopped after update {progress.step} of {steps}")
            start = time.perf_counter()
            lr = learning_rate(progress.step, steps, s)
            for group in optimizer.param_groups:
                group["lr"] = lr
            done = one_update(model, data.window(progress.consumed), loss_fn, optimizer, scaler, s, anchor)
            check_finite(done, progress, scaler, s)
            progress.count(done, time.perf_counter() - start)
            if not done.stepped:  # fp16 overflowed: the next window, at a smaller scale and the same rate
                continue
            bar.update()
            bar.set_postfix_str(progress.speed(data.unit), refresh=False)

            is_last = progress.step == steps
            due = validate and (is_last or progress.step % eval_every == 0)
            if due or is_last or progress.step % s.log_every == 0:
                metrics.write(progress.line(lr, done) | (measure() if due else {}))
            progress.stopped_early = bool(due) and 0 < s.patience <= progress.bad_evals
            is_last = is_last or progress.stopped_early
            if is_last or (s.save_every and progress.step % s.save_every == 0):
                save()
    if s.keep == "best":
        checkpoint.load_best(out, model, progress.best_val["step"])
    return progress.summary(steps)


def _measure(validate, progress: Progress, model, s: Settings, out: Path) -> dict:
    """Validate, and keep the weights if they are the best; returns what metrics.jsonl is to say of it."""
    sets, sample = validate()
    line = progress.validated(distributed.of_first(sets))
    if s.keep == "best" and progress.bad_evals == 0:
        checkpoint.save_best(out, model, progress.step)
    if not sample:
        return line
    tqdm.write(sample)
    return line | {"sample": sample}
