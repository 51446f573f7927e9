"""How speed and memory of training grow with context, batch and model size, and what a dry run says of the
memory beforehand.

    python bench/growth.py --plot growth.png       GPT-2's shapes, random weights, all of them trained, this
                                                   machine

Each point is a few updates of nanomed's loop's own one_update(); on a CPU in a process of its own, whose peak
is Linux's VmHWM. A dry run gives two figures: what it counts by purpose (here with what the libraries hold),
and what two updates held. The last line is JSON."""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sides
import torch

from nanomed import hub
from nanomed.memory import peak_rss, reuse_memory
from nanomed.models.lora import LoRAConfig, inject
from nanomed.models.loss import clm_loss
from nanomed.precision import resolve_device, resolve_dtype, store_frozen
from nanomed.text.batch import Batch
from nanomed.training.estimate import at_most, memory
from nanomed.training.loop import make_optimizer, one_update
from nanomed.training.settings import Settings

SIZES = {"distil": {"n_layer": 6}, "small": {}, "medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16}}
CONTEXTS = (128, 256, 512, 1024)
BATCHES = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 4, 16, 32, 64)}
USUAL = {"cpu": (4, 512), "cuda": (16, 1024)}  # batch and context of the others
WARM_UP = 2


def points(device: str) -> list[tuple]:
    """(what grows, size, batch, context, LoRA or not)."""
    B, T = USUAL[device]
    out = [("context", "small", B, context, False) for context in CONTEXTS]
    out += [("batch", "small", batch, T, False) for batch in BATCHES[device]]
    return out + [("size", size, B, T, lora) for lora in (False, True) for size in SIZES]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    p.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    p.add_argument("--repeats", type=int, default=3, help="updates that count (default: 3)")
    p.add_argument("--json", metavar="FILE", help="write the last line to this file too")
    p.add_argument("--plot", metavar="PNG")
    p.add_argument(
        "--models", metavar="DIR", help="where the models of random weights lie (default: made for the run)"
    )
    p.add_argument("--one", help=argparse.SUPPRESS)
    args = p.parse_args()
    device = resolve_device(args.device)
    args.device, args.dtype = device.type, resolve_dtype(args.dtype, device)
    if args.one:
        reuse_memory()
        print(json.dumps(measure(json.loads(args.one), args)))
        return
    with tempfile.TemporaryDirectory() as directory:
        if args.models is None:
            args.models = directory
            from random_gpt2 import write_random_gpt2

            for name, config in SIZES.items():
                write_random_gpt2(Path(directory) / name, **config)
        found = []
        for point in points(device.type):
            found.append(measure(point, args) if device.type == "cuda" else in_a_process(point, args))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(sides.tables.text_table(table(found), width=150))
    if args.plot:
        plot(found, args)
    line = {"bench": "growth", "points": found, "machine": sides.machine(device.type), "dtype": args.dtype}
    text = json.dumps(line | {"versions": {"torch": torch.__version__}})
    if args.json:
        Path(args.json).write_text(text + "\n")
    print(text)


def in_a_process(point: tuple, args) -> dict:
    flags = [
        "--device",
        args.device,
        "--dtype",
        args.dtype,
        "--repeats",
        str(args.repeats),
        "--models",
        args.models,
    ]
    out = subprocess.run(
        [sys.executable, sys.argv[0], "--one", json.dumps(point), *flags], capture_output=True, text=True
    )
    if out.returncode:
        sys.exit(out.stderr[-3000:])
    return json.loads(out.stdout.splitlines()[-1])


def measure(point: tuple, args) -> dict:
    grows, size, batch, context, lora = point
    device, libraries = torch.device(args.device), 0 if args.device == "cuda" else peak_rss()
    model = hub.load_model(hub.find(str(Path(args.models) / size)), dropout=0.0, as_stored=lora)
    if lora:
        inject(model, LoRAConfig(8, 16.0, 0.0, model.family.LORA_TARGETS))
        store_frozen(model, args.dtype, device)
    model.to(device).train()
    ids = torch.randint(
        0, model.config.vocab_size, (batch, context + 1), generator=torch.Generator().manual_seed(0)
    )
    window = [Batch(ids[:, :-1], ids[:, 1:])]
    s = Settings(lr=1e-5, dtype=args.dtype)
    sizes = memory(model, window[0], clm_loss, args.dtype)
    gc.collect()  # of the points before, on a GPU
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optimizer, scaler = (
        make_optimizer(model, s),
        torch.amp.GradScaler(device.type, enabled=args.dtype == "fp16"),
    )
    seconds, held = [], []
    for _ in range(WARM_UP + args.repeats):
        start = time.perf_counter()
        one_update(model, window, clm_loss, optimizer, scaler, s)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        held.append(torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_rss())
    return {
        "grows": grows,
        "size": size,
        "batch": batch,
        "context": context,
        "lora": lora,
        "tokens_per_s": batch * context / statistics.median(seconds[WARM_UP:]),
        "counted_gb": (libraries + at_most(sizes, 1)) / 1e9,
        "in_two_gb": held[1] / 1e9,
        "measured_gb": held[-1] / 1e9,
    }


def name(point: dict) -> str:
    return f"{point['size']}{', LoRA' if point['lora'] else ''}, {point['batch']} x {point['context']}"


def table(found: list[dict]) -> list[list[str]]:
    head = ["", "supervised tokens/s", "memory (GB)", "in two updates", "of it", "counted", "of it"]
    rows = [head, ["---", *["---:"] * 6]]
    for f in {name(f): f for f in found}.values():
        of_it = [(f"{f[key]:.2f}", f"{f[key] / f['measured_gb']:.0%}") for key in ("in_two_gb", "counted_gb")]
        rows.append([name(f), f"{f['tokens_per_s']:,.0f}", f"{f['measured_gb']:.2f}", *of_it[0], *of_it[1]])
    return rows


def plot(found: list[dict], args) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharey="row", constrained_layout=True)
    B, T = USUAL[args.device]
    rest = {"context": f"small, {B} rows", "batch": f"small, {T} tokens a row", "size": f"{B} x {T} tokens"}
    for column, grows in zip(axes.T, rest, strict=True):
        for lora in (False, True):
            line = [f for f in found if f["grows"] == grows and f["lora"] == lora]
            if not line:
                continue
            x = [f[grows] if grows == "size" else str(f[grows]) for f in line]
            what = "LoRA" if lora else "all weights"
            column[0].plot(
                x, [1000 / f["tokens_per_s"] for f in line], "o-", label=what, color="C1" if lora else "C0"
            )
            column[1].plot(
                x, [f["measured_gb"] for f in line], "o-", label=what, color="C1" if lora else "C0"
            )
            column[1].plot(
                x,
                [f["counted_gb"] for f in line],
                "x:",
                label=f"{what}, as a dry run counts",
                color="C1" if lora else "C0",
            )
        column[0].set_title(f"{grows} ({rest[grows]})", fontsize=10)
        column[1].set_xlabel(grows)
    axes[0, 0].set_ylabel("time of a supervised token (ms)")
    axes[1, 0].set_ylabel("peak memory (GB)")
    for ax in axes.flat:
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
    axes[1, 2].legend(fontsize=8)
    figure.savefig(args.plot, dpi=110)


if __name__ == "__main__":
    main()
