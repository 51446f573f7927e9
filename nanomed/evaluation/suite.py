"""All benchmarks that lie in a directory, or that a recipe names, in one table.

    lying_in(directory), or named_in(recipe) -> {name: Benchmark} -> read -> choices.measure_choices -> table

Of each the test split is measured, and where its answers are not published the validation split; what is
there to train on never is."""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nanomed.errors import UserError
from nanomed.evaluation.benchmarks import PROMPTS, headless, reader
from nanomed.evaluation.questions import KNOWN_BY, Questions, format_of_row, official_ids, read_questions
from nanomed.evaluation.tables import against_chance, headed, measure_cell
from nanomed.files import read_object, read_section, read_toml, typed
from nanomed.text.lines import note_once
from nanomed.text.names import KINDS, PACKED
from nanomed.text.rows import read_rows

SPLITS = ("test", "", "validation", "valid", "val", "dev")  # the first that has answers is measured


@dataclass
class Benchmark:
    format: str
    data: dict[str, list[str]]  # files or data sets of the Hub, by split


@dataclass(frozen=True)
class Section:
    """Of a recipe."""

    format: str
    data: list[str]


def named_in(path: Path) -> dict[str, Benchmark]:
    """Of a TOML file, a section a benchmark."""
    found, formats = {}, {**PROMPTS, **KNOWN_BY}
    for name, section in read_toml(path).items():
        s = read_section(Section, section, f"{path} [{name}]")
        if s.format not in formats:
            raise UserError(f"{path} [{name}]: format must be one of {', '.join(formats)}, not {s.format!r}")
        found[name] = Benchmark(s.format, {"": s.data})
    return found


def lying_in(directory: Path) -> dict[str, Benchmark]:
    """What lies in a directory and those in it; a note says which data files are none. A file's split is in
    its name, or its folder's. Raises UserError if there is none, and for two files of one split that are not
    parts of one."""
    found, others = {}, []
    kinds = {kind for kind in KINDS if KINDS[kind] in ("lines", "json", "csv", "parquet")}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        within = path.relative_to(directory)
        plain = within.with_suffix("") if within.suffix in PACKED else within
        if plain.suffix.lower() not in kinds or any(part.startswith(".") for part in within.parts):
            continue
        format = format_of(str(path))
        if format is None:
            others.append(str(within))
            continue
        name, split = name_and_split(plain, format)
        files = found.setdefault(name, Benchmark(format, {})).data.setdefault(split, [])
        if files and not re.search(r"-\d+-of-\d+\.", path.name):
            both = f"{path} and {files[0]} would both be {name} {split}".rstrip()
            raise UserError(f"{both}; leave one there")
        files.append(str(path))
    if others:
        more = f" and {len(others) - 5:,} more" if len(others) > 5 else ""
        note_once(f"no benchmark's rows, left out: {', '.join(others[:5])}{more}")
    if not found:
        raise UserError(f"--from {directory}: no benchmark there ({', '.join(sorted(KNOWN_BY))})")
    return dict(sorted(found.items()))


def format_of(name: str) -> str | None:
    """By the fields of a file's first row; None for a file of other rows, and, said, for one that cannot be
    read."""
    try:
        return "mmlu" if headless(name) else next(read_rows(name, format_of_row, 1, False), None)
    except UserError as e:
        note_once(f"left out: {e}")
        return None


def name_and_split(within: Path, format: str) -> tuple[str, str]:
    """(`mmlu anatomy`, `test`) of anatomy_test.csv, test/anatomy_test.csv or
    anatomy/test-00000-of-00001.parquet."""
    words = re.split(r"[-_.]", re.sub(r"-\d+-of-\d+$", "", within.stem))
    known = {*SPLITS, "train"} - {""}
    split = next((word for word in (*words, *within.parent.parts) if word in known), "")
    folders = [part for part in within.parent.parts if part not in known | {"data"}]
    rest = "_".join(word for word in words if word != split)
    name = "/".join(part for part in (*folders, rest) if part)
    return (name if name.lower().startswith(format) else f"{format} {name}".strip()), split


