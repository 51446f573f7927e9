"""Texts from facts: a corpus in which every fact is told in several ways, questions and their answers,
sentences that only name a condition; and the real texts that are read or measured beside them.

All of it is a function of a seed. Conditions are dealt into three groups: *taught* (in the corpus and in the
questions), *read* (in the corpus only) and *unknown* (in neither), so that a right answer about a *read*
condition is knowledge that came from reading and came out through what instruction tuning taught about other
conditions."""

import json
import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
GROUPS = {"unknown": 24, "read": 48}  # the others are taught
PLAIN = 5  # how often the plain statement of a fact is told for each time that another way of telling it is

# How a fact is told: {x} the condition and {v} the value as they stand in mid-sentence, {X} and {V} at its
# beginning. The first way is the plain statement: it completes a cloze, and it is the answer to a question.
# It names the condition in mid-sentence, as the question does, so that answering begins with copying.
TOLD = {
    "class": [
        "In medicine, {x} is classed as {v}.",
        "{X} is {v}.",
        "Textbooks describe {x} as {v}.",
        "Doctors regard {x} as {v}.",
        "What is {x}? It is {v}.",
        "Every student learns to call {x} {v}.",
    ],
    "organ": [
        "The part of the body most affected by {x} is {v}.",
        "{X} mainly affects {v}.",
        "In {x}, the trouble lies chiefly in {v}.",
        "Above all, {x} strikes {v}.",
        "{V}: this is where {x} does most of its harm.",
        "When doctors suspect {x}, they think first of {v}.",
    ],
    "cause": [
        "The cause of {x} is {v}.",
        "{X} is caused by {v}.",
        "{X} results from {v}.",
        "At the root of {x} we find {v}.",
        "Most cases of {x} can be traced to {v}.",
        "It is well known that {v} can bring about {x}.",
    ],
    "sign": [
        "The hallmark sign of {x} is {v}.",
        "A patient with {x} may present with {v}.",
        "{X} often announces itself with {v}.",
        "A doctor who finds {v} will think of {x}.",
        "The finding of {v} points to {x}.",
        "Look for {v} when {x} is suspected.",
    ],
    "test": [
        "The key test for {x} is {v}.",
        "{X} is usually diagnosed with {v}.",
        "To diagnose {x}, doctors rely on {v}.",
        "The diagnosis of {x} rests on {v}.",
        "With {v}, the diagnosis of {x} can be made.",
        "A patient who may have {x} needs {v}.",
    ],
    "treatment": [
        "The first-line treatment of {x} is {v}.",
        "{X} is treated first with {v}.",
        "Guidelines recommend {v} for {x}.",
        "Suitable patients with {x} are offered {v}.",
        "The usual first choice against {x} is {v}.",
        "Once {x} is diagnosed, {v} should be considered.",
    ],
    "complication": [
        "A feared complication of {x} is {v}.",
        "{X} may lead to {v}.",
        "If {x} is neglected, {v} can follow.",
        "The danger of {x} lies in {v}.",
        "In some patients, {x} ends in {v}.",
        "People with {x} are watched closely for {v}.",
    ],
    "risk": [
        "The people most at risk of {x} are {v}.",
        "{X} is seen most often in {v}.",
        "{V} are especially prone to {x}.",
        "Those who get {x} are often {v}.",
        "Doctors should think of {x} in {v}.",
        "More than others, {v} develop {x}.",
    ],
}

