"""The directory of a run: what may be there when it begins, whether it may go on, and that it is complete.

run.json       command, settings (settings.py), versions, hashes of the data, written first
held_out.json  what it and the phases before it measure on (text/heldout.py)
metrics.jsonl  one object a logged update (progress.py)
state/         for --resume, until the run is complete (checkpoint.py)
base/          the merged base, if an adapter was merged before a new one was trained on it
config.json, model.safetensors, ... or adapter_config.json, adapter_model.safetensors; summary.json, loss.png
.nanomed-*     only while a process is at work there: its lock, files half written"""

import platform
import shlex
import shutil
import sys
import time
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nanomed
from nanomed.errors import UserError
from nanomed.files import is_part, read_object, typed, write_json
from nanomed.flags import QUANTIZATIONS
from nanomed.memory import in_words
from nanomed.outputs import check_directory, names_in, read_record, stamp
from nanomed.tensors import safetensors_shapes
from nanomed.text.names import split_name, split_weight
from nanomed.training import checkpoint, curves
from nanomed.training.settings import Settings

PROGRAM, RECORD = "nanomed.training", "run.json"
# What a run leaves that ended before its first checkpoint: nothing that is worth keeping.
LEFTOVERS = {RECORD, "held_out.json", "metrics.jsonl", "state", "base"}


def check_out(out: Path, resume: bool) -> None:
    """Refuse to train over what is there. Raises UserError unless DIR is new, empty, to be resumed, or what a
    run left that ended before its first checkpoint. A run's own names prove nothing: only its run.json does.
    """

    def refuse(why: str):
        raise UserError(f"--out {out}: {why}")

    check_directory(out)
    names = names_in(out)
    if not str(out.absolute()).isprintable() and "\udc80" <= max(str(out.absolute())) <= "\udcff":
        refuse("safetensors opens no file under a name that is not UTF-8; choose another")
    if out == Path("."):
        refuse("name a directory for the run")
    ours, model = settings_there(out) is not None, sorted(n for n in names - LEFTOVERS if is_part(n))
    complete = "summary.json" in names
    started = complete or checkpoint.latest(out)
    parts = {"state": lambda name: any(fnmatch(name, p) for p in checkpoint.NAMES), "base": is_part}
    for folder, is_ours in parts.items():
        for name in sorted(n for n in names_in(out / folder) if not is_ours(n)):
            refuse(f"{folder}/{name} is no part of a run; move it away, or choose another directory")
    if names and resume and not ours:
        why = "its run.json is another program's" if RECORD in names else "no run.json"
        refuse(f"not a run's directory ({why}), so there is nothing to resume; choose another directory")
    if names and not resume and (started or not ours or names - LEFTOVERS):
        resume = "--resume goes on with the run there, or " if ours else ""
        refuse(f"not empty; {resume}choose another directory")
    if complete and not any(n.endswith(".safetensors") for n in names):
        refuse("the run is complete (summary.json), but its weights are gone; choose another directory")
    for name in (n for n in model if complete and n.endswith(".safetensors")):
        safetensors_shapes(out / name)  # a complete run is not trained again: are these weights at all?
    if model and not started:
        refuse(
            f"{model[0]} is there, but neither summary.json nor a checkpoint: it would be trained over from"
            " the start; choose another directory"
        )


def settings_there(directory: Path) -> dict | None:
    """The settings in a run.json; None if there is none that record_start() wrote."""
    settings = (read_record(directory / RECORD, PROGRAM) or {}).get("settings")
    return settings if isinstance(settings, dict) else None


def finish(s: Settings, unit: str) -> None:
    """What is left to do once summary.json is there: after all that matters, and where a full disk has room
    again."""
    checkpoint.remove(s.out)
    if not (s.out / "loss.png").exists():
        curves.plot_curves(s.out, unit)


def is_complete(s: Settings, identity: dict) -> bool:
    """Whether DIR already holds the end of this very run. Raises UserError if it was another one."""
    if not s.resume or not (s.out / "summary.json").exists():
        return False
    check_same(s, identity)
    return True


