"""What a model was trained on: the texts that its run.json leads to, and whether what is measured is among
them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any

from nanomed.errors import UserError
from nanomed.files import read_object, typed
from nanomed.hub.source import is_path
from nanomed.text import heldout, labelled
from nanomed.text.instructions import Fields, read_instructions
from nanomed.text.names import named_sets, split_weight
from nanomed.text.ngrams import ngram_overlap
from nanomed.text.rows import full_texts
from nanomed.text.special import Written, written
from nanomed.text.templates import of_model
from nanomed.training.directory import RECORD, settings_there
from nanomed.training.settings import PHASES, Adapt, Classify, Instruct, Settings


@dataclass
class Record:
    """Of run.json, what is read."""

    settings: dict[str, Any]
    data: dict[str, str]  # hashes, as the two below
    versions: dict[str, Any]
    directory: str = "."
    phase: str | None = None
    model: str = ""
    tokenizer: str = ""
    command: str = ""
    machine: dict[str, Any] = field(default_factory=dict)


def trained_with(directory: Path) -> Settings | None:
    """The settings of the run that made a directory, as read_run() gives them; None for a model from
    elsewhere."""
    try:
        return read_run(directory)[0]
    except UserError:
        return None


def read_run(directory: Path) -> tuple[Settings, Record]:
    """What run.json says of a training; in the settings, data files as they are found from here. Raises
    UserError, saying why nothing is known of the training."""
    try:
        s, record = recorded(directory)
    except UserError as e:
        raise UserError(f"{e}, so the training texts are unknown") from e

    def from_here(file):
        return file if file.startswith("hub:") else str(Path(record.directory, file))

    named = {name: getattr(s, name) for name in s.of_files() if name != "val_data"}
    files = {name: [from_here(file) for file in given] for name, given in named.items() if given}
    if s.val_data:  # NAME=D
        sets = named_sets(s.val_data, Path(record.directory)).items()
        files["val_data"] = [f"{name}={from_here(file)}" for name, given in sets for file in given]
    return replace(s, **files), record


def recorded(directory: Path) -> tuple[Settings, Record]:
    """What run.json says of a training: its settings as they were given, and the rest. Raises UserError if
    there is none."""
    path = Path(directory) / RECORD
    if not path.exists():
        raise UserError(f"{path} is not there")
    record = read_object(path)
    if settings_there(Path(directory)) is None:
        raise UserError(f"{path} is another program's")
    record = typed(Record, record, path)
    if record.phase not in PHASES:
        raise UserError(f"{path} does not say which phase it is of")
    return PHASES[record.phase].read(record.settings, path), record


def training_sides(directory: Path, near_finder=None) -> tuple[labelled.Sides | None, str | None]:
    """The two sides of a classifier's training; or None, and why they are unknown. near_finder:
    nanomed.systems.overlap.finder; without it, what --near-duplicates took out is among them."""
    try:
        s, record = read_run(directory)
    except UserError as e:
        return None, str(e)
    if not isinstance(s, Classify):
        return None, f"{directory} was not trained by train_cls.py"
    try:
        near = near_finder(s.near_duplicates, s.seed) if near_finder else None
        sides = labelled.read_sides(s, near, say=lambda note: None)
    except UserError as e:
        return None, f"the training texts cannot be read again: {e}"
    # by content: the paths may be written otherwise
    if sorted(sides.hashes.values()) != sorted(record.data.values()):
        return None, "the training texts have changed since"
    return sides, None


# --- the texts ----------------------------------------------------------------------------------------------


def read_training(directory: Path) -> Iterator[str | Written]:
    """The texts that a model was trained on, those of the phases before the last one included: documents,
    whole rows of instructions (as the model saw them) and what could be replayed, without what each phase
    held out. Rows that were too long and repeated texts that --near-duplicates took out are among them.
    Raises UserError if they are unknown; while they are read, for a file that is gone, or has changed since,
    which shows at its end."""
    s, record = read_run(directory)
    texts = _of_phase(s, record, Path(directory))
    if s.from_scratch:
        return texts
    before = Path(record.directory, s.model)
    if is_path(s.model) and not before.exists():  # else a name on the Hub
        gone = "which it was trained from, is not there any more, so its training texts are unknown"
        raise UserError(f"{before}, {gone}")
    return chain(texts, read_training(before)) if (before / "run.json").exists() else texts


def _of_phase(s: Settings, record: Record, directory: Path) -> Iterator[str | Written]:
    held = heldout.earlier(directory, own=True)
    if isinstance(s, Adapt):
        names, weights = zip(*map(split_weight, s.data), strict=True)
        for files in [[name] for name in names] if any(weights) else [names]:
            yield from _documents(files, s, s.limit, held, record)
    elif isinstance(s, Instruct):
        fields = Fields(s.instruction_field, s.input_field, s.response_field, s.group_field)
        items, _, sha = read_instructions(s.data, fields, s.limit, s.skip_bad_rows, s.system)
        _check(sha, record)
        template = of_model(directory)
        for item in compress(items, ~held.has(heldout.Items.of_rows(items))):
            yield template.whole(item.turns)
        if s.replay:
            yield from _documents(s.replay, s, None, held, record)
    else:
        sides, why = training_sides(directory)
        if why:
            raise UserError(why)
        yield from (item.text for item in sides.training)


def _documents(files, s: Settings, limit, held: heldout.HeldOut, record: Record) -> Iterator[str]:
    out, sha = held.documents | held.quoted, hashlib.sha256()
    for text in full_texts(files, s.text_field, limit, s.skip_bad_rows):
        sha.update(text.encode() + b"\0")
        if heldout.digest(text) not in out:
            yield text
    _check(sha.hexdigest(), record)


def _check(sha: str, record: Record) -> None:
    if sha not in record.data.values():
        raise UserError("the training texts have changed since")


# --- is what is measured among them? ------------------------------------------------------------------------


def overlap_with_training(o, texts, say=print) -> dict:
    """{"overlap": ngram_overlap() of what is measured with what the model (measure.Opened) was trained on, or
    None, "no_overlap": why}; say() is called with a line. It belongs to every figure: a model can
    have read the test."""
    try:
        found = ngram_overlap(texts, (written(text).text for text in read_training(o.directory)))
    except UserError as e:
        say(f"overlap with its training texts: unknown ({e})")
        return {"overlap": None, "no_overlap": str(e)}
    say(f"overlap with its {found['training_documents']:,} training texts: {say_overlap(found)}")
    return {"overlap": found, "no_overlap": None}


def say_overlap(found: dict) -> str:
    runs = f"{found['n']} words in a row with them, {found['share']:.2%} of all such runs"
    short = f"; {n:,} are too short for that" if (n := found["too_short"]) else ""
    return f"{found['documents']:,} of {found['of']:,} texts share {runs}{short}"
