"""What a model is asked: prompts and conversations, from files or typed, put into a template."""

from dataclasses import dataclass

from nanomed.errors import UserError
from nanomed.text import instructions
from nanomed.text.conversation_rows import LISTED, asked_and_answered, form_of
from nanomed.text.conversations import Turn, turns_of, user
from nanomed.text.names import is_plain
from nanomed.text.rows import BadRow, get_text, get_value, number_as_text, read_rows
from nanomed.text.tokenizer import Tokenizer

Said = str | tuple[Turn, ...]  # a prompt's text, or the turns of a conversation that wait for an answer


@dataclass(frozen=True)
class Asked:
    """What a model is given to write on from."""

    text: str
    ids: tuple[int, ...]


def ask(tokenizer: Tokenizer, said: Said, template=None) -> Asked:
    """What is said, put into the template; without one as it stands, a turn a line."""
    if template:
        return Asked(template.ask(said).text, tuple(template.prompt_ids(said, tokenizer).tolist()))
    text = "\n".join(turn.said for turn in turns_of(said))
    return Asked(text, tuple(tokenizer.prompt(text).tolist()))


def shown(said: Said) -> str:
    """What is said, for people: of a conversation, a turn a line."""
    return said if isinstance(said, str) else "\n".join(f"{turn.role}: {turn.said}" for turn in said)


def as_messages(said: Said) -> str | list[dict]:
    """What is said, for a file."""
    return said if isinstance(said, str) else [{"role": turn.role, "content": turn.said} for turn in said]


def read_prompts(
    file: str, limit: int | None = None, skip_bad: bool = False
) -> tuple[list[Said], list[str | None]]:
    """The prompts of a .txt file (one a line), or of rows with a `prompt`, a question or a conversation, and
    what their rows say the answer is (`response`, `output`, `answer`, or the last turn), or None; says how
    many bad rows were left out."""
    fields = "text" if is_plain(file) else f"prompt,{instructions.Fields.instruction}"

    def take(row):
        listed = any(isinstance(get_value(row, key), list) for key in LISTED)  # `prompt` is its beginning
        text = get_value(row, instructions.Fields.instruction if listed else fields)
        form = None if isinstance(text, str) else form_of(row)
        if form:
            return _filled(*asked_and_answered(form[1](row)))
        answer = number_as_text(get_value(row, f"{instructions.Fields.response},completion"))
        known = isinstance(answer, str) and bool(answer.strip())
        text, prompt = get_text(row, fields, "the file must have it"), get_value(row, "prompt")
        about = None if prompt else get_value(row, instructions.Fields.input)
        said = (user(text, get_text(row, instructions.Fields.input)),) if about else text
        return _filled(said, answer if known else None)

    found = list(read_rows(file, take, limit, skip_bad))
    rows = [row for row in found if row is not None]
    if not rows:
        raise UserError(f"{file}: no prompts there")
    if bad := len(found) - len(rows):
        print(f"{file}: {bad} bad rows left out")
    return [prompt for prompt, _ in rows], [answer for _, answer in rows]


def _filled(prompt: Said, answer: str | None) -> tuple[Said, str | None]:
    if not shown(prompt).strip():
        raise BadRow("an empty prompt: there is nothing to write on from")
    return prompt, answer
