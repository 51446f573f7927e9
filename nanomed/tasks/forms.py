"""Forms of tasks: how an annotated text is asked about, how its labels are written as an answer, and how an answer is read back.

    row of an annotated file --take--> Case(input, gold) --write--> the answer to train on
                     what a model writes --read--> labels or tags again, to be compared with gold

A model that writes is measured by what its text says, so read() is as strict as a program that used the answer would have to
be: an answer in another form than the one asked for raises Malformed, and counts as wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher

from nanomed.text.rows import BadRow, NoField, get_text, get_value

NONE = "none"  # the answer where nothing is to be found
LETTERS = "ABCDEFGH"


class Malformed(Exception):
    """An answer that says nothing in the form that was asked for."""


@dataclass(frozen=True)
class Case:
    """input: what a model is shown; gold: a tag a word of it (BIO), or its label, or its labels."""

    input: str
    gold: tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """take(row, fields, rename, most) -> Case, rename: what the answers call a label, by what rows call it; most: words of a text
    that are shown, the rest is cut (None: all); write(case, labels) -> answer; read(answer, input, labels) -> tags or labels;
    labels: all that there are (of tags: the types of entities)."""

    take: Callable
    write: Callable
    read: Callable
    tagged: bool = False


# --- entities: words and tags -----------------------------------------------------------------------------------------


def begun(tags) -> list[str]:
    """The tags with every entity begun by a B (IOB2): an I that continues nothing of its type becomes one."""
    out, before = [], "O"
    for tag in tags:
        goes_on = tag[:2] == "I-" and before[2:] == tag[2:]
        out.append("B-" + tag[2:] if tag[:2] == "I-" and not goes_on else tag)
        before = tag
    return out


def mentions(tags) -> list[tuple[int, int, str]]:
    """(first word, word behind the last, type) of each entity, in order."""
    found = []
    for k, tag in enumerate(begun(tags)):
        if tag[:2] == "B-":
            found.append([k, k + 1, tag[2:]])
        elif tag != "O":
            found[-1][1] = k + 1
    return [tuple(m) for m in found]


def take_tagged(row, fields: dict, rename: dict, most: int | None) -> Case:
    words, tags = get_value(row, fields["tokens"]), get_value(row, fields["tags"])
    if words is None or tags is None:
        raise NoField(f"no words in {fields['tokens']!r} or no tags in {fields['tags']!r}")
    if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
        raise BadRow("words and tags must be two lists of one length")
    if odd := [w for w in words if not isinstance(w, str) or len(w.split()) != 1]:
        raise BadRow(f"a word must be a text without blanks, not {odd[0]!r}")
    if odd := [t for t in tags if t != "O" and (not isinstance(t, str) or t[:2] not in ("B-", "I-") or len(t) < 3)]:
        raise BadRow(f"a tag must be O, B-TYPE or I-TYPE, not {odd[0]!r}")
    named = [t if t == "O" else t[:2] + rename.get(t[2:], t[2:]) for t in tags]
    return Case(" ".join(words[:most]), tuple(begun(named)[:most]))


def write_entities(case: Case, labels: list[str]) -> str:
    """A mention a line, in the text's order, one that occurs twice twice; its type behind it where there are several."""
    words = case.input.split(" ")
    lines = [" ".join(words[start:end]) + (f" : {kind}" if len(labels) > 1 else "") for start, end, kind in mentions(case.gold)]
    return "\n".join(lines) or NONE


def read_entities(answer: str, input: str, labels: list[str]) -> list[str]:
    """A tag a word of the input. Each mention is looked for behind the one before it, else anywhere where no entity is yet: the
    second `fever` of an answer is the second one of the text. One that stands nowhere in the text is a tag of its own behind the
    text's end, where there is no entity: wrong, and not forgotten."""
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


def _place(words: list[str], tags: list[str], mention: str, at: int) -> tuple[int, int] | None:
    """Where whole words of the text are the mention, blanks aside: as it is written, else but for capitals."""
    for same in (str, str.casefold):
        wanted = same("".join(mention.split()))
        for start in [*range(at, len(words)), *range(at)]:
            end, found = start, ""
            while end < len(words) and tags[end] == "O" and len(found) < len(wanted):
                found += same(words[end])
                end += 1
            if found == wanted:
                return start, end
    return None


def write_tags(case: Case, labels: list[str]) -> str:
    """`word : TAG`, a line a word: MedTuned's form (Rohanian et al. 2023)."""
    return "\n".join(f"{word} : {tag}" for word, tag in zip(case.input.split(" "), case.gold, strict=True))


def read_tags(answer: str, input: str, labels: list[str]) -> list[str]:
    """A tag a word of the input, by its place: a word that occurs twice has two tags. Lines are laid along the words as difflib
    aligns them; a word without a line is O, and an entity on a line without a word is a tag behind the text's end."""
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
    return begun(tags) + [tag for k, (_, tag) in enumerate(pairs) if k not in placed and tag[:2] == "B-"]


