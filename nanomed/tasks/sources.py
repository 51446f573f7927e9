"""Annotated files, as a TOML file names them, and what becomes of them: an instruction set, a directory.

tasks.json          {"tasks": {NAME: its form, labels, counts, ...}, ...}: how it was made
train.jsonl         the mixture: rows {instruction, input, output, source}, shuffled, for train_sft.py
NAME.baselines.json what needs no language model says of each of its test texts (baselines.py)
NAME.train.jsonl    all that may be trained on of one task, NAME.test.jsonl what it is measured on: the same rows with `gold`
"""

import json
import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import read_toml, write_text
from nanomed.tasks.forms import FIELDS, FORMS, Case
from nanomed.text.overlap import near_duplicates, words
from nanomed.text.rows import get_value, read_rows


@dataclass(frozen=True)
class Source:
    """An annotated corpus.

    form: one of forms.FORMS; train, test: files, beneath the directory that is given with the TOML file, or hub:...; split_field:
    where both sides stand in one file, the field that says `train` or `test`; instructions: paraphrases, of which each row gets
    one (`{labels}` in it: all of them); labels: what an answer calls what a row calls otherwise; fields: of a row, beside
    forms.FIELDS; rows: of the mixture, at most (None: all); words: of a text that is shown, at most (the rest is cut); measure:
    the headline, one of MEASURES; published: figures of others, in words."""

    name: str
    form: str
    train: list[str]
    test: list[str]
    instructions: list[str]
    split_field: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    rows: int | None = None
    words: int | None = None
    measure: str = ""
    published: str = ""


MEASURES = ("entity_f1", "micro_f1", "macro_f1", "accuracy")


def read_sources(path: Path) -> list[Source]:
    """Of a TOML file, a section a source. Raises UserError, naming section and key, for whatever cannot be used."""
    try:
        found = read_toml(path)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    return [_source(name, section, f"{path} [{name}]") for name, section in found.items()]


def _source(name: str, section, where: str) -> Source:
    if not isinstance(section, dict):
        raise UserError(f"{where}: must be a section, one a source")
    kinds = {"rows": int, "words": int, "labels": dict, "fields": dict}
    lists = ("train", "test", "instructions")
    known = {f.name: kinds.get(f.name, list if f.name in lists else str) for f in fields(Source) if f.name != "name"}
    for key, value in section.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        inside = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else ["text"]
        if not isinstance(value, known[key]) or isinstance(value, bool) or not all(isinstance(v, str) for v in inside):
            raise UserError(f"{where}: {key} must be {'texts' if known[key] in (list, dict) else known[key].__name__}")
    for key in ("form", *lists):
        if not section.get(key):
            raise UserError(f"{where}: {key} is missing, or empty")
    if section["form"] not in FORMS:
        raise UserError(f"{where}: form must be one of {', '.join(FORMS)}, not {section['form']!r}")
    if odd := section.get("fields", {}).keys() - FIELDS.keys():
        raise UserError(f"{where}: fields has no {sorted(odd)[0]!r}; there are: {', '.join(FIELDS)}")
    tagged = FORMS[section["form"]].tagged
    measures = [m for m in MEASURES if (m == "entity_f1") == tagged]
    default = measures[0] if tagged else "accuracy" if section["form"] == "options" else "macro_f1"
    if section.get("measure", default) not in measures:
        raise UserError(f"{where}: measure must be one of {', '.join(measures)} for {section['form']}")
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"{where}: a name becomes a file's")
    return Source(**({"name": name, "measure": default} | section))


@dataclass
class Task:
    """A source, read: its labels, and the cases of its two sides."""

    source: Source
    labels: list[str]
    train: list[Case]
    test: list[Case]
    removed: int = 0  # of train, because they repeat a test text of any source
    bad: int = 0

    @property
    def form(self):
        return FORMS[self.source.form]


def read_task(source: Source, home: Path, limit: int | None, skip_bad: bool) -> Task:
    """Read both sides. Raises UserError with file and row for a bad row."""
    bad, form, where = 0, FORMS[source.form], FIELDS | source.fields

    def take(row, side):
        if source.split_field and get_value(row, source.split_field) != side:
            return ()
        return form.take(row, where, source.labels, source.words)

    sides = {}
    for side in ("train", "test"):
        names = [n if n.startswith("hub:") else str(home / n) for n in getattr(source, side)]
        taken = [case for n in names for case in read_rows(n, lambda row, side=side: take(row, side), limit, skip_bad)]
        bad += sum(case is None for case in taken)
        sides[side] = [case for case in taken if case]
        if not sides[side]:
            raise UserError(f"{', '.join(names)}: no rows there for the {side} side of {source.name}")
    found = {g[2:] if form.tagged else g for side in sides.values() for case in side for g in case.gold if g != "O"}
    if not found:
        raise UserError(f"{source.name}: not a single {'entity' if form.tagged else 'label'} in its rows")
    named = [label for label in dict.fromkeys(source.labels.values()) if label in found]  # in the order of the TOML file
    return Task(source, named + sorted(found.difference(named)), sides["train"], sides["test"], bad=bad)


def keep_apart(tasks: list[Task], threshold: float, seed: int) -> None:
    """Take out of every training side, in place, what repeats a test text of any of the tasks: the same words in the same order,
    or nearly (Jaccard similarity of `threshold` or more of their sequences of five words; 0: the same only)."""
    held = {" ".join(words(case.input)) for task in tasks for case in task.test}
    for task in tasks:
        kept = [case for case in task.train if " ".join(words(case.input)) not in held]
        if threshold and kept:
            everything = {other.source.name: [case.input for case in other.test] for other in tasks}
            near = near_duplicates([case.input for case in kept], everything, threshold, seed=seed).near_removed_held
            kept = [case for case, out in zip(kept, near, strict=True) if not out]
        task.removed = len(task.train) - len(kept)
        task.train = kept
        if not kept:
            raise UserError(f"{task.source.name}: all of its training texts are test texts")


def row(task: Task, case: Case, seed, gold: bool = True) -> dict:
    """Of a file: the case with one of the task's instructions, which the seed draws."""
    asked = random.Random(str(seed)).choice(task.source.instructions).replace("{labels}", ", ".join(task.labels))
    out = {"instruction": asked, "input": case.input, "output": task.form.write(case, task.labels), "source": task.source.name}
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


def describe(task: Task) -> dict:
    """What tasks.json says of a task."""
    kept = {k: v for k, v in asdict(task.source).items() if k in ("form", "measure", "published", "instructions", "rows", "words")}
    counts = {"train": len(task.train), "test": len(task.test), "removed": task.removed, "bad_rows": task.bad}
    return kept | {"labels": task.labels} | counts
