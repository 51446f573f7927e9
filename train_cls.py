"""Phase 3, classify: put a classification head on a model and train it: all weights, LoRA, or the head alone.

python train_cls.py --model runs/adapted --positives abstracts.jsonl --negatives news.jsonl --out runs/sorted
python train_cls.py --model runs/adapted --data topics.jsonl --lora-r 8 --out runs/topics
python train_cls.py --model runs/adapted --data topics.jsonl --freeze --out runs/probe"""

import shlex
from functools import partial

from nanomed.training.launch import execute
from nanomed.training.settings import Classify, parse


def main():
    s = parse(Classify, __doc__)
    if classify(s):
        asked = f"--model {shlex.quote(str(s.out))} --data LABELLED.jsonl"
        print(f"results in {s.out}; next: python eval.py cls {asked}")


def classify(given: Classify) -> bool:
    """The whole run; whether its results are there, for this process to speak of."""
    # Here, so that --help and a wrong flag need not wait for PyTorch:
    import torch

    from nanomed.models.classifier import Classifier, classification_loss, collate_labelled
    from nanomed.precision import shapes_vary
    from nanomed.systems import overlap
    from nanomed.text.batch import Batches
    from nanomed.text.labelled import class_weights, in_words, oversampled, read_sides
    from nanomed.training import distributed, run

    setup = run.setup(given)
    s, tokenizer = setup.settings, setup.tokenizer

    # Read, and divide: what is held out is not trained on.
    sides = read_sides(s, overlap.finder(s.near_duplicates, s.seed), setup.earlier)
    sides.divided.say("texts", setup.model_name)

    # Batch: ids of texts and numbers of labels; the rarer classes count more, unless --balance none.
    ids, targets, truncated = sides.encode(sides.training, tokenizer, s.context)
    sets = {name: sides.encode(side, tokenizer, s.context) for name, side in sides.validation.items()}
    weights = torch.from_numpy(class_weights(targets, len(sides.labels))) if s.balance == "weights" else None
    chosen = oversampled(targets, s.seed) if s.balance == "sampling" else range(len(ids))
    items, collate = [(ids[k], targets[k]) for k in chosen], partial(collate_labelled, pad=tokenizer.pad)
    unit = "decisions" if sides.multi_label else "texts"  # of several labels, each is a decision
    batches = Batches(items, collate, s.batch_size, s.grad_accum, s.seed, unit)

    # Train, and measure the loss and the accuracy on what is held out.
    def put_head_on(lm):
        if s.freeze:
            lm.requires_grad_(False)
        return Classifier(lm, sides.labels, sides.multi_label, tokenizer.pad)

    loss = partial(classification_loss, weights=weights)
    measures = {n: partial(measure, side=side, weights=weights, setup=setup) for n, side in sets.items()}
    facts = sides.facts(tokenizer, truncated)
    said, held = in_words(facts, s.context), sides.divided.held
    job = run.Job(batches, loss, measures, held, sides.hashes, facts, said, classifier=put_head_on)
    with shapes_vary():  # a batch is as long as its longest text
        trained = run.train(setup, job)
    done = bool(trained or not s.dry_run) and not distributed.rank()
    if done:
        compare_with_baselines(setup, sides, sets)
    return done


def measure(model, side, weights, setup) -> dict[str, float]:
    """The mean loss of a side, (ids, targets, ...), and the share of its texts whose labels are all right."""
    import torch

    from nanomed.models.classifier import loss_of_logits, predict, probabilities

    (ids, targets, _), s = side, setup.settings
    logits = predict(model, ids, setup.tokenizer.pad, s.batch_size, setup.device, s.dtype)
    loss, count = loss_of_logits(logits, torch.from_numpy(targets), weights)
    if targets.ndim == 2:
        right = ((probabilities(logits, True) >= 0.5) == targets).all(1)
    else:
        right = logits.argmax(1).numpy() == targets
    return {"loss": loss.item() / count, "accuracy": float(right.mean())}


def compare_with_baselines(setup, sides, sets) -> None:
    """The classifier that DIR holds now beside plain baselines, on what is held out; for summary.json."""
    from nanomed import hub
    from nanomed.evaluation import tables
    from nanomed.evaluation.baselines import beside_baselines, verdict
    from nanomed.files import read_object, write_json
    from nanomed.models.classifier import predict

    s, file = setup.settings, setup.settings.out / "summary.json"
    summary, found = read_object(file), {}
    if not sets or "classification" in summary:
        return
    source, quantize = hub.find(str(s.out)), None if s.merge else s.quantize
    model = hub.load_classifier(source, quantize=quantize).to(setup.device)
    for name, (ids, targets, _) in sets.items():
        logits = predict(model, ids, setup.tokenizer.pad, s.batch_size, setup.device, s.dtype)
        found[name] = beside_baselines(logits, sides.labels, sides, sides.validation[name], targets, s.seed)
        figures = tables.text_table(tables.classification_table(found[name]))
        print(f"{name}:" if len(sets) > 1 else "", figures, verdict(found[name]), sep="\n")
    summary["classification"] = next(iter(found.values()))
    if len(found) > 1:
        summary["classification_sets"] = found
    write_json(summary, file)


if __name__ == "__main__":
    execute(main)
