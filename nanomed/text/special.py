"""Added tokens in texts: where they are spelled, and which of these spellings are tokens.

Tokens that were added to a vocabulary are looked for in a text before anything else. A word of a domain
(hepatosplenomegaly) is one wherever it stands. A special token (<|endoftext|>, </s>, <|im_start|>) means
something to the model that its letters do not: here a text ends, here somebody speaks. A corpus must not be
able to say so by accident, so by default a spelling in a text is text like any other; a template is written
by somebody who means it, so there it is the token. --special-tokens decides for texts:

    text     a spelling is read as its letters
    read     a spelling is the token, as the model's own tokenizer reads it
    refuse   a text that holds one is a bad row"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


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


def report(tokenizer, texts: Iterable[str] = (), reports: Iterable[dict] = ()) -> dict:
    """What every result says: how special tokens in texts were read, and how many of the texts, and of those
    that the reports are of, spell which."""
    rows = Counter(name for text in texts for name in tokenizer.spellings.names_in(text))
    for other in reports:
        rows.update(other["rows"])
    return {"read_as": tokenizer.reading, "rows": dict(sorted(rows.items()))}


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
