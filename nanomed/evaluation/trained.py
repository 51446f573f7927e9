"""What is known of how a model was trained: its run.json, and the texts that this leads to."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain, compress
from pathlib import Path
from typing import Any

from nanomed.errors import UserError
from nanomed.files import read_object, typed
from nanomed.limits import Count, Files
from nanomed.text import heldout, instructions, labelled
from nanomed.text.ngrams import ngram_overlap
from nanomed.text.rows import named_sets, read_documents, split_weight
from nanomed.text.special import Written, written
from nanomed.text.templates import of_model
from nanomed.training.settings import Classify


@dataclass
class Sets:
    """Of a run's settings, those that name files."""

    data: Files | None = None
    positives: Files | None = None
    negatives: Files | None = None
    exclude: Files | None = None
    replay: Files | None = None
    ewc_data: Files | None = None
    val_data: Files | None = None


@dataclass
class Reading(Sets):
    """And those that say how they are read."""

    limit: Count | None = None
    skip_bad_rows: bool = False
    text_field: str = "text"
    context: Count | None = None
    template: str | None = None
    quantize: str | None = None


@dataclass
class Run:
    """Of run.json, what is read here."""

    settings: dict[str, Any]
    data: dict[str, str]
    directory: str = "."
    phase: str | None = None


SETS = [f.name for f in fields(Sets) if f.name != "val_data"]  # which are NAME=D


def trained_with(directory: Path) -> dict:
    """The settings of the run that made a directory, data files as they are found from here; {} for a model
    from elsewhere."""
    try:
        return read_run(directory)["settings"]
    except UserError:
        return {}


def read_run(directory: Path) -> dict:
    """run.json, its settings as trained_with() gives them. Raises UserError, saying why nothing is known of
    the training."""
    path = Path(directory) / "run.json"
    if not path.exists():
        raise UserError(f"{path} is not there, so the training texts are unknown")
    try:
        run = read_object(path)
        if not isinstance(run.get("versions"), dict) or "nanomed" not in run["versions"]:
            raise UserError(f"{path} is another program's")
        known = typed(Run, run, path)
        typed(Reading, known.settings, f"{path}: settings")
    except UserError as e:
        raise UserError(f"{e}, so the training texts are unknown") from e
    settings, home = dict(known.settings), Path(known.directory)

    def found(file):
        return file if file.startswith("hub:") else str(home / file)

    for flag in filter(settings.get, SETS):
        settings[flag] = [found(file) for file in settings[flag]]
    if settings.get("val_data"):  # NAME=D
        sets = named_sets(settings["val_data"], home).items()
        settings["val_data"] = [f"{name}={found(file)}" for name, files in sets for file in files]
    return run | {"settings": settings}


def training_sides(directory: Path, near_finder=None) -> tuple[labelled.Sides | None, str | None]:
    """The two sides of a classifier's training; or None, and why they are unknown. near_finder:
    nanomed.systems.overlap.finder; without it, what --near-duplicates took out is among them."""
    try:
        run = read_run(directory)
    except UserError as e:
        return None, str(e)
    try:
        s = Classify.read(run["settings"], Path(directory) / "run.json")
        near = near_finder(s.near_duplicates, s.seed) if near_finder else None
        sides = labelled.read_sides(s, near, say=lambda note: None)
    except UserError as e:
        return None, f"the training texts cannot be read again: {e}"
    if sorted(sides.hashes.values()) != sorted(
        run["data"].values()
    ):  # by content: the paths may be written otherwise
        return None, "the training texts have changed since"
    return sides, None


# --- the texts ----------------------------------------------------------------------------------------------


def training_texts(directory: Path) -> Iterator[str]:
    """read_training(), as plain texts."""
    return (written(text).text for text in read_training(directory))


def read_training(directory: Path) -> Iterator[str | Written]:
    """The texts that a model was trained on, those of the phases before the last one included: documents,
    whole rows of instructions (as the model saw them) and what could be replayed, without what each phase
    held out. Rows that were too long and repeated texts that --near-duplicates took out are among them.
    Raises UserError if they are unknown; while they are read, for a file that is gone, or has changed since,
    which shows at its end."""
    run = read_run(directory)
    texts, model = _of_phase(run, Path(directory)), str(run["settings"].get("model"))
    if run["settings"].get("from_scratch"):
        return texts
    before = Path(run.get("directory", "."), model)
    if not before.exists() and (
        model.startswith(("/", ".", "~")) or model.count("/") > 1
    ):  # else it is a name on the Hub
        raise UserError(
            f"{before}, which it was trained from, is not there any more, so its training texts are unknown"
        )
    return chain(texts, read_training(before)) if (before / "run.json").exists() else texts


def _of_phase(run: dict, directory: Path) -> Iterator[str | Written]:
    s, held, phase = run["settings"], heldout.earlier(directory, own=True), run.get("phase")
    skip = bool(s.get("skip_bad_rows"))
    try:
        if phase == "adapt":
            names, weights = zip(*map(split_weight, s["data"]), strict=True)
            groups = [[n] for n in names] if any(weights) else [list(names)]
            yield from _documents(groups, s["text_field"], s.get("limit"), skip, held, run)
        elif phase == "instruct":
            parts = (s.get(f"{part}_field") for part in ("instruction", "input", "response", "group"))
            items, _, sha = instructions.read_instructions(
                s["data"], instructions.Fields(*parts), s.get("limit"), skip
            )
            _check(sha, run)
            template = of_model(directory)
            for item in compress(items, ~held.has(heldout.rows(items))):
                yield template.ask(item.instruction, item.input) + template.answer(item.response)
            if s.get("replay"):
                yield from _documents([s["replay"]], s.get("text_field", "text"), None, skip, held, run)
        elif phase == "classify":
            sides, why = training_sides(directory)
            if why:
                raise UserError(why)
            yield from (item.text for item in sides.training)
        else:
            raise UserError(f"{directory / 'run.json'} does not say which phase it is of")
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{directory / 'run.json'}: not what this version writes ({type(e).__name__}: {e})"
        ) from e


def _documents(
    groups: list[list[str]], text_field: str, limit, skip: bool, held: heldout.HeldOut, run: dict
) -> Iterator[str]:
    out = held.documents | held.quoted
    for names in groups:
        sha = hashlib.sha256()
        for text in chain.from_iterable(read_documents(name, text_field, limit, skip) for name in names):
            if text is not None:
                sha.update(text.encode() + b"\0")
                if heldout.digest(text) not in out:
                    yield text
        _check(sha.hexdigest(), run)


def _check(sha: str, run: dict) -> None:
    if sha not in run["data"].values():
        raise UserError("the training texts have changed since")


# --- is what is measured among them? ------------------------------------------------------------------------


def overlap_with_training(o, texts) -> dict:
    """{"overlap": ngram_overlap() of what is measured with what the model (measure.Opened) was trained on, or
    None, "no_overlap": why}; said in a line. It belongs to every figure: a model can have read the test."""
    try:
        found = ngram_overlap(texts, training_texts(o.directory))
    except UserError as e:
        print(f"overlap with its training texts: unknown ({e})")
        return {"overlap": None, "no_overlap": str(e)}
    print(f"overlap with its {found['training_documents']:,} training texts: {say_overlap(found)}")
    return {"overlap": found, "no_overlap": None}


def say_overlap(found: dict) -> str:
    runs = f"{found['n']} words in a row with them, {found['share']:.2%} of all such runs"
    return f"{found['documents']:,} of {found['of']:,} texts share {runs}"
