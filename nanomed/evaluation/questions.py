"""Questions with given answers, from rows of our own form or of PubMedQA (Jin et al. 2019)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources

from nanomed.text.lines import sha256_of
from nanomed.text.rows import BadRow, NoField, get_text, get_value, read_rows

DECISIONS = (" yes", " no", " maybe")
# The fields by which a benchmark's rows are known, the first that a row has all of.
KNOWN_BY = {
    "medmcqa": ("opa", "opb"),
    "medqa": ("question,sent1", "options.A,ending0"),
    "headqa": ("qtext", "answers"),
    "pubmedqa": ("final_decision",),
    "mmlu": ("question", "choices", "answer"),
}
GOLD = "context.contexts,context,contexts,CONTEXTS"  # where PubMedQA's rows keep their passage


@dataclass(frozen=True)
class Item:
    """A prompt, the choices that may follow it (each as it stands after the prompt, its blank included), and
    which is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int | None  # None: not published
    given: str = "number"  # how its row gives the answer: by number, by text, or by text without its blanks
    question: str | None = None  # what is looked for in a corpus, if that is not the prompt
    gold: str | None = None  # the passage that answers it, where the row holds one
    heading: str = ""  # what stands before the first question of a prompt
    place: tuple[str, int] = field(default=("", 0), compare=False)  # its file, and its row there, from 1

    def as_given(self, choice: int) -> int | str:
        text = self.choices[choice]
        return {"number": choice, "text": text, "stripped": text.strip()}[self.given]


def draw_rows(n: int, limit: int | None, seed: int) -> list[int]:
    """Which of n rows --limit takes: so many, drawn by the seed, in their order; all, without a limit."""
    return sorted(random.Random(seed).sample(range(n), min(limit or n, n)))


def say_rows(rows: Sequence[int], name: str, most: int = 10) -> str:
    """`rows 2, 5, 9 of NAME`, of which the first `most` are named."""
    more = f" and {len(rows) - most:,} more" if len(rows) > most else ""
    return f"rows {', '.join(map(str, rows[:most]))}{more} of {name}"


@dataclass(frozen=True)
class Questions:
    """Items with an answer, in order. bad: rows that were left out; hidden: rows whose answer is not
    published."""

    items: list[Item]
    bad: int
    hidden: int

    def left_out(self) -> str:
        said = f"; {self.hidden:,} whose answer is not published, not scored" if self.hidden else ""
        return said + (f"; {self.bad:,} bad rows left out" if self.bad else "")

    def sha256(self) -> str:
        """Of prompts, choices and answers."""
        return sha256_of(p for i in self.items for p in (i.prompt, *i.choices, str(i.answer)))


def read_questions(names: list[str], reader, limit: int | None, skip_bad: bool, seed: int = 0) -> Questions:
    """reader(name): (how an Item is made of one of the file's rows, or None of one that is not asked; its
    rows, if rows_of() does not read them). limit: questions with an answer of each file, drawn by the seed.
    Raises UserError for a bad row."""
    items, bad, hidden = [], 0, 0
    for name in names:
        make, rows = reader(name)
        made = read_rows(name, lambda row, make=make: (make(row),), None, skip_bad, rows)
        of_file = []
        for k, value in enumerate(made, 1):
            item = value and value[0]
            bad += value is None
            hidden += bool(item) and item.answer is None
            of_file += [replace(item, place=(name, k))] if item and item.answer is not None else []
        items += [of_file[k] for k in draw_rows(len(of_file), limit, seed)]
    return Questions(items, bad, hidden)


def format_of_row(row) -> str | None:
    """The benchmark that a row is of, as --format calls it."""
    known = (f for f, fields in KNOWN_BY.items() if all(get_value(row, name) is not None for name in fields))
    return next(known, None)


def with_passages(item: Item, passages: list[str], prompt: str | None) -> Item:
    """The item with passages in the abstract's place, or before the prompt of rows of our own form."""
    text = "\n".join(passages)
    asked = prompt.format(question=item.question, context=text) if prompt else f"{text}\n{item.prompt}"
    return replace(item, prompt=asked)


# --- rows of our own form -----------------------------------------------------------------------------------


def from_row(row) -> Item:
    """An item of a row {prompt, choices, answer}: the answer is the number of a choice, counted from 0, or
    its text. Raises BadRow."""
    if get_value(row, "prompt") is None and (format := format_of_row(row)):
        raise NoField(f"no `prompt`, but a benchmark's fields: --format {format} reads them")
    prompt, choices = get_text(row, "prompt", "the file must have it"), get_value(row, "choices")
    several = isinstance(choices, list) and len(choices) > 1
    if not several or not all(isinstance(c, str) and c for c in choices):
        kind = NoField if choices is None else BadRow
        raise kind(f"`choices` must be a list of two texts or more, not {choices!r}")
    for choice in choices:
        get_text({"choices": choice}, "choices")  # which may be no valid Unicode
    if len({choice.strip() for choice in choices}) < len(choices):  # as a template takes them
        raise BadRow(f"two of `choices` are the same: {choices!r}")
    answer, given = which(choices, get_value(row, "answer"))
    return Item(prompt, tuple(choices), answer, given, _optional(row, "question"), _optional(row, GOLD))


def which(choices: list[str], answer) -> tuple[int, str]:
    """(number of the choice, how it is given) of a row's answer; choices are not the same but for blanks.
    Raises BadRow."""
    if isinstance(answer, str):
        exact = [k for k, c in enumerate(choices) if c == answer]
        found = exact or [k for k, c in enumerate(choices) if c.strip() == answer.strip()]
        if not found:
            raise BadRow(f"`answer` {answer!r} is none of the choices {choices!r}")
        return found[0], "text" if exact else "stripped"
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        kind, last = NoField if answer is None else BadRow, len(choices) - 1
        raise kind(f"`answer` must be one of the choices or its number, 0 to {last}, not {answer!r}")
    return answer, "number"


def _optional(row, fields: str) -> str | None:
    try:
        return get_text(row, fields, "the file may have it")
    except BadRow:
        return None


# --- PubMedQA: does the abstract say yes, no, or maybe? -----------------------------------------------------


def official_ids() -> set[str]:
    """The PubMed ids of the 500 questions of the official test split (pubmedqa.github.io)."""
    return set(resources.files("nanomed.evaluation").joinpath("pubmedqa_test_ids.txt").read_text().split())


def from_pubmedqa(row, prompt: str, only: set[str] | None) -> Item | None:
    """An item of a row as the Hub (qiaojin/PubMedQA, pqa_labeled) or the release (ori_pqal.json: an object by
    PubMed id, fields in capitals) has it; None if its id is not among `only`. Raises BadRow."""
    if only is not None and str(get_value(row, "pubid,id,pmid")) not in only:
        return None
    question = get_text(row, "question,QUESTION", "the file must have it")
    context = get_text(row, GOLD, "the file must have it")
    decision = get_value(row, "final_decision")
    if f" {decision}" not in DECISIONS:
        kind = NoField if decision is None else BadRow
        raise kind(f"`final_decision` must be yes, no or maybe, not {decision!r}")
    number = DECISIONS.index(f" {decision}")
    asked = prompt.format(question=question, context=context)
    return Item(asked, DECISIONS, number, "stripped", question, context)
