"""What a training holds in memory: LoRA over bf16, int8 and NF4 weights, measured and computed. (What fits
which card: fits.py.)

    python bench/memory.py                                 SmolLM2's shape and TinyLlama's, measured; prints
                                                           two tables
    python bench/memory.py --measure smollm2-135m          one of them

Weights are random (speed and memory do not hang on them), made layer by layer as a training holds them. Every
measurement is a process of its own: `weights` is how much it grew when the model was made, `peak` the most it
held beyond that of the libraries in the updates that count. What is computed comes from the same classes on
the meta device, byte by byte, and from one block of the model's real width, of which is counted what autograd
keeps; what a layer is dequantised into, and the logits of a chunk, are added. The last line is JSON."""

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from nanomed.memory import peak_rss, reuse_memory
from nanomed.models import llama
from nanomed.models.language_model import LanguageModel
from nanomed.models.lora import LoRAConfig, inject
from nanomed.models.loss import clm_loss, held_bytes
from nanomed.models.quant import QUANTISED, count_parameters, quantise_linears, stored_bytes
from nanomed.precision import resolve_dtype, store_frozen, weightless
from nanomed.text.batch import Batch
from nanomed.training.estimate import kept_for_backward
from nanomed.training.loop import Settings, make_optimizer, one_update

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}


def of_llama(hidden, mlp, layers, heads, kv, **more):
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return llama, llama.Config(**(LLAMA_2 | sizes | {"num_key_value_heads": kv} | more))


SHAPES = {
    "smollm2-135m": of_llama(576, 1536, 30, 9, 3, vocab_size=49152, tie_word_embeddings=True),
    "tinyllama-1.1b": of_llama(2048, 5632, 22, 32, 4),
    "llama-2-7b": of_llama(4096, 11008, 32, 32, 32),
    "llama-2-13b": of_llama(5120, 13824, 40, 40, 40),
}
KINDS = ("bf16", "int8", "nf4")
PAPER = {"llama-2-7b": 5, "llama-2-13b": 10}  # GB of QLoRA for 7B and 13B (Dettmers et al. 2023, figure 6)


def on_meta(family, config, kind: str, device: str, lora_r: int = 16) -> LanguageModel:
    """The model with an adapter as a training on `device` would hold it, without memory; kind: of KINDS."""
    with weightless():
        model = LanguageModel(family, config)
        if kind in ("int8", "nf4"):
            quantise_linears(model, kind)
        inject(model, LoRAConfig(lora_r, 2.0 * lora_r, 0.0, LINEARS))
        store_frozen(model, "bf16", torch.device(device))
    return model


def make_real(model: LanguageModel) -> None:
    """Random weights in the place of those on the meta device, a layer at a time."""
    for module in model.modules():
        if isinstance(module, QUANTISED):
            codes = module.quantise(torch.randn(module.out_features, module.in_features) * 0.02)
            for name, value in codes.items():
                setattr(module, name, value)
            if module.bias is not None:
                module.bias = torch.zeros(module.out_features)
            continue
        for name, p in list(module.named_parameters(recurse=False)):
            if p.is_meta:
                data = torch.ones(p.shape) if p.dim() == 1 else torch.randn(p.shape, dtype=p.dtype) * 0.02
                setattr(module, name, nn.Parameter(data.to(p.dtype), requires_grad=p.requires_grad))
    model.tie_weights()


