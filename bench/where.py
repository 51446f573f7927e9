"""Where the time of an update goes, by PyTorch's profiler: nanomed, all weights or LoRA.

    python bench/where.py [--model DIR] [--lora] [--batch-size 8] [--context 512]

Every operator's own time, summed by what it is for. The last line is JSON."""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import sides
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from nanomed import hub
from nanomed.memory import reuse_memory
from nanomed.models.lora import LoRAConfig, inject
from nanomed.models.loss import clm_loss
from nanomed.precision import resolve_device, resolve_dtype, store_frozen
from nanomed.text.batch import Batch
from nanomed.training.loop import make_optimizer, one_update
from nanomed.training.settings import Settings

UPDATES = 2
# The first whose word the operator's name holds.
PARTS = {
    "attention: softmax": ("_softmax_backward_data", "scaled_dot_product", "aten::_softmax"),
    "the loss: softmax, exponent, gradient": ("log_softmax", "aten::exp", "gather", "expm1", "index_put"),
    "matrix products": ("addmm", "aten::mm", "bmm", "mkldnn", "gemm", "nvjet", "cutlass"),
    "casts and copies": ("copy_", "_to_copy", "clone", "contiguous"),
    "optimizer": ("_fused_adamw", "AdamW"),
    "clipping": ("_foreach_norm", "_foreach_mul", "linalg_vector_norm", "aten::norm"),
    "layer norm": ("layer_norm",),
    "GELU, SiLU": ("gelu", "silu"),
    "sums (biases, norms, tiles)": (
        "aten::sum",
        "aten::mean",
        "aten::add_",
        "aten::add",
        "aten::rsqrt",
        "aten::pow",
    ),
    "embedding": ("embedding",),
    "new and zeroed memory": ("aten::zero_", "aten::fill_", "aten::empty", "aten::zeros"),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--model", help="directory (default: GPT-2 small's shape with random weights, written for the run)"
    )
    p.add_argument("--lora", action="store_true")
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = p.parse_args()
    reuse_memory()
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    with tempfile.TemporaryDirectory() as directory:
        if args.model is None:
            from random_gpt2 import write_random_gpt2

            write_random_gpt2(Path(directory))
        model = hub.load_model(hub.find(args.model or directory), dropout=0.0)
    if args.lora:
        inject(model, LoRAConfig(8, 16.0, 0.0, model.family.LORA_TARGETS))
        store_frozen(model, dtype, device)
    model.to(device).train()
    ids = torch.randint(0, model.config.vocab_size, (args.batch_size, args.context + 1))
    s, window = Settings(lr=1e-5, dtype=dtype), [Batch(ids[:, :-1], ids[:, 1:])]
    optimizer, scaler = make_optimizer(model, s), torch.amp.GradScaler(device.type, enabled=dtype == "fp16")

    def update():
        one_update(model, window, clm_loss, optimizer, scaler, s)

    for _ in range(4):  # memory is taken for the first time in the first two
        update()
    on_gpu = device.type == "cuda"
    # The profiler's own notes take memory too: where it begins, what it times would be pages that are new.
    plan = schedule(wait=0, warmup=UPDATES, active=UPDATES, repeat=1)
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])], schedule=plan
    ) as found:
        for _ in range(2 * UPDATES):
            update()
            found.step()
    spent = Counter()
    for event in found.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        part = next(
            (part for part, words in PARTS.items() if any(word in event.key for word in words)), "the rest"
        )
        spent[part] += own / UPDATES / 1e3
    total = sum(spent.values())
    rows = [["part", "ms", "share"], ["---", "---:", "---:"]]
    rows += [[part, f"{ms:,.0f}", f"{ms / total:.0%}"] for part, ms in spent.most_common()]
    print(sides.tables.text_table([*rows, ["together", f"{total:,.0f}", ""]]))
    line = {
        "bench": "where",
        "ms": dict(spent),
        "dtype": dtype,
        "lora": args.lora,
        "machine": sides.machine(device.type),
    }
    print(json.dumps(line | {"versions": {"torch": torch.__version__}}))


if __name__ == "__main__":
    sys.exit(main())
