"""Annotated files, as a TOML file names them, and what becomes of them: an instruction set, a directory.

tasks.json          {"tasks": {NAME: its form, labels, counts, ...}, ...}: how it was made
train.jsonl         the mixture: rows {instruction, input, output, source}, shuffled, for train_sft.py
NAME.baselines.json what needs no language model says of each of its test texts (baselines.py)
NAME.train.jsonl    all that may be trained on of one task, NAME.test.jsonl what it is measured on: the same rows with `gold`
"""

import json
import random
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import check_name, read_toml, write_text
from nanomed.systems.overlap import near_duplicates, words
from nanomed.systems.tasks.cases import Case, Settled
from nanomed.systems.tasks.classes import joined, notes_on
from nanomed.systems.tasks.corpora import corpus_rows
from nanomed.systems.tasks.forms import FIELDS, FORMS, lost
from nanomed.systems.tasks.offsets import COUNTED
from nanomed.text.labels import Spelling, class_names
from nanomed.text.rows import get_value, read_rows


@dataclass(frozen=True)
class Source:
    """An annotated corpus.

    form: one of forms.FORMS; train, test: files, beneath the directory that is given with the TOML file, or
    hub:...; split_field: where both sides stand in one file, the field that says `train` or `test`;
    instructions: paraphrases, of which each row gets one (`{labels}` in it: all of them); labels: what an
    answer calls what a row calls otherwise; label_names, label_separator, label_columns, label_lists: how
    rows say their labels (text.labels.Spelling); tag_names: of tags that are numbers; type: of tags that are
    bare B and I; fields: of a row, beside forms.FIELDS; rows: of the mixture, at most (None: all); words: of
    a text that is shown, at most (the rest is cut); measure: the headline, one of MEASURES; published:
    figures of others, in words. docs/tasks.md has an example of each."""

    name: str
    form: str
    train: list[str]
    test: list[str]
    instructions: list[str]
    split_field: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    label_names: list[str] = field(default_factory=list)
    label_separator: str | None = None
    label_columns: list[str] = field(default_factory=list)
    label_lists: str | None = None
    tag_names: list[str] = field(default_factory=list)
    type: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    rows: int | None = None
    words: int | None = None
    measure: str = ""
    published: str = ""

    @property
    def spelling(self) -> Spelling:
        names, columns = tuple(self.label_names), tuple(self.label_columns)
        return Spelling(names, self.label_separator or None, columns, self.label_lists, flag="label_")


NAMES = {"train": "training", "test": "test"}
SIDES = tuple(NAMES)
NAMED = ("relation", "inference", "class", "classes", "decision")  # forms whose rows name labels
OF_MENTIONS = {"orphans": "I- tags without a B- made B-"} | COUNTED
MEASURES = ("entity_f1", "micro_f1", "macro_f1", "accuracy")


def measures_of(form: str) -> list[str]:
    return [m for m in MEASURES if (m == "entity_f1") == FORMS[form].tagged]


def read_sources(path: Path) -> list[Source]:
    """Of a TOML file, a section a source. Raises UserError, naming section and key, for whatever cannot be
    used."""
    try:
        found = read_toml(path)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    return [_source(name, section, f"{path} [{name}]") for name, section in found.items()]


