"""What weights of fewer bits cost a writer: perplexity of documents, and the share of places at which the
likeliest next token is still the same, the document being given.

    python bench/write_in.py --model runs/models/smollm2-135m --data abstracts.jsonl

fp16 and int8 are the layers of `eval.py generate --write-in`; int4 is rounding alone, in fp32: groups of 32
or 64 weights of a row by their own smallest and largest, as PyTorch's kernel for packed 4-bit weights reads
them. A head has its own row: as it is, in 8 bits, or in 4."""

import argparse
import json
import math

import sides
import torch
from torch import nn

from nanomed.evaluation.measure import encode, open_model
from nanomed.models import narrow
from nanomed.models.fused import fuse
from nanomed.models.prepacked import prepack


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--limit", type=int, default=60, help="documents (default: 60)")
    p.add_argument("--context", type=int, default=256, help="their first tokens (default: 256)")
    args = p.parse_args()
    rows = [["layers", "head", "perplexity", "same likeliest token"], ["---", "---", "---:", "---:"]]
    found, likeliest = [], None
    for layers in ("as they are", "fp16", "int8", "int4, 32", "int4, 64"):
        o = open_model(args.model, "cpu", "fp32", plain=True)
        corpus = encode(o, [args.data], limit=args.limit, skip_bad=True).all()
        documents = [
            torch.from_numpy(corpus.ids(k)[: args.context].astype("int64"))
            for k in range(len(corpus.indices))
        ]
        head = o.model.lm_head
        lay_out(o.model, layers)
        with torch.no_grad():
            hidden = torch.cat([o.model.backbone(ids[None, :-1])[0] for ids in documents])
            targets = torch.cat([ids[1:] for ids in documents])
            for name, logits_of in heads(head, layers).items():
                nll, best = scored(hidden, targets, logits_of)
                likeliest = best if likeliest is None else likeliest
                same = (best == likeliest).double().mean().item()
                found.append({"layers": layers, "head": name, "ppl": math.exp(nll), "same": same})
                rows.append([layers, name, f"{math.exp(nll):.3f}", f"{same:.1%}"])
                print(json.dumps(found[-1]), flush=True)
    print(sides.tables.text_table(rows))
    print(
        json.dumps(
            {"bench": "write_in", "found": found, "tokens": len(targets), "machine": sides.machine("cpu")}
        )
    )


def lay_out(model, layers: str) -> None:
    if layers.startswith("int4"):
        for module in model.backbone.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = in_4_bits(module.weight.data, int(layers.split()[1]))
        layers = "as they are"
    fuse(model)
    if layers != "as they are":
        narrow.narrow(model, layers)
    prepack(model)


def heads(head, layers: str) -> dict:
    kinds = {"as it is": head}
    if layers.startswith("int"):
        kinds["int8"] = narrow.ByteLinear(head)
    if layers.startswith("int4"):
        kinds["int4"] = nn.Linear(1, 1, bias=False)
        kinds["int4"].weight = nn.Parameter(in_4_bits(head.weight.data, int(layers.split()[1])), False)
    return kinds


def in_4_bits(weight, group: int):
    """(out, in) -> the nearest of 16 equally spaced numbers from each group's smallest to its largest."""
    parts = weight.unflatten(1, (-1, group))
    low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
    step = (high - low).clamp(min=1e-9) / 15
    return (((parts - low) / step).round() * step + low).flatten(1)


def scored(hidden, targets, logits_of):
    """(mean loss, the likeliest token of each place)"""
    total, best = 0.0, []
    for x, t in zip(hidden.split(512), targets.split(512), strict=True):
        logits = logits_of(x)
        total += nn.functional.cross_entropy(logits, t, reduction="sum").item()
        best.append(logits.argmax(-1))
    return total / len(targets), torch.cat(best)


if __name__ == "__main__":
    main()
