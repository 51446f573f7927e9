"""What three paths of the CPU gain over what they stand in for, each alone, in one process: milliseconds,
medians of several tries.

    python bench/kernels.py [attention] [packed] [linears] [narrow] [cold] [logits]

attention   forward and backward of causal attention in bf16: PyTorch's fused kernel, and
            nanomed.models.attention's tiles; with the largest error of each against double precision,
            relative to the norm (y, dq, dk, dv)
packed      the same of rows that hold several examples: under a mask of T x T, and dealt out, example by
            example
linears     a linear layer of GPT-2's blocks and its head: weights as they are, and laid out
            (nanomed.models.prepacked)
narrow      a layer of Llama's shape with its weights in fewer bits: nanomed.models.narrow, and two of
            PyTorch's own products with packed weights that it does not use
cold        GPT-2's layers in fp32, one row, over more weights than a cache holds: how fast the product reads
            them, and how fast their sum does
logits      the head in fp32, 1,024 rows: logits that lie one row after the other, and with room between
            (nanomed.models.loss); and the head's gradient from either
"""

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from bench.sides import machine
from nanomed.evaluation import tables
from nanomed.memory import reuse_memory
from nanomed.models import attention, loss
from nanomed.models.attention import Mask, packed
from nanomed.models.narrow import HalfLinear
from nanomed.models.prepacked import PrepackedLinear, in_blocks, product

TRIES = 7
# rows, tokens, heads of 64
ATTENTION = [(64, 64, 12), (32, 128, 12), (16, 256, 12), (8, 512, 12), (4, 1024, 12)]
LENGTHS = [60, 85, 110, 40, 75, 95, 47]  # of the examples in a row of 512
LINEARS = [("block", 3072, 768), ("head", 50257, 768)]


