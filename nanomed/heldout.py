"""What a model must not be trained on, because it is measured on it: one rule for every script.

What `--exclude` names is in no part of a run: not in training, not in what is replayed, not in the share that is validated
on. What is validated on is in no training. A user's own `--val-data` is never altered. A trained directory remembers
(held_out.json) what it and the phases before it held out, so that a later phase can leave it out of a replay, and say when
it is told to train on it.

Documents are known by the first half of their text's SHA-256, rows of instructions by that of their question.
"""

import hashlib
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from nanomed.errors import UserError
from nanomed.examples import Fields, Instruction
from nanomed.files import read_json, write_json
from nanomed.rows import NoField, get_text, get_value, read_rows

FILE = "held_out.json"
SAVED = ("documents", "questions", "quoted")


def digest(text: str) -> bytes:
    """As in the table of an encoded corpus (nanomed.data)."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]


def question(item: Instruction) -> bytes:
    return digest(f"{item.instruction}\0{item.input}")


@dataclass
class HeldOut:
    """Digests of documents, of questions, and of the texts that those rows quote; and the rows' groups (--group-field)."""

    documents: set[bytes] = field(default_factory=set)
    questions: set[bytes] = field(default_factory=set)
    quoted: set[bytes] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)

    def add_rows(self, items: list[Instruction]) -> None:
        for item in items:
            self.questions.add(question(item))
            self.quoted |= {digest(text) for text in (item.input, item.response) if text}
            self.groups |= {item.group} if item.group else set()

    def add(self, other: "HeldOut") -> "HeldOut":
        for f in fields(self):
            getattr(self, f.name).update(getattr(other, f.name))
        return self

    def texts(self) -> set[bytes]:
        """Digests of all that must not be read as a document."""
        return self.documents | self.quoted

    def has_row(self, item: Instruction) -> bool:
        """Whether its question is held out, whatever the answer, or its group, or a document that it quotes."""
        quotes = not self.documents.isdisjoint({digest(text) for text in (item.input, item.response) if text})
        return question(item) in self.questions or (bool(item.group) and item.group in self.groups) or quotes


def read(names: list[str], text_field: str, parts: Fields, skip_bad: bool = False) -> tuple[HeldOut, str]:
    """What the files of --exclude hold, documents or instruction rows or rows that are both; and a SHA-256 of it, in order.
    Raises UserError with file and row for one that is neither."""
    held, sha = HeldOut(), hashlib.sha256()

    def take(row, text_field):
        asked = get_value(row, parts.instruction) is not None
        texts = []
        if not asked or get_value(row, text_field) is not None:
            texts.append(get_text(row, text_field))
            held.documents.add(digest(texts[0]))
        if asked:
            instruction = get_text(row, parts.instruction, "--instruction-field")
            others = [
                get_text(row, f) if get_value(row, f) not in (None, "") else "" for f in (parts.input, parts.response)
            ]
            group = get_value(row, parts.group) if parts.group else ""
            if group is None:
                raise NoField(f"no field {parts.group!r} (--group-field)")
            held.add_rows([Instruction(instruction, *others, group=str(group))])
            texts += [instruction, *others]
        sha.update("\0".join([*texts, ""]).encode() + b"\0")

    for name in names:
        of_text = "text" if name.lower().endswith(".txt") else text_field
        for _ in read_rows(name, partial(take, text_field=of_text), None, skip_bad):
            pass
    return held, sha.hexdigest()


def earlier(*directories: Path | None) -> HeldOut:
    """What the run that made a directory, and those before it, held out; nothing for a model from elsewhere."""
    held = HeldOut()
    for directory in directories:
        path = directory / FILE if directory else None
        if path and path.exists():
            saved = read_json(path)
            try:
                for name in SAVED:
                    getattr(held, name).update(map(bytes.fromhex, saved[name]))
            except (KeyError, TypeError, ValueError) as e:
                raise UserError(
                    f"{path}: not what a training writes ({type(e).__name__}: {e}); delete it to do without"
                ) from e
    return held


def write(held: HeldOut, directory: Path) -> None:
    """For later phases: digests as hex, sorted."""
    write_json({name: sorted(d.hex() for d in getattr(held, name)) for name in SAVED}, directory / FILE)
