"""What is said, in other letters of the same kinds: a template that is rendered a second time with these
shows which characters it writes itself. They are those that stay."""

import re
from dataclasses import dataclass

import numpy as np


def disguised(key: str, text: str, other: dict, looked_for: re.Pattern | None) -> str:
    """A text of a message in other letters. looked_for: what stays, where a template treats it apart
    (`</think>`), and blanks, quotes and the like."""
    if key in ("role", "name"):
        return text
    parts = looked_for.split(text) if looked_for else [text]
    return "".join(part if k % 2 else part.translate(other) for k, part in enumerate(parts))


BLANK, PRIVATE = 0x2000, (0xF0000, 0x100000)  # where other characters for those beyond ASCII are


class _Other(dict):
    """str.translate's table to the n-th other character of the same kind: blank, digit, small or capital
    letter, or sign."""

    def __init__(self, n: int):
        kinds = (" \t\n\r", "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        signs = "".join(c for c in map(chr, range(33, 127)) if not c.isalnum())
        for kind in (*kinds, signs):
            self |= {ord(a): kind[(i + n) % len(kind)] for i, a in enumerate(kind)}
        self.n = n

    def __missing__(self, code: int) -> str:
        if code < 128:
            return chr(code)
        other = BLANK if chr(code).isspace() else PRIVATE[0]
        if code & ~7 == other:  # it is one of these itself
            other = BLANK + 4 if other == BLANK else PRIVATE[1]
        self[code] = chr(other + self.n)
        return self[code]


OTHER = {n: _Other(n) for n in (1, 2, 3)}
# Of a character and another in its place: which table made it, 0 if it is the same, -1 if none did.
WHOSE = np.full((129, 129), -1, np.int8)
np.fill_diagonal(WHOSE, 0)
for n, table in OTHER.items():
    WHOSE[list(table), [ord(other) for other in table.values()]] = n


def whose_characters(text: str, other: str) -> np.ndarray | None:
    """Of a text and the same in other letters, which table made each of its characters another, (T,), 0:
    none. None if one is no disguise of the other."""
    if len(text) != len(other):
        return None
    there, now = _codes(text), _codes(other)
    whose = WHOSE[np.minimum(there, 128), np.minimum(now, 128)]
    if (far := np.flatnonzero(there > 127)).size:
        other, at = now[far], now[far] // 8 * 8
        known = (at == BLANK) | (at == PRIVATE[0]) | (at == PRIVATE[1])
        whose[far] = np.where(other == there[far], 0, np.where(known, other & 3, -1))
    return None if (whose < 0).any() else whose


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@dataclass(frozen=True)
class Frame:
    """What a template writes around turns. pieces: its own strings, and (number of a turn, its field) for
    what is said; ends: how much of a template's string ends each learned turn, by its number."""

    pieces: list
    ends: dict[int, int]

    @classmethod
    def of(cls, turns, learned: list[int], text: str, own, spans) -> "Frame | bool":
        """Of a text of turns of which no two say the same; False if what lies between a template's spans
        (own) is not what one turn says."""
        said = {getattr(t, name): (k, name) for k, t in enumerate(turns) for name in ("reasoning", "text")}
        pieces, stops, at = [], {}, 0
        for start, end in (*own, (len(text), len(text))):
            if start > at:
                pieces.append(said.get(text[at:start]))
                if not pieces[-1]:
                    return False
                stops[pieces[-1][0]] = start
            pieces.append(text[start:end])
            at = end
        ends = {k: stop - stops[k] for k, (_, stop) in zip(learned, spans, strict=True)}
        return cls(pieces, ends)

    def filled(self, turns) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]]]:
        """(the text of other turns, the spans in it that are the template's, those that are learned)."""
        parts, own, starts, stops, at = [], [], {}, {}, 0
        for piece in self.pieces:
            if isinstance(piece, str):
                own.append((at, at + len(piece)))
                parts.append(piece)
            else:
                k, name = piece
                parts.append(turns[k].said if name == "text" else turns[k].reasoning)
                starts.setdefault(k, at)
                stops[k] = at + len(parts[-1])
            at += len(parts[-1])
        return "".join(parts), own, [(starts[k], stops[k] + end) for k, end in self.ends.items()]
