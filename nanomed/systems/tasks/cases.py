"""What is asked and what is right, of one row; and the two ways in which a row or an answer can fail to say
it."""

from dataclasses import dataclass, field

from nanomed.text.rows import BadRow, NoField, fields_of, get_text, get_value

NONE = "none"  # the answer where nothing is to be found


class Malformed(Exception):
    """An answer that says nothing in the form that was asked for."""


@dataclass(frozen=True)
class Case:
    """input: what a model is shown; gold: a tag a word of it (IOB2), or its label, or its labels (until they
    are settled, what the row says); cut: whether the text was longer than what is shown; counts: of what the
    file has otherwise than gold (sources.OF_MENTIONS); group: cases of one group stay on one side."""

    input: str
    gold: tuple[str, ...]
    cut: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Settled:
    """cases: of each row its case, or why it has none; order: all labels there are, where more is known of
    them than what rows say; notes: what the user should know, a line each."""

    cases: list[Case | str]
    order: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def missing(row, fields: dict, key: str, what: str = "text") -> NoField:
    """The error of a row that has not the field which `fields` names for `key`."""
    return NoField(f'no {what} in {fields[key]!r} ({fields_of(row)}; fields.{key} = "..." names another)')


def value_in(row, field: str, key: str):
    """What stands in the field that `key` of the TOML file names. Raises NoField."""
    if (value := get_value(row, field)) is None:
        raise NoField(f"no {field!r} in it ({fields_of(row)}; {key} names another field)")
    return value


def text_of(row, fields: dict, key: str) -> str:
    """The text in the field that `fields` names for `key`. Raises BadRow."""
    try:
        text = get_text(row, fields[key])
    except NoField as e:
        raise missing(row, fields, key) from e
    if not text.strip():
        raise BadRow(f"an empty text in {fields[key]!r}")
    return text