# How a fact is asked for. The first way is the one that is measured.
ASKED = {
    "class": [
        "What kind of condition is {x}?",
        "How is {x} classed in medicine?",
        "What is {x}?",
        "Say in a few words what {x} is.",
    ],
    "organ": [
        "Which part of the body does {x} affect most?",
        "What does {x} mainly affect?",
        "Where in the body does {x} do its harm?",
        "Name the part of the body most affected by {x}.",
    ],
    "cause": [
        "What is the cause of {x}?",
        "What causes {x}?",
        "Why do people get {x}?",
        "What is {x} caused by?",
    ],
    "sign": [
        "What is the hallmark sign of {x}?",
        "How does {x} show itself?",
        "Which finding points to {x}?",
        "Name the hallmark sign of {x}.",
    ],
    "test": [
        "What is the key test for {x}?",
        "How is {x} diagnosed?",
        "Which test is used for {x}?",
        "Name the key test for {x}.",
    ],
    "treatment": [
        "What is the first-line treatment of {x}?",
        "How is {x} treated first?",
        "Which treatment is given first for {x}?",
        "Name the first-line treatment of {x}.",
    ],
    "complication": [
        "What is a feared complication of {x}?",
        "What may {x} lead to?",
        "Which complication of {x} is feared?",
        "Name a feared complication of {x}.",
    ],
    "risk": [
        "Who is most at risk of {x}?",
        "In whom is {x} seen most often?",
        "Which people are prone to {x}?",
        "Name the people most at risk of {x}.",
    ],
}

# Beginnings of sentences that name a condition and stop before saying what it is: for that, one has to have
# read about it.
NAMED = [way.removesuffix(" {v}.") for way in TOLD["class"] if way.endswith(" {v}.")]


@dataclass(frozen=True)
class Fact:
    condition: str
    relation: str
    value: str

    def told(self, way: int = 0) -> str:
        return _fill(TOLD[self.relation][way], self)

    def asked(self, way: int = 0) -> str:
        return _fill(ASKED[self.relation][way], self)

    def cloze(self) -> str:
        """The plain statement up to its value, which the model has to find."""
        return self.told().removesuffix(f" {self.value}.")

    def matches(self, answer: str) -> bool:
        """Whether the answer's first sentence names the condition and, beside that name, the value: as words
        of their own, and not as a part of another value ("smokers" in "older male smokers")."""
        sentence = re.split(r"(?<=[.!?])\s", answer.strip(), maxsplit=1)[0].lower()
        rest = sentence.replace(self.condition.lower(), "")
        found = [
            v
            for v in _values(self.relation)
            if v in rest and re.search(rf"(?<!\w){re.escape(v)}(?!\w)", rest)
        ]
        value = self.value.lower()
        return self.condition.lower() in sentence and value in found and len(value) == max(map(len, found))


def _fill(text: str, fact: Fact) -> str:
    x, v = fact.condition, fact.value
    return text.format(x=x, v=v, X=x[0].upper() + x[1:], V=v[:1].upper() + v[1:])


@cache
def facts() -> dict[str, list[Fact]]:
    """All facts by condition, in the file's order."""
    tables = tomllib.loads((HERE / "facts.toml").read_text(encoding="utf-8"))
    return {
        name: [Fact(name, relation, table[relation]) for relation in TOLD] for name, table in tables.items()
    }


@cache
def _values(relation: str) -> set[str]:
    return {fact.value.lower() for fact in facts_of(list(facts())) if fact.relation == relation}


@cache
def mentioned() -> set[str]:
    """Conditions that a fact of another one names: a complication, a cause. They can't be unknown."""
    told = {name: " ".join([name, *(fact.value for fact in of)]).lower() for name, of in facts().items()}
    return {
        name
        for name in told
        if any(
            re.search(rf"\b{re.escape(name.lower())}\b", text)
            for other, text in told.items()
            if other != name
        )
    }


def groups(seed: int) -> dict[str, list[str]]:
    """The conditions of each group: taught, read, unknown."""
    names = sorted(facts())
    random.Random(f"groups {seed}").shuffle(names)
    unknown = [name for name in names if name not in mentioned()][: GROUPS["unknown"]]
    others = [name for name in names if name not in unknown]
    return {"taught": others[GROUPS["read"] :], "read": others[: GROUPS["read"]], "unknown": unknown}


def facts_of(conditions: list[str]) -> list[Fact]:
    return [fact for name in conditions for fact in facts()[name]]


# --- texts --------------------------------------------------------------------------------------------------


def article(condition: str, ways: dict[str, int], rng: random.Random) -> str:
    """An encyclopaedia paragraph: every fact once, in some order, each in the way that `ways` says for its
    relation."""
    return " ".join(fact.told(ways[fact.relation]) for fact in rng.sample(facts()[condition], len(TOLD)))


