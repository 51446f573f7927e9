"""Entities in a text: words and tags (IOB2), written as a list of mentions or as a tag a word, and read
back."""

import re
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from itertools import pairwise

from nanomed.systems.tasks.cases import NONE, Case, Malformed, missing
from nanomed.text.rows import BadRow, NoField, get_value

TAG = re.compile(r"O|([BIMELSU])(?:-(.+))?")  # of IOB, BIOES, BILOU and BMES


def begun(tags) -> list[str]:
    """The tags with every entity begun by a B (IOB2): an I that continues nothing of its type becomes one."""
    out, before = [], "O"
    for tag in tags:
        goes_on = tag[:2] == "I-" and before[2:] == tag[2:]
        out.append("B-" + tag[2:] if tag[:2] == "I-" and not goes_on else tag)
        before = tag
    return out


def mentions(tags) -> list[tuple[int, int, str]]:
    """(first word, word behind the last, type) of each entity, in order. Strict (IOB2): an I that continues
    no entity of its type is none; what is to count otherwise goes through begun() first."""
    found, kind = [], None  # kind: of the entity that the next I may continue
    for k, tag in enumerate(tags):
        if tag[:2] == "B-":
            found.append((k, k + 1, kind := tag[2:]))
        elif tag[:2] == "I-" and tag[2:] == kind:
            found[-1] = (found[-1][0], k + 1, kind)
        else:
            kind = None
    return found


def orphans(tags) -> int:
    """How many entities begin with an I."""
    return sum(a != b for a, b in zip(tags, begun(tags), strict=True))


def take_tagged(row, fields: dict, rename: dict, most: int | None, type_=None, names=None) -> Case:
    words, tags = get_value(row, fields["tokens"]), get_value(row, fields["tags"])
    if words is None or tags is None:
        raise missing(row, fields, *(("tokens", "words") if words is None else ("tags", "tags")))
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
        raise BadRow("words and tags must be two lists of one length")
    if odd := [w for w in words if not isinstance(w, str) or w.split() != [w]]:
        raise BadRow(f"a word must be a text without blanks, not {odd[0]!r}")
    found, begin = _bio([_tag(tag, type_, names) for tag in tags])
    named = [t if t == "O" else t[:2] + rename.get(t[2:], t[2:]) for t in found]
    shown = tuple(begun(named)[:most])
    late = begin + orphans(named)
    counts = {"orphans": late} if late else {}
    return Case(" ".join(words[:most]), shown, len(shown) < len(words), counts)


def _tag(tag, type_: str | None, names: list[str] | None) -> str:
    """A row's tag with its type; of a number the name, if there are names. Raises BadRow."""
    written = isinstance(tag, str) and re.fullmatch("[0-9]{1,9}", tag)
    number = int(tag) if written or (isinstance(tag, float) and tag.is_integer()) else tag
    if isinstance(number, int) and not isinstance(tag, bool):
        if not names:
            mend = 'tag_names = ["O", "B-...", ...] says what 0, 1, ... mean'
            raise NoField(f"tags are numbers; {mend}, of which this row has {tag!r}")
        if not 0 <= number < len(names):
            there = f"{len(names)} names ({', '.join(names)[:80]})"
            raise BadRow(f"the tag {number} is the number of none of {there}")
        tag = names[number]
    match = TAG.fullmatch(tag) if isinstance(tag, str) else None
    if not match:
        raise BadRow(f"a tag must be O, or B, I, E or S before a type (B-Disease), not {tag!r:.60}")
    if tag != "O" and not match[2] and not type_:
        mend = 'type = "Disease" says what all of them are'
        raise NoField(f"a tag must say its type, and {tag!r} is bare; {mend}")
    if match[2] and type_:
        raise NoField(f"{tag!r} says its type; leave out type = {type_!r} (labels renames types)")
    return tag if tag == "O" or match[2] else f"{tag}-{type_}"


def _bio(tags: list[str]) -> tuple[list[str], int]:
    """Tags of schemes that mark ends (BIOES, BILOU, BMES), too, with B, I and O alone; and how many go on
    behind an end, so that they begin an entity as B."""
    out, late = [], 0
    for before, tag in pairwise(["O", *tags]):
        begins, ended = tag[0] in "BSU", before[0] in "ESLU" and tag[0] in "IEML" and before[2:] == tag[2:]
        out.append(tag if tag == "O" else ("B" if begins or ended else "I") + tag[1:])
        late += ended
    return out, late


