"""Ways of running one model: memory, speed and perplexity of narrower weights, of pruning and of the KV
cache, in one table.

    python bench/inference.py --model gpt2 --data held_out.jsonl --json inference.json --plot pruning.png

Four groups of rows, then a line of JSON. An adapter is merged into its model first; --dtype is that of
`pruned` and `write`.

score     Perplexity of --data's documents, as `eval.py ppl` measures it, with its 95 % interval over
          documents; weights in fp32, bf16 and, on CUDA, fp16. Only linear layers are narrowed, on a CPU
          without the head (nanomed.precision.store_frozen).
pruned    The smallest weights by magnitude of all linear layers of the blocks together are zero
          (torch.nn.utils.prune; Han et al. 2015, without their retraining); embeddings, head, norms and
          biases stay. Every sparsity starts from the original fp32 weights, and takes turns with the dense
          model: what `times` says of 0 %, where there is nothing to gain, is the noise.
linears   Whether a sparse kernel makes use of 90 % zeros: one pass of the same random inputs through each of
          these layers, dense and with weights as CSR (32-bit indices); on the CPU, in fp32, without biases or
          anything between layers, for a window of tokens and for one. "CSR" has its tokens in columns, as the
          kernel likes them (turning them round is not timed), "CSR layer" is called as a layer is, by
          F.linear. Without a kernel for it, a line says so.
write     Greedy, after the beginnings of documents (again from the first, if there are too few): each token
          from the whole text without a cache; with one, for a single prompt and for several at once. The
          prompt's own time counts.

Bytes follow from the tensors' shapes and dtypes (a tied head counts once); nothing of them is measured. A
group runs once to warm up, then --repeats times in turn, every other round backwards. tokens/s (scored; of `write` written) is the median;
`times` is how many times as fast as the group's first row (pruned: as the dense model) it was in the same
round, the median too."""

import copy
import json
import operator
import platform
import statistics
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanomed import cli, flags
from nanomed.errors import UserError
from nanomed.evaluation import measure, tables
from nanomed.evaluation.generate import Sampling, stream
from nanomed.files import check_output, finite, write_json
from nanomed.models.cache import make_cache
from nanomed.models.lora import merge_and_unwrap
from nanomed.models.loss import head_logits
from nanomed.optional import need
from nanomed.precision import DTYPES, autocast, resolve_dtype, store_frozen

SPARSITIES, SPARSE = (0, 10, 30, 50, 70, 90), 90  # percent; the one that is tried on sparse kernels
BATCHES = (1, 8, 32)


def block_linears(model) -> list[nn.Linear]:
    """The linear layers of the blocks: all below the head."""
    return [m for m in model.backbone.modules() if isinstance(m, nn.Linear)]


def open_plain(name: str, device: str) -> measure.Opened:
    """A model in fp32, an adapter merged into it."""
    o = measure.open_model(name, device, "fp32", plain=True)
    merge_and_unwrap(o.model)
    o.model.requires_grad_(False)
    return o


def prune_blocks(model, share: float) -> None:
    """Zero this share of the blocks' linear weights, the smallest by magnitude of all layers together, in
    place."""
    layers = block_linears(model)
    prune.global_unstructured([(m, "weight") for m in layers], prune.L1Unstructured, amount=float(share))
    for m in layers:
        prune.remove(m, "weight")  # the mask goes, its zeros stay in the weights


def variant(o: measure.Opened, dtype: str, share: float = 0.0) -> measure.Opened:
    """A pruned copy of an fp32 model, stored in `dtype`."""
    # a family is a Python module, which is not copied
    model = copy.deepcopy(o.model, {id(o.model.family): o.model.family})
    prune_blocks(model, share)
    store_frozen(model, dtype, o.device)
    return replace(o, model=model, dtype=dtype)


def n_bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def in_turn(runs: dict, repeats: int) -> dict:
    """{name: (what its warm-up gave, [seconds])} of runs {name: function giving (value, seconds)}, every
    other round backwards."""
    values, seconds = {name: run()[0] for name, run in runs.items()}, {name: [] for name in runs}
    for k in range(repeats):
        for name in reversed(runs) if k % 2 else runs:
            seconds[name].append(runs[name]()[1])
    return {name: (values[name], seconds[name]) for name in runs}


