"""What the benchmarks against peers share: two sides that take turns, each in a process of its own, and the
report.

A benchmark has sides (`nanomed full`, `trainer full`, ...) and a function measure(side, args) that runs one
of them and returns

    {"per_s": [what it did in a second, for each repeat that counts], "warm_up_s": seconds before them,
     "loss": of the same data}

Processes take turns, every other round backwards, so that a machine that slows down slows both. Peak memory
is that of the process (Linux's VmHWM, which an earlier, larger process does not lift). Nothing is reported
unless both sides compute the same loss.

With --earlier DIR a side of `nanomed full` is run by another checkout of this repository too, as `earlier
full`: by its own script of the same name, with the same flags."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nanomed.threads import share_cores  # noqa: E402

if any(word.startswith("nanomed") for word in sys.argv):  # as its scripts do; the others as they come
    share_cores(writes=Path(sys.argv[0]).name in ("decode.py", "context.py"))

import torch  # noqa: E402

from nanomed.evaluation import tables  # noqa: E402
from nanomed.memory import peak_rss, reuse_memory  # noqa: E402
from nanomed.precision import resolve_dtype  # noqa: E402

# Dense tensor-core peaks in bf16 (T4, V100: fp16) of the makers' data sheets, in TFLOP/s; the first name that
# the device's holds.
PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
    "T4": 65,
    "V100": 125,
}
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "lm-eval")


def parser(doc: str, sides: list[str]) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--model", help="directory (default: GPT-2 small's shape with random weights, written for the run)"
    )
    p.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of both sides (default: as nanomed's)",
    )
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    p.add_argument(
        "--sides", nargs="+", default=sides, choices=sides, metavar="SIDE", help=f"of: {', '.join(sides)}"
    )
    p.add_argument(
        "--earlier",
        metavar="DIR",
        help="another checkout of this repository: its own script of this name runs nanomed's sides too",
    )
    p.add_argument("--rounds", type=int, default=3, help="processes a side, taken in turn (default: 3)")
    p.add_argument("--repeats", type=int, default=3, help="that count, a process (default: 3)")
    p.add_argument(
        "--processor-time",
        action="store_true",
        help="count the process's own seconds, for a machine that others use too; with one thread they are"
        " what it would take alone",
    )
    p.add_argument("--json", metavar="FILE", help="write the last line to this file too")
    p.add_argument("--one", help=argparse.SUPPRESS)
    return p


def execute(bench: str, unit: str, args, measure, pairs: dict, same_loss: float, cost=None) -> None:
    """Run the sides in turn and report. pairs: {what: (our side, their side)}; same_loss: the largest
    relative difference of the two losses; cost(side, args, result): {"flops" or "bytes": of one unit}, for
    the share of what the machine can do."""
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    args.device, args.dtype = device, resolve_dtype(args.dtype, torch.device(device))
    if args.one:
        if args.processor_time:
            time.perf_counter = time.process_time
        reuse_memory()
        torch.manual_seed(0)
        found = measure(args.one, args)
        if device == "cuda":
            found["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
        print(json.dumps(found | {"peak_rss_bytes": peak_rss()}))
        return
    with tempfile.TemporaryDirectory() as directory:
        if args.model is None:
            from bench import fits, random_gpt2

            shape, nano = getattr(args, "shape", None), ROOT / "nanomed" / "demo" / "nano"
            if shape:
                fits.write_random(shape, Path(directory), nano)
            else:
                random_gpt2.write_random_gpt2(Path(directory), nano)
            args.model = directory
        pairs = pairs | _with_earlier(args)
        results = {side: [] for side in args.sides}
        for round_ in range(args.rounds):
            for side in reversed(args.sides) if round_ % 2 else args.sides:
                results[side].append(_process(side, args))
                print(f"{side}: {json.dumps(results[side][-1])}", file=sys.stderr, flush=True)
        cost = {side: cost(side, args, results[side][0]) for side in args.sides} if cost else {}
    limits = ceiling(device, args.dtype)
    ours, theirs = {}, {}
    for side, runs in results.items():
        (ours if side.startswith("nanomed") else theirs)[side] = _summary(runs, cost.get(side, {}), limits)
    everything = ours | theirs
    print(tables.text_table(_table(everything, unit), width=150))
    ratio, apart = {}, []
    for what, (us, them) in pairs.items():
        if us in everything and them in everything:
            a, b = everything[us], everything[them]
            by_round = [
                statistics.median(x["per_s"]) / statistics.median(y["per_s"])
                for x, y in zip(results[us], results[them], strict=True)
            ]
            ratio[what] = {"speed": statistics.median(by_round), "memory": a["peak_gb"] / b["peak_gb"]}
            print(
                f"{what}: {ratio[what]['speed']:.2f} times as fast in {ratio[what]['memory']:.2f} of the"
                " memory"
            )
            if (
                a["loss"] is not None
                and b["loss"] is not None
                and abs(a["loss"] - b["loss"]) > same_loss * abs(b["loss"])
            ):
                apart.append(f"{us} has a loss of {a['loss']:.6f}, {them} of {b['loss']:.6f}")
    line = {"bench": bench, "ours": ours, "theirs": theirs, "ratio": ratio, "ceiling": limits}
    line["share_of_ceiling"] = {
        side: s["share_of_ceiling"] for side, s in ours.items() if "share_of_ceiling" in s
    }
    asked = {k: v for k, v in vars(args).items() if k not in ("one", "json", "sides", "model")}
    line |= {
        "asked": asked,
        "machine": machine(device),
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
    }
    if apart:
        sys.exit("no result: the sides do not compute the same: " + "; ".join(apart))
    text = json.dumps(line)
    if args.json:
        Path(args.json).write_text(text + "\n")
    print(text)


def _with_earlier(args) -> dict:
    """The pairs of each side of nanomed and what the earlier checkout does plainly; adds its sides to those
    that are run."""
    ours = [side for side in args.sides if side.startswith("nanomed")] if args.earlier else []
    earlier = {side: " ".join(["earlier", *side.split()[1:]]) for side in ours}
    args.sides = [*args.sides, *dict.fromkeys(earlier.values())]
    return {f"{side} against {before}": (side, before) for side, before in earlier.items()}


def _process(side: str, args) -> dict:
    flags = [
        f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}")
        for k, v in vars(args).items()
        if k not in ("one", "sides", "json", "earlier") and v is not None and v is not False
    ]
    script = Path(sys.argv[0])
    if side.startswith("earlier"):
        script = Path(args.earlier) / "bench" / script.name
    one = side.replace("earlier", "nanomed", 1)
    out = subprocess.run(
        [sys.executable, script, "--one", one, *flags], capture_output=True, text=True, cwd=os.getcwd()
    )
    if out.returncode:
        sys.exit(f"{side}: {out.stderr[-3000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def _summary(runs: list[dict], cost: dict, limits: dict) -> dict:
    rates = [rate for run in runs for rate in run["per_s"]]
    peak = max(run.get("peak_cuda_bytes") or run["peak_rss_bytes"] for run in runs)
    out = {"per_s": statistics.median(rates), "per_s_range": [min(rates), max(rates)], "peak_gb": peak / 1e9}
    out |= {"warm_up_s": statistics.median(run["warm_up_s"] for run in runs), "loss": runs[0].get("loss")}
    for what, n in cost.items():
        out["share_of_ceiling"] = out["per_s"] * n / limits[f"{what}_per_s"]
        if what == "flops" and (peak_tflops := limits.get("peak_tflops")):
            out["mfu"] = out["per_s"] * n / (peak_tflops * 1e12)
    return out


def _table(sides: dict, unit: str) -> list[list[str]]:
    rows = [
        ["", f"{unit}/s", "lowest", "highest", "peak memory (GB)", "warm-up (s)", "of the ceiling"],
        ["---", *["---:"] * 6],
    ]
    for side, s in sides.items():
        low, high = s["per_s_range"]
        share = f"{s['share_of_ceiling']:.0%}" if "share_of_ceiling" in s else ""
        rows.append(
            [
                side,
                *(f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (s["per_s"], low, high)),
                f"{s['peak_gb']:.1f}",
                f"{s['warm_up_s']:.1f}",
                share,
            ]
        )
    return rows


def ceiling(device: str, dtype: str) -> dict:
    """What the machine can do at best, measured: a matrix product of 4,096 x 4,096 in the dtype, and reading
    1 GB of weights, which is what writing one token at a time comes down to. The best of several tries each.
    """
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    n, big = 4096, 250_000_000
    a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
    weights = torch.ones(big, dtype=torch.float32, device=device)

    def best(run, tries):
        seconds = []
        for _ in range(tries):
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    found = {"flops_per_s": 2 * n**3 / best(lambda: a @ b, 6), "bytes_per_s": 4 * big / best(weights.sum, 6)}
    if device == "cuda" and dtype != "fp32":
        found["peak_tflops"] = next(
            (t for name, t in PEAKS.items() if name in torch.cuda.get_device_name()), None
        )
    return found


def machine(device: str) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    out = {
        "platform": platform.platform(),
        "processor": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        out["gpu"] = torch.cuda.get_device_name()
    return out | {"threads": torch.get_num_threads(), "python": platform.python_version()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def on_meta(directory: str):
    """The model without its weights."""
    from nanomed import hub
    from nanomed.models import FAMILIES
    from nanomed.models.language_model import LanguageModel

    raw, config = hub.read_config(Path(directory))
    with torch.device("meta"):
        return LanguageModel(FAMILIES[raw["model_type"]], config)
