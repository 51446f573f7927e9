"""The state of a run: all that the next update depends on, in one safetensors file that is whole or not
there.

Saved are the trainable weights, the optimizer's moments, the gradient scaler, the random generators, and the
Progress. The data need no state: their order is a function of the seed and the number of windows consumed.
Several processes write one state, which any number of them may go on from."""

import contextlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from safetensors import safe_open

from nanomed.errors import UserError
from nanomed.files import typed
from nanomed.tensors import read_safetensors, write_safetensors
from nanomed.training import distributed
from nanomed.training.progress import Progress

NAMES = ("step-*.safetensors", "best-*.safetensors", ".nanomed-*")  # of all that stands in state/
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's, of each weight


@dataclass
class Scale:
    """torch.amp.GradScaler's, empty where it is off."""

    scale: Annotated[float, Meta(gt=0)] = 1.0
    growth_factor: Annotated[float, Meta(gt=1)] = 2.0
    backoff_factor: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    growth_interval: Annotated[int, Meta(ge=1, lt=2**31)] = 2000
    _growth_tracker: Annotated[int, Meta(ge=0, lt=2**31)] = 0


def save(out: Path, progress: Progress, model, optimizer, scaler) -> None:
    """Write state/step-N.safetensors, then remove the older ones. Raises UserError, older state intact, if it
    cannot."""
    state = {"model." + k: p.detach() for k, p in trainable(model).items()}
    names = list(trainable(model))
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{names[index]}.{k}": v for k, v in moments.items()}
    for rank, generators in enumerate(distributed.of_each(_generators())):
        state |= {_of(rank, name): numbers for name, numbers in generators.items()}
    metadata = {"progress": json.dumps(asdict(progress)), "scaler": json.dumps(scaler.state_dict())}
    _write(state, out / "state" / f"step-{progress.step:08d}.safetensors", metadata)
    if distributed.rank() == 0:
        _remove_older(out, progress)
    distributed.wait()


def _write(state: dict, path: Path, metadata: dict | None = None) -> None:
    """The first process writes it, put together from the shards of all."""
    state = distributed.gathered(state)
    if distributed.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors({k: v.contiguous() for k, v in state.items()}, path, metadata)


def _remove_older(out: Path, progress: Progress) -> None:
    # Only now are the older ones of no use: until then, a kill would lead back to them.
    best = progress.best_val and _best(out, progress.best_val["step"])
    older = sorted((out / "state").glob("step-*.safetensors"))[:-1]
    for old in {*older, *(out / "state").glob("best-*.safetensors")} - {best}:
        old.unlink()


def _generators() -> dict[str, torch.Tensor]:
    cuda = {"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"rng.cpu": torch.get_rng_state()} | cuda


def _of(rank: int, name: str) -> str:
    return f"{name}.{rank}" if rank else name


def latest(out: Path) -> Path | None:
    return max((out / "state").glob("step-*.safetensors"), default=None)


def stays(out: Path) -> str:
    """What a run that ends early leaves, in words."""
    saved = latest(out)
    if not saved:
        return "no checkpoint was due yet"
    step = int(saved.stem.removeprefix("step-"))
    return f"the checkpoint of update {step} stays, and the same command with --resume goes on from it"


def remove(out: Path) -> None:
    """Remove the state of a complete run, for which nobody will ask: it is three times the size of what was
    trained."""
    for name in NAMES:
        for path in (out / "state").glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):  # not there, or there is more in it than ours
        (out / "state").rmdir()


def restore(out: Path, model, optimizer, scaler) -> Progress:
    """Put the newest state back, in place, if there is one; returns how far the run is."""
    saved = latest(out)
    return load(saved, model, optimizer, scaler) if saved else Progress.new()


def load(path: Path, model, optimizer, scaler) -> Progress:
    """Put a saved state back, in place. Raises UserError if it is of another model."""
    state = read_safetensors(path)
    progress, scale = _record(path)
    params = trainable(model)
    if {"model." + k for k in params} != {k for k in state if k.startswith("model.")}:
        raise UserError(f"{path}: the saved state is of another model, or of other LoRA settings")
    moments = {}
    for index, (name, p) in enumerate(params.items()):
        _check(path, f"the weight of {name}", state["model." + name], p.shape)
        own = {k: state.get(f"optimizer.{name}.{k}") for k in MOMENTS}
        if any(v is not None for v in own.values()):  # else no update has changed it yet
            for k, v in own.items():
                _check(path, f"{k} of {name}", v, () if k == "step" else p.shape)
            moments[index] = {k: distributed.shard_of(v, p) for k, v in own.items()}
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(distributed.shard_of(state["model." + name], p))
    if progress.step and not moments:
        raise UserError(f"{path}: nothing of the optimizer is there")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    generators = {name: state.get(_of(distributed.rank(), name)) for name in ("rng.cpu", "rng.cuda")}
    if not any(name.startswith("rng.cpu") for name in state):
        raise UserError(f"{path}: the state of the random generator is missing")
    try:
        if generators["rng.cpu"] is not None:  # there were as many processes
            torch.set_rng_state(generators["rng.cpu"])
        if torch.cuda.is_available() and generators["rng.cuda"] is not None:
            torch.cuda.set_rng_state(generators["rng.cuda"])
    except (RuntimeError, TypeError) as e:
        raise UserError(f"{path}: no state of a random generator ({e})") from e
    scaler.load_state_dict(scale)
    return progress


def _check(path: Path, what: str, tensor, shape) -> None:
    if tensor is None or tensor.shape != shape or not tensor.is_floating_point():
        raise UserError(f"{path}: {what} is missing, or of another shape or type than the model's")


def _record(path: Path) -> tuple[Progress, dict]:
    """(progress, the scaler's state). Raises UserError for anything else."""
    with safe_open(path, "pt") as f:
        metadata = f.metadata() or {}
    try:
        progress, scale = (json.loads(metadata[name]) for name in ("progress", "scaler"))
    except (KeyError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: no record of the run there ({type(e).__name__}: {e})") from e
    typed(Scale, scale, f"{path}: scaler")
    return Progress.read(progress, f"{path}: progress"), scale


def _best(out: Path, step: int) -> Path:
    return out / "state" / f"best-{step:08d}.safetensors"


def save_best(out: Path, model, step: int) -> None:
    """Beside the one before, which a resumed run may have to come back to."""
    _write({k: p.detach() for k, p in trainable(model).items()}, _best(out, step))
    distributed.wait()


def load_best(out: Path, model, step: int) -> None:
    state = read_safetensors(_best(out, step))
    with torch.no_grad():
        for name, p in trainable(model).items():
            p.copy_(distributed.shard_of(state[name], p))


def trainable(model) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name, in the order in which the optimizer holds them: matrices
    first."""
    params = {k: p for k, p in model.named_parameters() if p.requires_grad}
    return dict(sorted(params.items(), key=lambda item: item[1].dim() < 2))