def timed(run):
    start = time.perf_counter()
    value = run()
    return value, time.perf_counter() - start


def speed(tokens: int, seconds: list[float], base: list[float]) -> dict:
    times = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
    return {"tokens_per_s": tokens / statistics.median(seconds), "times": times, "seconds": seconds}


def score(o: measure.Opened, corpus, args):
    r = measure.measure_ppl(o, corpus, args.context, args.stride, args.batch_size, args.seed)
    return r, r["seconds"]  # the bootstrap's are not in them


def scored(o: measure.Opened, run, base: list[float]) -> dict:
    weights = [m.weight for m in block_linears(o.model)]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    row = {k: run[0][k] for k in ("ppl", "ppl_ci95", "bits_per_byte", "tokens_scored")}
    return (
        row
        | {"weight_bytes": n_bytes(o.model.parameters()), "zeros": zeros}
        | speed(row["tokens_scored"], run[1], base)
    )


def storage_rows(models: dict[str, measure.Opened], corpus, args) -> dict:
    runs = in_turn({dtype: partial(score, m, corpus, args) for dtype, m in models.items()}, args.repeats)
    return {dtype: scored(m, runs[dtype], runs["fp32"][1]) for dtype, m in models.items()}


def pruned_rows(original: measure.Opened, dense: measure.Opened, corpus, args) -> dict:
    rows = {}
    for percent in SPARSITIES:
        m = variant(original, dense.dtype, percent / 100)
        runs = in_turn(
            {"dense": partial(score, dense, corpus, args), "pruned": partial(score, m, corpus, args)},
            args.repeats,
        )
        rows[f"{percent}"] = scored(m, runs["pruned"], runs["dense"][1]) | {"dense_seconds": runs["dense"][1]}
    return rows


def one_pass(product, weights, inputs) -> None:
    for w in weights:
        product(w, inputs[w.size(1)])