def milliseconds(run) -> float:
    run()
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def qkv(B, T, nh, dtype=torch.bfloat16):
    return [torch.randn(B, T, nh, 64, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def both_ways(attend, tensors, grad):
    y = attend(*tensors)
    return [y, *torch.autograd.grad(y, tensors, grad)]


def attention_rows() -> list[list[str]]:
    def kernel(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    rows = [
        ["rows x tokens", "kernel (ms)", "tiles (ms)", "times", "kernel's error", "tiles' error"],
        ["---", *["---:"] * 5],
    ]
    for B, T, nh in ATTENTION:
        tensors, grad = qkv(B, T, nh), torch.randn(B, T, nh * 64, dtype=torch.bfloat16)
        exact = both_ways(
            kernel, [t.detach()[:1].double().requires_grad_() for t in tensors], grad[:1].double()
        )
        ms, errors = [], []
        for attend in (kernel, attention.attend):
            found = both_ways(attend, tensors, grad)
            errors.append(
                max(
                    ((a[:1].double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)
                )
            )
            ms.append(
                milliseconds(
                    lambda attend=attend, tensors=tensors, grad=grad: both_ways(attend, tensors, grad)
                )
            )
        rows.append(
            [f"{B} x {T}", *(f"{m:.1f}" for m in ms), f"{ms[0] / ms[1]:.1f}", *(f"{e:.1e}" for e in errors)]
        )
    return rows


def packed_rows() -> list[list[str]]:
    B, T, nh = 8, 512, 12
    segments = torch.cat([torch.full((n,), k) for k, n in enumerate(LENGTHS)])[None].expand(B, T)
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(
        T, T, dtype=torch.bool
    ).tril()
    tensors, grad = qkv(B, T, nh), torch.randn(B, T, nh * 64, dtype=torch.bfloat16)
    ms = [
        milliseconds(lambda m=m: both_ways(lambda q, k, v: attention.attend(q, k, v, m), tensors, grad))
        for m in (Mask(mask), packed(segments, torch.device("cpu")))
    ]
    row = [f"{B} x {T}, {len(LENGTHS)} examples a row", *(f"{m:.1f}" for m in ms), f"{ms[0] / ms[1]:.1f}"]
    return [["packed", "mask (ms)", "dealt (ms)", "times"], ["---", *["---:"] * 3], row]


@torch.no_grad()
def linear_rows() -> list[list[str]]:
    rows = [
        ["layer", "dtype", "tokens", "plain (ms)", "laid out (ms)", "times"],
        ["---", "---", *["---:"] * 4],
    ]
    for name, n_out, n_in in LINEARS:
        for dtype in (torch.bfloat16, torch.float32):
            # more than a cache holds
            weights = [torch.randn(n_out, n_in, dtype=dtype) for _ in range(12 if name == "block" else 2)]
            laid_out = [in_blocks(w) for w in weights]
            for N in (1, 8, 512):
                x = torch.randn(N, n_in, dtype=dtype)
                ms = [
                    milliseconds(lambda x=x, ws=ws: [product(x, w) for w in ws]) / len(ws)
                    for ws in (weights, laid_out)
                ]
                rows.append([name, str(dtype)[6:], str(N), *(f"{m:.3f}" for m in ms), f"{ms[0] / ms[1]:.1f}"])
    return rows


@torch.no_grad()
def narrow_rows() -> list[list[str]]:
    n_out, n_in, copies = 3072, 576, 20  # SmolLM2's gate and up; more than a cache holds
    plain = [torch.nn.Linear(n_in, n_out, bias=False) for _ in range(copies)]
    aten, scale = torch.ops.aten, torch.ones(n_out)
    codes = [torch.randint(0, 15, (n_out, n_in), dtype=torch.int32) for _ in plain]
    packed = [aten._convert_weight_to_int4pack_for_cpu(c, 1) for c in codes]
    per_group = torch.ones(n_in // 32, n_out, 2)
    kinds = {
        "fp32, laid out": [PrepackedLinear(layer) for layer in plain],
        "fp16": [HalfLinear(layer) for layer in plain],
        "_weight_int8pack_mm": [
            lambda x, c=c.to(torch.int8): aten._weight_int8pack_mm(x, c, scale) for c in codes
        ],
        "_weight_int4pack_mm": [
            lambda x, c=c: aten._weight_int4pack_mm_for_cpu(x, c, 32, per_group) for c in packed
        ],
    }
    rows = [["576 -> 3,072 (ms), tokens at once", "1", "8", "64"], ["---", *["---:"] * 3]]
    for kind, layers in kinds.items():
        ms = []
        for N in (1, 8, 64):
            x = torch.randn(N, n_in)
            ms.append(milliseconds(lambda x=x, layers=layers: [layer(x) for layer in layers]) / copies)
        rows.append([kind, *(f"{m:.3f}" for m in ms)])
    return rows


def cold_rows() -> list[list[str]]:
    rows = [["one row, fp32 (GB/s)", "product, laid out", "sum"], ["---", "---:", "---:"]]
    for n_in, n_out, copies in (
        (768, 2304, 30),
        (768, 768, 60),
        (768, 3072, 24),
        (3072, 768, 24),
        (768, 50257, 2),
    ):
        plain = [torch.randn(n_out, n_in) for _ in range(copies)]
        blocks, x = [in_blocks(w) for w in plain], torch.randn(1, n_in)
        ms = milliseconds(lambda x=x, ws=blocks: [product(x, w) for w in ws])
        summed = milliseconds(lambda ws=plain: [w.sum() for w in ws])
        size = 4e-6 * n_in * n_out * copies  # GB, in thousandths
        rows.append([f"{n_in:,} -> {n_out:,}", f"{size / ms:.1f}", f"{size / summed:.1f}"])
    return rows


def logits_rows() -> list[list[str]]:
    titles = ["1,024 rows, fp32 (GFLOP/s)", "logits", "with room", "gradient", "with room"]
    rows = [titles, ["---", *["---:"] * 4]]
    for n_in, words in ((768, 50257), (576, 49152), (640, 65536)):
        x, weight, total = torch.randn(1024, n_in), torch.randn(words, n_in), torch.zeros(words, n_in)
        apart = loss._logits(x, weight, words)[:, :words]
        close = apart.contiguous()
        ms = [
            milliseconds(lambda x=x, w=weight: x @ w.t()),
            milliseconds(lambda x=x, w=weight, n=words: loss._logits(x, w, n)),
            *(milliseconds(lambda x=x, d=d, t=total: t.addmm_(d.t(), x)) for d in (close, apart)),
        ]
        rows.append([f"{n_in} -> {words:,}", *(f"{2e-6 * x.numel() * words / m:.0f}" for m in ms)])
    return rows


def main():
    only = sys.argv[1:]
    reuse_memory()
    torch.manual_seed(0)
    tables_of = {
        "attention": attention_rows,
        "packed": packed_rows,
        "linears": linear_rows,
        "narrow": narrow_rows,
        "cold": cold_rows,
        "logits": logits_rows,
    }
    result = {name: rows() for name, rows in tables_of.items() if name in only or not only}
    for rows in result.values():
        print(tables.text_table(rows), end="\n\n")
    result["bench"] = "kernels"
    print(json.dumps(result | {"machine": machine("cpu"), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