def read(
    name: str, benchmark: Benchmark, cop_from: int | None, limit: int | None, skip_bad: bool, seed: int
) -> tuple[str, Questions] | None:
    """(split, questions) of the first split that has answers, in which `hidden` counts those of the splits
    before it too; None, said, if there is none. PubMedQA's official test questions stand in files called
    train."""
    splits = [*SPLITS, "train"] if benchmark.format == "pubmedqa" else SPLITS
    official = official_ids() if benchmark.format in PROMPTS else None
    how, hidden = partial(reader, format=benchmark.format, official=official, cop_from=cop_from), 0
    for split in (split for split in splits if split in benchmark.data):
        questions = read_questions(benchmark.data[split], how, limit, skip_bad, seed)
        if questions.items:
            if hidden:
                unseen = f"its test split's {hidden:,} answers are not published"
                note_once(f"{name}: {unseen}; measured on {split}")
            return split, replace(questions, hidden=hidden + questions.hidden)
        hidden += questions.hidden
    why = f"its {hidden:,} answers are not published" if hidden else "nothing to test on there"
    note_once(f"{name}: not measured: {why}")
    return None


# --- what was measured --------------------------------------------------------------------------------------


def table(results: dict[str, dict]) -> list[list[str]]:
    """A row a benchmark: its accuracy by likelihood, per character and per byte, and whether the first is
    above chance."""
    ways = ["likeliest [95 %]", "per character (acc_norm)", "per byte (acc_bytes)", "the likeliest is"]
    rows = []
    for name, r in results.items():
        about = name, f"{r['questions']:,}", f"{r['chance']:.3f}"
        measured = (r["majority"], r, r["per_character"], r["per_byte"])
        figures = [measure_cell(of, "accuracy") for of in measured]
        rows.append([*about, *figures, against_chance(r)])
    return headed(["", "questions", "chance", "always the commonest", *ways], rows)


@dataclass
class Way:
    accuracy: float
    accuracy_ci95: tuple[float, float] | None


@dataclass
class Shown(Way):
    """Of a benchmark's result, what the page shows."""

    questions: int
    chance: float
    majority: Way
    data_sha256: str


@dataclass
class Result:
    model: str
    benchmarks: dict[str, Shown]


def by_model(files: list[str], command: str, kind, asked_of, flags: str) -> dict[str, dict]:
    """{model: what the command of eval.py wrote with --json}. asked_of(what a file holds, as the dataclass
    `kind`): what it was asked, nothing if it is empty. Raises UserError for another file, for a model that
    comes twice, and for models that were not asked the same (by these flags)."""
    results, asked = {}, None
    for file in files:
        found, wrong = read_object(Path(file)), f"{file}: not what eval.py {command} --json writes"
        result = typed(kind, found, wrong)
        if not (these := asked_of(result)):
            raise UserError(wrong)
        asked = asked or these
        if these != asked:
            raise UserError(f"{file} and {files[0]} were not measured on the same {flags}")
        if result.model in results:
            raise UserError(f"{file}: of {result.model}, as an earlier file is; give each model once")
        results[result.model] = found
    return results


def for_page(files: list[str]) -> dict:
    """What `eval.py benchmarks --json` wrote of one or several models, for report.html: head and rows."""

    def asked_of(result: Result) -> dict[str, str]:
        return {name: r.data_sha256 for name, r in result.benchmarks.items()}

    flags = "questions (--from, --limit, --seed)"
    results = by_model(files, "benchmarks", Result, asked_of, flags)
    results = {model: found["benchmarks"] for model, found in results.items()}
    head = ["", *results, "always the commonest", "chance", "questions"]
    rows = []
    for name, first in next(iter(results.values())).items():
        measured = [_cell(r[name], against_chance(r[name])) for r in results.values()]
        about = _cell(first["majority"]), f"{first['chance']:.3f}", f"{first['questions']:,}"
        rows.append([name, *measured, *about])
    return {"head": head, "rows": rows}


def _cell(r: dict, bad: str = "") -> dict:
    text, _, interval = measure_cell(r, "accuracy").partition(" ")
    return {"text": text, "note": interval, "bad": bad}
