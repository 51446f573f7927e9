"""The directory of a training run: made at the start, turned into a model directory at the end.

run.json       command, settings, versions, hashes of the data     (written first)
metrics.jsonl  one object a logged update                          (nanomed.train)
state/         for --resume                                        (nanomed.checkpoint)
base/          the merged base, if an adapter was merged before a new one was trained on it
config.json, model.safetensors, ... or adapter_config.json, adapter_model.safetensors; summary.json, loss.png
"""

import platform
import resource
import shlex
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

import nanomed
from nanomed import checkpoint, hub, report
from nanomed.errors import UserError
from nanomed.files import read_json, write_json
from nanomed.lora import LoRAConfig, inject, lora_layers, merge_and_unwrap
from nanomed.precision import store_frozen

# Settings that may differ when a run is resumed: they change nothing that is computed.
FREE = {"config", "resume", "save_every", "log_every", "out", "grad_checkpoint"}
# What a run leaves that ended before its first checkpoint: nothing that is worth keeping.
LEFTOVERS = {"run.json", "metrics.jsonl", "state", "base"}


def check_out(args) -> None:
    """Refuse to train over what is there. Raises UserError unless DIR is new, empty, to be resumed, or what a run left
    that ended before its first checkpoint."""
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: it is a file")
    names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    if args.resume and names and "run.json" not in names:
        raise UserError(f"--out {out}: not a run's directory (no run.json), so there is nothing to resume")
    if not args.resume and (names - LEFTOVERS or checkpoint.latest(out)):
        raise UserError(f"--out {out}: not empty; --resume goes on with the run there, or choose another directory")


def is_complete(args, identity: dict) -> bool:
    """Whether DIR already holds the end of this very run. Raises UserError if it was another one."""
    if not args.resume or not (Path(args.out) / "summary.json").exists():
        return False
    _check_same(args, identity)
    return True


def _check_same(args, identity: dict) -> None:
    path = Path(args.out) / "run.json"
    before = read_json(path)
    then = before["settings"]
    changed = [k for k, v in vars(args).items() if k not in FREE and v != then.get(k)]
    if changed:
        was, now = (", ".join(f"{k} = {s.get(k)!r}" for k in changed) for s in (then, vars(args)))
        raise UserError(
            f"{path}: the run was started with {was}, now it is {now}; resume with the same settings, or choose another "
            "--out (make: RUNS=...)"
        )
    for key, value in identity.items():
        if value != before[key]:
            raise UserError(f"{path}: the {key} changed since the run was started; choose another --out")


def record_start(args, identity: dict) -> None:
    """Write run.json, or check it against this command if the run is resumed. identity: hashes of what goes in: the
    data by name, the tokenizer, the model."""
    path = Path(args.out) / "run.json"
    if args.resume and checkpoint.latest(Path(args.out)):
        _check_same(args, identity)
        return
    packages = ["torch", "numpy", "tiktoken", "safetensors", "datasets"]
    Path(args.out).mkdir(parents=True, exist_ok=True)
    write_json({
        "command": shlex.join(sys.argv),
        "settings": vars(args),
        "versions": {"nanomed": nanomed.__version__, "python": platform.python_version()}
        | {p: version(p) for p in packages},
        "machine": {"platform": platform.platform(), "cpu": _cpu_name(), "threads": torch.get_num_threads(),
                    "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
        "seed": args.seed,
        **identity,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }, path)  # fmt: skip


def prepare_model(args, source: hub.Source, device, dtype: str, from_scratch: bool = False):
    """Load the model that `args` ask for, ready to be trained on `device`; returns (model, name of its base).

    With --lora-r, an adapter that `source` names is continued if its settings are the same; with other settings it is
    merged first, and the merged base written to DIR/base, where the new adapter's config will point.
    """
    if from_scratch and args.lora_r:
        raise UserError(
            "--from-scratch trains all weights; an adapter would need a base that is saved nowhere (--lora-r)"
        )
    model = hub.load_model(source, from_scratch, dropout=args.dropout)
    base = source.name
    if args.lora_r:
        targets = tuple(t.strip() for t in args.lora_targets.split(",") if t.strip())
        lora = LoRAConfig(args.lora_r, args.lora_alpha, args.lora_dropout, targets)
        if model.lora and not _same(model, lora):
            print(f"{source.adapter}: an adapter of other settings ({model.lora}); merged into the base of a new one")
            merge_and_unwrap(model)
            hub.save_model(model, Path(args.out) / "base", source.tokenizer_directory)
            base = str((Path(args.out) / "base").resolve())
        if model.lora is None:
            inject(model, lora)
        else:
            print(f"{source.adapter}: the adapter goes on")
        model.lora = replace(model.lora, dropout=lora.dropout)
        for layer in lora_layers(model).values():
            layer.dropout.p = args.lora_dropout
    elif model.lora:
        print(
            f"{source.adapter}: the adapter is merged, and all weights are trained; --lora-r {model.lora.r} goes on with it"
        )
        merge_and_unwrap(model)
    store_frozen(model, dtype, device)
    model.transformer.grad_checkpoint = args.grad_checkpoint
    model.to(device)
    if args.compile:
        model.transformer.compile()
    return model, base


def _same(model, lora: LoRAConfig) -> bool:
    """Whether the model's adapter has this rank, this alpha, and these layers, however its targets are spelled."""
    wanted = {n for n, m in model.named_modules() if lora.matches(n)}
    return (model.lora.r, model.lora.alpha) == (lora.r, lora.alpha) and wanted == set(lora_layers(model))


def finish(args, model, base: str, source: hub.Source, result: dict, facts: dict) -> None:
    """Make DIR a model directory (adapter, merged or full), and write summary.json and loss.png.

    Merging starts from the base as it is stored, in fp32: the copy that was trained with may be rounded to bf16.
    """
    out = Path(args.out)
    if model.lora and args.merge:
        fresh = hub.load_model(hub.find(base))
        inject(fresh, model.lora)
        fresh.load_state_dict({k: v.cpu() for k, v in hub.adapter_state(model).items()}, strict=False)
        merge_and_unwrap(fresh)
        hub.save_model(fresh, out, source.tokenizer_directory)
    elif model.lora:
        hub.save_adapter(model, out, base, source.tokenizer_directory)
    else:
        hub.save_model(model, out, source.tokenizer_directory)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the kernel counts in KiB
    peak = {"peak_rss_bytes": memory}
    if torch.cuda.is_available():
        peak["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    write_json(facts | result | peak, out / "summary.json")
    report.plot_curves(out)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()
