"""Phase 3, classify: put a classification head on a model and train it: all weights, LoRA, or the head alone.

python train_cls.py --model runs/adapted --positives abstracts.jsonl --negatives news.jsonl --out runs/classifier
python train_cls.py --model runs/adapted --data topics.jsonl --lora-r 8 --out runs/topics
python train_cls.py --model runs/adapted --data topics.jsonl --freeze --out runs/probe"""

import shlex
from functools import partial
from pathlib import Path

from nanomed.errors import UserError
from nanomed.training.launch import execute
from nanomed.training.settings import Classify, parse


def main():
    given = parse(Classify, __doc__)
    # From here on, so that --help and a wrong flag need not wait for PyTorch:
    import numpy as np
    import torch

    from nanomed import hub
    from nanomed.evaluation import tables
    from nanomed.evaluation.baselines import beside_baselines, verdict
    from nanomed.files import read_object, write_json
    from nanomed.models.classifier import (
        Classifier,
        classification_loss,
        collate_labelled,
        loss_of_logits,
        predict,
        probabilities,
    )
    from nanomed.precision import shapes_vary
    from nanomed.text import heldout, special
    from nanomed.text.batch import Batches
    from nanomed.text.labelled import class_weights, encode_texts, oversampled, read_sides, targets_of
    from nanomed.text.labels import in_line
    from nanomed.training import distributed, run

    setup = run.setup(given)
    plan = setup.settings

    # rows -> the two sides -> ids and label numbers -> batches
    sides = read_sides(plan)
    run.say_removed(sides.removed, "texts")
    labels, multi, pad = sides.labels, sides.multi_label, setup.tokenizer.pad
    earlier = setup.earlier.texts()
    run.say_earlier(setup, sum(heldout.digest(item.text) in earlier for item in sides.training))
    texts, targets = [item.text for item in sides.training], targets_of(sides.training, labels, multi)
    ids, truncated = encode_texts(texts, setup.tokenizer, plan.context)
    val_ids = {
        n: encode_texts([i.text for i in side], setup.tokenizer, plan.context)[0]
        for n, side in sides.validation.items()
    }
    val_targets = {name: targets_of(side, labels, multi) for name, side in sides.validation.items()}
    weights, chosen = None, range(len(ids))
    if plan.balance == "weights":
        weights = torch.from_numpy(class_weights(targets, len(labels)))
    elif plan.balance == "sampling":
        if multi:
            raise UserError(
                "--balance sampling repeats the texts of a class; a text of several needs --balance weights"
            )
        chosen = oversampled(targets, plan.seed)
    items = [(ids[k], targets[k]) for k in chosen]
    collate = partial(collate_labelled, pad=pad)
    unit = "decisions" if multi else "texts"  # of a multi-label task, each text is one a label
    batches = Batches(items, collate, plan.batch_size, plan.grad_accum, plan.seed, unit)

    def put_head_on(lm):
        if plan.freeze:
            lm.requires_grad_(False)
        return Classifier(lm, labels, multi, pad)

    def evaluate(model, name):
        logits = predict(model, val_ids[name], pad, plan.batch_size, setup.device, plan.dtype)
        loss, count = loss_of_logits(logits, torch.from_numpy(val_targets[name]), weights)
        right = probabilities(logits, multi) >= 0.5 if multi else logits.argmax(1).numpy()
        hits = right == val_targets[name]
        return {"loss": loss.item() / count, "accuracy": float((hits.all(1) if multi else hits).mean())}

    sizes = targets.sum(0).astype(int) if multi else np.bincount(targets, minlength=len(labels))
    read = [item.text for side in (sides.training, *sides.validation.values()) for item in side]
    facts = {
        "special_tokens": special.report_of(setup.tokenizer, read),
        "labels": labels,
        "texts": len(texts),
        "texts_by_label": dict(zip(labels, sizes.tolist(), strict=True)),
        "val_texts": sum(map(len, sides.validation.values())),
        "truncated": truncated,
        "bad_rows": sides.bad_rows,
        "duplicates_removed": sides.removed,
        "near_duplicates_removed": sides.near_removed,
    }
    what = (
        f"{len(texts):,} texts ({in_line(f'{n:,} {name}' for name, n in facts['texts_by_label'].items())})"
        + (f", {truncated:,} cut at {plan.context} tokens" if truncated else "")
        + (f", {sides.bad_rows:,} bad rows left out" if sides.bad_rows else "")
        + f"; {facts['val_texts']:,} validation texts"
    )
    loss_fn = partial(classification_loss, weights=weights)
    validation = {name: partial(evaluate, name=name) for name in sides.validation}
    job = run.Job(batches, loss_fn, validation, sides.held, sides.hashes, facts, what, classifier=put_head_on)
    with shapes_vary():  # a batch is as long as its longest text
        trained = run.train(setup, job)
    if (not trained and given.dry_run) or distributed.rank():
        return

    summary = Path(given.out) / "summary.json"
    if val_ids and "classification" not in read_object(summary):  # of the model that DIR holds now
        saved = hub.load_classifier(
            hub.find(str(given.out)), quantize=None if setup.settings.merge else setup.settings.quantize
        ).to(setup.device)
        found = {}
        for name, side in sides.validation.items():
            logits = predict(saved, val_ids[name], pad, plan.batch_size, setup.device, plan.dtype)
            found[name] = beside_baselines(logits, labels, sides, side, val_targets[name], plan.seed)
            figures = tables.text_table(tables.classification_table(found[name]))
            print(f"{name}:" if len(val_ids) > 1 else "", figures, verdict(found[name]), sep="\n")
        more = {"classification_sets": found} if len(found) > 1 else {}
        write_json(read_object(summary) | {"classification": next(iter(found.values()))} | more, summary)
    print(
        f"results in {given.out}; next: python eval.py cls --model {shlex.quote(str(given.out))} --data"
        " LABELLED.jsonl"
    )


if __name__ == "__main__":
    execute(main)
