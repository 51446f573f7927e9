"""A recipe with all that a published system consists of, and the texts that it asks for, on disk and split.

    recipes/NAME.toml   [system] [data.NAME] [adapt] [classify] [instruct] [[published]]     -> Recipe
    data.NAME           rows of a file or of the Hub -> NAME.train.jsonl, NAME.test.jsonl    (prepare)

The phases' sections preset the scripts' flags, also for a user of --config; data, models and directories are
wired here."""

import json
import random
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from nanomed.commands import ROOT
from nanomed.errors import UserError
from nanomed.files import check_name, read_toml, typed, write_text
from nanomed.text.instructions import Fields, Instruction, read_instructions
from nanomed.text.rows import Field, read_documents, read_rows
from nanomed.text.templates import load_template

PHASES = {
    "adapt": "adapted",
    "classify": "classifier",
    "instruct": "instructed",
}  # and the directory that each leaves
LABELLED = "labelled"  # questions with given answers
CLASSIFIED = "classify.test.jsonl"  # the labelled texts of phase 3's measurement
ROWS = "pairs"  # the data whose rows are questions and answers; all others are documents


@dataclass(frozen=True)
class Data:
    """Where texts come from, which field holds them, and how many there are on each side after shuffling.
    test: how many, or a share; kept: as it stands, all of it measured on; ratio: of what is replayed,
    documents an example."""

    source: Annotated[list[str], Meta(min_length=1)]
    field: str = "text"
    instruction: str = Fields.instruction
    input: str = Fields.input
    response: str = Fields.response
    train: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    test: Annotated[float, Meta(ge=0, lt=2**31)] = 0
    kept: bool = False
    ratio: Annotated[float, Meta(ge=0, lt=2**31)] = 0.0


@dataclass(frozen=True)
class Published:
    """A published figure, where ours stands in results.json, and which mistake (nanomed.evaluation.mistakes)
    may explain it."""

    figure: str
    value: Annotated[float, Meta(gt=-1e300, lt=1e300)]
    ours: str
    mistake: str | None = None
    why: str = ""


Context = Annotated[int, Meta(ge=2, lt=2**31)] | None


@dataclass(frozen=True)
class Wired:
    """Of a phase's section, what is used here too; the rest its script alone reads."""

    context: Context = None
    template: str = "response"


@dataclass(frozen=True, kw_only=True)
class System:
    """The section of that name."""

    title: str
    model: str
    measured: str
    prompts: Annotated[list[Annotated[str, Meta(pattern=r"^.*\S.*\Z")]], Meta(min_length=1)]  # a line each
    context: Context = None
    choices: Literal["pubmedqa", "pubmedqa-closed"] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe(System):
    name: str
    path: Path
    data: dict[str, Data]
    phases: dict[str, dict]
    published: list[Published]
    instead: dict[str, str] = field(default_factory=dict)  # what stands in: {"model": ..., "corpus": ...}

    @property
    def template(self) -> str:
        """That questions are put into."""
        return self.phases.get("instruct", {}).get("template", Wired.template)

    @property
    def texts(self) -> list[str]:
        """The data that perplexities are of."""
        return [
            name for name, data in self.data.items() if name != "negatives" and data.test and not data.kept
        ]


def read_recipe(name: str) -> Recipe:
    """Of recipes/NAME.toml, or of a file. Raises UserError for a recipe that is not there or is none, naming
    the key."""
    if not name.strip():
        raise UserError("--recipe: name one")
    path = Path(name) if name.endswith(".toml") else ROOT / "recipes" / f"{name}.toml"
    try:
        found = read_toml(path)
    except OSError as e:
        known = sorted(
            p.stem for p in (ROOT / "recipes").glob("*.toml") if "[system]" in p.read_text(encoding="utf-8")
        )
        raise UserError(f"{path}: {e.strerror}; recipes: {', '.join(known)}, or a .toml file") from e
    if not isinstance(found.get("system"), dict) or not isinstance(found.get("data"), dict):
        raise UserError(f"{path}: no sections [system] and [data.NAME]; it presets flags only (--config)")
    unknown = found.keys() - {"system", "data", "published", *PHASES}
    if unknown:
        raise UserError(f"{path}: unknown section [{sorted(unknown)[0]}]")
    phases = {phase: typed(dict, found[phase], f"{path} [{phase}]") for phase in PHASES if phase in found}
    data = {name: _made(Data, section, f"{path} [data.{name}]") for name, section in found["data"].items()}
    figures = typed(list[dict], found.get("published", []), f"{path} [[published]]")
    published = [_made(Published, figure, f"{path} [[published]]") for figure in figures]
    system = vars(_made(System, found["system"], f"{path} [system]"))
    recipe = Recipe(name=path.stem, path=path, data=data, phases=phases, published=published, **system)
    if not phases:
        raise UserError(f"{path}: no phase; sections: {', '.join(f'[{phase}]' for phase in PHASES)}")
    if recipe.choices and LABELLED not in data:
        raise UserError(f"{path}: choices needs [data.{LABELLED}]")
    if taken := data.keys() & {"answers", "choices", "generations"}:
        raise UserError(f"{path}: [data.{taken.pop()}] has the name of a measurement; choose another")
    for name, d in data.items():
        check_name(name, f"{path} [data.{name}]")
        if d.kept != (name == LABELLED):
            raise UserError(f"{path} [data.{name}]: kept = true is for [data.{LABELLED}], which needs it")
        if d.ratio and name in (LABELLED, ROWS):
            raise UserError(f"{path} [data.{name}]: ratio is for documents")
    if recipe.measured not in recipe.texts:
        raise UserError(f"{path} [system]: measured = {recipe.measured!r} is no [data.NAME] with a `test`")
    for phase, needed in (("adapt", ["corpus"]), ("classify", ["corpus", "negatives"]), ("instruct", [ROWS])):
        if odd := [name for name in needed if phase in phases and not (name in data and data[name].test)]:
            raise UserError(f"{path}: [{phase}] needs [data.{odd[0]}], with a `test`")
    for phase, section in phases.items():
        typed(Wired, section, f"{path} [{phase}]")
        if section.get("dry-run") or section.get("dry_run"):
            raise UserError(f"{path} [{phase}]: dry-run leaves no model; take it out")
    load_template(recipe.template)
    return recipe


