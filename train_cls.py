"""Phase 3, classify: put a classification head on a GPT-2 and train it: all weights, LoRA, or the head alone.

python train_cls.py --model runs/adapted --positives abstracts.jsonl --negatives news.jsonl --out runs/classifier
python train_cls.py --model runs/adapted --data topics.jsonl --lora-r 8 --out runs/topics
python train_cls.py --model runs/adapted --data topics.jsonl --freeze --out runs/probe
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from nanomed import cli, hub, report, run
from nanomed.errors import UserError
from nanomed.examples import Batches
from nanomed.files import read_json, write_json
from nanomed.labelled import (
    class_weights,
    encode_texts,
    measures,
    oversampled,
    read_sides,
    targets_of,
    verdict,
)
from nanomed.models.classifier import Classifier, classification_loss, collate_labelled, loss_of_logits, predict


def parse_args():
    p = cli.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, metavar="M", help=cli.MODEL_HELP)
    cli.add_labelled_flags(p)
    p.add_argument("--val-data", nargs="+", action=cli.Several, metavar="D", help="validate on these labelled rows")
    p.add_argument("--val-fraction", type=cli.share, default=0.05, help="else on this share of the texts")
    p.add_argument("--exclude", nargs="+", action=cli.Several, metavar="D",
                   help="texts that will be measured on later: take them out of the training side too")  # fmt: skip
    p.add_argument("--freeze", action="store_true", help="train the head alone")
    p.add_argument("--balance", choices=["weights", "sampling", "none"], default="weights",
                   help="if classes differ in size: weigh their losses, repeat the rarer texts, or neither")  # fmt: skip
    cli.add_training_flags(p)
    return cli.parse(p, phase="classify")


def main():
    args = parse_args()
    if args.freeze and args.lora_r:
        raise UserError("--freeze trains the head alone, --lora-r an adapter too: give one of them")
    setup = run.setup(args, full_lr=1e-3 if args.freeze else 5e-5)

    # rows -> the two sides -> ids and label numbers -> batches
    sides = read_sides(args)
    run.say_removed(sides.removed)
    labels, multi, pad = sides.labels, sides.multi_label, setup.tokenizer.eot
    texts, val_texts = ([item.text for item in side] for side in (sides.training, sides.validation))
    targets, val_targets = (targets_of(side, labels, multi) for side in (sides.training, sides.validation))
    ids, truncated = encode_texts(texts, setup.tokenizer, args.context)
    val_ids, _ = encode_texts(val_texts, setup.tokenizer, args.context)
    weights, chosen = None, range(len(ids))
    if args.balance == "weights":
        weights = torch.from_numpy(class_weights(targets, len(labels)))
    elif args.balance == "sampling":
        if multi:
            raise UserError(
                "--balance sampling repeats the texts of a class; a text of several needs --balance weights"
            )
        chosen = oversampled(targets, args.seed)
    items = [(ids[k], targets[k]) for k in chosen]
    batches = Batches(items, partial(collate_labelled, pad=pad), args.batch_size, args.grad_accum, args.seed)

    def put_head_on(lm):
        if args.freeze:
            lm.requires_grad_(False)
        return Classifier(lm, labels, multi, pad)

    def evaluate(model):
        logits = predict(model, val_ids, pad, args.batch_size, setup.device, args.dtype)
        loss, count = loss_of_logits(logits, torch.from_numpy(val_targets), weights)
        return {"loss": loss.item() / count, "ppl": np.exp(loss.item() / count)}

    sizes = targets.sum(0).astype(int) if multi else np.bincount(targets, minlength=len(labels))
    facts = {
        "labels": labels,
        "texts": len(texts),
        "texts_by_label": dict(zip(labels, sizes.tolist(), strict=True)),
        "val_texts": len(val_texts),
        "truncated": truncated,
        "bad_rows": sides.bad_rows,
        "duplicates_removed": sides.removed,
    }
    what = (
        f"{len(texts):,} texts ({', '.join(f'{n:,} {name}' for name, n in facts['texts_by_label'].items())})"
        + (f", {truncated:,} cut at {args.context} tokens" if truncated else "")
        + (f", {sides.bad_rows:,} bad rows left out" if sides.bad_rows else "")
        + f"; {len(val_texts):,} validation texts"
    )
    loss_fn = partial(classification_loss, weights=weights)
    run.train(args, setup, batches, loss_fn, evaluate if val_ids else None, sides.hashes, facts, what, head=put_head_on)

    summary = Path(args.out) / "summary.json"
    if val_ids and "classification" not in read_json(summary):  # of the model that DIR holds now
        saved = hub.load_classifier(hub.find(args.out)).to(setup.device)
        logits = predict(saved, val_ids, pad, args.batch_size, setup.device, args.dtype)
        measured = measures(logits, labels, sides, sides.validation, val_targets, args.seed)
        write_json(read_json(summary) | {"classification": measured}, summary)
        print(report.text_table(report.classification_table(measured)), verdict(measured), sep="\n")
    print(f"results in {args.out}; next: python eval.py cls --model {args.out} --data ...")


if __name__ == "__main__":
    cli.run(main)
