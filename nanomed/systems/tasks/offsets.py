"""Mentions by their offsets in a text -> words and tags (IOB2).

A word is a run of letters and digits, or one other character: where words end hangs on the text
alone, as it must where a test text is shown to a model. Only a mention that begins or ends within a
word parts it there, so that each mention keeps all its characters and has no other; how many do is
counted."""

import re
from dataclasses import dataclass

from nanomed.text.rows import BadRow

WORD = re.compile(r"\w[\w\u0300-\u036f]*|\S")  # 0300 to 036f: accents that are characters of their own
# What IOB2 cannot say, or what the text had to give up for it: what is counted of a row, and how it is said.
COUNTED = {
    "discontinuous": "discontinuous mentions left out",
    "overlapping": "mentions that lie in, across or on a longer one left out",
    "unplaced": "mentions without a place in the text left out",
    "parted": "mentions that begin or end within a word, which they part",
}


@dataclass(frozen=True)
class Mention:
    """pieces: (first character, character behind the last) of each, in code points of the text;
    surface: what a file says stands there (None: it does not say it); where: for a message."""

    pieces: tuple[tuple[int, int], ...]
    kind: str
    surface: str | None
    where: str


def tagged(text: str, mentions: list[Mention], unplaced: int = 0) -> dict:
    """A row {tokens, tags, counts}, in which each mention is tagged or counted. Of mentions that
    overlap the longest stays, of equally long ones the first. Raises BadRow for one whose surface
    is not what the text has at its place."""
    spans = [(_pieces(text, mention), mention.kind) for mention in mentions]
    whole = [(*pieces[0], kind) for pieces, kind in spans if len(pieces) == 1]
    whole.sort(key=lambda span: (span[0] - span[1], span[0]))  # the longest first
    kept = []
    for span in whole:
        if all(span[1] <= other[0] or other[1] <= span[0] for other in kept):
            kept.append(span)
    edges = {edge for start, end, _ in kept for edge in (start, end)}
    words, inside = [], set()
    for match in WORD.finditer(text):
        cuts = sorted(edges.intersection(range(match.start() + 1, match.end())))
        inside.update(cuts)
        words += zip([match.start(), *cuts], [*cuts, match.end()], strict=True)
    begin = {start: (end, kind) for start, end, kind in kept}
    tags, end, kind = [], 0, ""
    for start, _ in words:
        if start in begin:
            end, kind = begin[start]
        tags.append("O" if start >= end else f"{'B' if start in begin else 'I'}-{kind}")
    counts = {"discontinuous": len(spans) - len(whole), "overlapping": len(whole) - len(kept)}
    counts |= {"unplaced": unplaced, "parted": sum(a in inside or b in inside for a, b, _ in kept)}
    counts = {name: n for name, n in counts.items() if n}
    return {"tokens": [text[a:b] for a, b in words], "tags": tags, "counts": counts}


def _pieces(text: str, mention: Mention) -> list[tuple[int, int]]:
    """Without blanks at their ends, those joined that only blanks part (brat parts a mention at a
    line's end)."""
    out = []
    for start, end in sorted(mention.pieces):
        if not 0 <= start < end <= len(text):
            where = f"{start} to {end} is no place in its text of {len(text):,} characters"
            raise BadRow(f"{mention.where}: {where}")
        start += len(text[start:end]) - len(text[start:end].lstrip())
        end = start + len(text[start:end].rstrip())
        if out and not text[out[-1][1] : start].strip():
            out[-1] = (out[-1][0], max(out[-1][1], end))
        elif start < end:
            out.append((start, end))
    found = " ".join(text[start:end] for start, end in out)
    said = found if mention.surface is None else mention.surface
    if not out or (len(out) == 1 and "".join(found.split()) != "".join(said.split())):
        at = f"{mention.pieces[0][0]} to {mention.pieces[-1][1]}"
        there = f"at {at} the text has {found!r:.60}, not {said!r:.60}"
        raise BadRow(f"{mention.where}: {there}; offsets count characters from 0")
    return out
