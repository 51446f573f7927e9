"""The training loop, to be read from top to bottom.

It knows nothing of phases: `data` deals out the micro-batches of each update, `loss_fn(model, batch)` gives the summed
loss and the number of supervised tokens of one, `evaluate()` measures the model on held-out documents.
"""

import json
import math
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from nanomed import checkpoint
from nanomed.errors import Interrupted, UserError, is_out_of_memory
from nanomed.loss import IGNORE
from nanomed.precision import autocast

SMALLEST_SCALE = 2.0**-14  # of fp16's losses; they start at 2^16, and each overflow halves the scale


@dataclass
class Settings:
    """What fit() needs to know, with its defaults. Updates are optimiser steps; schedules count nothing else."""

    lr: float  # peak learning rate
    epochs: float = 1.0  # passes over the data, unless max_steps is set
    max_steps: int = 0  # updates; 0 means as many as `epochs` take
    warmup_ratio: float = 0.05  # share of the updates in which the rate rises from 0 to its peak
    weight_decay: float = 0.1  # on matrices and embeddings only
    grad_clip: float = 1.0  # largest norm of the whole gradient; 0 leaves it as it is
    eval_every: int = 0  # updates between validations; 0 means once an epoch
    save_every: int = 200  # updates between checkpoints; 0 means only at the end
    log_every: int = 10
    patience: int = 0  # validations without improvement before stopping; 0 never stops early
    dtype: str = "fp32"


def total_steps(data, s: Settings) -> int:
    return s.max_steps or max(1, math.ceil(s.epochs * data.windows_per_epoch))


def learning_rate(step: int, steps: int, s: Settings) -> float:
    """Linear warm-up, then half a cosine towards 0 (Loshchilov & Hutter 2017, without restarts), for update `step` of
    0..steps-1. Neither the first update nor the last has a rate of 0, which would waste it."""
    warmup = math.ceil(s.warmup_ratio * steps)
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


