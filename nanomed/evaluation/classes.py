"""What a classifier says of labelled texts, beside plain baselines."""

from dataclasses import replace

from nanomed.errors import UserError
from nanomed.evaluation.baselines import beside_baselines
from nanomed.evaluation.measure import Opened
from nanomed.evaluation.training_texts import trained_with, training_sides
from nanomed.models.classifier import predict
from nanomed.text import labelled, special
from nanomed.text.labels import PLAIN, unnamed


def name_labels(o: Opened, names: tuple[str, ...]) -> None:
    """Give the model's labels the names of --label-names where config.json has none for them."""
    if names and unnamed(o.model.labels):
        if len(names) != len(o.model.labels):
            has = f"{o.name} has {len(o.model.labels)} labels"
            raise UserError(f"--label-names gives {len(names)} names, and {has}")
        o.model.labels = list(names)


def read_test_texts(o: Opened, sources, text_field, label_field, limit, skip_bad, how=PLAIN):
    """A labelled.LabelledSet: texts, with what the model calls the labels that they have."""
    m, where = o.model, sources[0][0]
    found = labelled.read_labelled(sources, text_field, label_field, limit, skip_bad, how)
    if m.multi_label is None:  # transformers too goes by the labels where config.json has no problem_type
        m.multi_label = found.multi_label
    if found.multi_label != m.multi_label:
        kinds = {False: "one label a text", True: "a list of labels a text"}
        trained = f"{o.name} was trained on {kinds[m.multi_label]}"
        raise UserError(f"{where}: has {kinds[found.multi_label]}, but {trained}")
    if found.lists == "vectors" and len(found.order) != len(m.labels):
        raise UserError(f"{where}: vectors over {len(found.order)} labels, and {o.name} has {len(m.labels)}")
    items, note = labelled.as_model_says(found.items, m.labels)
    if note:
        print(f"{where}: {note}")
    return replace(found, items=items)


def context_of(o: Opened) -> int:
    """How many ids of a text a classifier is shown: beyond those of its training nothing was trained."""
    trained = trained_with(o.directory)
    return trained.context if trained else o.model.config.n_positions


def measure_classes(o: Opened, items: list, batch_size=16, seed=0, near_finder=None) -> dict:
    """metrics.classification() of a classifier on Labelled texts, beside the two baselines if the directory's
    run.json still leads to the texts it was trained on: {labels, measures: {name: ...}, no_baseline: why, or
    None}. near_finder: as training_sides() has it."""
    m = o.model
    ids, truncated = labelled.encode_texts([item.text for item in items], o.tokenizer, context_of(o))
    targets = labelled.targets_of(items, m.labels, m.multi_label)
    logits = predict(m, ids, o.tokenizer.pad, batch_size, o.device, o.dtype)
    sides, why = training_sides(o.directory, near_finder)
    if sides:  # whose labels may have been given names since
        sides = replace(sides, training=labelled.as_model_says(sides.training, m.labels)[0])
    return {
        "labels": m.labels,
        "multi_label": m.multi_label,
        "texts": len(items),
        "truncated": truncated,
        "special_tokens": special.report(o.tokenizer, (item.text for item in items)),
        "measures": beside_baselines(logits, m.labels, sides, items, targets, seed),
        "no_baseline": why,
        **o.named(),
    }