@torch.no_grad()
def sparse_rows(model, n_tokens: int, repeats: int, seed: int) -> dict:
    """Dense and sparse products of the blocks' linear weights, or {"unavailable": why} where torch has no
    kernel."""
    weights, rows, generator = (
        [m.weight.float().cpu() for m in block_linears(model)],
        {},
        torch.Generator().manual_seed(seed),
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse")  # CSR is in beta
            csr = [w.to_sparse_csr() for w in weights]
            parts = [(c.crow_indices().int(), c.col_indices().int(), c.values()) for c in csr]
            csr = [
                torch.sparse_csr_tensor(*part, size=w.shape) for part, w in zip(parts, weights, strict=True)
            ]
            held = {"dense": n_bytes(weights), "CSR": n_bytes(t for part in parts for t in part)}
            for n in dict.fromkeys((n_tokens, 1)):
                x = {
                    size: torch.randn(n, size, generator=generator)
                    for size in sorted({w.size(1) for w in weights})
                }
                columns = {size: t.t().contiguous() for size, t in x.items()}
                ways = {
                    "dense": partial(one_pass, lambda w, x: F.linear(x, w), weights, x),
                    "CSR": partial(one_pass, operator.matmul, csr, columns),
                    "CSR layer": partial(one_pass, lambda w, x: F.linear(x, w), csr, x),
                }
                runs = in_turn({way: partial(timed, run) for way, run in ways.items()}, repeats)
                for way, (_, seconds) in runs.items():
                    row = {"tokens": n, "weight_bytes": held[way.split()[0]]}
                    rows[f"{way}, {n} at once"] = row | speed(n, seconds, runs["dense"][1])
    except RuntimeError as e:  # NotImplementedError is one
        return {"unavailable": str(e).splitlines()[0]}
    return rows


def read_prompts(corpus, length: int, n: int) -> list[list[int]]:
    """The first ids of the first n documents that are long enough; again from the first if there are
    fewer."""
    fit = [k for k, there in enumerate(corpus.documents["length"].tolist()) if there >= length][:n]
    if not fit:
        raise UserError(f"{corpus.name}: no document has {length} tokens for a prompt; lower --prompt-tokens")
    return [corpus.all().ids(fit[k % len(fit)])[:length].tolist() for k in range(n)]


@torch.no_grad()
def write_uncached(o: measure.Opened, prompt: list[int], steps: int) -> list[int]:
    """The likeliest next token, `steps` times, each from the whole text before it."""
    ids = list(prompt)
    for _ in range(steps):
        with autocast(o.device, o.dtype):
            x = o.model.backbone(torch.tensor([ids], device=o.device))[:, -1]  # (1, C)
        ids.append(int(head_logits(x, o.model.lm_head.weight).argmax()))
    return ids[len(prompt) :]


def write_cached(o: measure.Opened, prompts: list[list[int]], steps: int) -> list[list[int]]:
    tokens = stream(o.model, prompts, steps, Sampling(), range(len(prompts)), o.device, o.dtype)
    return [list(row) for row in zip(*tokens, strict=True)]


def writing_rows(o: measure.Opened, prompts, steps: int, repeats: int) -> dict:
    runs = {"no cache": partial(timed, partial(write_uncached, o, prompts[0], steps))}
    rows = {"no cache": {"batch": 1, "cache_bytes": 0}}
    for B in BATCHES:
        # meta: shapes without memory
        cache = make_cache(o.model.config, B, len(prompts[0]) + steps, "meta", DTYPES[o.dtype])
        rows[f"cache, batch {B}"] = {
            "batch": B,
            "cache_bytes": n_bytes(t for layer in cache for t in (layer.k, layer.v)),
        }
        runs[f"cache, batch {B}"] = partial(timed, partial(write_cached, o, prompts[:B], steps))
    # of a prompt
    seconds = {
        way: [s / rows[way]["batch"] for s in found] for way, (_, found) in in_turn(runs, repeats).items()
    }
    return {way: row | speed(steps, seconds[way], seconds["no cache"]) for way, row in rows.items()}


def table(result: dict) -> list[list[str]]:
    head = [
        "",
        "weights: MB, computed",
        "cache: MB, computed",
        "perplexity [95 %]",
        "zeros",
        "tokens/s",  # scored or written, as the row says
        "times",
    ]
    rows, dtype = [head, ["---", *["---:"] * (len(head) - 1)]], result["dtype"]
    names = {"storage": "score, {}", "pruned": f"score, {dtype}, {{}} % pruned", "sparse": "linears, {}"}
    for group, name in (names | {"writing": f"write, {dtype}, {{}}"}).items():
        for way, r in result[group].items() if "unavailable" not in result[group] else ():
            ppl = tables.ppl_cell(r["ppl"], result["vocab_size"]) if "ppl" in r else ""
            interval = f" {tables.interval_cell(r['ppl_ci95'])}" if r.get("ppl_ci95") else ""
            mb = [f"{r[key] / 1e6:,.1f}" if key in r else "" for key in ("weight_bytes", "cache_bytes")]
            zeros = f"{r['zeros']:.1%}" if "zeros" in r else ""
            rows.append(
                [
                    name.format(way),
                    *mb,
                    ppl + interval,
                    zeros,
                    f"{r['tokens_per_s']:,.0f}",
                    f"{r['times']:.2f}",
                ]
            )
    return rows


def draw(result: dict, path: Path) -> None:
    """Perplexity against sparsity, and beside each point how many times as fast as the dense model it was."""
    # without pyplot, which wants a window
    figure = need("matplotlib.figure").Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.subplots()
    points = [r for r in result["pruned"].values() if np.isfinite([r["ppl"], *(r["ppl_ci95"] or ())]).all()]
    x, y = np.array([(100 * r["zeros"], r["ppl"]) for r in points]).reshape(-1, 2).T
    low, high = np.array([r["ppl_ci95"] or [r["ppl"]] * 2 for r in points]).reshape(-1, 2).T
    error = np.maximum(0, [y - low, high - y])
    ax.errorbar(x, y, error, color="#3f8fbd", marker="o", ms=4, lw=1.3, capsize=3)
    for at, r in zip(zip(x, y, strict=True), points, strict=True):
        ax.annotate(f"×{r['times']:.2f}", at, (6, -12), textcoords="offset points", fontsize="small")
    if len(y) and y.max() > result["vocab_size"]:
        ax.axhline(result["vocab_size"], color="#d9622b", ls="--", lw=1, label="guessing")
        ax.legend(frameon=False)
    ax.set(
        yscale="log",
        xlabel="zeros in the blocks' linear layers (%)",
        ylabel="perplexity, 95 % interval",
        xlim=(-4, 102),
    )
    title = f"{result['model']}, {result['dtype']}: magnitude pruning (×: scoring speed, dense = 1)"
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=144)


