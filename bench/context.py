"""How the time of a written token grows with the tokens before it: nanomed and transformers' generate, one
prompt, greedily.

    python bench/context.py --model runs/models/smollm2-135m --plot docs/context.png

A token reads all weights, and the keys and values of all tokens before it. So beside what was measured stands
the time of the shortest context plus that of reading what came to the cache since, at the speed at which this
machine reads (sides.ceiling). The time is the median of the tokens after the first, whose time is the
prompt's. The two take turns in one process, every other context the other first. The last line is JSON."""

import argparse
import json
import statistics
import time
from pathlib import Path

import sides
import torch

from nanomed.evaluation.generate import stream
from nanomed.evaluation.measure import open_model
from nanomed.evaluation.next_token import Sampling
from nanomed.precision import DTYPES

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    p.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    p.add_argument("--new-tokens", type=int, default=24, help="after each context (default: 24)")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument(
        "--processor-time", action="store_true", help="for a machine that others use; with 1 thread"
    )
    p.add_argument("--plot", metavar="PNG")
    args = p.parse_args()
    if args.processor_time:
        time.perf_counter = time.process_time
    o = open_model(args.model, "cpu", args.dtype, write_in="stored")
    sides_ = {"nanomed": lambda ids: ours(o, ids, args.new_tokens)}
    sides_["generate"] = theirs(args.model, DTYPES[o.dtype], args.new_tokens)
    found = {side: {n: [] for n in args.contexts} for side in sides_}
    for _ in range(args.rounds):
        for n, context in enumerate(args.contexts):
            ids = torch.randint(0, o.model.config.vocab_size, (1, context))
            for side in reversed(sides_) if n % 2 else sides_:
                stamps = sides_[side](ids)
                steps = [b - a for a, b in zip(stamps[1:], stamps[2:], strict=False)]
                found[side][context].append(1000 * statistics.median(steps))
    ms = {
        side: {n: statistics.median(times) for n, times in points.items()} for side, points in found.items()
    }
    speed, first = sides.ceiling("cpu", o.dtype)["bytes_per_s"], args.contexts[0]
    n_layer, heads, size = o.model.config.cache_shape
    each = 2 * n_layer * heads * size * DTYPES[o.dtype].itemsize  # bytes of a token's keys and values
    ms["reading the cache"] = {
        n: ms["nanomed"][first] + 1000 * (n - first) * each / speed for n in args.contexts
    }
    rows = [["", *(f"{n:,}" for n in args.contexts)], ["---", *["---:"] * len(args.contexts)]]
    rows += [[side, *(f"{x:.1f}" for x in points.values())] for side, points in ms.items()]
    print(sides.tables.text_table(rows, width=150))
    if args.plot:
        plot(ms, args.plot)
    line = {"bench": "context", "ms_a_token": ms, "bytes_per_s": speed, "cache_bytes_a_token": each}
    print(json.dumps(line | {"dtype": o.dtype, "machine": sides.machine("cpu")}))


def ours(o, ids, new_tokens) -> list[float]:
    """When each token was there."""
    return [
        time.perf_counter()
        for _ in stream(o.model, ids.tolist(), new_tokens, Sampling(), (0,), o.device, o.dtype)
    ]


def theirs(model: str, dtype, new_tokens):
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def write(ids):
        stamps = []

        def note(*_, **__):
            stamps.append(time.perf_counter())
            return torch.zeros(1, dtype=torch.bool)

        criteria = transformers.StoppingCriteriaList([note])
        how = {
            "max_new_tokens": new_tokens,
            "min_new_tokens": new_tokens,
            "do_sample": False,
            "pad_token_id": 0,
        }
        model.generate(ids, attention_mask=torch.ones_like(ids), stopping_criteria=criteria, **how)
        return stamps

    return write


def plot(ms: dict, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 4), constrained_layout=True)
    for side, points in ms.items():
        ax.plot(*zip(*points.items(), strict=True), ":" if side.startswith("reading") else "o-", label=side)
    ax.set(xlabel="tokens before it", ylabel="time of a written token (ms)", ylim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(Path(path), dpi=110)


if __name__ == "__main__":
    main()
