"""A recipe with all that a published system consists of, and the texts that it asks for, on disk and split.

    recipes/NAME.toml   [system] [data.NAME] [adapt] [classify] [instruct] [[published]]     -> Recipe
    data.NAME           rows of a file or of the Hub -> NAME.train.jsonl, NAME.test.jsonl    (prepare)

The phases' sections preset the scripts' flags, also for a user of --config, and are tried before all else
(trial.py); data, models and directories are wired here."""

import json
import random
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import check_name, json_lines, read_section, read_toml, typed, write_text
from nanomed.scripts import ROOT
from nanomed.text.instructions import Fields, read_instructions
from nanomed.text.rows import Field, read_rows, read_texts
from nanomed.text.templates import load_template

MODEL_OF = {"adapt": "adapted", "classify": "classifier", "instruct": "instructed"}  # a phase leaves
SCRIPTS = {"adapt": "train_clm.py", "classify": "train_cls.py", "instruct": "train_sft.py"}
# The data that a phase is trained on, and on which it is validated.
NEEDED = {"adapt": ("corpus",), "classify": ("corpus", "negatives"), "instruct": ("pairs",)}
LABELLED = "labelled"  # questions with given answers
CLASSIFIED = "classify.test.jsonl"  # the labelled texts of phase 3's measurement
TAKEN = {"classify", "answers", "choices", "generations"}  # what else is called NAME.test.jsonl, or measured
ROWS = "pairs"  # the data whose rows are questions and answers; all others are documents


@dataclass(frozen=True)
class Data:
    """Where texts come from, which field holds them, and how many there are on each side after shuffling.
    group: the field of rows whose values stay on one side each (a disease, say); test: how many, or a share;
    kept: as it stands, all of it measured on; ratio: of what is replayed, documents an example."""

    source: Annotated[list[str], Meta(min_length=1)]
    field: str = "text"
    instruction: str = Fields.instruction
    input: str = Fields.input
    response: str = Fields.response
    group: str | None = None
    train: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    test: Annotated[float, Meta(ge=0, lt=2**31)] = 0
    kept: bool = False
    ratio: Annotated[float, Meta(ge=0, lt=2**31)] = 0.0

    @property
    def files(self) -> list[str]:
        """The source; what is not there may be one of the project's own."""
        return [f if f.startswith("hub:") or Path(f).exists() else str(ROOT / f) for f in self.source]


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
    license: str | None = None  # of the model, by the Hub's name for it
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
        return [name for name, d in self.data.items() if name != "negatives" and d.test and not d.kept]


def read_recipe(name: str) -> Recipe:
    """Of recipes/NAME.toml, or of a file. Raises UserError for a recipe that is not there or is none, naming
    the key."""
    if not name.strip():
        raise UserError("--recipe: name one")
    home = ROOT / "recipes"
    path = Path(name) if name.endswith(".toml") else home / f"{name}.toml"
    known = sorted(p.stem for p in home.glob("*.toml") if b"[system]" in p.read_bytes())
    found = read_toml(path, mend=f"; recipes: {', '.join(known)}, or a .toml file")
    if not isinstance(found.get("system"), dict) or not isinstance(found.get("data"), dict):
        raise UserError(f"{path}: no sections [system] and [data.NAME]; it presets flags only (--config)")
    if unknown := found.keys() - {"system", "data", "published", *MODEL_OF}:
        raise UserError(f"{path}: unknown section [{sorted(unknown)[0]}]")
    phases = {phase: typed(dict, found[phase], f"{path} [{phase}]") for phase in MODEL_OF if phase in found}
    data = {name: read_section(Data, d, f"{path} [data.{name}]") for name, d in found["data"].items()}
    where = f"{path} [[published]]"
    published = [read_section(Published, p, where) for p in typed(list, found.get("published", []), where)]
    system = vars(read_section(System, found["system"], f"{path} [system]"))
    recipe = Recipe(name=path.stem, path=path, data=data, phases=phases, published=published, **system)
    _check_data(recipe)
    for phase, section in phases.items():
        typed(Wired, section, f"{path} [{phase}]")
        if section.get("dry-run") or section.get("dry_run"):
            raise UserError(f"{path} [{phase}]: dry-run leaves no model; take it out")
    load_template(recipe.template)
    return recipe


def _check_data(recipe: Recipe) -> None:
    path, data, phases = recipe.path, recipe.data, recipe.phases
    if not phases:
        raise UserError(f"{path}: no phase; sections: {', '.join(f'[{phase}]' for phase in MODEL_OF)}")
    if recipe.choices and LABELLED not in data:
        raise UserError(f"{path}: choices needs [data.{LABELLED}]")
    for name, d in data.items():
        check_name(name, f"{path} [data.{name}]")
        if name in TAKEN or not re.fullmatch(r"[\w -]+", name):
            what = f"letters, digits, _ and -, and none of {', '.join(sorted(TAKEN))}"
            raise UserError(f"{path} [data.{name}]: a name consists of {what}")
        if d.kept != (name == LABELLED):
            raise UserError(f"{path} [data.{name}]: kept = true is for [data.{LABELLED}], which needs it")
        if d.group and name != ROWS:
            raise UserError(f"{path} [data.{name}]: group is for [data.{ROWS}]")
        if d.ratio and name in (LABELLED, ROWS):
            raise UserError(f"{path} [data.{name}]: ratio is for documents")
    if recipe.measured not in recipe.texts:
        raise UserError(f"{path} [system]: measured = {recipe.measured!r} is no [data.NAME] with a `test`")
    if named := phases.get("instruct", {}).keys() & {"group-field", "group_field"}:
        mend = f'group = "..." in [data.{ROWS}] keeps groups together'
        raise UserError(f"{path} [instruct]: {named.pop()} is of files as they are; {mend}")
    for phase in phases:
        if odd := [name for name in NEEDED[phase] if name not in data or not data[name].test]:
            raise UserError(f"{path}: [{phase}] needs [data.{odd[0]}], with a `test`")


