"""An instruction set that is there already (sources.py says what it holds), read again and checked."""

import random
from dataclasses import dataclass, field
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import parse_json, read_json, read_object, typed
from nanomed.tasks.forms import FORMS
from nanomed.tasks.sources import measures_of

UNFINISHED = {"unfinished": "the same command again makes it whole"}  # tasks.json, until all else is written


@dataclass
class Made:
    """Of a task in tasks.json, what is read here."""

    form: str
    labels: list[str]
    measure: str
    published: str = ""
    train: int = 0
    test: int = 0
    words: int | None = None
    removed: int = 0
    bad_rows: int = 0
    cut: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    orphans: dict[str, int] = field(default_factory=dict)
    discontinuous: dict[str, int] = field(default_factory=dict)
    overlapping: dict[str, int] = field(default_factory=dict)
    unplaced: dict[str, int] = field(default_factory=dict)
    parted: dict[str, int] = field(default_factory=dict)


@dataclass
class Row:
    """Of a test row, what is asked and what is right."""

    instruction: str
    input: str
    gold: list[str]


def read_set(directory: Path) -> dict[str, dict]:
    """{name: Made's fields} of tasks.json. Raises UserError for a directory that holds no set, or one that is not finished."""
    path = directory / "tasks.json"
    if not path.is_file():
        raise UserError(f"{directory}: no tasks.json there; python -m nanomed.tasks makes an instruction set")
    made = read_object(path)
    if made == UNFINISHED:
        raise UserError(f"{directory}: not finished; run python -m nanomed.tasks again, with the same flags")
    wrong, tasks = f"{path}: not what python -m nanomed.tasks writes", made.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(wrong)
    out = {name: vars(typed(Made, task, f"{wrong}: {name}")) for name, task in tasks.items()}
    for name, task in out.items():
        if task["form"] not in FORMS or not task["labels"] or task["measure"] not in measures_of(task["form"]):
            raise UserError(f"{wrong}: {name}")
    return out


def is_set(directory: Path) -> bool:
    """Whether its tasks.json is an instruction set's, finished or not."""
    try:
        return read_object(directory / "tasks.json") == UNFINISHED or bool(read_set(directory))
    except UserError:
        return False


def read_lines(path: Path, kind) -> list:
    """A `kind` of each line of a .jsonl file that this program wrote. Raises UserError, naming file and row."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 ({e})") from e
    places = [(f"{path}, row {k}", line) for k, line in enumerate(lines, 1)]
    return [typed(kind, parse_json(line, place), place) for place, line in places]


def chosen(directory: Path, name: str, task: dict, limit: int | None, seed: int) -> tuple[list[dict], dict[str, list]]:
    """The test rows of a task, each with its number from 1, and the baselines' predictions for them; of these `limit` drawn by the
    seed. Raises UserError for what is not as nanomed.tasks wrote it."""
    file, other = directory / f"{name}.test.jsonl", directory / f"{name}.baselines.json"
    rows = read_lines(file, Row)
    baselines = typed(dict[str, list[list[str]]], read_json(other), other)
    for path, golds in ((file, [row.gold for row in rows]), *((other, found) for found in baselines.values())):
        if len(golds) != len(rows):
            raise UserError(f"{other}: of other texts than {file.name}; build the set again")
        for k, (row, gold) in enumerate(zip(rows, golds, strict=True), 1):
            if not _fits(task, row, gold):
                raise UserError(f"{path}, text {k}: not of the labels and words of tasks.json; build the set again")
    keep = sorted(random.Random(seed).sample(range(len(rows)), min(limit or len(rows), len(rows))))
    return [{"row": k + 1} | vars(rows[k]) for k in keep], {b: [found[k] for k in keep] for b, found in baselines.items()}


def _fits(task: dict, row: Row, gold: list[str]) -> bool:
    if not FORMS[task["form"]].tagged:
        return set(gold) <= set(task["labels"])
    return {tag[2:] for tag in gold if tag != "O"} <= set(task["labels"]) and len(gold) == len(row.input.split(" "))
