"""Which model fits which card, and how it is trained there: bytes by component, of models that are never
made.

python bench/fits.py
python bench/fits.py --rows 1 --context 2048 --bytes llama2-7b

Weights, gradients and moments are counted on the meta device. What autograd keeps is counted too, in a
forward of fake tensors with the dtypes of a CPU's bf16 autocast: every tensor once. A card's own gigabytes
are 2^30 bytes, and so are all figures."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nanomed import hub
from nanomed.evaluation.tables import markdown, text_table
from nanomed.flags import count
from nanomed.models import gemma, gpt2, llama
from nanomed.models.language_model import LanguageModel
from nanomed.models.lora import LoRAConfig, inject
from nanomed.precision import autocast, store_frozen, weightless


def _gpt2(n_embd: int, n_layer: int, n_head: int):
    return gpt2, {"n_embd": n_embd, "n_layer": n_layer, "n_head": n_head}


def _llama(hidden: int, inner: int, layers: int, heads: int, kv: int | None = None):
    return llama, {
        "vocab_size": 32000,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 4096,
    }


def _gemma(hidden: int, inner: int, layers: int, heads: int, kv: int, **more):
    return gemma, {
        "vocab_size": 262144,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "sliding_window": 512,
    } | more


SHAPES = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "tinyllama": _llama(2048, 5632, 22, 32, 4),
    "llama2-7b": _llama(4096, 11008, 32, 32),
    "llama2-13b": _llama(5120, 13824, 40, 40),
    "gemma3-270m": _gemma(640, 2048, 18, 4, 1),
    "gemma3-1b": _gemma(1152, 6912, 26, 4, 1),
    "gemma3-4b": _gemma(2560, 10240, 34, 8, 4, sliding_window=1024),
    "gemma3-27b": _gemma(5376, 21504, 62, 32, 16, sliding_window=1024, head_dim=128),
}
CARDS = (24, 40, 80)  # GiB
# CUDA and its libraries, a chunk's logits with their gradient, what the allocator cannot use
ROOM = 2 * 2**30
NF4 = 4.127 / 8  # bytes a weight: four bits, and the scales of blocks of 64, themselves in eight bits


@dataclass
class Counted:
    """Of one shape: parameters, and bytes kept for backward by one forward of the transformer."""

    parameters: int
    linears: int  # parameters of the blocks' linears
    layer: int  # of one block's
    largest: int  # of one linear
    adapter: int  # of LoRA's matrices
    frozen: int  # bytes of what is frozen beside them
    full: int  # activations where all weights are trained
    lora: int  # where the adapter is


def model_of(family, sizes: dict, r: int = 0) -> LanguageModel:
    model = LanguageModel(family, family.Config(**sizes | dict.fromkeys(family.DROPOUTS, 0.0)))
    if r:
        inject(model, LoRAConfig(r, 2.0 * r, 0.0, family.LORA_TARGETS))
        store_frozen(model, "bf16", torch.device("cuda"))
    return model


def write_random(shape: str, out: Path, tokenizer_from: Path) -> None:
    """A model of one of these shapes with random weights, and any tokenizer whose ids it has."""
    if shape not in SHAPES:
        raise SystemExit(f"--shape {shape}: there are {', '.join(SHAPES)}")
    family, sizes = SHAPES[shape]
    torch.manual_seed(0)
    model = LanguageModel(family, family.Config(**sizes))
    model.init_weights()
    model.hf_config = sizes | {"model_type": model.config.model_type}
    hub.save_model(model, out, tokenizer_from)


def linears_of(model) -> dict[str, torch.nn.Linear]:
    """Those of the blocks: what autocast multiplies."""
    return {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n != "lm_head" and "lora_" not in n
    }


def kept(family, sizes: dict, rows: int, context: int, r: int = 0) -> int:
    """Bytes that one forward of the transformer keeps for backward: every storage once, but no weights nor
    their copies in bf16."""
    with FakeTensorMode():
        model = model_of(family, sizes, r)
        for linear in linears_of(model).values():
            for name, p in list(linear.named_parameters(recurse=False)):
                setattr(linear, name, torch.nn.Parameter(p.to(torch.bfloat16), p.requires_grad))
        known = {p.untyped_storage()._cdata for p in model.parameters()}
        found = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                found[storage._cdata] = storage.nbytes()
            return tensor

        idx = torch.zeros(rows, context, dtype=torch.long)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
            autocast(torch.device("cpu"), "bf16"),
        ):
            x = model.backbone(idx)  # which keeps all of it alive, so that no storage takes another's place
        del x
        return sum(found.values())


def activations(family, sizes: dict, rows: int, context: int, checkpointed: bool, r: int = 0) -> int:
    """kept(); with --grad-checkpoint, the input of each block, in fp32, and all of one block, which is
    recomputed."""
    if not checkpointed:
        return kept(family, sizes, rows, context, r)
    config, field = family.Config(**sizes), "n_layer" if family is gpt2 else "num_hidden_layers"
    return config.cache_shape[0] * rows * context * config.n_embd * 4 + kept(
        family, sizes | {field: 1}, rows, context, r
    )


def count_up(family, sizes: dict, rows: int, context: int, checkpointed: bool, r: int) -> Counted:
    with weightless():
        model, adapted = model_of(family, sizes), model_of(family, sizes, r)
    size = [sum(p.numel() for p in m.parameters()) for m in linears_of(model).values()]
    frozen = [p for p in adapted.parameters() if not p.requires_grad]
    return Counted(
        parameters=sum(p.numel() for p in model.parameters()),
        linears=sum(size),
        layer=sum(size) // model.config.cache_shape[0],
        largest=max(size),
        adapter=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        frozen=sum(p.numel() * p.element_size() for p in frozen),
        full=activations(family, sizes, rows, context, checkpointed),
        lora=activations(family, sizes, rows, context, checkpointed, r),
    )


def methods(c: Counted) -> dict[str, dict[str, float]]:
    """{method: {component: bytes on one card}}."""
    trained = {"weights": 4 * c.parameters, "gradients": 4 * c.parameters, "optimizer": 8 * c.parameters}
    # autocast's, of all linears in bf16
    found = {"all weights": trained | {"copies": 2 * c.linears, "activations": c.full}}
    for cards in (2, 4, 8):
        # A layer in bf16 and the one that is fetched meanwhile; a gradient in bf16 and, to be summed, in
        # fp32; embedding, head and norms in fp32, and their gradients.
        gathered = (2 + 2 + 2 + 4) * c.layer + 8 * (c.parameters - c.linears)
        found[f"{cards} cards"] = {k: v / cards for k, v in trained.items()} | {
            "copies": gathered,
            "activations": c.full,
        }
    adapter = {
        "gradients": 4 * c.adapter,
        "optimizer": 8 * c.adapter,
        "copies": 2 * c.adapter,
        "activations": c.lora,
    }
    found["LoRA"] = {"weights": c.frozen + 4 * c.adapter} | adapter
    nf4 = 2 * (c.parameters - c.linears) + NF4 * c.linears  # a linear at a time is made bf16 again
    found["QLoRA"] = {"weights": nf4 + 4 * c.adapter} | adapter | {"copies": 2 * (c.adapter + c.largest)}
    return found


def cell(parts: dict[str, float]) -> str:
    """`12.3: 24`: gigabytes, and the smallest card that has them."""
    need = (sum(parts.values()) + ROOM) / 2**30
    card = next((str(c) for c in CARDS if need <= c), "-")
    return f"{need:.1f}: {card}"


def main():
    p = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--rows", type=count, default=4, help="rows of a micro-batch on one card")
    p.add_argument("--context", type=count, default=1024, help="tokens a row")
    p.add_argument(
        "--grad-checkpoint", action=argparse.BooleanOptionalAction, default=True, help="recompute activations"
    )
    p.add_argument("--lora-r", type=count, default=16, help="rank, on the family's default layers")
    p.add_argument("--bytes", choices=SHAPES, help="instead of the table: the components of one model")
    p.add_argument("--markdown", action="store_true")
    args = p.parse_args()
    rows = []
    for name, shape in SHAPES.items():
        if args.bytes in (None, name):
            counted = count_up(*shape, args.rows, args.context, args.grad_checkpoint, args.lora_r)
            found = methods(counted)
            rows.append([name, f"{counted.parameters / 1e6:,.0f} M", *map(cell, found.values())])
    header = ["model", "parameters", *found]
    if args.bytes:
        header = ["GB", *found["LoRA"]]
        rows = [[method, *(f"{parts[k] / 2**30:.2f}" for k in header[1:])] for method, parts in found.items()]
    table = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    print(markdown(table) if args.markdown else text_table(table, 100))


if __name__ == "__main__":
    main()