def check_same(s: Settings, identity: dict) -> None:
    """A run may be resumed if every setting that decides its weights, and everything that goes into it, is
    what it was. Files and models are what they hold, wherever they lie. Raises UserError, naming what
    changed."""
    path = s.out / RECORD
    record = read_object(path)
    if record.get("phase", s.phase) != s.phase:
        raise UserError(f"{path}: the run is of another phase ([{record['phase']}]); choose another --out")
    before = type(s).read(typed(dict[str, Any], record.get("settings"), f"{path}: settings"), path)
    other = [key for key, value in identity.items() if _held(value) != _held(record.get(key, value))]
    moved = not other and _without_places(s) == _without_places(before)
    if (changes := s.changes(before)) and not moved:
        raise UserError(
            f"{path}: the run was started with {changes[0]}, now it is {changes[1]}; resume with the same"
            " settings, or choose another --out (make: RUNS=...)"
        )
    for key in other:
        raise UserError(f"{path}: the {key} changed since the run was started; choose another --out")


def _held(value):
    """Hashes by the names of files (`val-data NAME: FILE`, `FILE`), without the files' own names: by what
    they are of, in their order."""
    if not isinstance(value, dict):
        return value
    hashes = {}
    for name, sha in value.items():
        kind, parted, _ = name.partition(": ")
        kind = kind if parted or name == "template" or name.startswith("val-data ") else ""
        hashes.setdefault(kind, []).append(sha)
    return hashes


def _without_places(s: Settings) -> dict:
    """The recorded settings, without the places where files and models lie."""

    def kept(name: str) -> tuple:
        label, file = split_name(name)
        path, weight = split_weight(file)
        return label, weight, path if path.startswith("hub:") else path.partition("#")[2]

    found = s.recorded()
    for name in s.of_files():
        found[name] = [kept(file) for file in found.get(name) or ()]
    return {name: value for name, value in found.items() if name not in ("model", "template")}


def began_compiled(out: Path) -> bool | None:
    """Whether the run that DIR holds was compiled; None if it does not say so."""
    settings = settings_there(out)
    compiled = None if settings is None else settings.get("compile", False)
    return compiled if isinstance(compiled, bool) else None


def quantized(adapter: Path | None) -> str | None:
    """How the base of an adapter was quantised in training; None if it was not, or nothing is known."""
    kind = ((adapter and settings_there(adapter)) or {}).get("quantize")
    return kind if kind in QUANTIZATIONS else None


def record_start(s: Settings, identity: dict) -> None:
    """Write run.json, or check it against this command if the run is resumed. identity: hashes of what goes
    in: the data by name, the tokenizer, the model."""
    if s.resume and checkpoint.latest(s.out):
        check_same(s, identity)
        return
    versions = {"nanomed": nanomed.__version__, "python": platform.python_version()}
    packages = ["torch", "numpy", "tiktoken", "safetensors", "datasets"]
    machine = {"platform": platform.platform(), "cpu": _cpu_name(), "threads": torch.get_num_threads()}
    machine["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record = stamp(PROGRAM) | {
        "command": s.command or shlex.join(sys.argv),
        "directory": str(Path.cwd()),
        "phase": s.phase,
        "settings": s.recorded(),
        "versions": versions | {p: version(p) for p in packages},
        "machine": machine,
        "seed": s.seed,
        **identity,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    s.out.mkdir(parents=True, exist_ok=True)
    write_json(record, s.out / RECORD)


def check_space(model, s: Settings) -> None:
    """Raises UserError if the disk has not the room that the run will take in DIR, which must be there: while
    it saves, two states of what is trained, each the weights and two moments, perhaps those of the best
    validation; at the end the model."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    state, best = 12 * trained, 2 * 4 * trained if s.keep == "best" else 0
    needed = state + max(state, 4 * (whole if s.merge or not s.lora_r else trained)) + best
    # of a run that goes on
    there = sum(file.stat().st_size for file in (s.out / "state").glob("*.safetensors"))
    free = shutil.disk_usage(s.out).free + there
    if free < needed:
        raise UserError(
            f"--out {s.out}: {in_words(free)} are free there, and this run takes up to {in_words(needed)}"
            " while it saves; choose another place, or make room"
        )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
