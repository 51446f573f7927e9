"""Medical benchmarks: rows as their authors or the Hub publish them, asked as lm-eval 0.4.13 asks.

    reader(name, format) -> how a row becomes an Item -> questions.read_questions -> with_shots

MedQA, MedMCQA and MMLU show their options by letter, and the choices are the letters; HEAD-QA shows none, and
the choices are the answers themselves. A row whose answer is not published (-1, or none) has none here."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from nanomed.errors import UserError
from nanomed.evaluation.questions import Item, Questions, from_pubmedqa, from_row, read_questions
from nanomed.text.csv_rows import csv_rows
from nanomed.text.formats import open_unpacked
from nanomed.text.names import find
from nanomed.text.rows import BadRow, NoField, get_text, get_value, read_rows

# How a row of PubMedQA is asked. The first is lm-eval's prompt (its task `pubmedqa`).
PROMPTS = {
    "pubmedqa": "Abstract: {context}\nQuestion: {question}\nAnswer:",
    "pubmedqa-closed": "Question: {question}\nAnswer:",
}
COLUMNS = ["question", "A", "B", "C", "D", "answer"]  # of MMLU's CSV files, which have no header
HEADING = "The following are multiple choice questions (with answers) about {}.\n\n"
LETTERS = "ABCDEFGHIJ"  # what options are called
MUST = "the file must have it"
SHOTS_SEED = 1234  # lm-eval's


def read(names, format, official=None, cop_from=None, limit=None, skip_bad=False, seed=0) -> Questions:
    """The questions of files in one of the formats of `eval.py choices`: read_questions() by reader(). Raises
    UserError if there are none to score."""
    how = partial(reader, format=format, official=official, cop_from=cop_from)
    found = read_questions(names, how, limit, skip_bad, seed)
    if not found.items:
        of = " of the 500 of PubMedQA's official test split (--all-rows takes all)" if official else ""
        raise UserError(f"{', '.join(names)}: no questions there{of}{found.left_out()}")
    return found


def reader(
    name: str, format: str, official: set[str] | None = None, cop_from: int | None = None
) -> tuple[Callable, Iterator | None]:
    """What read_questions() asks for, of a file in one of the formats of `eval.py choices`. official: the
    PubMed ids of PubMedQA's rows that are asked; None: all. cop_from: what MedMCQA's `cop` calls the first
    option, where the file does not show it. Raises UserError if nobody can know."""
    if format == "medmcqa":
        return partial(from_medmcqa, first=counted_from(name, cop_from)), None
    if format == "mmlu":
        rows = headless(name)
        subject = rows and re.fullmatch(r"(.+)_(?:test|val|dev)", Path(name).name.split(".")[0])
        return partial(from_mmlu, subject=subject and subject[1]), rows
    plain = {"rows": from_row, "medqa": from_medqa, "headqa": from_headqa}
    return plain.get(format) or partial(from_pubmedqa, prompt=PROMPTS[format], only=official), None


# --- rows ---------------------------------------------------------------------------------------------------


def from_medqa(row) -> Item:
    """MedQA (Jin et al. 2021): options by letter (`options`, `answer_idx`, `answer`), as the authors and the
    Hub have them, or `ending0`, ... and a `label` from 0. Raises BadRow."""
    question = get_text(row, "sent1,question", MUST)
    if get_value(row, "ending0") is None:
        texts, keys = lettered(_there(row, "options"), "options")
        return _by_letter(f"Question: {question}\n", texts, _named(row, texts, keys), question)
    texts = [row[name] for name in (f"ending{k}" for k in range(len(LETTERS))) if row.get(name) is not None]
    texts, _ = lettered(texts, "ending0, ending1, ...")
    return _by_letter(f"Question: {question}\n", texts, _number(row, "label", len(texts)), question)


def _named(row, texts: list[str], keys: list[str]) -> int | None:
    """The option that both `answer_idx`, its letter, and `answer`, its text, name."""
    letter, text = get_value(row, "answer_idx") or None, get_value(row, "answer") or None
    if letter is None and text is None:
        return None
    pairs = enumerate(zip(keys, texts, strict=True))
    found = [k for k, (key, option) in pairs if letter in (None, key) and text in (None, option)]
    if len(found) != 1:
        both = f"`answer_idx` {letter!r} and `answer` {text!r}"
        raise BadRow(f"{both} together are {len(found)} of the options")
    return found[0]


def from_medmcqa(row, first: int) -> Item:
    """MedMCQA (Pal et al. 2022): `opa` to `opd` and `cop`, which calls the first of them `first`."""
    question = get_text(row, "question", MUST)
    texts, _ = lettered(medmcqa_options(row) or _there(row, "opa"), "opa, opb, ...")
    place = _number(row, "cop", len(texts), first)
    return _by_letter(f"Question: {question}\nChoices:\n", texts, place, question)


def counted_from(name: str, asked: int | None) -> int:
    """What `cop` calls the first option in a file: 1 in the authors' release, 0 on the Hub. A 0 or a 4
    anywhere in the file shows it. Raises UserError where both occur, or neither and it is not asked for."""
    cops = read_rows(name, lambda row: get_value(row, "cop"), None, True)
    seen = {str(cop).removesuffix(".0") for cop in cops}
    shown = [first for first, cop in ((0, "0"), (1, "4")) if cop in seen]
    if len(shown) == 2:
        what = "`cop` is 0 in one row and 4 in another"
        raise UserError(f"{name}: {what}; four options are called 0 to 3, or 1 to 4")
    if asked is not None and shown not in ([], [asked]):
        there = f"`cop` counts from {shown[0]} (a row has {4 * shown[0]})"
        raise UserError(f"{name}: {there}, not from {asked} (--cop-from)")
    if asked is None and not shown and seen & {"1", "2", "3"}:
        what = "`cop` is never 0 and never 4, so that it may count from 0, as on the Hub, or from 1"
        raise UserError(f"{name}: {what}, as in the authors' release; --cop-from 0 or 1 says which")
    return shown[0] if shown else asked or 0


def from_mmlu(row, subject: str | None = None) -> Item:
    """MMLU (Hendrycks et al. 2021): `choices` and `answer` from 0, as on the Hub, or the columns of its CSV
    files and a letter. subject: of a row that does not name it; it stands in the heading."""
    question, answer = get_text(row, "question", MUST).strip(), get_value(row, "answer")
    choices = get_value(row, "choices")
    if choices is None:
        choices = [get_text(row, letter, MUST) for letter in "ABCD"]
    texts, keys = lettered(choices, "choices")
    if isinstance(answer, str) and answer.strip() in keys:
        place = keys.index(answer.strip())
    else:
        place = _number(row, "answer", len(texts))
    subject = get_value(row, "subject") or subject
    item = _by_letter(f"{question}\n", texts, place, question)
    return replace(item, heading=HEADING.format(subject.replace("_", " "))) if subject else item


def headless(name: str) -> Iterator | None:
    """The rows of a CSV file without a header; None for any other file."""
    if name.startswith("hub:") or find(name).kind != "csv":
        return None
    source = find(name)

    def rows():
        with open_unpacked(source.path) as f:
            yield from csv_rows(source.path, f, source.how or "comma", COLUMNS)

    _, first = next(rows(), (None, None))
    return rows() if isinstance(first, dict) and first["answer"] in ("A", "B", "C", "D") else None


def from_headqa(row) -> Item:
    """HEAD-QA (Vilares and Gomez-Rodriguez 2019): `qtext`, `answers` with `aid` and `atext`, and `ra`, the
    right one's `aid`. Raises BadRow also where that is not its place, from 1, which is what lm-eval takes."""
    question, answers = get_text(row, "qtext", MUST), _there(row, "answers")
    if not isinstance(answers, list) or len(answers) < 2:
        raise BadRow("`answers` must be a list of two or more")
    texts = [get_text(answer, "atext", MUST) for answer in answers]
    if not all(texts):
        raise BadRow("an answer without a text")
    place = _number(row, "ra", len(texts), 1)
    if place is not None and str(get_value(answers[place], "aid")) != str(place + 1):
        raise BadRow(f"`ra` is {place + 1}, and the answer at that place has another `aid`")
    choices = tuple(f" {text}" for text in texts)
    return Item(f"Question: {question}\nAnswer:", choices, place, "stripped", question)


