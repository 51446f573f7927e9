"""The directory of a run: what may be there when it begins, whether it may go on, and that it is complete.

run.json       command, settings (nanomed.training.settings), versions, hashes of the data     (written first)
held_out.json  what it and the phases before it measure on                                 (nanomed.text.heldout)
metrics.jsonl  one object a logged update                                                  (nanomed.training.loop)
state/         for --resume, until the run is complete                                     (nanomed.training.checkpoint)
base/          the merged base, if an adapter was merged before a new one was trained on it
config.json, model.safetensors, ... or adapter_config.json, adapter_model.safetensors; summary.json, loss.png
.nanomed-*     only while a process is at work there: its lock, files half written         (nanomed.files)"""

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
from nanomed.files import is_part, read_json, read_object, typed, write_json
from nanomed.memory import in_words
from nanomed.outputs import check_directory, names_in
from nanomed.tensors import safetensors_keys
from nanomed.training import checkpoint
from nanomed.training.settings import QUANTIZATIONS, Settings

# What a run leaves that ended before its first checkpoint: nothing that is worth keeping.
LEFTOVERS = {"run.json", "held_out.json", "metrics.jsonl", "state", "base"}


def check_out(out: Path, resume: bool) -> None:
    """Refuse to train over what is there. Raises UserError unless DIR is new, empty, to be resumed, or what a
    run left that ended before its first checkpoint. A run's own names prove nothing: only its run.json does.
    """
    check_directory(out)
    names = names_in(out)
    if not str(out.absolute()).isprintable() and "\udc80" <= max(str(out.absolute())) <= "\udcff":
        raise UserError(
            f"--out {out}: safetensors opens no file under a name that is not UTF-8; choose another"
        )
    if out == Path("."):
        raise UserError(f"--out {out}: name a directory for the run")
    if not names:
        return
    ours = _is_run(out / "run.json")
    for folder, known in (
        ("state", lambda n: any(fnmatch(n, p) for p in checkpoint.NAMES)),
        ("base", is_part),
    ):
        for name in sorted(n for n in names_in(out / folder) if not known(n)):
            raise UserError(
                f"--out {out}: {folder}/{name} is no part of a run; move it away, or choose another directory"
            )
    if resume and not ours:
        why = "its run.json is another program's" if "run.json" in names else "no run.json"
        raise UserError(
            f"--out {out}: not a run's directory ({why}), so there is nothing to resume; choose another"
            " directory"
        )
    started = "summary.json" in names or checkpoint.latest(out)
    if not resume and (started or not ours or names - LEFTOVERS):
        mend = "--resume goes on with the run there, or " if ours else ""
        raise UserError(f"--out {out}: not empty; {mend}choose another directory")
    if "summary.json" in names and not any(n.endswith(".safetensors") for n in names):
        raise UserError(
            f"--out {out}: summary.json says that the run is complete, but its weights are gone; choose"
            " another directory, or delete this one"
        )
    for name in sorted(n for n in names if n.endswith(".safetensors") and "summary.json" in names):
        safetensors_keys(out / name)  # a complete run is not trained again, so its weights had better be some
    model = sorted(n for n in names - LEFTOVERS if is_part(n))
    if not started and model:
        raise UserError(
            f"--out {out}: {model[0]} is there, but neither summary.json nor a checkpoint, so that it would"
            " be trained over from the start; choose another directory"
        )


def _is_run(path: Path) -> bool:
    """Whether a run.json is one that record_start wrote."""
    try:
        record = read_json(path)
        return (
            isinstance(record["settings"], dict) and "command" in record and "nanomed" in record["versions"]
        )
    except (UserError, TypeError, KeyError, IndexError):
        return False


def is_complete(s: Settings, identity: dict) -> bool:
    """Whether DIR already holds the end of this very run. Raises UserError if it was another one."""
    if not s.resume or not (s.out / "summary.json").exists():
        return False
    check_same(s, identity)
    return True


def check_same(s: Settings, identity: dict) -> None:
    """A run may be resumed if every setting that decides its weights, and everything that goes into it, is
    what it was. Raises UserError, naming what changed."""
    path = s.out / "run.json"
    record = read_object(path)
    if record.get("phase", s.phase) != s.phase:
        raise UserError(f"{path}: the run is of another phase ([{record['phase']}]); choose another --out")
    before = typed(dict[str, Any], record.get("settings"), f"{path}: settings")
    changes = s.changes(type(s).read(before, path))
    if changes:
        raise UserError(
            f"{path}: the run was started with {changes[0]}, now it is {changes[1]}; resume with the same"
            " settings, or choose another --out (make: RUNS=...)"
        )
    for key, value in identity.items():
        if value != record.get(key, value):
            raise UserError(f"{path}: the {key} changed since the run was started; choose another --out")


def began_compiled(out: Path) -> bool | None:
    """Whether the run that DIR holds was compiled; None if it says nothing of it. What else is wrong with it,
    check_same() says."""
    try:
        compiled = read_json(out / "run.json")["settings"].get("compile", False)
    except (UserError, AttributeError, TypeError, KeyError, IndexError):
        return None
    return compiled if isinstance(compiled, bool) else None


def quantized(adapter: Path | None) -> str | None:
    """How the base was quantised that an adapter was trained over; None if it was not, or nothing is known of
    the training."""
    try:
        settings = read_json(adapter / "run.json")["settings"]
        return settings["quantize"] if settings["quantize"] in QUANTIZATIONS else None
    except (UserError, TypeError, KeyError, IndexError):
        return None


def record_start(s: Settings, identity: dict) -> None:
    """Write run.json, or check it against this command if the run is resumed. identity: hashes of what goes
    in: the data by name, the tokenizer, the model."""
    if s.resume and checkpoint.latest(s.out):
        check_same(s, identity)
        return
    packages = ["torch", "numpy", "tiktoken", "safetensors", "datasets"]
    machine = {"platform": platform.platform(), "cpu": _cpu_name(), "threads": torch.get_num_threads()}
    machine["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record = {
        "command": shlex.join(sys.argv),
        "directory": str(Path.cwd()),
        "phase": s.phase,
        "settings": s.recorded(),
        "versions": (
            {"nanomed": nanomed.__version__, "python": platform.python_version()}
            | {p: version(p) for p in packages}
        ),
        "machine": machine,
        "seed": s.seed,
        **identity,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    s.out.mkdir(parents=True, exist_ok=True)
    write_json(record, s.out / "run.json")


def check_space(model, s: Settings) -> None:
    """Raises UserError if the disk has not the room that the run will take in DIR, which must be there: while
    it saves, two states of what is trained, each the weights and two moments, perhaps those of the best
    validation; at the end the model."""
    trained, whole = (
        sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (False, True)
    )
    state, best = 12 * trained, 2 * 4 * trained if s.keep == "best" else 0
    needed = state + max(state, 4 * (whole if s.merge or not s.lora_r else trained)) + best
    there = sum(
        file.stat().st_size for file in (s.out / "state").glob("*.safetensors")
    )  # of a run that goes on
    free = shutil.disk_usage(s.out).free + there
    if free < needed:
        raise UserError(
            f"--out {s.out}: {in_words(free)} are free there, and this run takes up to {in_words(needed)} while"
            " it saves; choose another place, or make room"
        )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0].split(":", 1)[1].strip() if names else platform.processor()
