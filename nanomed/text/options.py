"""The options that a question is asked with, and what they are called."""

from nanomed.text.rows import BadRow

LETTERS = "ABCDEFGHIJ"


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


def medmcqa(row) -> list[str] | None:
    """Of a row in MedMCQA's columns."""
    if not isinstance(row, dict) or not {"opa", "opb"} <= row.keys():
        return None
    return [row[name] for name in ("opa", "opb", "opc", "opd") if row.get(name) is not None]
