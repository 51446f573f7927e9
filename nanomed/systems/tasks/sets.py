"""An instruction set that is there already (sources.py says what it holds), read again and checked."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

from nanomed.errors import UserError
from nanomed.evaluation.questions import draw_rows
from nanomed.files import parse_json, read_json, read_object, read_text, typed
from nanomed.outputs import unfinished
from nanomed.systems.tasks.forms import FORMS
from nanomed.systems.tasks.sources import OF_MENTIONS, measures_of

PROGRAM, RECORD = "python -m nanomed.tasks", "tasks.json"
# Of a task in tasks.json, what is counted: in all, and by side.
COUNTS = [(name, int, 0) for name in ("train", "test", "removed", "of_groups", "bad_rows")]
BY_SIDE = [(name, dict[str, int], field(default_factory=dict)) for name in ("cut", "repeated", *OF_MENTIONS)]


@dataclass(kw_only=True)
class Made(make_dataclass("Counts", COUNTS + BY_SIDE)):
    """Of a task in tasks.json, what is read here."""

    form: str
    labels: list[str]
    measure: str
    published: str = ""
    words: int | None = None


@dataclass
class Row:
    """Of a test row, what is asked and what is right."""

    instruction: str
    input: str
    gold: list[str]


def read_set(directory: Path) -> dict[str, dict]:
    """{name: Made's fields} of tasks.json. Raises UserError for a directory that holds no set, or one that is
    not finished."""
    path = directory / RECORD
    if not path.is_file():
        raise UserError(f"{directory}: no {RECORD} there; {PROGRAM} makes an instruction set")
    made = read_object(path)
    if unfinished(made):
        raise UserError(f"{directory}: not finished; run {PROGRAM} again, with the same flags")
    wrong, tasks = f"{path}: not what {PROGRAM} writes", made.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(wrong)
    out = {name: vars(typed(Made, task, f"{wrong}: {name}")) for name, task in tasks.items()}
    for name, task in out.items():
        form = task["form"]
        if form not in FORMS or not task["labels"] or task["measure"] not in measures_of(form):
            raise UserError(f"{wrong}: {name}")
    return out


def files_of(names) -> list[str]:
    """What a set of these tasks consists of, beside tasks.json."""
    parts = ("train.jsonl", "test.jsonl", "baselines.json")
    return ["train.jsonl", *(f"{name}.{part}" for name in names for part in parts)]


def read_lines(path: Path, kind) -> list:
    """A `kind` of each line of a .jsonl file that this program wrote. Raises UserError, naming file and
    row."""
    lines = read_text(path).removesuffix("\n").split("\n")
    places = [(f"{path}, row {k}", line) for k, line in enumerate(lines, 1)]
    return [typed(kind, parse_json(line, place), place) for place, line in places]


def chosen(directory: Path, name: str, task: dict, limit: int | None, seed: int) -> tuple[list[dict], dict]:
    """The test rows of a task, each with its number from 1, and {baseline: its prediction for each}; of these
    `limit` drawn by the seed. Raises UserError for what is not as nanomed.tasks wrote it."""
    file, other = directory / f"{name}.test.jsonl", directory / f"{name}.baselines.json"
    rows = read_lines(file, Row)
    baselines = typed(dict[str, list[list[str]]], read_json(other), other)
    for path, golds in ((file, [row.gold for row in rows]), *((other, said) for said in baselines.values())):
        if len(golds) != len(rows):
            raise UserError(f"{other}: of other texts than {file.name}; build the set again")
        for k, (row, gold) in enumerate(zip(rows, golds, strict=True), 1):
            if not _fits(task, row, gold):
                what = "not of the labels and words of tasks.json; build the set again"
                raise UserError(f"{path}, text {k}: {what}")
    keep = draw_rows(len(rows), limit, seed)
    said = {baseline: [found[k] for k in keep] for baseline, found in baselines.items()}
    return [{"row": k + 1} | vars(rows[k]) for k in keep], said


def _fits(task: dict, row: Row, gold: list[str]) -> bool:
    if not FORMS[task["form"]].tagged:
        return set(gold) <= set(task["labels"])
    kinds = {tag[2:] for tag in gold if tag != "O"}
    return kinds <= set(task["labels"]) and len(gold) == len(row.input.split(" "))
