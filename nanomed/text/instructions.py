"""Rows of instructions and their answers, as files hold them."""

import hashlib
from collections import Counter
from dataclasses import dataclass

from nanomed.errors import UserError
from nanomed.text.rows import BadRow, NoField, field_of, fields_of, get_text, get_value, read_rows


@dataclass(frozen=True)
class Instruction:
    """One row: what is asked, on what, and what is answered; group: rows of one group stay on one side of a
    split."""

    instruction: str
    input: str
    response: str
    group: str = ""

    def text(self) -> str:
        """All of it, a part a line."""
        return "\n".join(filter(None, (self.instruction, self.input, self.response)))


@dataclass
class Fields:
    """Where a row keeps its parts: dotted paths, the first of several that a row has."""

    instruction: str = "instruction,question"
    input: str = "input"
    response: str = "response,output,answer"
    group: str | None = None


# Of fields that others put into a prompt too, and that are not read unless they are named: Dolly's,
# LLaMA-Factory's, MedMCQA's.
UNREAD = ("context", "system", "history", "options")


def one_text(row, fields: str, default: str, flag: str, numbers: bool = False) -> str:
    """get_text() of the first field that is filled. Raises BadRow where two of the default's names hold
    different texts, since nobody said which is meant."""
    filled = {
        name: value for name in fields.split(",") if (value := get_value(row, name)) not in (None, "", [])
    }
    if fields == default and len({str(value) for value in filled.values()}) > 1:
        raise BadRow(f"{' and '.join(filled)} hold different texts; {flag} says which is meant")
    return get_text(row, next(iter(filled), fields), flag, numbers)


def read_instructions(
    names, fields: Fields, limit: int | None, skip_bad: bool
) -> tuple[list[Instruction], int, str]:
    """(instructions, rows left out, SHA-256 of the texts in order). Raises UserError with file and row for a
    bad one."""
    unread = Counter()
    named = f"{fields.instruction},{fields.input},{fields.response},{fields.group}".split(",")

    def take(row):
        instruction = one_text(row, fields.instruction, Fields.instruction, "--instruction-field")
        if not instruction.strip():
            raise BadRow("an empty instruction")
        has_input = get_value(row, fields.input) not in (None, "")
        input = get_text(row, fields.input, "--input-field") if has_input else ""
        group = get_value(row, fields.group) if fields.group else ""
        if group is None:
            raise NoField(f"no field {fields.group!r} (--group-field)")
        response = one_text(row, fields.response, Fields.response, "--response-field", numbers=True)
        unread.update(name for name in UNREAD if get_value(row, name) and name not in named)
        return Instruction(instruction, input, response, str(group))

    taken = [item for name in names for item in read_rows(name, take, limit, skip_bad)]
    kept = [item for item in taken if item is not None]
    if not kept:
        raise UserError(f"{', '.join(names)}: no instructions there")
    for name, n in unread.items():
        mend = f"--input-field {name} takes it for the input"
        print(f"{', '.join(names)}: the field {name} of {n:,} rows is not read ({mend})")
    sha = hashlib.sha256()
    for item in kept:
        for part in (item.instruction, item.input, item.response, item.group):
            sha.update(part.encode() + b"\0")
    return kept, len(taken) - len(kept), sha.hexdigest()


def holds_instructions(name: str, fields: Fields, text_field: str, skip_bad: bool) -> bool:
    """Whether the first good row of a file has an instruction; else its rows are plain documents. Raises
    UserError if it has neither."""
    for row in read_rows(name, lambda row: row, None, skip_bad):
        if row is not None:
            asked = get_value(row, fields.instruction) is not None
            if not asked and get_value(row, field_of(name, text_field)) is None:
                raise UserError(
                    f"{name}: its first row has neither an instruction in the field {fields.instruction!r} "
                    f"(--instruction-field) nor a text in {text_field!r} (--text-field); {fields_of(row)}"
                )
            return asked
    raise UserError(f"{name}: no rows there")