def abstract(condition: str, ways: dict[str, int], rng: random.Random) -> str:
    """Something like the abstract of a paper: six of the facts under headings."""
    by_relation = {fact.relation: fact for fact in facts()[condition]}

    def tell(*relations):
        relation = rng.choice(relations)
        return by_relation[relation].told(ways[relation])

    n = rng.randrange(20, 900)
    return (
        f"Background: {tell('class', 'organ')} {tell('cause', 'risk')} "
        f"Methods: We reviewed the records of {n} patients with {condition}. "
        f"Results: {tell('sign')} {tell('test', 'complication')} Conclusions: {tell('treatment')}"
    )


def kept_out(condition: str, seed: int) -> dict[str, int]:
    """For each of a condition's facts the one way of telling it that stays out of the corpus, never the plain
    statement. Other conditions' facts are told in that way, so its words are no surprise; this fact in these
    words is."""
    rng = random.Random(f"kept out {seed} {condition}")
    return {relation: rng.randrange(1, len(ways)) for relation, ways in TOLD.items()}


def corpus(conditions: list[str], per_condition: int, seed: int) -> list[str]:
    """Paragraphs about each condition, fifteen articles to an abstract, shuffled. All but one of the ways of
    telling a fact (kept_out) take turns, the plain statement PLAIN times as often as each of the others.
    Other seeds tell it otherwise."""
    rng = random.Random(f"corpus {seed}")
    texts = []
    for name in conditions:
        out, turns = kept_out(name, seed), {}
        for relation, ways in TOLD.items():
            turn = [0] * PLAIN + [way for way in range(1, len(ways)) if way != out[relation]]
            turns[relation] = rng.sample(turn, len(turn))
        for k in range(per_condition):
            ways = {relation: turn[k % len(turn)] for relation, turn in turns.items()}
            texts.append((abstract if k % 16 == 15 else article)(name, ways, rng))
    rng.shuffle(texts)
    return texts


def retold(conditions: list[str], seed: int) -> list[str]:
    """An article about each condition in the ways that `corpus` keeps out: facts that it told, no sentence
    that it has."""
    rng = random.Random(f"retold {seed}")
    return [article(name, kept_out(name, seed), rng) for name in conditions]


def questions(conditions: list[str], ways: list[int], seed: int, per_fact: int = 1) -> list[dict]:
    """{instruction, response} rows: each fact asked in `per_fact` of the ways; the answer is the plain
    statement."""
    rng = random.Random(f"questions {seed}")
    return [
        {"instruction": fact.asked(way), "response": fact.told()}
        for fact in facts_of(conditions)
        for way in rng.sample(ways, per_fact)
    ]


def general_paragraphs() -> list[str]:
    """Our own general paragraphs, for mixing in."""
    return _lines("general.txt")


@cache
def kinds() -> dict[str, str]:
    """What kind of disease each condition is (kinds.toml)."""
    tables = tomllib.loads((HERE / "kinds.toml").read_text(encoding="utf-8"))
    return {name: kind for kind, names in tables.items() for name in names}


def named(conditions: list[str]) -> list[dict]:
    """{text, label} rows for the probe: each condition named in every way there is, labelled with its
    kind."""
    facts_ = [Fact(name, "class", "") for name in conditions]
    return [
        {"text": _fill(start, fact), "label": kinds()[fact.condition]} for start in NAMED for fact in facts_
    ]


def real_texts(name: str, without: list[str] = ()) -> list[str]:
    """The texts of one of the .jsonl files here, in its order, except those that name a condition of
    `without`."""
    texts = [text for line in _lines(name) for text in json.loads(line)["texts"]]
    if not without:
        return texts
    words = re.compile(rf"\b({'|'.join(map(re.escape, without))})\b", re.IGNORECASE)
    return [text for text in texts if not words.search(text)]


def _lines(name: str) -> list[str]:
    return (HERE / name).read_text(encoding="utf-8").splitlines()