def _made(kind, section, where: str):
    known = {f.name for f in fields(kind)}
    if unknown := typed(dict, section, where).keys() - known:
        raise UserError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    return typed(kind, section, where)


def stand_in(
    recipe: Recipe, model: str | None, given: dict[str, list[str]], field: str | None = None
) -> Recipe:
    """The recipe with another model, and other files for some of its data (field: of their documents). Raises
    UserError for a name that it has not."""
    data = dict(recipe.data)
    for name, files in given.items():
        if name not in data:
            raise UserError(
                f"--data {name}={files[0]}: the recipe {recipe.name} has the data {', '.join(data)}"
            )
        data[name] = replace(data[name], source=files, field=field or data[name].field)
    instead = {name: " + ".join(files) for name, files in given.items()} | ({"model": model} if model else {})
    return replace(recipe, model=model or recipe.model, data=data, instead=instead)


# --- texts --------------------------------------------------------------------------------------------------


def prepare(recipe: Recipe, out: Path, limit: int | None) -> None:
    """Write out/NAME.train.jsonl and NAME.test.jsonl of every data of the recipe: duplicates once, in an
    order drawn by a fixed seed, whole questions on one side. Of rows also NAME.test.texts.jsonl, question and
    answer as one text. limit: at most so many texts on each side. Raises UserError for a source that cannot
    be read, or that has too few texts."""
    out.mkdir(parents=True, exist_ok=True)
    for name, data in recipe.data.items():
        if (out / f"{name}.test.jsonl").exists():
            continue
        rows, bad = _rows(data) if name == ROWS or data.kept else _documents(data)
        if bad:
            print(f"{', '.join(data.source)}: {bad} bad rows left out")
        key = "instruction" if name == ROWS else "text"
        if data.kept:
            _write(rows, out / f"{name}.test.jsonl")
            continue
        groups = {}
        for row in rows:
            groups.setdefault(row[key] + row.get("input", ""), []).append(row)
        order = sorted(groups)
        random.Random(recipe.name).shuffle(order)
        rows = [row for group in order for row in groups[group]]
        n = round(data.test * len(rows)) if data.test < 1 else int(data.test)
        n = min(n, limit or n)
        if data.test and not 0 < n < len(rows):
            raise UserError(
                f"{', '.join(data.source)}: {len(rows)} texts cannot be split into {n} to measure on and"
                " others"
            )
        last = {
            row[key] + row.get("input", "") for row in rows[max(0, n - 1) : n]
        }  # a group is not torn apart
        while n < len(rows) and rows[n][key] + rows[n].get("input", "") in last:
            n += 1
        test, train = rows[:n], rows[n:][: data.train]
        _write(train[:limit], out / f"{name}.train.jsonl")
        if name == ROWS:
            template = load_template(recipe.template)
            asked = [
                template.ask(r["instruction"], r["input"]) + template.answer(r["response"])
                for r in test[:limit]
            ]
            texts = [{"text": text.text} for text in asked]
            _write(texts, out / f"{name}.test.texts.jsonl")
        _write(test[:limit], out / f"{name}.test.jsonl")
    if (
        "classify" in recipe.phases
    ):  # what neither the classifier nor the model that it stands on has been trained on
        sides = {"biomedical": "corpus", "general": "negatives"}
        labelled = [
            {"text": json.loads(line)["text"], "label": label}
            for label, name in sides.items()
            for line in (out / f"{name}.test.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        _write(labelled, out / CLASSIFIED)


def _documents(data: Data) -> tuple[list[dict], int]:
    """The texts, each once, and how many rows were left out, empty ones among them."""
    texts = [
        t
        for name in data.source
        for t in read_documents(_at_home(name), Field(data.field, "--field"), None, True)
    ]
    good = [t for t in texts if t and t.strip()]
    return [{"text": text} for text in dict.fromkeys(good)], len(texts) - len(good)


def _rows(data: Data) -> tuple[list[dict], int]:
    """The same of rows."""
    names = [_at_home(name) for name in data.source]
    if data.kept:
        rows = [row for name in names for row in read_rows(name, lambda row: row, None, True)]
        return [row for row in rows if row is not None], rows.count(None)
    items, bad, _ = read_instructions(names, Fields(data.instruction, data.input, data.response), None, True)
    return [vars_of(item) for item in dict.fromkeys(items)], bad


def vars_of(item: Instruction) -> dict:
    return {"instruction": item.instruction, "input": item.input, "response": item.response}


def _at_home(name: str) -> str:
    """A file of the project's own, wherever the program is started from."""
    return name if name.startswith("hub:") or Path(name).exists() else str(ROOT / name)


def _write(rows: list[dict], path: Path) -> None:
    write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), path)
