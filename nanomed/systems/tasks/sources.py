"""Annotated files, as a TOML file names them, and what becomes of them: an instruction set, a directory.

tasks.json          {"tasks": {NAME: its form, labels, counts, ...}, ...}: how it was made
train.jsonl         the mixture: rows {instruction, input, output, source}, shuffled, for train_sft.py
NAME.baselines.json what needs no language model says of each of its test texts (baselines.py)
NAME.train.jsonl    all that may be trained on of one task, rows with `gold` beside these
NAME.test.jsonl     what it is measured on: the same rows
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import check_name, read_section, read_toml
from nanomed.limits import Count
from nanomed.systems.overlap import near_duplicates, words
from nanomed.systems.tasks.cases import Case, Settled, value_in
from nanomed.systems.tasks.classes import notes_on
from nanomed.systems.tasks.corpora import corpus_rows
from nanomed.systems.tasks.forms import FIELDS, FORMS, lost
from nanomed.systems.tasks.offsets import COUNTED
from nanomed.text.arrow import class_names
from nanomed.text.labels import Spelling
from nanomed.text.rows import read_rows

Name = Annotated[str, Meta(pattern=r"\S")]
Texts = Annotated[list[Name], Meta(min_length=1)]


@dataclass(frozen=True)
class Section:
    """Of the TOML file: an annotated corpus. docs/tasks.md says what each key means."""

    form: str
    train: Texts
    test: Texts
    instructions: Texts
    split_field: Name | None = None
    group_field: str | None = None
    labels: dict[str, Name] = field(default_factory=dict)
    label_names: list[str] = field(default_factory=list)
    label_separator: str | None = None
    label_columns: list[str] = field(default_factory=list)
    label_lists: str | None = None
    tag_names: list[str] = field(default_factory=list)
    type: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    rows: Count | None = None
    balance: bool = False
    times: Count = 1
    words: Count | None = None
    measure: str = ""
    published: str = ""


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    name: str

    @property
    def spelling(self) -> Spelling:
        names, columns = tuple(self.label_names), tuple(self.label_columns)
        return Spelling(names, self.label_separator or None, columns, self.label_lists, flag="label_")


NAMES = {"train": "training", "test": "test"}
SIDES = tuple(NAMES)
NAMED = ("relation", "inference", "class", "classes", "decision")  # forms whose rows name labels
ONE_LABEL = (*(form for form in NAMED if form != "classes"), "options")
TAGGED = tuple(form for form in FORMS if FORMS[form].tagged)
OF_MENTIONS = {"orphans": "I- tags without a B- made B-"} | COUNTED
MEASURES = ("entity_f1", "micro_f1", "macro_f1", "accuracy")


def measures_of(form: str) -> list[str]:
    return [m for m in MEASURES if (m == "entity_f1") == (form in TAGGED)]


def read_sources(path: Path) -> list[Source]:
    """Of a TOML file, a section a source. Raises UserError, naming section and key, for whatever cannot be
    used."""
    if not (sections := read_toml(path)):
        raise UserError(f"{path}: no section there; each is a source (docs/tasks.md)")
    return [_source(name, section, f"{path} [{name}]") for name, section in sections.items()]


def _source(name: str, section, where: str) -> Source:
    def need(so: bool, why: str) -> None:
        if not so:
            raise UserError(f"{where}: {why}")

    s = read_section(Section, section, where)
    form, measures = s.form, measures_of(s.form)
    need(form in FORMS, f"form must be one of {', '.join(FORMS)}, not {form!r}")
    odd = sorted(s.fields.keys() - FIELDS.keys())
    need(not odd, f"fields has no {', '.join(map(repr, odd))}; there are: {', '.join(FIELDS)}")
    default = "entity_f1" if form in TAGGED else "accuracy" if form == "options" else "macro_f1"
    measure = section.get("measure", default)
    need(measure in measures, f"measure must be one of {', '.join(measures)} for {form}")
    for key in section:
        forms = NAMED if key.startswith("label_") else TAGGED if key in ("tag_names", "type") else FORMS
        need(form in forms, f"{key} goes with {', '.join(forms)}, not with {form}")
    names, columns = len(s.label_names), len(s.label_columns)
    need(not names or not columns or names == columns, f"{columns} label_columns and {names} label_names")
    need(s.label_lists in (None, "names", "vectors"), "label_lists must be names or vectors")
    end = "what is asked stands at a question's end; leave it out"
    need(not s.balance or form in ONE_LABEL, f"balance goes with {', '.join(ONE_LABEL)}, not with {form}")
    need(form != "options" or "words" not in section, f"words does not go with options: {end}")
    for word in re.findall(r"(?<!\{)\{(\w+)\}(?!\})", "\n".join(s.instructions)):
        mend = f"{{labels}} is put in, and {{{{{word}}}}} is written {{{word}}}"
        need(word == "labels", f"instructions: {{{word}}} is not known; {mend}")
    check_name(name, where)
    return Source(**vars(s) | {"name": name, "measure": measure})


@dataclass
class Task:
    """A source, read: its labels, and the cases of its two sides."""

    source: Source
    labels: list[str]
    train: list[Case]
    test: list[Case]
    removed: int = 0  # of train, because they repeat a test text of any source
    of_groups: int = 0  # of train, because a test text is of their group
    bad: int = 0  # rows that were left out, because they cannot be used, or do not read back

    @property
    def form(self):
        return FORMS[self.source.form]

    @property
    def sides(self) -> dict[str, list[Case]]:
        return {"train": self.train, "test": self.test}


def read_task(source: Source, home: Path, limit: int | None, skip_bad: bool) -> Task:
    """Read both sides; say what the user should know of their labels. Raises UserError with file and row for
    a bad row, and for one whose gold cannot be read back from the answer that it is written as."""
    form, order, rows = FORMS[source.form], (), []
    for side in SIDES:
        for file in getattr(source, side):
            name = file if file.startswith("hub:") else str(home / file)
            names = _class_names(source, name)
            order = order or tuple(names or ())
            for k, case in _cases(source, side, name, names, limit, skip_bad):
                rows.append((side, f"{name}, row {k}", case))
    good = [(place, case) for _, place, case in rows if case]
    found = Settled([case for _, case in good])
    if form.settle and good:
        found = form.settle(good, source.spelling, source.labels, order)
    task = Task(source, _labels(source, found), [], [])
    notes = notes_on(task.labels) if source.form == "classes" else []
    for note in (*found.notes, *notes):
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
            task.sides[side].append(case)
    for side, cases in task.sides.items():
        if not cases:
            files = ", ".join(getattr(source, side))
            raise UserError(f"{files}: no rows there for the {side} side of {source.name}")
    return task


def _class_names(source: Source, name: str) -> list[str] | None:
    """What a data set calls the numbers in the field of its labels or tags, where the TOML file does not say
    it."""
    where = FIELDS | source.fields
    if source.form in TAGGED:
        return source.tag_names or class_names(name, where["tags"])
    if source.form not in NAMED or source.label_names or source.label_columns:
        return None
    return class_names(name, where["labels" if source.form == "classes" else "label"])


def _cases(source: Source, side: str, name: str, names, limit: int | None, skip_bad: bool):
    """(the row's number, its case or None for a bad row that is left out) of the rows of a file that are of
    this side."""
    form, where = FORMS[source.form], FIELDS | source.fields
    how, corpus = (source.type, corpus_rows(name)) if form.tagged else (source.spelling, None)
    if corpus:
        where = {"tokens": "tokens", "tags": "tags"}  # as corpus_rows calls them

    def take(row):
        if source.split_field and value_in(row, source.split_field, "split_field") != side:
            return ()
        case = form.take(row, where, source.labels, source.words, how, names)
        group = value_in(row, source.group_field, "group_field") if source.group_field else ""
        case = replace(case, group=f"{source.name}: {group}" if str(group).strip() else "")
        return replace(case, counts=case.counts | row["counts"]) if corpus else case

    cases = read_rows(name, take, limit, skip_bad, corpus)
    return [(k, case) for k, case in enumerate(cases, 1) if case != ()]


def _labels(source: Source, found: Settled) -> list[str]:
    """Of an answer: in the order of the TOML file, then of the data set's numbers, then of the alphabet."""
    there = {label for case in found.cases if isinstance(case, Case) for label in case.gold}
    if source.form in TAGGED:
        there = {tag[2:] for tag in there - {"O"}}
    if found.cases and not there:
        kind = "entity" if source.form in TAGGED else "label"
        raise UserError(f"{source.name}: not a single {kind} in its rows")
    named = [label for label in source.labels.values() if label in there or label in found.order]
    return list(dict.fromkeys([*named, *found.order, *sorted(there)]))


def keep_apart(tasks: list[Task], threshold: float, seed: int) -> None:
    """Take out of every training side, in place, what is of a test text's group, and what repeats a test text
    of any of the tasks: the same words in the same order, or nearly (Jaccard similarity of `threshold` or
    more of their sequences of five words; 0: the same only)."""
    held = {same(case) for task in tasks for case in task.test}
    tests = {task.source.name: [case.input for case in task.test] for task in tasks}
    for task in tasks:
        groups = {case.group for case in task.test if case.group}
        others = [case for case in task.train if case.group not in groups]
        kept = [case for case in others if same(case) not in held]
        if threshold and kept:
            texts = [case.input for case in kept]
            near = near_duplicates(texts, tests, threshold, seed=seed).near_removed_held
            kept = [case for case, out in zip(kept, near, strict=True) if not out]
        if not kept:
            of_groups = f", or of their groups ({task.source.group_field})" if groups else ""
            raise UserError(f"{task.source.name}: all of its training texts are test texts{of_groups}")
        task.of_groups, task.removed = len(task.train) - len(others), len(others) - len(kept)
        task.train = kept


def same(case: Case) -> str:
    """Equal for texts of the same words."""
    return " ".join(words(case.input))


def say_counts(made: dict) -> list[str]:
    """Of a task in tasks.json, in words, what is not there, or not as its rows have it."""
    said = [f"{made['removed']:,} repeat a test text and were taken out"] if made["removed"] else []
    said += [f"{made['of_groups']:,} are of a test text's group, out too"] if made["of_groups"] else []
    said += [f"{made['bad_rows']:,} bad rows left out"] if made["bad_rows"] else []
    for key, what in (("cut", f"cut at {made['words']} words"), ("repeated", "repeat an earlier one")):
        found = {side: n for side, n in made[key].items() if n}
        parts = [f"{n:,} of {made[side]:,} {NAMES[side]} texts" for side, n in found.items()]
        said += [f"{' and '.join(parts)} {what}"] if parts else []
    totals = {what: sum(made[key].values()) for key, what in OF_MENTIONS.items()}
    return said + [f"{n:,} {what}" for what, n in totals.items() if n]
