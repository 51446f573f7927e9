"""TOML files of sections: a recipe's, and those that name annotated corpora."""

from dataclasses import fields
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import read_toml, typed


def read_sections(path: Path, mend: str = "") -> dict:
    """Of a TOML file. Raises UserError, which ends in `mend` if the file cannot be read."""
    try:
        return read_toml(path)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}{mend}") from e


def read_section(kind, section, where: str):
    """A section's keys and values as the dataclass `kind`. Raises UserError, naming the key, for an unknown
    one and for a value of another kind."""
    known = [f.name for f in fields(kind)]
    if unknown := typed(dict, section, where).keys() - set(known):
        raise UserError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(known)}")
    return typed(kind, section, where)
