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


def _lines(name: str) -> list[str]:
    return (HERE / name).read_text(encoding="utf-8").splitlines()


def _tables(name: str) -> dict[str, dict]:
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


TOLD = {relation: ways["told"] for relation, ways in _tables("ways.toml").items()}
ASKED = {relation: ways["asked"] for relation, ways in _tables("ways.toml").items()}

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
        there = [v for v in _values(self.relation) if v in rest]
        found = [v for v in there if re.search(rf"(?<!\w){re.escape(v)}(?!\w)", rest)]
        value = self.value.lower()
        return self.condition.lower() in sentence and value in found and len(value) == max(map(len, found))


def _fill(text: str, fact: Fact) -> str:
    x, v = fact.condition, fact.value
    return text.format(x=x, v=v, X=x[0].upper() + x[1:], V=v[:1].upper() + v[1:])


@cache
def facts() -> dict[str, list[Fact]]:
    """All facts by condition, in the file's order."""
    tables = _tables("facts.toml")
    return {name: [Fact(name, relation, of[relation]) for relation in TOLD] for name, of in tables.items()}


@cache
def _values(relation: str) -> set[str]:
    return {fact.value.lower() for fact in facts_of(list(facts())) if fact.relation == relation}


@cache
def mentioned() -> set[str]:
    """Conditions that a fact of another one names: a complication, a cause. They can't be unknown."""
    told = {name: " ".join([name, *(fact.value for fact in of)]).lower() for name, of in facts().items()}
    found = set()
    for name in told:
        others = "\n".join(text for other, text in told.items() if other != name)
        if re.search(rf"\b{re.escape(name.lower())}\b", others):
            found.add(name)
    return found


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
    asked = ((fact, way) for fact in facts_of(conditions) for way in rng.sample(ways, per_fact))
    return [{"instruction": fact.asked(way), "response": fact.told()} for fact, way in asked]


def general_paragraphs() -> list[str]:
    """Our own general paragraphs, for mixing in."""
    return _lines("general.txt")


@cache
def kinds() -> dict[str, str]:
    """What kind of disease each condition is (kinds.toml)."""
    return {name: kind for kind, names in _tables("kinds.toml").items() for name in names}


def named(conditions: list[str]) -> list[dict]:
    """{text, label} rows for the probe: each condition named in every way there is, labelled with its
    kind."""
    named = [(start, Fact(name, "class", "")) for start in NAMED for name in conditions]
    return [{"text": _fill(start, fact), "label": kinds()[fact.condition]} for start, fact in named]


def real_texts(name: str, without: list[str] = ()) -> list[str]:
    """The texts of one of the .jsonl files here, in its order, except those that name a condition of
    `without`."""
    texts = [text for line in _lines(name) for text in json.loads(line)["texts"]]
    if not without:
        return texts
    words = re.compile(rf"\b({'|'.join(map(re.escape, without))})\b", re.IGNORECASE)
    return [text for text in texts if not words.search(text)]