def fit(model, data, loss_fn, evaluate, s: Settings, out: Path, resume: bool = False) -> dict:
    """Train the parameters that require a gradient, in place; returns a summary as a dict.

    evaluate: a function giving {"loss", "ppl"} on held-out data, or None. Appends to out/metrics.jsonl, one object a
    logged update, and keeps the newest checkpoint in out/state/. With `patience`, the weights of the best validation
    are put back at the end; otherwise the last ones stay.
    Raises UserError for a non-finite loss or gradient and when memory runs out, Interrupted after Ctrl-C or SIGTERM.
    """
    device = next(model.parameters()).device
    steps = total_steps(data, s)
    eval_every = s.eval_every or data.windows_per_epoch
    optimizer = make_optimizer(model, s)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(device.type, enabled=s.dtype == "fp16")  # fp16 alone loses small gradients
    # What the run has done so far. `consumed` counts windows of data; it runs ahead of `step` when fp16 skips one.
    progress = {"step": 0, "consumed": 0, "tokens": 0, "seconds": 0.0, "bad_evals": 0}
    progress["since_log"] = {"loss": 0.0, "tokens": 0, "seconds": 0.0}  # since the last line of metrics.jsonl
    progress |= {"first_val": None, "best_val": None, "last_val": None, "stopped_early": False}
    saved = checkpoint.latest(out) if resume else None
    if saved:
        progress = checkpoint.load(saved, model, optimizer, scaler)
    metrics = _open_metrics(out / "metrics.jsonl", progress["step"])

    def validate() -> dict:
        val = evaluate()
        progress["last_val"] = {"step": progress["step"], "loss": val["loss"], "ppl": val["ppl"]}
        progress["first_val"] = progress["first_val"] or progress["last_val"]
        if progress["best_val"] is None or val["loss"] < progress["best_val"]["loss"]:
            progress["best_val"], progress["bad_evals"] = progress["last_val"], 0
            if s.patience:
                checkpoint.save_best(out, model)
        else:
            progress["bad_evals"] += 1
        return {"val_loss": val["loss"], "val_ppl": val["ppl"]}

    interrupted = []
    handlers = {sig: signal.signal(sig, _on_signal(interrupted)) for sig in (signal.SIGINT, signal.SIGTERM)}
    model.train()
    bar = tqdm(total=steps, initial=progress["step"], desc="training", unit=" updates", dynamic_ncols=True,
               mininterval=0.5 if sys.stderr.isatty() else 30)  # a log file gets a line now and then  # fmt: skip
    try:
        if evaluate and progress["step"] == 0:
            metrics({"step": 0, "tokens": 0, **validate()})
        while progress["step"] < steps and not progress["stopped_early"]:
            if interrupted:
                saved = checkpoint.save(out, progress, model, optimizer, scaler)
                raise Interrupted(interrupted[0], f"stopped after update {progress['step']} of {steps}; saved in {saved}; "
                                                  "the same command with --resume goes on from there")  # fmt: skip
            start = time.perf_counter()
            lr = learning_rate(progress["step"], steps, s)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # One update. Its tokens are counted before the first backward, so that every micro-batch is divided by the
            # same number and the gradient is that of the mean over all of them, however they are dealt out.
            window = data.window(progress["consumed"])
            count = sum(int((batch[-1] != IGNORE).sum()) for batch in window)
            losses = []
            for batch in window:
                batch = [t.to(device, non_blocking=True) for t in batch]
                with autocast(device, s.dtype):
                    nll, _ = loss_fn(model, batch)
                scaler.scale(nll / count).backward()
                losses.append(nll.detach())
            scaler.unscale_(optimizer)
            grad_norm = torch.nn.utils.clip_grad_norm_(params, s.grad_clip or math.inf).item()
            losses = torch.stack(losses).tolist()
            _check_finite(losses, grad_norm, progress, s)
            scale = scaler.get_scale()
            scaler.step(optimizer)  # does nothing if fp16 overflowed
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            progress["consumed"] += 1
            progress["seconds"] += time.perf_counter() - start
            if scaler.get_scale() < scale:  # overflowed: the next window at a smaller scale, at the same learning rate
                if scaler.get_scale() < SMALLEST_SCALE:
                    raise UserError(f"no gradient is finite in fp16 at update {progress['step'] + 1}, however small its "
                                    "scale; try --dtype bf16 or fp32; the last checkpoint stays")  # fmt: skip
                continue

            progress["step"] += 1
            progress["tokens"] += count
            step = progress["step"]
            logged = progress["since_log"]
            logged["loss"] += sum(losses)
            logged["tokens"] += count
            logged["seconds"] += time.perf_counter() - start
            loss, speed = logged["loss"] / logged["tokens"], logged["tokens"] / logged["seconds"]
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)

            due = evaluate and (step % eval_every == 0 or step == steps)
            if step % s.log_every == 0 or due or step == steps:
                line = {"step": step, "tokens": progress["tokens"], "loss": loss, "lr": lr, "grad_norm": grad_norm}
                metrics(line | {"tokens_per_s": speed} | (validate() if due else {}))
                progress["train_loss"] = loss
                progress["since_log"] = dict.fromkeys(logged, 0)
                progress["stopped_early"] = bool(due and 0 < s.patience <= progress["bad_evals"])
            done = step == steps or progress["stopped_early"]
            if done or (s.save_every and step % s.save_every == 0):
                saved = checkpoint.save(out, progress, model, optimizer, scaler)
    except (RuntimeError, MemoryError) as e:
        if is_out_of_memory(e):
            kept = f"the checkpoint of update {int(saved.stem[5:])} stays" if saved else "no checkpoint was due yet"
            raise UserError(f"out of memory at update {progress['step'] + 1}: lower --batch-size (and raise --grad-accum "
                            f"by as much) or --context, or add --grad-checkpoint; {kept}") from e  # fmt: skip
        raise
    finally:
        bar.close()
        for sig, handler in handlers.items():
            signal.signal(sig, handler)
    if s.patience and evaluate:
        checkpoint.load_best(out, model)
    del progress["since_log"]
    return progress | {"steps": steps, "tokens_per_s": progress["tokens"] / progress["seconds"]}


def _check_finite(losses: list[float], grad_norm: float, progress: dict, s: Settings) -> None:
    where = f"at update {progress['step'] + 1} (window {progress['consumed'] + 1} of the data"
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} {where}, micro-batch {i + 1}); lower --lr, or try --dtype bf16 or fp32; "
                            "the last checkpoint stays")  # fmt: skip
    if not math.isfinite(grad_norm) and s.dtype != "fp16":  # fp16's scaler skips such a step and lowers its scale
        raise UserError(f"the gradient's norm is {grad_norm} {where}); lower --lr; the last checkpoint stays")


def _on_signal(interrupted: list):
    def handler(signum, frame):
        if interrupted:  # the second time does not wait
            raise Interrupted(signum, "stopped at once; the last checkpoint stays")
        interrupted.append(signum)
        tqdm.write("stopping after this update (again: at once, without saving)")

    return handler


def _open_metrics(path: Path, step: int):
    """A function that appends one JSON object a line; lines after `step`, from a run that was killed, are dropped."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() and step else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept))

    def append(record: dict) -> None:
        with open(path, "a") as f:
            f.write(json.dumps(record) + "\n")

    return append