def computed(
    name: str, kind: str, rows: int, context: int, device: str, checkpointed: bool
) -> dict[str, int]:
    """Bytes by what they are for."""
    family, config = SHAPES[name]
    model = on_meta(family, config, kind, device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    blocks = next(m for m in model.backbone.children() if isinstance(m, nn.ModuleList))
    adapter = 4 * trained
    in_blocks = stored_bytes(blocks) - adapter
    largest = max(
        (m.in_features * m.out_features for m in blocks.modules() if isinstance(m, QUANTISED)), default=0
    )
    n = len(blocks)
    per_block = block_activations(name, rows, context)
    return {
        "blocks": in_blocks,
        "embedding, head, norms": stored_bytes(model) - in_blocks - adapter,
        "adapter": adapter,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": per_block + n * rows * context * config.n_embd * 4 if checkpointed else n * per_block,
        "a layer dequantised": 8 * largest,  # fp32, what its codes are looked up with, and bf16
        "the loss": held_bytes(rows * context, model.lm_head.weight, torch.bfloat16),
    }


def block_activations(name: str, rows: int, context: int, _known={}) -> int:  # noqa: B006 (kept between calls)
    """What autograd keeps of one block of the model's width in bf16, counted on a real one over random
    weights."""
    if (name, rows, context) not in _known:
        family, config = SHAPES[name]
        one, two = ({"num_hidden_layers": n} for n in (1, 2))
        kept = []
        for layers in (one, two):
            model = on_meta(
                family, replace(config, vocab_size=64, tie_word_embeddings=False, **layers), "bf16", "cpu"
            )
            make_real(model)
            batch = Batch(*(torch.randint(64, (rows, context)) for _ in "xy"))
            kept.append(kept_for_backward(model, batch, clm_loss, "bf16"))
            del model
        _known[name, rows, context] = kept[1] - kept[0]
    return _known[name, rows, context]


def measure(args) -> dict:
    """One kind of one shape, in this process."""
    family, config = SHAPES[args.one]
    torch.manual_seed(0)
    batch = Batch(*(torch.randint(config.vocab_size, (args.batch_size, args.context)) for _ in "xy"))
    nn.Linear(8, 8)(torch.randn(2, 8)).sum().backward()
    before = rss()
    model = on_meta(family, config, args.kind, "cpu")
    make_real(model)
    ctypes.CDLL(None).malloc_trim(0)  # what the making needed goes back to the system
    weights = rss() - before
    reuse_memory()
    settings = Settings(lr=1e-4, dtype=resolve_dtype("auto", torch.device("cpu")))
    optimizer, scaler = make_optimizer(model, settings), torch.amp.GradScaler("cpu", enabled=False)
    model.train()
    one_update(model, [batch], clm_loss, optimizer, scaler, settings)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    start = time.perf_counter()
    for _ in range(args.updates):
        one_update(model, [batch], clm_loss, optimizer, scaler, settings)
    seconds = time.perf_counter() - start
    tokens = args.updates * batch.idx.numel()
    found = {
        "weights": weights,
        "peak": peak_rss() - before,
        "tokens_per_s": tokens / seconds,
        "dtype": settings.dtype,
    }
    return found | {"parameters": count_parameters(model), "computed": computed_here(args)}


def computed_here(args) -> dict[str, int]:
    return computed(args.one, args.kind, args.batch_size, args.context, "cpu", False)


def rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def gb(n: float) -> str:
    return f"{n / 1e9:.2f}"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--measure", nargs="*", default=["smollm2-135m", "tinyllama-1.1b"], choices=list(SHAPES))
    p.add_argument("--batch-size", type=int, default=2)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--updates", type=int, default=3, help="that count, after one that does not")
    p.add_argument("--one", help=argparse.SUPPRESS)
    p.add_argument("--kind", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    measured = {}
    for name in args.measure:
        for kind in KINDS:
            flags = [
                f"--batch-size={args.batch_size}",
                f"--context={args.context}",
                f"--updates={args.updates}",
            ]
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, "--kind", kind, *flags],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(done.stderr)
            measured[f"{name} {kind}"] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name} {kind}: {done.stdout.splitlines()[-1][:200]}", file=sys.stderr)
    print(f"\nLoRA r 16 on all linear layers, {args.batch_size} x {args.context} tokens: GB\n")
    print(
        "| model | weights in | weights: computed | measured | peak: computed | measured | supervised tokens/s |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for key, m in measured.items():
        name, kind = key.split()
        parts = m["computed"]
        stored = sum(parts[k] for k in ("blocks", "embedding, head, norms", "adapter"))
        cells = [
            gb(stored),
            gb(m["weights"]),
            gb(sum(parts.values())),
            gb(m["peak"]),
            f"{m['tokens_per_s']:,.0f}",
        ]
        print(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    print("\nLlama 2 on a card, 1 x 512 tokens, --grad-checkpoint, LoRA r 16 on all linear layers: GB\n")
    parts = {(n, k): computed(n, k, 1, 512, "cuda", True) for n in PAPER for k in KINDS}
    names = list(next(iter(parts.values())))
    print("| model | weights in | " + " | ".join(names) + " | together | the QLoRA paper |")
    print("| --- | --- | " + "---: | " * (len(names) + 2))
    for (name, kind), found in parts.items():
        paper = f"{PAPER[name]}" if kind == "nf4" else ""
        print(
            f"| {name} | {kind} | "
            + " | ".join(gb(v) for v in found.values())
            + f" | {gb(sum(found.values()))} | {paper} |"
        )
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    print(
        json.dumps(
            {
                "bench": "memory",
                "measured": measured,
                "computed": {" ".join(k): v for k, v in parts.items()},
                "machine": platform.processor(),
                "versions": versions,
            }
        )
    )


if __name__ == "__main__":
    main()