def lettered(options, field: str) -> tuple[list[str], list[str]]:
    """(their texts, what they are called) of a row's options: a list, whose options are A, B, ..., or an
    object by what they are called. Raises BadRow, which names the field."""
    keys = list(LETTERS)
    if isinstance(options, dict):  # which Parquet fills up with null
        keys = sorted(key for key, option in options.items() if option is not None)
        options = [options[key] for key in keys]
    texts = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not texts or not 2 <= len(options) <= len(LETTERS):
        raise BadRow(f"{field!r} must hold 2 to {len(LETTERS)} texts")
    return options, keys[: len(options)]


def medmcqa_options(row) -> list[str] | None:
    """Of a row in MedMCQA's columns."""
    if not isinstance(row, dict) or not {"opa", "opb"} <= row.keys():
        return None
    return [row[name] for name in ("opa", "opb", "opc", "opd") if row.get(name) is not None]


def _there(row, field: str):
    value = get_value(row, field)
    if value is None:
        raise NoField(f"no {field!r}; {MUST}")
    return value


def _number(row, field: str, options: int, first: int = 0) -> int | None:
    """An option's place, from 0, by its number from `first`; None where it is not published."""
    value = get_value(row, field)
    if value in (None, "", -1, "-1"):
        return None
    number = re.fullmatch(r"(\d+)(?:\.0)?", str(value))  # pandas writes 2.0 beside an empty cell
    place = int(number[1]) - first if number else -1
    if not 0 <= place < options:
        raise BadRow(f"{field!r} must be {first} to {first + options - 1}, not {value!r}")
    return place


