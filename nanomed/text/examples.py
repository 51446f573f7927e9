"""Instructions to masked ids, and several of them to a row of a batch.

Instruction -> Example -> rows packed to the context -> Batches -> fit
                  \\-> answer_perplexity"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from nanomed.text.batch import IGNORE, Batch
from nanomed.text.instructions import Instruction


@dataclass(frozen=True)
class Example:
    """Ids (T,), of which those from `start` on are supervised: each is predicted from all before it;
    replayed: a piece of plain text, and no answer."""

    ids: np.ndarray
    start: int
    replayed: bool = False


@dataclass
class Encoded:
    """Examples, and what became of the rows that did not fit or had nothing to say."""

    examples: list[Example] = field(default_factory=list)
    truncated: int = 0  # cut, so without the end that teaches to stop
    dropped: int = 0  # the prompt alone fills the context
    empty: int = 0  # an empty response: only the end is supervised

    def __str__(self):
        odd = {"truncated": self.truncated, "dropped (no room for an answer)": self.dropped}
        odd["with an empty response"] = self.empty
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
        prompt = tokenizer.prompt(asked)
        response = tokenizer.continuation(asked, template.answer(item.response))
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


def pack(examples: list[Example], context: int) -> list[list[Example]]:
    """Put several examples into rows of up to `context` inputs by best fit: longest first, each into the
    fullest row that still has room for it.

    Example a has inputs a1 a2 a3, b has b1 b2. Packed into one row, with their positions, and who may look at
    whom (nanomed.models.attention.packed makes it of the segments):

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
    """A Batch of rows of examples, padded on the right: padding is segment -1 and its targets are IGNORE, by
    length and not by token. Where each row has one example, and nothing is replayed, segments are left out:
    padding is behind every query then, and causal attention does not look there."""
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