# --- one label, or several --------------------------------------------------------------------------------------------


def _named(value, rename: dict) -> str:
    return rename.get(str(value), str(value))


def _label(row, fields: dict, rename: dict) -> tuple[str, ...]:
    value = get_value(row, fields["label"])
    if value is None:
        raise NoField(f"no label in the field {fields['label']!r}")
    if isinstance(value, list | dict) or not str(value).strip():
        raise BadRow(f"a label must be a text or a number, not {value!r}")
    return (_named(value, rename),)


def _shown(row, field: str, most: int | None) -> str:
    """The field's text, or its first words: lines stay lines where nothing is cut."""
    text = get_text(row, field)
    words = text.split()
    return text if most is None or len(words) <= most else " ".join(words[:most])


def take_text(row, fields: dict, rename: dict, most: int | None) -> Case:
    return Case(_shown(row, fields["text"], most), _label(row, fields, rename))


def take_texts(row, fields: dict, rename: dict, most: int | None) -> Case:
    value = get_value(row, fields["labels"])
    if value is None:
        raise NoField(f"no labels in the field {fields['labels']!r}")
    if not isinstance(value, list):
        raise BadRow(f"labels must be a list, not {value!r}")
    return Case(_shown(row, fields["text"], most), tuple(sorted({_named(v, rename) for v in value})))


def take_pair(row, fields: dict, rename: dict, most: int | None) -> Case:
    """A premise, and what may follow from it."""
    premise, hypothesis = _shown(row, fields["premise"], most), get_text(row, fields["hypothesis"])
    return Case(f"Premise: {premise}\nHypothesis: {hypothesis}", _label(row, fields, rename))


def take_question(row, fields: dict, rename: dict, most: int | None) -> Case:
    """A question on a text, that yes or no (or maybe) answers."""
    question, context = get_text(row, fields["question"]), _shown(row, fields["context"], most)
    return Case(f"{context}\nQuestion: {question}", _label(row, fields, rename))


def take_options(row, fields: dict, rename: dict, most: int | None) -> Case:
    """A question and its options, by letters; the answer in the row is an option's number (from 0), letter or text."""
    options = get_value(row, fields["options"])
    if isinstance(options, dict):
        options = [options[key] for key in sorted(options)]
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS) or not all(isinstance(o, str) for o in options):
        raise BadRow(f"{fields['options']!r} must hold 2 to {len(LETTERS)} texts")
    (answer,) = _label(row, fields, rename)
    numbers = [str(k) for k in range(len(options))]
    known = next((known for known in (numbers, LETTERS[: len(options)], options) if answer in list(known)), None)
    if known is None:
        raise BadRow(f"the answer {answer!r} is none of the options' numbers, letters or texts")
    lines = [f"{letter}. {' '.join(option.split())}" for letter, option in zip(LETTERS, options, strict=False)]
    return Case("\n".join([get_text(row, fields["question"]), *lines]), (LETTERS[list(known).index(answer)],))


def write_labels(case: Case, labels: list[str]) -> str:
    return ", ".join(case.gold) or NONE


def _bare(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _known(said: str, labels: list[str]) -> str:
    found = {_bare(label): label for label in labels}.get(_bare(said))
    if found is None:
        raise Malformed(f"{said!r} is no label")
    return found


def read_label(answer: str, input: str, labels: list[str]) -> list[str]:
    return [_known(answer, labels)]


def read_labels(answer: str, input: str, labels: list[str]) -> list[str]:
    if _bare(answer) == NONE:
        return []
    return sorted({_known(said, labels) for said in answer.split(",")})


def read_option(answer: str, input: str, labels: list[str]) -> list[str]:
    """By its letter, its text, or both."""
    options = dict(line.split(". ", 1) for line in input.split("\n") if line[1:3] == ". " and line[0] in LETTERS)
    for letter, text in options.items():
        if _bare(answer) in map(_bare, (letter, text, f"{letter}. {text}", f"({letter})")):
            return [letter]
    raise Malformed(f"{answer!r} is none of the options")


FORMS = {
    "entities": Form(take_tagged, write_entities, read_entities, tagged=True),
    "tags": Form(take_tagged, write_tags, read_tags, tagged=True),
    "relation": Form(take_text, write_labels, read_label),
    "inference": Form(take_pair, write_labels, read_label),
    "class": Form(take_text, write_labels, read_label),
    "classes": Form(take_texts, write_labels, read_labels),
    "decision": Form(take_question, write_labels, read_label),
    "options": Form(take_options, write_labels, read_option),
}
# Which field of a row is what, where a source does not say otherwise: dotted paths, the first of several that a row has.
FIELDS = {
    "tokens": "tokens",
    "tags": "tags",
    "text": "text",
    "label": "final_decision,label,answer",
    "labels": "labels,label",
    "premise": "premise",
    "hypothesis": "hypothesis",
    "question": "question",
    "context": "context.contexts,context",
    "options": "options,choices",
}
