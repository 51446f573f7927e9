"""A conversation with a model on the terminal: what was said, how much of it the model has read already, and
what is forgotten once its positions are full."""

from collections.abc import Callable

from nanomed.errors import UserError
from nanomed.evaluation.generate import Sampling
from nanomed.evaluation.measure import Opened, write_on
from nanomed.models.cache import Kept
from nanomed.precision import DTYPES
from nanomed.text.conversations import Turn, user

COMMANDS = "/new forgets what was said, /system TEXT says how to answer (without TEXT: nothing), Ctrl-D ends."
ANSWER = 256  # tokens that an answer has room for, unless it is said


class Chat:
    """What was said. Each question is asked with all of it, as the template writes that; the cache goes on
    where it was, so that only what is new is read."""

    def __init__(self, o: Opened, template, sampling: Sampling, max_new_tokens: int | None, seed: int):
        self.o, self.template, self.sampling = o, template, sampling
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.turns: list[Turn] = []
        self.kept = Kept(o.model.config, 1, o.device, DTYPES[o.dtype])

    def command(self, line: str) -> None:
        """/new or /system; what else begins with a slash is answered with what there is."""
        name, _, text = line.partition(" ")
        if name == "/new":
            self.turns = self.turns[: begins(self.turns)]
        elif name == "/system":
            system = [Turn("system", text.strip())] if text.strip() else []
            self.ids([*system, user("?")])  # raises where the template has no place for it
            self.turns = [*system, *self.turns[begins(self.turns) :]]
        else:
            print(f"no command: {name}. {COMMANDS}")

    def ids(self, turns: list[Turn]) -> list[int]:
        """The prompt that asks for the next answer."""
        asked = self.template.ask(turns) if self.template else "\n".join(turn.text for turn in turns)
        return self.o.tokenizer.prompt(asked).tolist()

    def answer(self, question: str) -> None:
        """Write the answer to a question. What was said is as before where there is none: raises UserError
        for a question that is longer than the model's positions."""
        positions = self.o.model.config.n_positions
        most = positions - (self.max_new_tokens or min(ANSWER, positions // 2))
        turns, ids, forgotten = fitting([*self.turns, user(question)], self.ids, most)
        if forgotten:
            turns_of = "turn is" if forgotten == 1 else f"{forgotten} turns are"
            print(f"({positions:,} positions are full: the oldest {turns_of} forgotten)")
        markers = self.template.ends if self.template else ()
        done = write_on(self.o, ids, self.sampling, markers, self.max_new_tokens, self.seed, self.kept)
        self.turns, self.seed = [*turns, Turn("assistant", done.text)], self.seed + 1


def begins(turns: list[Turn]) -> int:
    """Where the conversation begins after a system's turn."""
    return int(bool(turns) and turns[0].role == "system")


def fitting(turns: list[Turn], ids_of: Callable, most: int) -> tuple[list[Turn], list[int], int]:
    """(turns, their ids, how many questions and answers were forgotten): the oldest are, until at most `most`
    ids are left, or the last question alone. A system's turn stays."""
    forgotten, first = 0, begins(turns)
    ids = ids_of(turns)
    while len(ids) > most:
        asked = [k for k, turn in enumerate(turns) if turn.role == "user"]
        if len(asked) < 2:
            break
        turns, forgotten = turns[:first] + turns[asked[1] :], forgotten + 1
        ids = ids_of(turns)
    return turns, ids, forgotten


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
