"""What is held out: the texts that a model is measured on, so must not be trained on.

Documents of a corpus, rows of instructions and labelled texts are all Items here: texts, and the
digests by which each is known. HeldOut is a set of such digests: of what --exclude names, of what a
run validates on, and of what held_out.json remembers of earlier phases. Who is kept out of what is
said in nanomed.text.divide."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from nanomed.errors import UserError
from nanomed.files import read_json, write_json
from nanomed.text.conversation_rows import conversation
from nanomed.text.conversations import Conversation
from nanomed.text.instructions import Fields, group_of, parts_of
from nanomed.text.rows import field_of, get_text, get_value, read_rows

FILE = "held_out.json"
NONE = bytes(16)  # in a table of digests, where an item has no such part
KINDS = ("documents", "questions", "quoted", "groups")
# An item is held out if its digest of a kind is among the held-out ones of these kinds: a document that a row
# quotes, a row that quotes a document. Two rows may quote the same text.
MEETS = {"documents": ("documents", "quoted"), "quoted": ("documents",)}
MEETS |= {"questions": ("questions",), "groups": ("groups",)}


def digest(text: str) -> bytes:
    """The first half of its SHA-256, as in the table of an encoded corpus: of its bytes, so that another
    spelling is another text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


# --- what is divided ----------------------------------------------------------------------------------------


class Fetched(Sequence):
    """Texts, each of which fetch(its place) gives when it is asked for."""

    def __init__(self, places: list, fetch: Callable[[object], str]):
        self.places, self.fetch = places, fetch

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, k: int) -> str:
        return self.fetch(self.places[k])


@dataclass(frozen=True)
class Items:
    """Texts, N of them, and {kind: digests by which they are known}, each (N, any) of V16. Kinds: documents;
    questions of rows, the texts that these rows quote, and their groups (--group-field)."""

    texts: Sequence[str]
    known: dict[str, np.ndarray]

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> "Items":
        return cls(texts, {"documents": np.array([[digest(text)] for text in texts], "V16")})

    @classmethod
    def of_rows(cls, rows: Sequence[Conversation]) -> "Items":
        known, tables = [row_digests(row) for row in rows], {}
        for kind in known[0] if known else ():
            most = max(len(of[kind]) for of in known)
            tables[kind] = np.array([of[kind] + [NONE] * (most - len(of[kind])) for of in known], "V16")
        return cls([row.text() for row in rows], tables)

    def where(self, mask: np.ndarray) -> "Items":
        texts = Fetched(np.flatnonzero(mask).tolist(), self.texts.__getitem__)
        return Items(texts, {kind: table[mask] for kind, table in self.known.items()})

    def held_out(self) -> "HeldOut":
        """The digests of all of them."""
        return HeldOut(**{kind: {*map(bytes, table.flat)} - {NONE} for kind, table in self.known.items()})


def row_digests(item: Conversation) -> dict[str, list[bytes]]:
    """A row is known by its question, a conversation by its first one, whatever the answer; by the texts that
    it quotes, and by its group."""

    def known(*texts: str) -> list[bytes]:
        return [digest(text) if text else NONE for text in texts]

    first = item.asked[item.turns[0].role == "system" and len(item.asked) > 1]
    said = (turn for turn in item.turns if turn.role != "system")
    quoted = [turn.input if turn.role == "user" else turn.text for turn in said]
    question = known(f"{first.text}\0{first.input}")
    return {"questions": question, "quoted": known(*quoted), "groups": known(item.group)}


@dataclass(frozen=True)
class HeldOut:
    """Digests of what is held out, by kind (Items)."""

    documents: set[bytes] = field(default_factory=set)
    questions: set[bytes] = field(default_factory=set)
    quoted: set[bytes] = field(default_factory=set)
    groups: set[bytes] = field(default_factory=set)

    def __or__(self, other: "HeldOut") -> "HeldOut":
        return HeldOut(*(getattr(self, kind) | getattr(other, kind) for kind in KINDS))

    def has(self, items: Items) -> np.ndarray:
        """Which of the items are held out: (N,) of bool."""
        found = np.zeros(len(items.texts), bool)
        for kind, table in items.known.items():
            there = list(set().union(*(getattr(self, other) for other in MEETS[kind])))
            if there and len(table):
                found |= np.isin(table.view("S16"), np.array(there, "V16").view("S16")).any(1)
        return found

    def listed(self) -> dict[str, list[str]]:
        return {kind: sorted(d.hex() for d in getattr(self, kind)) for kind in KINDS}

    def hash(self) -> str:
        return digest("".join(d for found in self.listed().values() for d in found)).hex()


# --- what is remembered -------------------------------------------------------------------------------------


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
                held |= HeldOut(*({*map(bytes.fromhex, saved[kind])} for kind in KINDS))
            except (AttributeError, KeyError, TypeError, ValueError) as e:
                what = f"not what a training writes ({type(e).__name__}: {e})"
                raise UserError(f"{path}: {what}; delete it to do without") from e
    return held


def write(held: HeldOut, directory: Path, before: HeldOut | None = None) -> None:
    """For later phases, what this run holds out (`own`) and those before it did: digests as hex, sorted."""
    write_json((held | (before or HeldOut())).listed() | {"own": held.listed()}, directory / FILE)


# --- what is excluded ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Excluded:
    """What --exclude names; its texts, if near ones are looked for; and {name: SHA-256} of it."""

    held: HeldOut = field(default_factory=HeldOut)
    texts: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


def read_excluded(s, fields: Fields | None = None) -> Excluded:
    """What settings exclude: documents, instruction rows, or rows that are both. Says how many bad rows were
    left out, since what they hold stays in. Raises UserError with file and row for one that is neither."""
    found, texts, sha, bad = {kind: set() for kind in KINDS}, [], hashlib.sha256(), 0
    for name in s.exclude or []:
        take = partial(_texts_of, text_field=field_of(name, s.text_field), fields=fields or Fields())
        for row in read_rows(name, take, None, s.skip_bad_rows):
            if row is None:
                bad += 1
                continue
            document, asked = row
            said = [] if document is None else [document]
            found["documents"].update(map(digest, said))
            if asked:
                for kind, digests in row_digests(asked).items():
                    found[kind].update(d for d in digests if d != NONE)
                said += asked.parts()[:-1]
            if s.near_duplicates:
                texts.append("\n".join(filter(None, (document, asked and asked.text()))))
            sha.update("\0".join([*said, ""]).encode("utf-8", "surrogatepass") + b"\0")
    if bad:
        print(f"{bad} bad rows of --exclude left out: what they hold is not excluded")
    hashes = {f"exclude: {' + '.join(s.exclude)}": sha.hexdigest()} if s.exclude else {}
    return Excluded(HeldOut(**found), texts, hashes)


def _texts_of(row, text_field: str, fields: Fields) -> tuple[str | None, Conversation | None]:
    """The document and the instruction that a row is, either or both. What is no text in its other fields
    counts as empty."""
    asked, form, document = parts_of(row, fields, text_field)
    document = None if document is None else get_text(row, text_field)
    if not isinstance(asked, str) and not form:
        return document, None
    group = group_of(row, fields)
    if form:
        return document, conversation(row, form[1], group, Counter())
    others = [get_value(row, name) for name in (fields.input, fields.response)]
    others = [value if isinstance(value, str) else "" for value in others]
    return document, Conversation.of(asked, *others, group=group)
