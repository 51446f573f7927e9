"""The labels of a classifier, as transformers writes and reads them in config.json."""

from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import typed
from nanomed.models.classifier import PROBLEMS


def labels_of(raw: dict, path: Path, rows: int | None = None) -> tuple[list[str], bool | None]:
    """(the labels in the order of their numbers, whether a text can have several, or None where it is not
    said).

    Labels are id2label's, else LABEL_0, LABEL_1 and so on, of which there are two where nothing says how
    many. raw: config.json, which lies at `path`; rows: of the head that a peft adapter brings, whose base may
    be a language model, or name other labels, which the head's are not. Raises UserError where it says two
    things, or that the head gives a number and no classes."""
    problem, said = raw.get("problem_type"), raw.get("num_labels", raw.get("_num_labels"))
    number = typed(int, 2 if said is None else said, f"{path}: num_labels")
    names = raw.get("id2label") or {}
    if rows is not None and (not isinstance(names, dict) or len(names) != rows):
        said, number, names = None, rows, {}
    names = names or {str(k): f"LABEL_{k}" for k in range(number)}
    names = typed(dict[str, str | int], names, f"{path}: id2label")
    missing = next((k for k in range(len(names)) if str(k) not in names), None)
    if missing is not None:
        raise UserError(
            f"{path}: id2label names {len(names)} labels, and none of them has the number {missing}"
        )
    labels = [str(names[str(k)]) for k in range(len(names))]
    if said is not None and number != len(labels):
        raise UserError(f"{path}: num_labels = {number}, but id2label names {len(labels)}")
    if problem not in (None, *PROBLEMS) or len(labels) < 2:
        raise UserError(
            f"{path}: a regression (its problem_type, or fewer than two labels): it gives a number and no"
            " classes"
        )
    numbers = typed(dict[str, int], raw.get("label2id") or {}, f"{path}: label2id")
    for name, k in numbers.items():
        if name in labels and labels[k : k + 1] != [name]:
            raise UserError(
                f"{path}: id2label and label2id say different numbers of {name!r}; correct the wrong one"
            )
    if len(set(labels)) < len(labels):
        raise UserError(f"{path}: id2label gives two labels one name: {', '.join(labels)}")
    return labels, None if problem is None else problem == PROBLEMS[True]
