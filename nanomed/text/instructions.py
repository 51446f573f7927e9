"""Rows of instructions and their answers, or of conversations, as files hold them."""

from collections import Counter
from dataclasses import dataclass, replace

from nanomed.errors import UserError
from nanomed.text.conversation_rows import LISTED, NOTHING, UNSEEN, conversation, form_of, refuse_nearly
from nanomed.text.conversations import Conversation, begun
from nanomed.text.lines import note_once, sha256_of
from nanomed.text.rows import BadRow, NoField, field_of, fields_of, get_text, get_value, placed_rows


@dataclass
class Fields:
    """Where a row keeps its parts: dotted paths, the first of several that a row has."""

    instruction: str = "instruction,question"
    input: str = "input"
    response: str = "response,output,answer"
    group: str | None = None


# What others put into a prompt too or learn from otherwise, and what takes it where it is not read.
AS_INPUT = " (--input-field {} takes it for the input)"
UNREAD = dict.fromkeys(UNSEEN, "") | dict.fromkeys(LISTED, " (--instruction-field {} takes the conversation)")
UNREAD |= dict.fromkeys("context system system_prompt history options choices".split(), AS_INPUT)


def one_text(row, fields: str, default: str, flag: str, numbers: bool = False) -> str:
    """get_text() of the first field that is filled. Raises BadRow where two of the default's names hold
    different texts, since nobody said which is meant."""
    flag = getattr(fields, "flag", flag)
    filled = {name: v for name in fields.split(",") if (v := get_value(row, name)) not in (None, "", [])}
    if fields == default and len({str(value) for value in filled.values()}) > 1:
        raise BadRow(f"{' and '.join(filled)} hold different texts; {flag} says which is meant")
    return get_text(row, next(iter(filled), fields), flag, numbers)


def read_instructions(
    names, fields: Fields, limit: int | None, skip_bad: bool, system: str | None = None, template=None
) -> tuple[list[Conversation], int, str]:
    """(conversations, rows left out, SHA-256 of the texts in order). A file's first good row says whether its
    rows are instructions with responses or conversations (nanomed.text.conversations). system: the first turn
    of those that have no system's turn; template: has to have a place for all turns. Raises UserError with
    file and row for a bad one."""
    unread, taken = Counter(), []
    for name in names:
        form = ()  # of the file's rows, once its first good one has shown it

        def take(row, name=name):
            nonlocal form
            known = form
            if known == ():
                known = form_of(row) if asked_in(row, fields) is None else None
            if known:
                found = conversation(row, known[1], group_of(row, fields), unread)
            else:
                found = _instruction(row, fields, unread)
            found = replace(found, turns=begun(found.turns, system))
            if template:
                template.check(found)
            if known:
                note_once(f"{name}: {known[0]}")
            form = known
            return found

        for place, item in placed_rows(name, take, limit, skip_bad):
            taken.append(item and replace(item, place=f"{name}, {place}"))
    kept = [item for item in taken if item is not None]
    if not kept:
        raise UserError(f"{', '.join(names)}: no instructions there")
    for what, n in (+unread).items():
        print(f"{', '.join(names)}: {what.replace('{n}', f'{n:,}')}")
    return kept, len(taken) - len(kept), sha256_of(part for item in kept for part in item.parts())


def _instruction(row, fields: Fields, unread: Counter) -> Conversation:
    """Of a row of an instruction, its input and its response."""
    if get_value(row, fields.instruction) is None:
        refuse_nearly(row)
    instruction = one_text(row, fields.instruction, Fields.instruction, "--instruction-field")
    if not instruction.strip():
        raise BadRow("an empty instruction")
    has_input = get_value(row, fields.input) not in (None, "")
    input = get_text(row, fields.input, "--input-field") if has_input else ""
    group = group_of(row, fields)
    response = one_text(row, fields.response, Fields.response, "--response-field", numbers=True)
    named = f"{fields.instruction},{fields.input},{fields.response},{fields.group}".split(",")
    there = {name: get_value(row, name) for name in UNREAD if name not in named}
    there = [k for k, v in there.items() if v not in NOTHING and (k not in LISTED or isinstance(v, list))]
    unread.update(f"the field {name} of {{n}} rows is not read{UNREAD[name].format(name)}" for name in there)
    listed = get_value(row, fields.response)
    references = tuple(listed) if isinstance(listed, list) else ()
    return replace(Conversation.of(instruction, input, response, group), references=references)


def asked_in(row, fields: Fields):
    """What stands in the field of the instruction; None for a list of turns, which is a conversation."""
    value = get_value(row, fields.instruction)
    return None if isinstance(value, list) and any(isinstance(part, dict) for part in value) else value


def group_of(row, fields: Fields) -> str:
    """What --group-field names. Raises NoField for a row without it."""
    group = get_value(row, fields.group) if fields.group else ""
    if group is None:
        raise NoField(f"no field {fields.group!r} (--group-field)")
    return str(group)


def holds_instructions(name: str, fields: Fields, text_field: str, skip_bad: bool) -> bool:
    """Whether the first good row of a file has an instruction, or is a conversation; else its rows are plain
    documents. Raises UserError if it is none of these."""
    where = field_of(name, text_field)
    for _, found in placed_rows(name, lambda row: parts_of(row, fields, where), None, skip_bad):
        if found is not None:
            return found[:2] != (None, None)
    raise UserError(f"{name}: no rows there")


def parts_of(row, fields: Fields, text_field: str) -> tuple:
    """(what it asks, form_of() if it asks nothing, the document in it), each of them None if it is not there.
    Raises NoField for a row that is neither an instruction nor a document."""
    asked, document = asked_in(row, fields), get_value(row, text_field)
    form = form_of(row) if asked is None else None
    if asked is None and document is None and not form:
        neither = f"neither a text in the field {text_field!r} nor an instruction in {fields.instruction!r}"
        raise NoField(f"{neither} ({fields_of(row)}; --text-field a,b, --instruction-field a,b name others)")
    return asked, form, document