def stand_in(recipe: Recipe, model: str | None, given: dict[str, list[str]], field: str | None = None):
    """The recipe with another model, and other files for some of its data (field: of their documents). Raises
    UserError for a name that it has not."""
    data = dict(recipe.data)
    if field and not given:
        raise UserError(f"--field {field}: goes with --data")
    for name, files in given.items():
        if name not in data:
            there = f"the recipe {recipe.name} has the data {', '.join(data)}"
            raise UserError(f"--data {name}={files[0]}: {there}")
        data[name] = replace(data[name], source=files, field=field or data[name].field)
    instead = {name: " + ".join(files) for name, files in given.items()} | ({"model": model} if model else {})
    return replace(recipe, model=model or recipe.model, data=data, instead=instead)


# --- texts --------------------------------------------------------------------------------------------------


def prepare(recipe: Recipe, out: Path, limit: int | None) -> None:
    """Write out/NAME.train.jsonl and NAME.test.jsonl of every data of the recipe: duplicates once, in an
    order drawn by a fixed seed, whole questions, or groups of them, on one side. Of rows also
    NAME.test.texts.jsonl, question and answer as one text. limit: at most so many texts on each side. Raises
    UserError for a source that cannot be read, or that has too few texts."""
    out.mkdir(parents=True, exist_ok=True)
    for name, data in recipe.data.items():
        if (out / f"{name}.test.jsonl").exists():
            continue
        rows, bad = _rows(data, name, recipe.instead)
        if bad:
            print(f"{', '.join(data.source)}: {bad} bad rows left out")
        if not data.kept:
            rows, train = _sides(rows, data, recipe.name, limit)
            _write(train, out / f"{name}.train.jsonl")
        if name == ROWS:
            template = load_template(recipe.template)
            asked = [(template.ask(r["instruction"], r["input"]), r["response"]) for r in rows]
            texts = [{"text": (ask + template.answer(response)).text} for ask, response in asked]
            _write(texts, out / f"{name}.test.texts.jsonl")
        _write(rows, out / f"{name}.test.jsonl")
    if "classify" in recipe.phases:  # neither the classifier nor the model beneath it was trained on these
        labelled = []
        for label, name in (("biomedical", "corpus"), ("general", "negatives")):
            lines = (out / f"{name}.test.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
            labelled += [json.loads(line) | {"label": label} for line in lines]
        _write(labelled, out / CLASSIFIED)


def _rows(data: Data, name: str, instead: dict[str, str]) -> tuple[list[dict], int]:
    """The texts or rows, each once, and how many were left out, empty texts among them. instead: what stands
    in, whose field a flag names."""
    files = data.files
    if data.kept:
        rows = [row for file in files for row in read_rows(file, lambda row: row, None, True)]
        return [row for row in rows if row is not None], rows.count(None)
    if name == ROWS:
        keys = ("instruction", "input", "response")
        fields = Fields(*(Field(getattr(data, k), f"[data.{ROWS}] {k} =") for k in keys), data.group)
        items, bad, _ = read_instructions(files, fields, None, True)
        if any(len(item.turns) != 2 for item in items):
            one = f"[data.{ROWS}] is asked a question at a time; train_sft.py takes conversations"
            raise UserError(f"{', '.join(files)}: conversations of several turns; {one}")
        keys = (*keys, "group") if data.group else keys
        return [{k: getattr(item, k) for k in keys} for item in dict.fromkeys(items)], bad
    field = Field(data.field, f"[data.{name}] field =" if name not in instead else "--field")
    texts = [text for file in files for text in read_texts(file, field, None, True)]
    good = [text for text in texts if text and text.strip()]
    return [{"text": text} for text in dict.fromkeys(good)], len(texts) - len(good)


def _sides(rows: list[dict], data: Data, seed: str, limit: int | None) -> tuple[list[dict], list[dict]]:
    """(test, train)."""
    groups = {}
    for row in rows:
        asked = row["text"] if "text" in row else row["instruction"] + row["input"]
        groups.setdefault(row.get("group", asked), []).append(row)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    n = round(data.test * len(rows)) if data.test < 1 else int(data.test)
    n = min(n, limit or n)
    if data.test and not 0 < n < len(rows):
        sizes = f"{len(rows)} texts cannot be split into {n} to measure on and others"
        raise UserError(f"{', '.join(data.source)}: {sizes}")
    test, train = [], []
    for group in order:
        (test if len(test) < n else train).extend(groups[group])
    return test[:limit], train[: data.train][:limit]


def _write(rows: list[dict], path: Path) -> None:
    write_text(json_lines(rows), path)
