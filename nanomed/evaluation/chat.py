"""A conversation with a model on the terminal: what was said, how much of it the model has read already, and
what is forgotten once its positions are full."""

from collections.abc import Callable

from nanomed.errors import UserError
from nanomed.evaluation.generate import ANSWER, Sampling, room
from nanomed.evaluation.measure import Opened, write_on
from nanomed.evaluation.prompts import Asked, ask
from nanomed.models.cache import Kept
from nanomed.precision import DTYPES
from nanomed.text.conversations import Turn, unplaced, user

COMMANDS = "/new forgets what was said, /system TEXT says how to answer, Ctrl-C stops an answer, Ctrl-D ends."


class Chat:
    """What was said. Each question is asked with all of it, as the template writes that; the cache goes on
    where it was, so only what is new is read."""

    def __init__(self, o: Opened, template, sampling: Sampling, max_new_tokens=None, seed=0, system=None):
        self.o, self.template, self.sampling = o, template, sampling
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.kept, self.turns = Kept(o.model.config, 1, o.device, DTYPES[o.dtype]), []
        if system:
            self.begin(system)

    def asked(self, turns: list[Turn]) -> Asked:
        return ask(self.o.tokenizer, tuple(turns), self.template)

    def begin(self, system: str) -> None:
        """Say how to answer, in place of what was said of it; nothing: as the template has it. Raises
        UserError where the template refuses that; says if it leaves it out."""
        first = [Turn("system", system)] if system else []
        self.asked([*first, user("?")])
        for line in unplaced([first], self.template):
            print(line)
        self.turns = [*first, *self.turns[begins(self.turns) :]]

    def command(self, line: str) -> None:
        """/new or /system; what else begins with a slash is answered with what there is."""
        name, _, text = line.partition(" ")
        if name == "/new":
            self.turns = self.turns[: begins(self.turns)]
        elif name == "/system":
            self.begin(text.strip())
        else:
            print(f"no command: {name}. {COMMANDS}")

    def answer(self, question: str) -> None:
        """Write the answer to a question. Raises UserError for a question that leaves no room for one; what
        was said before it stays."""
        positions, markers = self.o.model.config.n_positions, self.template.ends if self.template else ()
        most = positions - (self.max_new_tokens or min(ANSWER, positions // 2))
        turns, asked, forgotten = fitting([*self.turns, user(question)], self.asked, most)
        room(self.o.model.config, asked.ids, self.max_new_tokens)
        if forgotten:
            oldest = f"{forgotten} oldest questions" if forgotten > 1 else "oldest question"
            print(f"({positions:,} positions are full: the {oldest} and what was answered are forgotten)")
        done = write_on(self.o, asked, self.sampling, markers, self.max_new_tokens, self.seed, self.kept)
        self.turns, self.seed = [*turns, Turn("assistant", done.text)], self.seed + 1


def begins(turns: list[Turn]) -> int:
    """Where the conversation begins after a system's turn."""
    return int(bool(turns) and turns[0].role == "system")


def fitting(turns: list[Turn], asked_of: Callable, most: int) -> tuple[list[Turn], Asked, int]:
    """(turns, how they are asked, how many questions were forgotten with their answers): the oldest are,
    until at most `most` ids are left, or the last question alone. A system's turn stays."""
    first, questions = begins(turns), [k for k, turn in enumerate(turns) if turn.role == "user"]
    for start in questions:
        left = turns[:first] + turns[start:]
        asked = asked_of(left)
        if len(asked.ids) <= most:
            break
    return left, asked, questions.index(start)


def talk(chat: Chat) -> None:
    """Read questions and write answers until the input ends."""
    print(f"Type a question and press Enter. {COMMANDS}")
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return
        try:
            if line:
                chat.command(line) if line.startswith("/") else chat.answer(line)
        except UserError as e:  # too long a question is no reason to leave
            print(e)
        except KeyboardInterrupt:  # nor is a long answer
            print("\n(stopped; the question is forgotten)")
