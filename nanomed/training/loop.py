"""The training loop, to be read from top to bottom.

It knows nothing of phases: `data` deals out the micro-batches of each update (nanomed.text.batch), `loss_fn(model,
batch)` gives the summed loss of one and of its parts, `evaluate()` measures the model on held-out data.
"""

import json
import math
import signal
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from tqdm import tqdm

from nanomed.errors import STOPS, Interrupted, UserError, is_out_of_memory
from nanomed.files import finite, parse_json, typed, write_text
from nanomed.precision import autocast
from nanomed.training import checkpoint, distributed
from nanomed.training.settings import Settings

LONG = {"ppl": "perplexity"}  # of a measure's name, for people
SAME_SIGNAL = 2.0  # seconds within which two of several processes' signals are one
SMALLEST_SCALE = 2.0**-14  # of fp16's losses; they start at 2^16, and each overflow halves the scale


def total_steps(data, s: Settings) -> int:
    return s.max_steps or max(1, _ceil(s.epochs, data.windows_per_epoch))


def _ceil(share: float, whole: int) -> int:
    """share x whole, rounded up, of the share as it is written: in floats, 0.07 x 100 is a little more than
    7."""
    return math.ceil(Fraction(str(share)) * whole)


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


def one_update(model, window: list, loss_fn, optimizer, scaler, s: Settings, anchor=None) -> dict:
    """Gradients of all micro-batches of `window`, and of what `anchor` adds to the loss, clipped, and one
    step of the optimizer.

    The supervised tokens are counted before the first backward, so that every micro-batch is divided by the
    same number and the gradient is that of the mean over all of them, however they are dealt out: to
    micro-batches, and to processes (nanomed.training.distributed), of which each takes some rows of every
    micro-batch. Returns losses: the summed loss of each micro-batch; count: supervised tokens; grad_norm:
    before clipping; stepped: False if fp16 overflowed; parts: {name: (summed loss, tokens)} if loss_fn tells
    the window's parts apart; penalty: the anchor's, or None."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    device = params[0].device
    count = sum(batch.supervised for batch in window)
    losses, parts = [], {}
    for batch in window:
        with autocast(device, s.dtype):
            nll, named = loss_fn(model, distributed.share(batch))
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
    parts = {
        name: (float(distributed.total(part)), distributed.total(n)) for name, (part, n) in parts.items()
    }
    return {
        "losses": losses,
        "count": count,
        "grad_norm": grad_norm,
        "stepped": stepped,
        "parts": parts,
        "penalty": penalty,
    }


def fit(
    model,
    data,
    loss_fn,
    evaluate,
    s: Settings,
    out: Path,
    resume: bool = False,
    unit="tokens",
    sample=None,
    anchor=None,
) -> dict:
    """Train the parameters that require a gradient, in place; returns a summary as a dict.

    evaluate: a function giving {name: {"loss", ...}} of each held-out set, the first of which decides what is
    best, or None; sample: a function giving a text that the model writes, shown and logged at each
    validation, or None; unit: what loss_fn counts; anchor: an Anchor (nanomed.training.anchor), or None.
    Appends to out/metrics.jsonl, one object a logged update, and keeps the newest checkpoint in out/state/.
    Raises UserError for a non-finite loss or gradient and when memory runs out, Interrupted after Ctrl-C,
    SIGTERM or a hang-up."""
    device = next(model.parameters()).device
    steps = total_steps(data, s)
    eval_every = s.eval_every or data.windows_per_epoch
    optimizer = make_optimizer(model, s)
    scaler = torch.amp.GradScaler(device.type, enabled=s.dtype == "fp16")  # fp16 alone loses small gradients
    # What the run has done so far. `consumed` counts windows of data; it runs ahead of `step` when fp16 skips
    # one.
    progress = {"step": 0, "consumed": 0, "tokens": 0, "seconds": 0.0, "bad_evals": 0}
    progress["since_log"] = _nothing()  # since the last line of metrics.jsonl
    progress |= {"first_val": None, "best_val": None, "last_val": None, "stopped_early": False}
    saved = checkpoint.latest(out) if resume else None
    if saved:
        progress = checkpoint.load(saved, model, optimizer, scaler)
        if progress["step"] > steps:
            raise UserError(f"{saved}: is of update {progress['step']}, and the run has {steps}")

    def kept() -> str:
        return (
            f"the checkpoint of update {int(saved.stem[5:])} stays" if saved else "no checkpoint was due yet"
        )

    metrics = _open_metrics(out / "metrics.jsonl", progress["step"] if saved else -1, kept)

    def validate() -> dict:
        sets = distributed.of_first(evaluate())
        first = next(iter(sets.values()))
        named = sets if len(sets) > 1 or "validation" not in sets else {}
        progress["last_val"] = {"step": progress["step"], **first} | ({"sets": named} if named else {})
        progress["first_val"] = progress["first_val"] or progress["last_val"]
        if progress["best_val"] is None or first["loss"] < progress["best_val"]["loss"]:
            progress["best_val"], progress["bad_evals"] = progress["last_val"], 0
            if s.keep == "best":
                checkpoint.save_best(out, model, progress["step"])
        else:
            progress["bad_evals"] += 1
        line = {f"val_{k}": v for k, v in first.items()} | ({"val": named} if named else {})
        tqdm.write(f"after update {progress['step']:,}: " + "; ".join(map(_describe, sets, sets.values())))
        if sample:
            line["sample"] = sample()
            tqdm.write(line["sample"])
        return line

    interrupted = []
    handlers = {sig: signal.signal(sig, _on_signal(interrupted, kept)) for sig in STOPS}
    model.train()
    bar = tqdm(
        total=steps,
        initial=progress["step"],
        desc="training",
        dynamic_ncols=True,
        bar_format=(
            "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        ),
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )  # a log file gets a line now and then
    try:
        if evaluate and progress["first_val"] is None:
            metrics({"step": 0, "tokens": 0, **validate()})
        while progress["step"] < steps and not progress["stopped_early"]:
            if stop := distributed.most(
                interrupted[0] if interrupted else 0
            ):  # all of them after the same update
                saved = checkpoint.save(out, progress, model, optimizer, scaler)
                raise Interrupted(
                    stop,
                    f"stopped after update {progress['step']} of {steps}; saved in {saved}; "
                    "the same command with --resume goes on from there",
                )
            start = time.perf_counter()
            lr = learning_rate(progress["step"], steps, s)
            for group in optimizer.param_groups:
                group["lr"] = lr
            done = one_update(model, data.window(progress["consumed"]), loss_fn, optimizer, scaler, s, anchor)
            _check_finite(done, progress, s, kept)
            progress["consumed"] += 1
            progress["seconds"] += time.perf_counter() - start
            if not done[
                "stepped"
            ]:  # fp16 overflowed: the next window at a smaller scale, at the same learning rate
                if scaler.get_scale() < SMALLEST_SCALE:
                    raise UserError(
                        f"no gradient is finite in fp16 at update {progress['step'] + 1}, however small its "
                        f"scale; try --dtype bf16 or fp32; {kept()}"
                    )
                continue

            progress["step"] += 1
            progress["tokens"] += done["count"]
            step = progress["step"]
            logged = progress["since_log"]
            logged["loss"] += sum(done["losses"])
            logged["tokens"] += done["count"]
            logged["seconds"] += time.perf_counter() - start
            for name, (part, n) in done["parts"].items():
                before = logged["parts"].get(name, (0.0, 0))
                logged["parts"][name] = (before[0] + part, before[1] + n)
            loss, speed = logged["loss"] / logged["tokens"], logged["tokens"] / logged["seconds"]
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} {unit}/s", refresh=False)

            due = evaluate and (step % eval_every == 0 or step == steps)
            if step % s.log_every == 0 or due or step == steps:
                line = {
                    "step": step,
                    "tokens": progress["tokens"],
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": done["grad_norm"],
                }
                line |= {"penalty": done["penalty"]} if anchor else {}
                line |= {f"{name}_loss": part / n for name, (part, n) in logged["parts"].items() if n}
                metrics(line | {"tokens_per_s": speed} | (validate() if due else {}))
                progress["train_loss"] = loss
                progress["since_log"] = _nothing()
                progress["stopped_early"] = bool(due and 0 < s.patience <= progress["bad_evals"])
            ended = step == steps or progress["stopped_early"]
            if ended or (s.save_every and step % s.save_every == 0):
                saved = checkpoint.save(out, progress, model, optimizer, scaler)
    except (RuntimeError, MemoryError) as e:
        if is_out_of_memory(e):
            raise UserError(
                f"out of memory at update {progress['step'] + 1}: lower --batch-size (and raise --grad-accum "
                f"by as much) or --context, or add --grad-checkpoint; {kept()}"
            ) from e
        raise
    finally:
        bar.close()
        for sig, handler in handlers.items():
            signal.signal(sig, handler)
    if s.keep == "best":
        checkpoint.load_best(out, model, progress["best_val"]["step"])
    del progress["since_log"]
    return progress | {"steps": steps, "tokens_per_s": progress["tokens"] / progress["seconds"]}


def _nothing() -> dict:
    return {"loss": 0.0, "tokens": 0, "seconds": 0.0, "parts": {}}


def _describe(name: str, val: dict) -> str:
    """`validation loss 3.21, perplexity 24.8` of one held-out set."""
    return f"{name} loss {val['loss']:.4f}" + "".join(
        f", {LONG.get(k, k)} {v:.4g}" for k, v in val.items() if k != "loss"
    )


def _check_finite(done: dict, progress: dict, s: Settings, kept) -> None:
    where = f"at update {progress['step'] + 1} (window {progress['consumed'] + 1} of the data"
    for i, loss in enumerate(done["losses"]):
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} {where}, micro-batch {i + 1}); lower --lr, or try --dtype bf16 or fp32;"
                f" {kept()}"
            )
    if not math.isfinite(done["penalty"] or 0.0):
        raise UserError(
            f"what --l2-sp or --ewc adds to the loss is {done['penalty']} {where}); lower it; {kept()}"
        )
    if (
        not math.isfinite(done["grad_norm"]) and s.dtype != "fp16"
    ):  # fp16's scaler skips such a step and lowers its scale
        raise UserError(f"the gradient's norm is {done['grad_norm']} {where}); lower --lr; {kept()}")


def _on_signal(interrupted: list, kept):
    since = [0.0]

    def handler(signum, frame):
        # The shell and the system may both send a hang-up; and torchrun passes on what the terminal has sent
        # to all.
        twice = signum == getattr(signal, "SIGHUP", None) or (
            distributed.world() > 1 and time.monotonic() - since[0] < SAME_SIGNAL
        )
        if interrupted and twice:
            return
        if interrupted:  # the second time does not wait
            raise Interrupted(signum, f"stopped at once; {kept()}")
        since[0] = time.monotonic()  # first: another may come at once
        interrupted.append(signum)
        tqdm.write("stopping after this update (again: at once, without saving)")

    return handler


@dataclass
class Line:
    """Of metrics.jsonl."""

    step: int


def _open_metrics(path: Path, step: int, kept):
    """A function that appends one JSON object a line; lines after `step`, from a run that was killed, are
    dropped (all of them if `step` is -1: nothing was saved). Of several processes the first alone writes."""
    if distributed.rank():
        return lambda record: None
    lines = (
        path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        if path.exists() and step >= 0
        else []
    )
    stay = [
        line
        for k, line in enumerate(lines, 1)
        if line.endswith("\n")
        and typed(Line, parse_json(line, where := f"{path}, line {k}"), where).step <= step
    ]
    write_text("".join(stay), path)

    def append(record: dict) -> None:
        try:
            with open(path, "a") as f:
                f.write(json.dumps(finite(record), allow_nan=False) + "\n")
        except OSError as e:
            raise UserError(f"{path}: could not be written ({e.strerror}); {kept()}") from e

    return append
