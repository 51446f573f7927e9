"""Instruction examples: rows to masked ids, and several of them to a row of a batch.

{instruction, input, response} -> Example -> rows packed to the context -> Batches -> fit
                                     \\-> answer_perplexity"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from nanomed.errors import UserError
from nanomed.text.batch import IGNORE, Batch
from nanomed.text.rows import BadRow, NoField, field_of, get_text, get_value, read_rows


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


@dataclass(frozen=True)
class Example:
    """Ids (T,), of which those from `start` on are supervised: each is predicted from all before it;
    replayed: a piece of plain text, and no answer."""

    ids: np.ndarray
    start: int
    replayed: bool = False


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

    unread, read_fields = (
        Counter(),
        f"{fields.instruction},{fields.input},{fields.response},{fields.group}".split(","),
    )

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
        unread.update(name for name in UNREAD if get_value(row, name) and name not in read_fields)
        return Instruction(instruction, input, response, str(group))

    taken = [item for name in names for item in read_rows(name, take, limit, skip_bad)]
    kept = [item for item in taken if item is not None]
    if not kept:
        raise UserError(f"{', '.join(names)}: no instructions there")
    for name, n in unread.items():
        print(
            f"{', '.join(names)}: the field {name} of {n:,} rows is not read (--input-field {name} takes it"
            " for the input)"
        )
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
                there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
                raise UserError(
                    f"{name}: its first row has neither an instruction in the field {fields.instruction!r} "
                    f"(--instruction-field) nor a text in {text_field!r} (--text-field); fields: {there}"
                )
            return asked
    raise UserError(f"{name}: no rows there")


# --- ids ----------------------------------------------------------------------------------------------------


@dataclass
class Encoded:
    """Examples, and what became of the rows that did not fit or had nothing to say."""

    examples: list[Example] = field(default_factory=list)
    truncated: int = 0  # cut, so without the end that teaches to stop
    dropped: int = 0  # the prompt alone fills the context
    empty: int = 0  # an empty response: only the end is supervised

    def __str__(self):
        odd = {
            "truncated": self.truncated,
            "dropped (no room for an answer)": self.dropped,
            "with an empty response": self.empty,
        }
        return "".join(f", {n:,} {what}" for what, n in odd.items() if n)


def encode_instructions(items: list[Instruction], tokenizer, template, context: int) -> Encoded:
    """Prompt ids + the response's as it follows the prompt (Tokenizer.continuation) + the end
    (tokenizer.eos), put together as ids: no marker is ever searched for in encoded text. A response that
    spells its own end, where that is read, gets no second.

    The prompt is not supervised; the end is, so that the model learns to stop. At most context + 1 ids, since
    the last is predicted and never an input: a longer response is cut on the right and loses its end; a
    prompt that leaves no room drops the row. Both are counted."""
    out, ended = Encoded(), template.holds_end(tokenizer.name(tokenizer.eos))
    for item in items:
        asked = template.ask(item.instruction, item.input)
        prompt, response = (
            tokenizer.prompt(asked),
            tokenizer.continuation(asked, template.answer(item.response)),
        )
        out.empty += not item.response
        end = [] if ended or (len(response) and response[-1] == tokenizer.eos) else [tokenizer.eos]
        ids = np.concatenate([prompt, response, end]).astype(np.int64)
        if len(prompt) > context:
            out.dropped += 1
            continue
        out.truncated += len(ids) > context + 1
        out.examples.append(Example(ids[: context + 1], len(prompt)))
    return out


def supervise_prompts(examples: list[Example]) -> list[Example]:
    """The same examples with every token supervised that has a predecessor: for comparison."""
    return [replace(e, start=1) for e in examples]


def text_examples(selection, context: int, limit: int, seed: int) -> list[Example]:
    """Up to `limit` documents, drawn at random, as examples without a prompt; long ones in pieces of the
    context."""
    chosen = np.random.default_rng(seed).permutation(len(selection.indices))[:limit]
    out = []
    for k in sorted(chosen.tolist()):
        ids = selection.ids(k).astype(np.int64)
        out += [Example(ids[i : i + context + 1], 1, True) for i in range(0, len(ids) - 1, context)]
    return out


# --- rows and batches ---------------------------------------------------------------------------------------


def pack(examples: list[Example], context: int) -> list[list[Example]]:
    """Put several examples into rows of up to `context` inputs: each, longest first, where the least room is
    left.

    Example a has inputs a1 a2 a3, b has b1 b2. Packed into one row, with their positions, and who may look at
    whom (nanomed.models.packed.packed makes it of the segments):

        input     a1 a2 a3 b1 b2         a1  x
        position   0  1  2  0  1         a2  x  x
        segment    0  0  0  1  1         a3  x  x  x
                                         b1           x
                                         b2           x  x"""
    rows, by_room = [], [[] for _ in range(context + 1)]  # by_room[n]: rows with room for n more inputs
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        need = len(example.ids) - 1
        room = next((n for n in range(need, context + 1) if by_room[n]), None)
        if room is None:
            rows.append([])
            row, room = rows[-1], context
        else:
            row = by_room[room].pop()
        row.append(example)
        by_room[room - need].append(row)
    return rows


def collate(rows: list[list[Example]]) -> Batch:
    """A Batch of rows of examples. Positions and segments are left out where each row has one example: what
    fills it up is behind every query, where causal attention does not look.

    Rows are filled on the right: filling is segment -1 and its targets are IGNORE, by length and not by
    token."""
    B, T = len(rows), max(sum(len(e.ids) - 1 for e in row) for row in rows)
    idx, pos = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.long)
    segments, targets = torch.full((B, T), -1), torch.full((B, T), IGNORE)
    replayed = torch.zeros(B, T, dtype=torch.bool)
    for b, row in enumerate(rows):
        at = 0
        for k, example in enumerate(row):
            ids = torch.from_numpy(example.ids)
            n = len(ids) - 1
            idx[b, at : at + n], pos[b, at : at + n], segments[b, at : at + n] = ids[:-1], torch.arange(n), k
            targets[b, at + example.start - 1 : at + n] = ids[example.start :]
            replayed[b, at : at + n] = example.replayed
            at += n
    if replayed.any():
        return Batch(idx, targets, pos, segments, replayed)
    return Batch(idx, targets, pos, segments) if max(map(len, rows)) > 1 else Batch(idx, targets)