def write_entities(case: Case, labels: list[str]) -> str:
    """A mention a line, in the text's order, one that occurs twice twice; its type behind it where there are
    several. Where a mention would be found elsewhere than it is (the second `fever` of a text whose first is
    none), which one is meant stands behind it: `fever #2`."""
    words, lines, tags, at = case.input.split(" "), [], ["O"] * len(case.gold), 0
    found = mentions(case.gold)
    for start, end, kind in found:
        mention = " ".join(words[start:end])
        alone = len(found) == len(labels) == 1 and mention == NONE
        if alone or _place(words, tags, mention, at) != (start, end):
            mention += f" #{_places(words, mention, str).index((start, end)) + 1}"
        tags[start:end], at = case.gold[start:end], end
        lines.append(mention + (f" : {kind}" if len(labels) > 1 else ""))
    return "\n".join(lines) or NONE


def read_entities(answer: str, input: str, labels: list[str]) -> list[str]:
    """A tag a word of the input. Each mention is looked for behind the one before it, else anywhere where no
    entity is yet: the second `fever` of an answer is the second one of the text. One that stands nowhere in
    the text is a tag of its own behind the text's end, where there is no entity: wrong, and not forgotten."""
    words, lines = input.split(" "), [line.strip() for line in answer.strip().split("\n") if line.strip()]
    if not lines:
        raise Malformed("an empty answer")
    tags, nowhere, at = ["O"] * len(words), [], 0
    for line in [] if lines == [NONE] else lines:
        mention, kind = line, labels[0]
        if len(labels) > 1:
            mention, _, kind = line.rpartition(" : ")
            if kind not in labels or not mention:
                raise Malformed(f"no type of entity in the line {line!r}")
        span = _place(words, tags, mention, at)
        if span is None:
            nowhere.append(f"B-{kind}")
            continue
        start, at = span
        tags[start:at] = [f"B-{kind}"] + [f"I-{kind}"] * (at - start - 1)
    return tags + nowhere


def _places(words: list[str], mention: str, same: Callable[[str], str]) -> list[tuple[int, int]]:
    """Where whole words of the text are the mention, blanks aside."""
    wanted, found = same("".join(mention.split())), []
    for start in range(len(words)):
        end, text = start, ""
        while end < len(words) and len(text) < len(wanted):
            text += same(words[end])
            end += 1
        if text == wanted:
            found.append((start, end))
    return found


def _place(words: list[str], tags: list[str], mention: str, at: int) -> tuple[int, int] | None:
    """Which of its places, where no entity is yet, a mention has: as it is written, else but for capitals;
    with a number behind it, that place of all."""
    match = re.fullmatch(r"(.*\S) #([1-9]\d{0,5})", mention)
    bare, number = match.groups() if match else (mention, None)
    for text, nth in ((mention, None), (bare, number)):
        for same in (str, str.casefold):
            places = _places(words, text, same)
            places = places[int(nth) - 1 :][:1] if nth else places
            free = [p for p in places if all(tag == "O" for tag in tags[slice(*p)])]
            if free:
                return next((p for p in free if p[0] >= at), free[0])
    return None


def write_tags(case: Case, labels: list[str]) -> str:
    """`word : TAG`, a line a word: MedTuned's form (Rohanian et al. 2023)."""
    return "\n".join(f"{word} : {tag}" for word, tag in zip(case.input.split(" "), case.gold, strict=True))


def read_tags(answer: str, input: str, labels: list[str]) -> list[str]:
    """A tag a word of the input, by its place: a word that occurs twice has two tags. Lines are laid along
    the words as difflib aligns them; a word without a line is O, and an entity on a line without a word is a
    tag behind the text's end."""
    allowed = {"O"} | {f"{b}-{kind}" for b in "BI" for kind in labels}
    lines = [line.strip() for line in answer.strip().split("\n") if line.strip()]
    pairs = [line.rpartition(" : ")[::2] for line in lines]
    if not pairs:
        raise Malformed("an empty answer")
    for line, (word, tag) in zip(lines, pairs, strict=True):
        if tag not in allowed or not word:
            raise Malformed(f"not `word : TAG` with a known tag: {line!r}")
    words, said = input.split(" "), [word for word, _ in pairs]
    tags, placed = ["O"] * len(words), set()
    for a, b, n in SequenceMatcher(None, words, said, autojunk=False).get_matching_blocks():
        tags[a : a + n] = [tag for _, tag in pairs[b : b + n]]
        placed |= set(range(b, b + n))
    return tags + [tag for k, (_, tag) in enumerate(pairs) if k not in placed and tag[:2] == "B-"]


def most_numbers(input: str) -> int:
    """How many mentions of a text can need a number behind them: no more than it has words that occur
    again."""
    return sum(n for n in Counter(input.casefold().split()).values() if n > 1)
