"""Conversations: what was said by whom. A row of an instruction and its response is one of two turns."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Turn:
    """What one of them says. role: system, user, assistant or tool; input: what a question is about, if its
    row has a field for that; reasoning: what an assistant thought before, None if its row has no field for
    it; supervised: whether an answer is to be learned (`weight: 0`: it is not); name: the speaker's."""

    role: str
    text: str
    input: str = ""
    reasoning: str | None = None
    supervised: bool = True
    name: str | None = None

    @property
    def said(self) -> str:
        """All that is said."""
        return "\n".join(filter(None, (self.text, self.input)))


def user(text: str, input: str = "") -> Turn:
    return Turn("user", text, input)


def turns_of(said: "str | Iterable[Turn]", input: str = "") -> tuple[Turn, ...]:
    """Turns as they are; of a text, that of a user who says it."""
    return (user(said, input),) if isinstance(said, str) else tuple(said)


def begun(turns: tuple[Turn, ...], system: str | None) -> tuple[Turn, ...]:
    """Turns after a system's, if they have none of their own."""
    if not system or any(turn.role == "system" for turn in turns):
        return turns
    return (Turn("system", system), *turns)


MARK, ANSWER = "b7351", Turn("assistant", "c")
# What not every template has a place for, and conversations that show it by a word.
PROBES = {
    "reasoning": (user("a"), replace(ANSWER, reasoning=MARK)),
    "names": (Turn("user", "a", name=MARK), ANSWER),
    "texts of tools": (user("a"), Turn("tool", MARK), ANSWER),
    "system texts": (Turn("system", MARK), user("a"), ANSWER),
    "later system texts": (user("a"), ANSWER, Turn("system", MARK), user("a"), ANSWER),
}


def unplaced(conversations: Iterable[Iterable[Turn]], template) -> list[str]:
    """What of conversations a template has no place for, in a line each."""
    lost = Counter()
    for k, turn in (place for turns in conversations for place in enumerate(turns) if template):
        there = {"reasoning": turn.reasoning, "names": turn.name, "texts of tools": turn.role == "tool"}
        there["later system texts" if k else "system texts"] = turn.role == "system" and turn.text
        lost.update(what for what in there if there[what] and what in template.unseen)
    return [f"{what} of {n:,} turns, for which the template has no place" for what, n in lost.items()]


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the last is an assistant's answer that is to be learned; group: rows of one group stay
    on one side of a split; references: where a row has a list of right answers, each of them (the answer to
    be learned is all of them, a line each); place: its file and row, for a message."""

    turns: tuple[Turn, ...]
    group: str = ""
    references: tuple[str, ...] = ()
    place: str = field(default="", compare=False)

    @classmethod
    def of(cls, instruction: str, input: str, response: str, group: str = "") -> "Conversation":
        """A question, what it is about, and its answer."""
        return cls((user(instruction, input), Turn("assistant", response)), group)

    @property
    def asked(self) -> tuple[Turn, ...]:
        """What comes before the last answer."""
        return self.turns[:-1]

    @property
    def response(self) -> str:
        """The last answer."""
        return self.turns[-1].text

    def each_answer(self) -> list["Conversation"]:
        """A conversation for each of the right answers."""
        answers = (replace(self.turns[-1], text=text) for text in self.references or (self.response,))
        return [replace(self, turns=(*self.asked, answer), references=()) for answer in answers]

    @property
    def instruction(self) -> str:
        """The last question."""
        return self.asked[-1].text

    @property
    def input(self) -> str:
        return self.asked[-1].input

    @property
    def learned(self) -> list[int]:
        """Which turns are supervised."""
        return [k for k, turn in enumerate(self.turns) if turn.role == "assistant" and turn.supervised]

    def with_input(self, text: str) -> "Conversation":
        """The conversation in which the last question is about this text."""
        return replace(self, turns=(*self.turns[:-2], replace(self.turns[-2], input=text), self.turns[-1]))

    def last_only(self) -> "Conversation":
        """The conversation with the last answer alone to be learned."""
        return replace(self, turns=(*(replace(t, supervised=False) for t in self.asked), self.turns[-1]))

    def text(self) -> str:
        """All of it, a part a line."""
        parts = ((turn.reasoning, turn.text, turn.input) for turn in self.turns)
        return "\n".join(part for of_turn in parts for part in of_turn if part)

    def parts(self) -> list[str]:
        """All that makes it this one, for a hash."""
        if [turn.role for turn in self.turns] == ["user", "assistant"] and not self.turns[1].reasoning:
            return [self.instruction, self.input, self.response, self.group]
        parts = []
        for t in self.turns:
            parts += [t.role, t.text, t.input, t.reasoning or "", t.name or "", str(t.supervised)]
        return [*parts, self.group]
