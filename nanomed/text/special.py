"""Special tokens in texts: where they are spelled, and which of these spellings are real.

A special token (<|endoftext|>, </s>, <|im_start|>) means something to the model that its letters do not: here
a text ends, here somebody speaks. A corpus must not be able to say so by accident, so by default a spelling
in a text is text like any other; a template is written by somebody who means it, so there it is the token.
--special-tokens decides for texts:

    text     a spelling is read as its letters
    read     a spelling is the token, as the model's own tokenizer reads it
    refuse   a text that holds one is a bad row"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from nanomed.errors import Unencodable


@dataclass(frozen=True)
class Added:
    """A token that is looked for in texts before anything else, as the `tokenizers` library's AddedToken says
    it: lstrip and rstrip take the blanks beside it into it, single_word wants no letter or digit beside it.
    """

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


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


class Spellings:
    """Finds the special tokens of a vocabulary in texts."""

    def __init__(self, tokens: Iterable[Added]):
        self.tokens = {token.content: token for token in tokens if token.content}
        # The longest of several that begin at one place, as the `tokenizers` library takes it.
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # a fast look: few texts hold one of these
        self._beginnings = {content[:3] for content in self.tokens}

    def matches(self, text: str) -> list[re.Match]:
        """Where a text spells special tokens."""
        found = any(beginning in text for beginning in self._beginnings)
        return list(self._pattern.finditer(text)) if found else []

    def names_in(self, text: str) -> set[str]:
        """The special tokens that a text spells."""
        return {match[0] for match in self.matches(text)}

    def marked(self, text: str) -> str:
        """A text with a backslash before each special token that it spells."""
        return self._pattern.sub(lambda match: "\\" + match[0], text)

    def real(self, text: Written, reading: str, border: int = 0) -> list[tuple[int, int, int]]:
        """(start, end, id) of the spellings that are tokens: those in the template's own spans, and under
        `read` the others; none across the border between two texts. Raises Unencodable under `refuse` if
        there are others."""
        found, done = [], 0
        for match in self.matches(text.text):
            start, end = match.span()
            token = self.tokens[match[0]]
            beside = text.text[max(start - 1, 0) : start] + text.text[end : end + 1]
            if start < border < end or (token.single_word and re.search(r"\w", beside)):
                continue
            if not any(a <= start and end <= b for a, b in text.own):
                if reading == "refuse":
                    what = f"the special token {match[0]!r} is spelled in it"
                    mend = "--special-tokens text or read takes it"
                    raise Unencodable(f"a text is refused: {what}; {mend}; it begins {text.text[:40]!r}")
                if reading == "text":
                    continue
            if token.lstrip:
                start = max(done, border if start >= border else 0, len(text.text[:start].rstrip()))
            if token.rstrip:
                end += len(text.text[end:]) - len(text.text[end:].lstrip())
            found.append((start, end, token.id))
            done = end
        return found


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
