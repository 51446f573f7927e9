"""A model's own chat template: what its makers had conversations written as, in Jinja.

It is rendered as transformers 5.23's apply_chat_template renders it, and what is to be learned is found by
rendering it a second time: the same conversation with every letter of what is said turned into another one.
Where the two texts differ, somebody speaks; where they are the same, the template does.

    turns -> _speakers -> whose each character is -> _search -> the template's spans, the learned ones
          -> _example -> ids, and which of them are supervised"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from nanomed.errors import UserError
from nanomed.files import read_object, write_text
from nanomed.text import jinja
from nanomed.text.conversations import MARK, PROBES, Conversation, Turn, turns_of, user
from nanomed.text.disguise import OTHER, Frame, disguised, whose_characters
from nanomed.text.lines import BadRow
from nanomed.text.special import Written, template_text
from nanomed.text.vocabulary import CHAT, CONFIG, MORE, copy_more_templates, naming

# Whose texts keep what a template may look for in them, and which characters that it may treat apart.
A, ALL = ("assistant",), ("system", "user", "assistant", "tool")
KEPT = ((), ""), (A, ""), (A, jinja.BLANKS), (A, jinja.SIGNS), (ALL, jinja.SIGNS)

FRAMES = 1000  # of that many kinds of conversations a template's own text is kept


@dataclass(frozen=True)
class ChatTemplate:
    """source: as its file has it; where: which file that is; tokens: the names of bos_token and its like."""

    source: str
    where: str = field(compare=False)
    tokens: tuple[tuple[str, str], ...] = ()
    directory: Path | None = field(default=None, compare=False)
    _frames: dict = field(default_factory=dict, compare=False, repr=False)

    # --- what is asked ---

    def ask(self, said: str | Sequence[Turn], input: str = "") -> Written:
        """What the model is given to answer: turns, or a text that a user says."""
        return self.whole(turns_of(said, input), prompt=True)

    def prompt_ids(self, said: str | Sequence[Turn], tokenizer) -> np.ndarray:
        """Its ids."""
        return tokenizer.prompt(self.ask(said))

    def whole(self, turns: Sequence[Turn], prompt: bool = False) -> Written:
        """Turns as the model sees them when all is said; prompt: and what an answer follows."""
        text, whose = self._speakers(turns, prompt=prompt)
        return Written(text, _runs(whose == 0), complete=True)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """What the template writes behind an answer, up to the line's end: there, a generated one is over."""
        text, whose = self._speakers((user("a"), Turn("assistant", "b")), [1])
        behind = text[_words(whose)[-1][1] :].strip() if (whose > 1).any() else ""
        return (behind.splitlines()[0],) if behind else ()

    @cached_property
    def unseen(self) -> frozenset[str]:
        """Which of PROBES the template leaves out without a word; rows of those that it refuses are bad."""
        unseen = set()
        for what, turns in PROBES.items():
            with contextlib.suppress(UserError):
                unseen |= set() if MARK in self.render(turns) else {what}
        return frozenset(unseen)

    # --- what is learned ---

    def check(self, conversation: Conversation) -> None:
        """Raises BadRow for one that the template refuses."""
        turns = conversation.turns
        try:
            self.render(turns)
            special = jinja.looked_for(self.source)
            looked_at = [k for k in conversation.learned if special.search(turns[k].text)]
            unseen = [k for k in looked_at if not (self._speakers(turns[: k + 1], [k])[1] > 1).any()]
        except UserError as e:
            raise BadRow(str(e)) from e
        if not all(turns[k].text.strip() for k in conversation.learned):
            raise BadRow("an empty answer, of which a chat template shows no place")
        if unseen:
            said = turns[unseen[0]].text[:40]
            raise BadRow(f"turn {unseen[0] + 1}: the template shows nothing of the answer {said!r}")

    def encode(self, conversation: Conversation, tokenizer) -> Iterable[tuple]:
        """The ids, and the spans of them that are supervised: of each answer from its first word (of the
        reasoning, where it is shown) to the token that ends the turn. One example; but where later turns
        change what the template writes of earlier ones, each answer is one of its own, after what the model
        would see before it, made when it is asked for. Raises UserError if the words cannot be told from the
        template."""
        turns, learned = conversation.turns, conversation.learned
        whole = self._example(turns, learned, tokenizer)
        return [whole] if whole else (self._example(turns[: k + 1], [k], tokenizer) for k in learned)

    def _example(self, turns: Sequence[Turn], learned: list[int], tokenizer) -> tuple | None:
        """The example of turns up to the last that is learned; None if an answer stands otherwise in it than
        where it is the last."""
        marked = self._spans(turns, learned, tokenizer)
        if not marked:
            return None
        text, own, spans = marked
        ids, ends = tokenizer.encode_ends(Written(text, own, complete=True))
        places = np.searchsorted(ends, spans, "right").tolist()
        return tokenizer.joined([ids]), tuple((first, last) for first, last in places)

    def _spans(self, turns: Sequence[Turn], learned: list[int], tokenizer) -> tuple | None:
        """What _search() gives, with one rendering where that is enough: what is written around turns of
        these kinds is known (_frame), and with these turns in it, it is the text that the template writes of
        them. None of them may hold what the template looks for."""
        kinds = [(t.role, bool(t.name), bool(t.text), t.reasoning and "some") for t in turns]
        key = (tokenizer.hash, *learned, *kinds)
        if key not in self._frames:
            if len(self._frames) == FRAMES:
                self._frames.pop(next(iter(self._frames)))  # the oldest
            self._frames[key] = self._frame(turns, learned, tokenizer)
        frame = self._frames[key]
        if frame is None:
            return None
        if frame and all(map(self._is_plain, turns)):
            found = frame.filled(turns)
            if found[0] == self.render(turns):
                return found
        return self._search(turns, learned, tokenizer)

    def _is_plain(self, turn: Turn) -> bool:
        looked_for = jinja.looked_for(self.source)
        texts = (turn.said, turn.reasoning or "")
        return not turn.name and all(t == t.strip() and not looked_for.search(t) for t in texts)

    def _frame(self, turns: Sequence[Turn], learned: list[int], tokenizer) -> "Frame | bool | None":
        """What the template writes around turns of these kinds, found with a word of its own in the place of
        each text: False if that does not show, None if they are not one example."""
        shown = [replace(t, text=t.text and f"b7351t{k}e", input="") for k, t in enumerate(turns)]
        shown = [replace(t, reasoning=t.reasoning and f"b7351r{k}e") for k, t in enumerate(shown)]
        try:
            found = self._search(shown, learned, tokenizer)
        except UserError:
            return False
        return found and Frame.of(shown, learned, *found)

    def _search(self, turns: Sequence[Turn], learned: list[int], tokenizer) -> tuple | None:
        """(text, the spans in it that the template wrote, those that are learned). None if an answer stands
        otherwise in it than where it is the last."""
        text, whose = self._speakers(turns, learned)
        words, spans = _words(whose), []
        if len(words) != len(learned) or any((whose[start:stop] == 1).any() for start, stop in words):
            if len(learned) > 1:
                return None
            what = f"does not show an answer in one piece that begins {turns[-1].text[:40]!r}"
            raise UserError(f"{self.where}: {what}; --template NAME takes another")
        for k, (start, stop) in zip(learned, words, strict=True):
            alone = text if k + 1 == len(turns) else self.render(turns[: k + 1])
            end = _ending(alone[stop:], tokenizer)
            if alone[: stop + end] != text[: stop + end]:
                return None
            spans.append((start, stop + (end or _next(text[stop:], tokenizer))))
        return text, _runs(whose == 0), spans

    # --- rendering ---

    def render(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        """The text of turns; prompt: and what an answer follows. Raises UserError where the template does."""
        return self._render([_message(turn) for turn in turns], prompt)

    def _render(self, messages: list[dict[str, str]], prompt: bool) -> str:
        given = dict(self.tokens) | {"tools": None, "documents": None, "add_generation_prompt": prompt}
        try:
            return jinja.compiled(self.source).render(messages=messages, **given)
        except Exception as e:  # a template is a program: it can fail in any way
            raise UserError(f"{self.where}: {e or type(e).__name__}; --template NAME takes another") from e

    def _speakers(self, turns, learned: Sequence[int] = (), prompt: bool = False) -> tuple[str, np.ndarray]:
        """The text, and for each of its characters whose it is, (T,): 0 the template's, 1 said, 2 and 3 by
        turns said and learned. Raises UserError where the two renderings do not show that."""
        messages = [_message(turn) for turn in turns]
        text = self._render(messages, prompt)
        number = {k: 2 + n % 2 for n, k in enumerate(learned)}
        for looked_at, apart in KEPT:
            kept = {role: jinja.looked_for(self.source, apart) for role in looked_at}
            others = []
            for k, message in enumerate(messages):
                how = OTHER[number.get(k, 1)], kept.get(message["role"])
                others.append({key: disguised(key, value, *how) for key, value in message.items()})
            try:
                whose = whose_characters(text, self._render(others, prompt))
            except UserError:
                continue
            if whose is not None:
                return text, whose
        said = f"from what is said in the conversation that begins {turns[0].text[:40]!r}"
        raise UserError(f"{self.where}: what it writes cannot be told {said}; --template NAME takes another")

    # --- its files ---

    def identity(self, tokenizer) -> str:
        """All that decides how rows are asked and answered, for run.json."""
        return f"chat template {sha256(repr((self.source, self.tokens)).encode()).hexdigest()}"

    def save(self, tokenizer, directory: Path) -> None:
        """As it is, beside a model; and the model's others beside it."""
        write_text(self.source, directory / CHAT)
        if self.directory:
            copy_more_templates(self.directory, directory)


def load(directory: Path, name: str | None = None) -> ChatTemplate | None:
    """A directory's chat template of this name, or its default one; None if it has none. Raises UserError if
    it has several and none is the default."""
    config = read_object(directory / CONFIG, {})
    files = {"default": directory / CHAT} if (directory / CHAT).exists() else {}
    files |= {path.stem: path for path in sorted((directory / MORE).glob("*.jinja"))}
    where = {name: str(path) for name, path in files.items()}
    try:
        found = {name: path.read_bytes().decode("utf-8") for name, path in files.items()}
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{directory}: its chat template cannot be read ({e})") from e
    if not found:
        given = config.get("chat_template") or {}
        if isinstance(given, list):
            given = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
        found = {"default": given} if isinstance(given, str) else given
        where = dict.fromkeys(found, f"{directory / CONFIG}: chat_template")
    chosen = found.get(name or "default")
    if found and not name and chosen is None:
        there = f"chat templates {', '.join(map(str, found))}"
        raise UserError(f"{directory}: {there}; --template NAME takes one")
    if not isinstance(chosen, str):
        return None
    named = naming(directory).items()
    given = ((k, v.get("content") if isinstance(v, dict) else v) for k, v in named)
    tokens = tuple((k, v) for k, v in given if k.endswith("_token") and isinstance(v, str))
    return ChatTemplate(chosen, where[name or "default"], tokens, directory)


def _message(turn: Turn) -> dict[str, str]:
    """What a template is given of a turn; of what was thought under all names that templates look for, as
    transformers does it."""
    message = {"role": turn.role, "content": turn.said}
    if turn.name:
        message["name"] = turn.name
    if turn.reasoning is not None:
        message |= {"thinking": turn.reasoning, "reasoning_content": turn.reasoning}
    return message


# --- where who speaks --------------------------------------------------------------------------------------


def _runs(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The spans (start, end) in which a mask (T,) is true."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _words(whose: np.ndarray) -> list[tuple[int, int]]:
    """From the first character of each learned turn to behind its last."""
    at = np.flatnonzero(whose > 1)
    borders = np.flatnonzero(np.diff(whose[at], prepend=0, append=0)).tolist()
    return [(int(at[first]), int(at[behind - 1]) + 1) for first, behind in pairwise(borders)]


def _ending(behind: str, tokenizer) -> int:
    """How much of what a template writes behind an answer ends it: all up to the first special token, and
    those that follow at once."""
    found = _special(behind, tokenizer)
    if not found:
        return len(behind.rstrip())
    end = found[0][1]
    for start, stop in found[1:]:
        if start != end:
            break
        end = stop
    return end


def _next(behind: str, tokenizer) -> int:
    """The same where nothing is written behind a last answer (GLM 4): up to the token that the next turn
    begins with."""
    found = _special(behind, tokenizer)
    return found[0][1] if found and not behind[: found[0][0]].strip() else 0


def _special(text: str, tokenizer) -> list[tuple[int, int]]:
    """Where a template's text has special tokens."""
    spellings = tokenizer.spellings
    found = spellings.real(template_text(text), "text")
    return [(start, end) for start, end, i in found if spellings.tokens[i].special]
