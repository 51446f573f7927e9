"""eval.py cls: a classifier beside plain baselines."""

import argparse

from nanomed import flags
from nanomed.errors import UserError

HELP = "accuracy, F1, AUC and calibration of a classifier, beside plain baselines"


def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help="directory that train_cls.py made")
    flags.add_flags(p, flags.Labelled)
    flags.add_batch_size_flag(p, "texts")
    flags.add_data_flags(p)


def main(args) -> dict:
    from nanomed.evaluation import classes, measure
    from nanomed.evaluation.baselines import verdict
    from nanomed.evaluation.tables import classification_table, confusion_table, text_table
    from nanomed.evaluation.training_texts import overlap_with_training, trained_with
    from nanomed.systems import overlap
    from nanomed.text import labelled, special

    o = measure.open_asked(args, classifier=True)
    how = labelled.spelling(args)
    classes.name_labels(o, how.names)
    if args.positives:
        given = args.negative_name, args.positive_name
        negative, positive = label_names(o.model.labels, given, trained_with(o.directory))
        args = argparse.Namespace(**vars(args) | {"negative_name": negative, "positive_name": positive})
    sources, fields = labelled.labelled_sources(args), (args.text_field, args.label_field)
    found = classes.read_test_texts(o, sources, *fields, args.limit, args.skip_bad_rows, how)
    left_out = f"; {found.bad_rows} bad rows left out" if found.bad_rows else ""
    print(f"{o}; {len(found.items):,} texts, {len(o.model.labels)} labels{left_out}")
    r = classes.measure_classes(o, found.items, args.batch_size, args.seed, overlap.finder)
    special.say(r["special_tokens"])
    print(text_table(classification_table(r["measures"])))
    if not r["multi_label"]:
        confusion = confusion_table(r["measures"]["model"]["confusion"], r["labels"])
        print("", text_table(confusion, turn=False), "", sep="\n")
    print(f"no baselines: {r['no_baseline']}" if r["no_baseline"] else verdict(r["measures"]))
    texts = [item.text for item in found.items]
    return r | overlap_with_training(o, texts) | {"data_sha256": found.sha256}


def label_names(labels: list[str], given: tuple[str, str], trained) -> tuple[str, str]:
    """(negative, positive) as given; or as they were in training (its settings, or None), if that was on
    --positives and --negatives too; or the labels 0 and 1 of a model that has no names for them."""
    from nanomed.text.labels import unnamed

    if set(given) <= set(labels):
        return given
    if given == ("negative", "positive") and trained and trained.positives:
        return trained.negative_name, trained.positive_name
    if given == ("negative", "positive") and len(labels) == 2 and unnamed(labels):
        return labels[0], labels[1]
    must = "--negative-name and --positive-name must be two of the model's labels"
    raise UserError(f"{must}: {', '.join(labels)}")
