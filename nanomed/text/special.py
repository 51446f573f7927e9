"""Added tokens in texts: where they are spelled, and which of these spellings are tokens.

Tokens that were added to a vocabulary are looked for in a text before anything else. A word of a domain
(hepatosplenomegaly) is one wherever it stands. A special token (<|endoftext|>, </s>, <|im_start|>) means
something to the model that its letters do not: here a text ends, here somebody speaks. A corpus must not be
able to say so by accident, so by default a spelling in a text is text like any other; a template is written
by somebody who means it, so there it is the token. --special-tokens decides for texts:

    text     a spelling is read as its letters
    read     a spelling is the token, as the model's own tokenizer reads it
    refuse   a text that holds one is a bad row"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import regex
import tiktoken

from nanomed.errors import Unencodable

# What is a letter of a word, and a blank, to Rust's regular expressions; Python's know other ones.
LETTER = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")
BLANKS = regex.compile(r"\p{White_Space}*+")
BLANKS_BEFORE = regex.compile(r"(?r)\p{White_Space}*+")


@dataclass(frozen=True)
class Added:
    """A token that is looked for in texts before anything else, as the `tokenizers` library's AddedToken says
    it: lstrip and rstrip take the blanks beside it into it, single_word wants no letter or digit beside it;
    those that are `normalized` are looked for only where the others left something."""

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = field(default=False, repr=False)  # not in Tokenizer.hash of earlier versions
    special: bool = field(default=True, repr=False)


@dataclass(frozen=True)
class Written:
    """A text and its spans (start, end) that a template wrote: there, special tokens are real whatever the
    reading. complete: the template wrote what it begins with, too, so nothing is put before it."""

    text: str
    own: tuple[tuple[int, int], ...] = ()
    complete: bool = False

    def __add__(self, other: "Written") -> "Written":
        moved = tuple((start + len(self.text), end + len(self.text)) for start, end in other.own)
        return Written(self.text + other.text, self.own + moved, self.complete)

    def rstrip(self) -> tuple["Written", str]:
        """(the text without the blanks at its end, these)."""
        text = self.text.rstrip()
        own = tuple((start, min(end, len(text))) for start, end in self.own if start < len(text))
        return Written(text, own, self.complete), self.text[len(text) :]


def template_text(text: str) -> Written:
    """A text that a template wrote."""
    return Written(text, ((0, len(text)),) if text else ())


def written(text: "str | Written") -> Written:
    return text if isinstance(text, Written) else Written(text)


class Finder:
    """Where texts hold some of many tokens, found by tiktoken: tokens as the only pieces of a text are found
    in Rust, a millisecond a megabyte. (Python's own expressions would try one after another.)"""

    def __init__(self, tokens: Iterable[Added]):
        # The longest of several that begin at one place, as the `tokenizers` library takes it.
        self.tokens = sorted(tokens, key=lambda token: -len(token.content))
        self.only_special = all(token.special for token in self.tokens)
        flagged = any(t.special or t.lstrip or t.rstrip or t.single_word for t in self.tokens)
        self.plain = not flagged  # each is a token wherever it is spelled
        self._known = [(token.content, len(token.content), token.id) for token in self.tokens]
        pattern = "|".join(re.escape(token.content) for token in self.tokens)
        ranks = {token.content.encode(): k for k, token in enumerate(self.tokens)}
        how = {"pat_str": pattern, "mergeable_ranks": ranks, "special_tokens": {}}
        self._encoding = tiktoken.Encoding("finder", **how) if ranks else None

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id), from left to right, none of which overlap."""
        found, end = [], 0
        for k in self._encoding.encode_ordinary(text) if self._encoding else ():
            content, length, i = self._known[k]
            start = text.index(content, end)
            end = start + length
            found.append((start, end, i))
        return found


class Spellings:
    """Finds the added tokens of a vocabulary in texts. tokens: by their ids; special: finds special ones."""

    def __init__(self, tokens: Iterable[Added]):
        self.tokens = {token.id: token for token in tokens if token.content}
        known = self.tokens.values()
        passes = [[token for token in known if token.normalized is n] for n in (False, True)]
        self._passes = [Finder(tokens) for tokens in passes if tokens]
        self.special = Finder(token for token in known if token.special)

    def names_in(self, text: str) -> set[str]:
        """The special tokens that a text spells."""
        return {self.tokens[i].content for _, _, i in self.special.find(text)}

    def marked(self, text: str) -> str:
        """A text with a backslash before each special token that it spells."""
        for start, _, _ in reversed(self.special.find(text)):
            text = f"{text[:start]}\\{text[start:]}"
        return text

    def real(self, text: Written, reading: str, border: int = 0) -> list[tuple[int, int, int]]:
        """(start, end, id) of the spellings that are tokens, from left to right: words; of special tokens
        those in the template's own spans, and under `read` the others; none across the border between two
        texts. Raises Unencodable under `refuse` if there are others."""
        found = []
        for finder in self._passes:  # each in what the one before has left
            if finder.only_special and reading == "text" and not text.own:
                continue
            if finder.plain and not border and not found:
                found = finder.find(text.text)
                continue
            gaps = [0, *(place for start, end, _ in found for place in (start, end)), len(text.text)]
            for a, b in zip(gaps[::2], gaps[1::2], strict=True):
                found = found + self._in_part(finder, text.text[a:b], a, text, reading, border)
            found.sort()
        return found

    def _in_part(self, finder, part: str, at: int, text, reading, border) -> list[tuple[int, int, int]]:
        """real() in a part of the text, which begins at `at`."""
        found, done = [], 0
        for start, end, i in finder.find(part):
            token = self.tokens[i]
            beside = part[max(start - 1, 0) : start] + part[end : end + 1]
            if at + start < border < at + end or (token.single_word and LETTER.search(beside)):
                continue
            if token.special and not _is_real(token, at + start, at + end, text, reading):
                continue
            if token.lstrip:
                least = border - at if at + start >= border else 0
                start = max(done, least, BLANKS_BEFORE.match(part, 0, start).start())
            if token.rstrip:
                end = BLANKS.match(part, end).end()
            found.append((at + start, at + end, i))
            done = end
        return found


def _is_real(token: Added, start: int, end: int, text: Written, reading: str) -> bool:
    """Whether a special token that is spelled there is one."""
    if reading == "read" or any(a <= start and end <= b for a, b in text.own):
        return True
    if reading == "refuse":
        what = f"the special token {token.content!r} is spelled in it"
        mend = "--special-tokens text or read takes it"
        raise Unencodable(f"a text is refused: {what}; {mend}; it begins {text.text[:40]!r}")
    return False


def in_pieces(codec, text: str, tokens: list[tuple[int, int, int]]) -> list[np.ndarray]:
    """The ids of a text around and in `tokens`, (start, end, id) from left to right, piece by piece."""
    at, parts = 0, []
    for start, end, i in tokens:
        parts += [codec.encode(text[at:start], at == 0)] if start > at else []
        parts.append(np.array([i], np.uint32))
        at = end
    return parts + ([codec.encode(text[at:], at == 0)] if at < len(text) else [])


def count(tokenizer, texts: Iterable[str]) -> Counter:
    """How many of the texts spell which special token."""
    return Counter(name for text in texts for name in tokenizer.spellings.names_in(text))


def report(tokenizer, rows: Counter) -> dict:
    """What every result says: how special tokens in texts were read, and in how many rows which is
    spelled."""
    return {"read_as": tokenizer.reading, "rows": dict(sorted(rows.items()))}


def report_of(tokenizer, texts: Iterable[str]) -> dict:
    """The report of texts that are not counted yet."""
    return report(tokenizer, count(tokenizer, texts))


def rows_of(reports: Iterable[dict]) -> Counter:
    """The rows of several reports together."""
    return sum((Counter(found["rows"]) for found in reports), Counter())


def say(found: dict) -> None:
    """One line, if any text holds one."""
    if not found["rows"]:
        return
    most = sorted(found["rows"].items(), key=lambda item: -item[1])
    rows = ", ".join(f"{name} in {n:,}" for name, n in most[:6])
    rows += f" and {len(most) - 6} more" if len(most) > 6 else ""
    how = "ordinary letters; --special-tokens read makes them the tokens"
    how = "the tokens" if found["read_as"] == "read" else how
    print(f"special tokens are spelled in texts (rows): {rows}; read as {how}")