def machine(device: torch.device) -> dict:
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    how = {
        "processor": name,
        "bf16_in_hardware": resolve_dtype("auto", device) == "bf16",
        "threads": torch.get_num_threads(),
    }
    return (
        {"platform": platform.platform()}
        | how
        | {"python": platform.python_version(), "torch": torch.__version__}
    )


def parse_args():
    p = cli.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_files_flag(p, "--data", flags.DATA_HELP, required=True)
    flags.add_window_flags(p)
    flags.add_data_flags(p)
    flags.add_common_flags(p)
    p.add_argument(
        "--prompt-tokens",
        type=flags.count,
        default=64,
        metavar="N",
        help="of each prompt that is written on from",
    )
    p.add_argument(
        "--new-tokens", type=flags.count, default=64, metavar="N", help="written after each prompt"
    )
    p.add_argument(
        "--repeats", type=flags.count, default=3, metavar="N", help="of everything timed, beside a warm-up"
    )
    p.add_argument("--json", metavar="FILE", help="write the results to this file too")
    p.add_argument("--plot", metavar="FILE.png", help="draw perplexity against sparsity")
    return p.parse_args()


def main():
    args = parse_args()
    if args.plot is not None:
        need("matplotlib.figure")
    o = open_plain(args.model, args.device)
    for flag, file in (("--json", args.json), ("--plot", args.plot)):
        if file is not None:
            check_output(file, [o.directory, *(name for name in args.data if Path(name).exists())], flag)
    config, steps, dtype = o.model.config, args.new_tokens, resolve_dtype(args.dtype, o.device)
    if args.prompt_tokens + steps > config.n_positions:
        lengths = f"--prompt-tokens {args.prompt_tokens} and --new-tokens {steps}"
        raise UserError(f"{lengths} do not fit the model's {config.n_positions} positions; lower one of them")
    corpus = measure.encode(o, args.data, args.text_field, args.limit, args.skip_bad_rows)
    prompts = read_prompts(corpus, args.prompt_tokens, max(BATCHES))
    wanted = ["fp32", "bf16", *(["fp16"] if o.device.type == "cuda" else []), dtype]
    models = {d: o if d == "fp32" else variant(o, d) for d in dict.fromkeys(wanted)}
    context = args.context or min(config.n_positions, 1024)  # as measure_ppl chooses
    stride = args.stride or max(1, context // 2)
    made = {
        "dtype": dtype,
        "device": str(o.device),
        "context": context,
        "stride": stride,
        "vocab_size": config.vocab_size,
    }
    asked = {k: v for k, v in vars(args).items() if k not in ("_given", "json", "plot")}
    result = (
        asked
        | made
        | {"documents": len(corpus.documents), "data_sha256": corpus.sha256, "machine": machine(o.device)}
    )
    result["storage"] = storage_rows(models, corpus, args)
    result["pruned"] = pruned_rows(o, models[dtype], corpus, args)
    result["sparse"] = sparse_rows(variant(o, "fp32", SPARSE / 100).model, context, args.repeats, args.seed)
    result["writing"] = writing_rows(models[dtype], prompts, steps, args.repeats)
    pairs = zip(write_cached(o, prompts[:1], steps)[0], write_uncached(o, prompts[0], steps), strict=True)
    differ = next((k for k, (a, b) in enumerate(pairs, 1) if a != b), None)
    result["cached_equals_uncached"] = differ is None
    print(tables.text_table(table(result), width=132))
    if "unavailable" in result["sparse"]:
        print(f"no sparse kernel here: {result['sparse']['unavailable']}")
    said = f"differ from the cache's, first new token {differ}" if differ else "are those of the cache"
    print(f"fp32, greedy, batch 1: the {steps} tokens written without a cache {said}")
    print(", ".join(f"{k} {v}" for k, v in result["machine"].items()))
    if args.plot:
        draw(result, Path(args.plot))
    if args.json:
        write_json(result, Path(args.json))
    print(json.dumps(finite(result)))


if __name__ == "__main__":
    cli.execute(main)
