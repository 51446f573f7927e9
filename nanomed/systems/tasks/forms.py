"""Forms of tasks: how an annotated text is asked about, how its labels are written as an answer, and how an
answer is read back.

    row of an annotated file --take--> Case(input, gold) --write--> the answer to train on
                     what a model writes --read--> labels or tags again, to be compared with gold

A model that writes is measured by what its text says, so read() is as strict as a program that used the
answer would have to be: an answer in another form than the one asked for raises Malformed, and counts as
wrong. What write() makes of a row's gold must come back through read(): `lost` says whether it does."""

from collections.abc import Callable
from dataclasses import dataclass

from nanomed.systems.tasks import classes, entities, options
from nanomed.systems.tasks.cases import Case, Malformed


@dataclass(frozen=True)
class Form:
    """take(row, fields, rename, most, how, names) -> Case, rename: what the answers call a label, by what
    rows call it; most: words of a text that are shown, the rest is cut (None: all); how, names: text.labels'
    Spelling and class_names (of tags: the type of bare ones, and what numbers mean); settle(placed cases of
    all rows, how, rename, order) -> Settled, of a form whose gold hangs on what the other rows say;
    write(case, labels) -> answer; read(answer, input, labels) -> tags or labels; labels: all that there are
    (of tags: the types of entities)."""

    take: Callable
    write: Callable
    read: Callable
    tagged: bool = False
    settle: Callable | None = None


def lost(form: Form, case: Case, labels: list[str]) -> str | None:
    """Why the answer that a case is written as does not say its gold; None where read() gives it back."""
    answer = form.write(case, labels)
    try:
        found = form.read(answer, case.input, labels)
    except Malformed as e:
        return f"its answer {_short(answer)} cannot be read back: {e}"
    if found == list(case.gold):
        return None
    return f"its answer {_short(answer)} reads back as {_short(found)}, not as {_short(list(case.gold))}"


def _short(value, most: int = 80) -> str:
    return text if len(text := repr(value)) <= most else text[:most] + "..."


def _labelled(take, read=classes.read_label, settle=classes.settle_label) -> Form:
    """One label a text."""
    return Form(take, classes.write_label, read, settle=settle)


FORMS = {
    "entities": Form(entities.take_tagged, entities.write_entities, entities.read_entities, tagged=True),
    "tags": Form(entities.take_tagged, entities.write_tags, entities.read_tags, tagged=True),
    "relation": _labelled(classes.take_text),
    "inference": _labelled(classes.take_pair),
    "class": _labelled(classes.take_text),
    "classes": Form(
        classes.take_texts, classes.write_labels, classes.read_labels, settle=classes.settle_labels
    ),
    "decision": _labelled(classes.take_question),
    "options": _labelled(options.take_options, options.read_option, options.settle_options),
}
# Which field of a row is what, where a source does not say otherwise: dotted paths, the first of several that
# a row has.
FIELDS = {
    "tokens": "tokens,words",
    "tags": "tags,ner_tags",
    "text": "text",
    "label": "answer_idx,cop,final_decision,label,answer",
    "labels": "labels,label",
    "premise": "premise",
    "hypothesis": "hypothesis",
    "question": "question",
    "context": "context.contexts,context",
    "options": "options,choices",
}
