"""What `eval.py generate --write-in fp16` costs a model that is stored in fp32: perplexity of documents, and
the share of places at which the likeliest next token is still the same, the document being given.

    python bench/write_in.py --model runs/models/gpt2 --data abstracts.jsonl
"""

import argparse
import json
import math

import sides
import torch
from torch.nn.functional import cross_entropy

from nanomed.evaluation.measure import encode, open_model
from nanomed.evaluation.next_token import next_logits


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--limit", type=int, default=60, help="documents (default: 60)")
    p.add_argument("--context", type=int, default=256, help="their first tokens (default: 256)")
    args = p.parse_args()
    rows = [["read in", "perplexity", "same likeliest token"], ["---", "---:", "---:"]]
    found, likeliest = [], None
    for write_in in ("stored", "fp16"):
        o = open_model(args.model, "cpu", "fp32", write_in=write_in)
        corpus = encode(o, [args.data], limit=args.limit, skip_bad=True).all()
        losses, best = [], []
        for k in range(len(corpus.indices)):
            ids = torch.from_numpy(corpus.ids(k)[: args.context].astype("int64"))
            logits = next_logits(o.model, o.model.backbone(ids[None, :-1])[0], torch.float32)
            losses.append(cross_entropy(logits, ids[1:], reduction="none"))
            best.append(logits.argmax(-1))
        losses, best = torch.cat(losses), torch.cat(best)
        likeliest = best if likeliest is None else likeliest
        ppl, same = math.exp(losses.double().mean()), (best == likeliest).double().mean().item()
        found.append({"read in": write_in, "ppl": ppl, "same": same, "tokens": len(best)})
        rows.append([write_in, f"{ppl:.3f}", f"{same:.1%}"])
    print(sides.tables.text_table(rows))
    print(json.dumps({"bench": "write_in", "found": found, "machine": sides.machine("cpu")}))


if __name__ == "__main__":
    main()
