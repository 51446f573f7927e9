"""The state of a run: all that the next update depends on, in one safetensors file that is whole or not there.

Saved are the trainable weights, the optimizer's moments, the gradient scaler, the random generators, and the progress (a
dict of numbers: updates, windows of data consumed, tokens, ...). The data need no state: their order is a function of the
seed and the number of windows consumed.
"""

import contextlib
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from nanomed.errors import UserError
from nanomed.files import read_safetensors, write_safetensors
from nanomed.training.distributed import is_first, part_like, whole

NAMES = ("step-*.safetensors", "best-*.safetensors", ".nanomed-*")  # of all that stands in state/


def save(out: Path, progress: dict, model, optimizer, scaler) -> Path:
    """Write state/step-N.safetensors, then remove the older ones. Raises UserError, older state intact, if it cannot."""
    state = {"model." + k: whole(p.detach()).cpu() for k, p in trainable(model).items()}
    names = list(trainable(model))
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{names[index]}.{k}": whole(v).cpu() for k, v in moments.items()}
    state["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state["rng.cuda"] = torch.cuda.get_rng_state()
    path = out / "state" / f"step-{progress['step']:08d}.safetensors"
    if not is_first():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"progress": json.dumps(progress), "scaler": json.dumps(scaler.state_dict())}
    write_safetensors({k: v.contiguous() for k, v in state.items()}, path, metadata)
    # Only now are the older ones of no use: until then, a kill would lead back to them.
    best = progress.get("best_val") and _best(out, progress["best_val"]["step"])
    for old in [*sorted(path.parent.glob("step-*.safetensors"))[:-1], *path.parent.glob("best-*.safetensors")]:
        if old != best:
            old.unlink()
    return path


def latest(out: Path) -> Path | None:
    return max((out / "state").glob("step-*.safetensors"), default=None)


def remove(out: Path) -> None:
    """Of a complete run, whose state nobody will ask for: it is three times the size of what was trained."""
    for name in NAMES:
        for path in (out / "state").glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):  # not there, or there is more in it than ours
        (out / "state").rmdir()


def load(path: Path, model, optimizer, scaler) -> dict:
    """Put a saved state back, in place; returns its progress. Raises UserError if it is of another model."""
    state = read_safetensors(path)
    params = trainable(model)
    if {"model." + k for k in params} != {k for k in state if k.startswith("model.")}:
        raise UserError(f"{path}: the saved state is of another model, or of other LoRA settings")
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(part_like(state["model." + name], p))
    moments = {}
    for index, name in enumerate(params):
        prefix = f"optimizer.{name}."
        named = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        moments[index] = {k: part_like(v, params[name]) if v.shape == params[name].shape else v for k, v in named.items()}
    moments = {i: m for i, m in moments.items() if m}
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(state["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in state:
        torch.cuda.set_rng_state(state["rng.cuda"])
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    scaler.load_state_dict(json.loads(metadata["scaler"]))
    return json.loads(metadata["progress"])


def _best(out: Path, step: int) -> Path:
    return out / "state" / f"best-{step:08d}.safetensors"


def save_best(out: Path, model, step: int) -> None:
    """Beside the one before, which a resumed run may have to come back to."""
    state = {k: whole(p.detach()).contiguous() for k, p in trainable(model).items()}
    if is_first():
        (out / "state").mkdir(parents=True, exist_ok=True)
        write_safetensors(state, _best(out, step))


def load_best(out: Path, model, step: int) -> None:
    state = read_safetensors(_best(out, step))
    with torch.no_grad():
        for name, p in trainable(model).items():
            p.copy_(part_like(state[name], p))


def trainable(model) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name, in the order in which the optimizer holds them: matrices first."""
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    return dict(sorted(params.items(), key=lambda item: item[1].dim() < 2))
