"""PubMedQA (Jin et al. 2019) as questions with given answers: does the abstract say yes, no, or maybe?

Its rows are read as they are, from the Hub (qiaojin/PubMedQA, pqa_labeled), from its release (ori_pqal.json:
an object by PubMed id, fields in capitals) or from a file with either's fields."""

from dataclasses import replace
from importlib import resources

from nanomed.evaluation.choices import GOLD, Item
from nanomed.evaluation.named import FORMATS
from nanomed.text.rows import BadRow, NoField, get_text, get_value

CHOICES = (" yes", " no", " maybe")
# How a row is asked. The first is lm-eval's prompt (its task `pubmedqa`); the second has the question alone.


def official_ids() -> set[str]:
    """The PubMed ids of the 500 questions of the official test split (pubmedqa.github.io)."""
    return set(resources.files("nanomed.evaluation").joinpath("pubmedqa_test_ids.txt").read_text().split())


def taker(format: str, only: set[str] | None):
    """A function that makes an Item of a row, and None of a row whose id is not in `only` (None: all rows).
    It raises BadRow."""

    def take(row) -> Item | None:
        identity = get_value(row, "pubid,id,pmid")
        if only is not None and str(identity) not in only:
            return None
        question = get_text(row, "question,QUESTION", "the file must have it")
        context = get_text(row, GOLD, "the file must have it")
        answer = get_value(row, "final_decision")
        if f" {answer}" not in CHOICES:
            kind = NoField if answer is None else BadRow
            raise kind(f"`final_decision` must be yes, no or maybe, not {answer!r}")
        return Item(
            ask(format, question, context),
            CHOICES,
            CHOICES.index(f" {answer}"),
            "stripped",
            question,
            context,
        )

    return take


def ask(format: str, question: str, context: str) -> str:
    """The prompt in one of FORMATS."""
    return FORMATS[format].format(question=question, context=context)


def with_passages(item: Item, passages: list[str], format: str) -> Item:
    """The item with passages in the abstract's place, or before the prompt of rows of another form."""
    text = "\n".join(passages)
    return replace(
        item, prompt=ask(format, item.question, text) if format in FORMATS else f"{text}\n{item.prompt}"
    )
