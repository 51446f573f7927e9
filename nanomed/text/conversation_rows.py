"""Rows that hold conversations, as others write them: `messages` (OpenAI, Hugging Face), `conversations` of
`from` and `value` (ShareGPT), `prompt` and `completion` (trl), or a list of turns."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from nanomed.text.conversations import Conversation, Turn
from nanomed.text.rows import BadRow, NoField, get_text, get_value

# What files call who speaks.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
LISTED = ("messages", "conversations", "conversation")  # fields of lists of turns
REASONING = ("reasoning_content", "thinking", "reasoning")  # as transformers 5.23 looks for it
LEARNED = ("weight", "train", "train_detail", "loss")  # or not: OpenAI's, axolotl's two, ms-swift's
READ = {"role", "from", "content", "value", "name", *LEARNED, *REASONING}
NOTHING = (None, "", [], {})
UNSEEN = ("image", "images", "kto_tag")  # pictures, and LLaMA-Factory's word for an answer that is not wanted
# Beside a conversation, what would change what is learned, and is not read: LLaMA-Factory's, trl's, KTO's.
BESIDE = (*UNSEEN, "tools", "functions", "documents", "chat_template_kwargs", "system_prompt", "label")


def form_of(row) -> tuple[str, Callable] | None:
    """What a row is called that holds a conversation, and a function that gives its list of turns; None for
    any other row."""
    for key in LISTED:
        if isinstance(get_value(row, key), list):
            return f"conversations in the field `{key}`", partial(_listed, key=key)
    asked, answered = get_value(row, "prompt"), get_value(row, "completion")
    if isinstance(asked, list | str) and isinstance(answered, list | str):
        return "conversations in the fields `prompt` and `completion`", _prompt_and_completion
    if isinstance(row, list) and row and isinstance(row[0], dict):
        return "conversations, each a list of turns", _listed
    return None


def refuse_nearly(row) -> None:
    """Raises NoField for a row that is no conversation, but could be made one."""
    if get_value(row, "rejected") is not None:
        mend = "`chosen` has to be called `completion`, or `messages` where it holds the question too"
        raise NoField(f"preferences (`chosen`, `rejected`), which are not learned from; {mend}")
    for key in LISTED:
        if (value := get_value(row, key)) is not None:
            raise NoField(f"no list of turns in the field {key!r}, but {type(value).__name__}")


def _listed(row, key: str | None = None) -> list:
    turns = get_value(row, key) if key else row
    if not isinstance(turns, list):
        raise BadRow(f"no list of turns{f' in the field {key!r}' if key else ''}")
    return _begun(row, turns)


def _begun(row, turns: list) -> list:
    """Turns after the system's text that a row has in a field of its own."""
    system = get_value(row, "system")
    return [{"role": "system", "content": system}, *turns] if system and isinstance(system, str) else turns


def _prompt_and_completion(row) -> list:
    turns = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = get_value(row, key)
        turns += value if isinstance(value, list) else [{"role": role, "content": get_text(row, key)}]
    return _begun(row, turns)


def conversation(row, turns_of: Callable, group: str, unread: Counter) -> Conversation:
    """Of a row and the function that gives its list of turns, without those behind the last answer that is to
    be learned. unread: counts what is there and not read. Raises BadRow for one that teaches nothing, or
    holds what is no text."""
    turns = turns_of(row)
    found = Conversation(tuple(_turn(turn, number, unread) for number, turn in enumerate(turns, 1)), group)
    if not found.learned:
        masked = any(turn.role == "assistant" for turn in found.turns)
        raise BadRow("no assistant's turn" + f" that is to be learned ({', '.join(LEARNED)})" * masked)
    last = found.learned[-1]
    if last == 0:
        raise BadRow("nothing is said before the only assistant's turn")
    unread["{n} turns behind the last answer to be learned are left out"] += len(turns) - last - 1
    beside = (key for key in BESIDE if get_value(row, key) not in NOTHING)
    unread.update(f"the field {key} of {{n}} rows is not read" for key in beside)
    return replace(found, turns=found.turns[: last + 1])


def asked_and_answered(turns: list) -> tuple[tuple[Turn, ...], str | None]:
    """(the turns that wait for an answer, the answer if the last turn of a row's list is one). Raises BadRow
    where nobody waits for one."""
    taken = [_turn(turn, number, Counter()) for number, turn in enumerate(turns, 1)]
    answer = taken.pop().text if taken and taken[-1].role == "assistant" else None
    if not taken or taken[-1].role not in ("user", "tool"):
        raise BadRow("no turn of a user's that waits for an answer")
    return tuple(taken), answer


def _turn(turn, number: int, unread: Counter) -> Turn:
    where = f"turn {number}"
    said_by = get_value(turn, "role,from")
    if not isinstance(said_by, str) or said_by.lower() not in ROLES:
        raise BadRow(f"{where}: `role` or `from` must be one of {', '.join(ROLES)}, not {said_by!r}")
    role = ROLES[said_by.lower()]
    if get_value(turn, "tool_calls,function_call"):
        raise BadRow(f"{where}: a call of a tool, which is not read")
    wanted = {key: get_value(turn, key) for key in LEARNED}
    for key, value in wanted.items():
        if value not in (*NOTHING, 0, 1):
            raise BadRow(f"{where}: {key} {value!r:.60}; a turn is learned whole (1, true) or not (0, false)")
        if value and role != "assistant":
            unread[f"{key} of {{n}} turns asks that others than the assistant are learned: not done"] += 1
    text = _text(turn, "content,value", where)
    if not text.strip() and role != "system":
        raise BadRow(f"{where}: an empty turn of the {role}'s")
    thought = next((key for key in REASONING if get_value(turn, key) is not None), None)
    reasoning = _text(turn, thought, where) if thought and role == "assistant" else None
    name = get_value(turn, "name")
    others = (key for key in turn.keys() - READ if turn[key] not in NOTHING)
    unread.update(f"the field {key} of {{n}} turns is not read" for key in others)
    return Turn(role, text, "", reasoning, 0 not in wanted.values(), name if isinstance(name, str) else None)


def _text(turn: dict, fields: str, where: str) -> str:
    """A turn's text; of a list of parts that are all text (OpenAI's), theirs."""
    parts = get_value(turn, fields)
    if isinstance(parts, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
        return "".join(_text(part, "text", where) for part in parts)
    try:
        return get_text({"content": parts}, "content", "its row must have it")
    except BadRow as e:
        raise BadRow(f"{where}: {e}") from e
