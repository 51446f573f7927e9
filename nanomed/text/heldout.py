"""What a model must not be trained on, because it is measured on it: one rule for every script.

What `--exclude` names is in no part of a run: not in training, not in what is replayed, not in the share that
is validated on. What is validated on is in no training. A user's own `--val-data` is never altered. A trained
directory remembers (held_out.json) what it and the phases before it held out, so that a later phase can leave
it out of a replay, and say when it is told to train on it.

Documents are known by the first half of their text's SHA-256, rows of instructions by that of their question:
byte for byte, as they are trained on, and as held_out.json of earlier runs has it. What differs in spelling
alone is near (--near-duplicates)."""

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import read_json, write_json
from nanomed.text.instructions import Fields, Instruction
from nanomed.text.rows import NoField, field_of, get_text, get_value, read_rows

FILE = "held_out.json"
SAVED = ("documents", "questions", "quoted", "groups")


def digest(text: str) -> bytes:
    """As in the table of an encoded corpus (nanomed.text.corpus)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def question(item: Instruction) -> bytes:
    return digest(f"{item.instruction}\0{item.input}")


@dataclass
class HeldOut:
    """Digests of documents; of questions, of the texts that those rows quote, and of their groups
    (--group-field)."""

    documents: set[bytes] = field(default_factory=set)
    questions: set[bytes] = field(default_factory=set)
    quoted: set[bytes] = field(default_factory=set)
    groups: set[bytes] = field(default_factory=set)
    excluded: list[str] = field(
        default_factory=list
    )  # what --exclude names, as texts, where near ones are looked for; not saved

    def add_rows(self, items: list[Instruction]) -> None:
        for item in items:
            self.questions.add(question(item))
            self.quoted |= {digest(text) for text in (item.input, item.response) if text}
            self.groups |= {digest(item.group)} if item.group else set()

    def add(self, other: "HeldOut") -> "HeldOut":
        for name in SAVED:
            getattr(self, name).update(getattr(other, name))
        return self

    def texts(self) -> set[bytes]:
        """Digests of all that must not be read as a document."""
        return self.documents | self.quoted

    def has_row(self, item: Instruction) -> bool:
        """Whether its question is held out, whatever the answer, or its group, or a document that it
        quotes."""
        quotes = not self.documents.isdisjoint({digest(text) for text in (item.input, item.response) if text})
        grouped = bool(item.group) and digest(item.group) in self.groups
        return question(item) in self.questions or grouped or quotes

    def hash(self) -> str:
        return digest("".join(d.hex() for name in SAVED for d in sorted(getattr(self, name)))).hex()


def excluded(args, parts: Fields | None = None) -> tuple[HeldOut, dict[str, str]]:
    """What --exclude names, documents or instruction rows or rows that are both, and {name: SHA-256 of it}.
    Says how many bad rows were left out, since what they hold stays in. Raises UserError with file and row
    for one that is neither."""
    held, sha, bad, parts = HeldOut(), hashlib.sha256(), 0, parts or Fields()

    def take(row, text_field):
        asked, found = get_value(row, parts.instruction), get_value(row, text_field)
        if asked is None and found is None:
            there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise NoField(
                f"neither a text in the field {text_field!r} nor an instruction in {parts.instruction!r}"
                f" (fields: {there}; --text-field a,b takes the first that a row has, --instruction-field"
                " too)"
            )
        texts = []
        if found is not None:
            texts.append(get_text(row, text_field))
            held.documents.add(digest(texts[0]))
        if isinstance(asked, str):
            others = [
                v if isinstance(v := get_value(row, f), str) else "" for f in (parts.input, parts.response)
            ]
            group = get_value(row, parts.group) if parts.group else ""
            if group is None:
                raise NoField(f"no field {parts.group!r} (--group-field)")
            held.add_rows([Instruction(asked, *others, group=str(group))])
            texts += [asked, *others]
        if args.near_duplicates:
            held.excluded.append("\n".join(filter(None, texts)))
        sha.update("\0".join([*texts, ""]).encode("utf-8", "surrogatepass") + b"\0")
        return True

    for name in args.exclude or []:
        of_text = field_of(name, args.text_field)
        taken = read_rows(name, partial(take, text_field=of_text), None, args.skip_bad_rows)
        bad += sum(row is None for row in taken)
    if bad:
        print(f"{bad} bad rows of --exclude left out: what they hold is not excluded")
    return held, {f"exclude: {' + '.join(args.exclude)}": sha.hexdigest()} if args.exclude else {}


def say_overlap(count: int) -> None:
    """What a user gives to validate on stays as it is, also where it is in --exclude."""
    if count:
        print(
            f"{count} documents or rows of --val-data are in --exclude too; what is given to validate on"
            " stays as it is"
        )


def earlier(*directories: Path | None, own: bool = False) -> HeldOut:
    """What the run that made a directory, and those before it, held out; nothing for a model from elsewhere.
    own: that run alone, which may have trained on what those before it held out."""
    held = HeldOut()
    for directory in directories:
        path = directory / FILE if directory else None
        if path and path.exists():
            saved = read_json(path)
            try:
                saved = saved.get("own", saved) if own else saved
                for name in SAVED:
                    getattr(held, name).update(map(bytes.fromhex, saved[name]))
            except (AttributeError, KeyError, TypeError, ValueError) as e:
                raise UserError(
                    f"{path}: not what a training writes ({type(e).__name__}: {e}); delete it to do without"
                ) from e
    return held


def write(held: HeldOut, directory: Path, before: HeldOut | None = None) -> None:
    """For later phases, what this run holds out (`own`) and those before it did: digests as hex, sorted."""

    def listed(found: HeldOut) -> dict:
        return {name: sorted(d.hex() for d in getattr(found, name)) for name in SAVED}

    own = listed(held)
    write_json(listed(held.add(before or HeldOut())) | {"own": own}, directory / FILE)