def _source(name: str, section, where: str) -> Source:
    if not isinstance(section, dict):
        raise UserError(f"{where}: must be a section, one a source")
    kinds = {"rows": int, "words": int, "labels": dict, "fields": dict}
    lists = ("train", "test", "instructions", "label_names", "label_columns", "tag_names")
    known = {
        f.name: kinds.get(f.name, list if f.name in lists else str)
        for f in fields(Source)
        if f.name != "name"
    }
    for key, value in section.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        inside = (
            value
            if isinstance(value, list)
            else list(value.values())
            if isinstance(value, dict)
            else ["text"]
        )
        if (
            not isinstance(value, known[key])
            or isinstance(value, bool)
            or not all(isinstance(v, str) for v in inside)
        ):
            raise UserError(
                f"{where}: {key} must be {'texts' if known[key] in (list, dict) else known[key].__name__}"
            )
        if known[key] is int and value < 1:
            raise UserError(f"{where}: {key} must be 1 or more")
    for key in ("form", "train", "test", "instructions"):
        if not section.get(key):
            raise UserError(f"{where}: {key} is missing, or empty")
    if section["form"] not in FORMS:
        raise UserError(f"{where}: form must be one of {', '.join(FORMS)}, not {section['form']!r}")
    if odd := section.get("fields", {}).keys() - FIELDS.keys():
        raise UserError(f"{where}: fields has no {sorted(odd)[0]!r}; there are: {', '.join(FIELDS)}")
    measures = measures_of(section["form"])
    default = "accuracy" if section["form"] == "options" else "macro_f1" if len(measures) > 1 else measures[0]
    if section.get("measure", default) not in measures:
        raise UserError(f"{where}: measure must be one of {', '.join(measures)} for {section['form']}")
    tagged = [form for form in FORMS if FORMS[form].tagged]
    goes_with = {key: NAMED for key in section if key.startswith("label_")} | {
        "tag_names": tagged,
        "type": tagged,
    }
    for key in section.keys() & goes_with.keys():
        if section["form"] not in goes_with[key]:
            raise UserError(
                f"{where}: {key} goes with {', '.join(goes_with[key])}, not with {section['form']}"
            )
    names, columns = section.get("label_names"), section.get("label_columns")
    if names and columns and len(names) != len(columns):
        raise UserError(f"{where}: {len(columns)} label_columns and {len(names)} label_names")
    if section.get("label_lists", "names") not in ("names", "vectors"):
        raise UserError(f"{where}: label_lists must be names or vectors")
    if section["form"] == "options" and "words" in section:
        raise UserError(
            f"{where}: words does not go with options: what is asked stands at a question's end; leave it out"
        )
    check_name(name, where)
    return Source(**({"name": name, "measure": default} | section))


@dataclass
class Task:
    """A source, read: its labels, and the cases of its two sides."""

    source: Source
    labels: list[str]
    train: list[Case]
    test: list[Case]
    removed: int = 0  # of train, because they repeat a test text of any source
    bad: int = 0  # rows that were left out, because they cannot be used, or do not read back

    @property
    def form(self):
        return FORMS[self.source.form]


def read_task(source: Source, home: Path, limit: int | None, skip_bad: bool) -> Task:
    """Read both sides; say what the user should know of their labels. Raises UserError with file and row for
    a bad row, and for one whose gold cannot be read back from the answer that it is written as."""
    form, order, rows = FORMS[source.form], (), []
    for side in SIDES:
        for file in getattr(source, side):
            name = file if file.startswith("hub:") else str(home / file)
            names = _class_names(source, name)
            order = order or tuple(names or ())
            rows += [
                (side, f"{name}, row {k}", case)
                for k, case in _cases(source, side, name, names, limit, skip_bad)
            ]
    good = [(place, case) for _, place, case in rows if case]
    found = Settled([case for _, case in good])
    if form.settle and good:
        found = form.settle(good, source.spelling, source.labels, order)
    task = Task(source, _labels(source, found), [], [])
    for note in (*found.notes, *(notes_on(task.labels) if source.form == "classes" else ())):
        print(f"{source.name}: {note}")
    settled = iter(found.cases)
    for side, place, case in rows:
        case = next(settled) if case else None
        why = lost(form, case, task.labels) if isinstance(case, Case) else case
        if why and not skip_bad:
            raise UserError(f"{place}: {why} (--skip-bad-rows leaves such rows out)")
        if case is None or why:
            task.bad += 1
        else:
            getattr(task, side).append(case)
    for side in SIDES:
        if not getattr(task, side):
            raise UserError(
                f"{', '.join(getattr(source, side))}: no rows there for the {side} side of {source.name}"
            )
    return task


def _class_names(source: Source, name: str) -> list[str] | None:
    """What a data set calls the numbers in the field of its labels or tags, where the TOML file does not say
    it."""
    if FORMS[source.form].tagged:
        return source.tag_names or class_names(name, (FIELDS | source.fields)["tags"])
    if source.form not in NAMED or source.label_names or source.label_columns:
        return None
    return class_names(name, (FIELDS | source.fields)["labels" if source.form == "classes" else "label"])


def _cases(
    source: Source, side: str, name: str, names, limit: int | None, skip_bad: bool
) -> list[tuple[int, Case | None]]:
    """(the row's number, its case or None for a bad row that is left out) of the rows of a file that are of
    this side."""
    form, where = FORMS[source.form], FIELDS | source.fields
    how, corpus = (source.type, corpus_rows(name)) if form.tagged else (source.spelling, None)
    if corpus:
        where = {"tokens": "tokens", "tags": "tags"}  # as corpus_rows calls them

    def take(row):
        if source.split_field and get_value(row, source.split_field) != side:
            return ()
        case = form.take(row, where, source.labels, source.words, how, names)
        return replace(case, **row["counts"]) if corpus else case

    return [
        (k, case) for k, case in enumerate(read_rows(name, take, limit, skip_bad, corpus), 1) if case != ()
    ]