def _by_letter(begin: str, texts: list[str], place: int | None, question: str) -> Item:
    lines = [f"{letter}. {text}\n" for letter, text in zip(LETTERS, texts, strict=False)]
    choices = tuple(f" {letter}" for letter in LETTERS[: len(texts)])
    return Item(begin + "".join(lines) + "Answer:", choices, place, "stripped", question)


# --- examples before a question -----------------------------------------------------------------------------


def with_shots(items: list[Item], pool: list[Item], shots: int, in_order: bool) -> list[Item]:
    """The items, each after its heading and `shots` questions with their answers, as lm-eval lays and picks
    them: the first of the pool under the same heading (in_order, as for MMLU), else drawn anew for each item
    from its seed. A question does not stand before itself. Raises UserError for too small a pool."""
    rng, under = None if in_order else random.Random(SHOTS_SEED), {}
    for shot in pool:
        under.setdefault(shot.heading, []).append(shot)
    out = []
    for item in items:
        there = under.get(item.heading, [])
        drawn = _drawn(there, shots, rng, item)
        if any(shot.prompt == item.prompt for shot in drawn):
            drawn = _drawn([shot for shot in there if shot.prompt != item.prompt], shots, rng, item)
        before = "".join(f"{shot.prompt}{shot.choices[shot.answer]}\n\n" for shot in drawn)
        out.append(replace(item, prompt=item.heading + before + item.prompt))
    return out


def _drawn(pool: list[Item], shots: int, rng: random.Random | None, item: Item) -> list[Item]:
    if len(pool) < shots:
        under = f" under {item.heading.strip()!r}" if item.heading else ""
        there = f"{len(pool)} other questions with an answer{under}"
        raise UserError(f"--shots {shots}: --shots-from has {there}")
    return rng.sample(pool, shots) if rng else pool[:shots]
