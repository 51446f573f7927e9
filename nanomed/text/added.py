"""Added tokens in texts: tokens that are looked for before anything else, and where a text spells them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import regex
import tiktoken

from nanomed.errors import Unencodable
from nanomed.text.special import Written

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
        self._of_templates: dict[str, bool] = {}  # which of a template's strings spell one

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
            if finder.only_special and reading == "text" and not self._spelled_by_template(text):
                continue
            if finder.plain and not border and not found:
                found = finder.find(text.text)
                continue
            gaps = [0, *(place for start, end, _ in found for place in (start, end)), len(text.text)]
            for a, b in zip(gaps[::2], gaps[1::2], strict=True):
                found = found + self._in_part(finder, text.text[a:b], a, text, reading, border)
            found.sort()
        return found

    def _spelled_by_template(self, text: Written) -> bool:
        """Whether a template's own strings, which are few and come again, spell special tokens."""
        strings = {text.text[start:end] for start, end in text.own}
        for string in strings - self._of_templates.keys():
            self._of_templates[string] = bool(self.special.find(string))
        return any(map(self._of_templates.get, strings))

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