def _labels(source: Source, found: Settled) -> list[str]:
    """Of an answer: in the order of the TOML file, then of the data set's numbers, then of the alphabet."""
    tagged = FORMS[source.form].tagged
    there = {
        g[2:] if tagged else g
        for case in found.cases
        if isinstance(case, Case)
        for g in case.gold
        if not tagged or g != "O"
    }
    if found.cases and not there:
        raise UserError(f"{source.name}: not a single {'entity' if tagged else 'label'} in its rows")
    named = [label for label in source.labels.values() if label in there or label in found.order]
    return list(dict.fromkeys([*named, *found.order, *sorted(there)]))


def keep_apart(tasks: list[Task], threshold: float, seed: int) -> None:
    """Take out of every training side, in place, what repeats a test text of any of the tasks: the same words
    in the same order, or nearly (Jaccard similarity of `threshold` or more of their sequences of five words;
    0: the same only)."""
    held = {_same(case) for task in tasks for case in task.test}
    for task in tasks:
        kept = [case for case in task.train if _same(case) not in held]
        if threshold and kept:
            everything = {other.source.name: [case.input for case in other.test] for other in tasks}
            near = near_duplicates(
                [case.input for case in kept], everything, threshold, seed=seed
            ).near_removed_held
            kept = [case for case, out in zip(kept, near, strict=True) if not out]
        task.removed = len(task.train) - len(kept)
        task.train = kept
        if not kept:
            raise UserError(f"{task.source.name}: all of its training texts are test texts")


def _same(case: Case) -> str:
    """Equal for texts of the same words."""
    return " ".join(words(case.input))


def row(task: Task, case: Case, seed, gold: bool = True) -> dict:
    """Of a file: the case with one of the task's instructions, which the seed draws."""
    asked = (
        random.Random(str(seed))
        .choice(task.source.instructions)
        .replace("{labels}", joined(task.labels, task.labels))
    )
    out = {
        "instruction": asked,
        "input": case.input,
        "output": task.form.write(case, task.labels),
        "source": task.source.name,
    }
    return out | ({"gold": list(case.gold)} if gold else {})


def drawn(task: Task, seed: int) -> list[int]:
    """Which of a task's training cases are in the mixture: up to `rows`, drawn by the seed."""
    order = list(range(len(task.train)))
    random.Random(f"{seed} {task.source.name}").shuffle(order)
    return order[: task.source.rows]


def mixture(tasks: list[Task], seed: int) -> list[dict]:
    """The rows to train on, shuffled by the seed."""
    out = []
    for task in tasks:
        out += [row(task, task.train[k], (seed, task.source.name, k), gold=False) for k in drawn(task, seed)]
    random.Random(seed).shuffle(out)
    return out


def write_rows(rows: list[dict], path: Path) -> None:
    write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), path)


def describe(task: Task, seed: int) -> dict:
    """What tasks.json says of a task."""
    kept = {
        k: v
        for k, v in asdict(task.source).items()
        if k in ("form", "measure", "published", "instructions", "rows", "words")
    }
    sides = {side: getattr(task, side) for side in SIDES}
    counts = {side: len(cases) for side, cases in sides.items()} | {"in_mixture": len(drawn(task, seed))}
    counts |= {"removed": task.removed, "bad_rows": task.bad}
    counts["cut"] = {side: sum(case.cut for case in cases) for side, cases in sides.items()}
    counts["repeated"] = {
        side: len(cases) - len({_same(case) for case in cases}) for side, cases in sides.items()
    }
    for key in OF_MENTIONS:
        counts[key] = {side: sum(getattr(case, key) for case in cases) for side, cases in sides.items()}
    return kept | {"labels": task.labels, **counts}


def say_counts(made: dict) -> list[str]:
    """Of a task in tasks.json, in words, what is not there, or not as its rows have it."""

    def of(key, what):
        parts = [
            f"{n:,} of {made[side]:,} {name} texts"
            for side, name in NAMES.items()
            if (n := made[key].get(side))
        ]
        return [" and ".join(parts) + f" {what}"] if parts else []

    said = [f"{made['removed']:,} repeat a test text and were taken out"] if made["removed"] else []
    said += [f"{made['bad_rows']:,} bad rows left out"] if made["bad_rows"] else []
    said += of("cut", f"cut at {made['words']} words") + of("repeated", "repeat an earlier one")
    of_mentions = ((sum(made[key].values()), what) for key, what in OF_MENTIONS.items())
    return said + [f"{n:,} {what}" for n, what in of_mentions if n]
