"""Conversations to masked ids, and several of them to a row of a batch.

Conversation -> Example -> rows packed to the context -> Batches -> fit
                   \\-> answer_perplexity"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from nanomed.errors import naming
from nanomed.text.batch import IGNORE, Batch
from nanomed.text.conversations import Conversation


@dataclass(frozen=True)
class Example:
    """Ids (T,), of which those in the spans (from, to) are supervised, an answer each: every one is predicted
    from all before it; replayed: a piece of plain text, and no answer."""

    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    replayed: bool = False

    @property
    def supervised(self) -> int:
        """How many ids are supervised."""
        return sum(end - start for start, end in self.spans)


@dataclass
class Encoded:
    """Examples, and what became of the rows that did not fit or had nothing to say."""

    examples: list[Example] = field(default_factory=list)
    truncated: int = 0  # cut, so without the end that teaches to stop
    dropped: int = 0  # the prompt alone fills the context
    empty: int = 0  # an empty response: only the end is supervised
    late: int = 0  # answers of conversations, beyond the context

    def __str__(self):
        odd = {"truncated": self.truncated, "dropped (no room for an answer)": self.dropped}
        odd |= {"with an empty response": self.empty, "later answers beyond the context": self.late}
        return "".join(f", {n:,} {what}" for what, n in odd.items() if n)


def encode_instructions(items: list[Conversation], tokenizer, template, context: int) -> Encoded:
    """The template's examples of each conversation, with its answers supervised and the end of each, so that
    the model learns to stop, and nothing else.

    At most context + 1 ids, since the last is predicted and never an input. A longer conversation is cut
    behind the last answer that fits. If the first does not: it is cut on the right and loses its end; a
    prompt that leaves no room drops the row. All are counted."""
    out = Encoded()
    for item in items:
        with naming(item.place):
            out.empty += sum(not item.turns[k].text for k in item.learned)
            for n, (ids, spans) in enumerate(template.encode(item, tokenizer)):
                if len(ids) <= context + 1:
                    out.examples.append(Example(ids, spans))
                    continue
                fit = [span for span in spans if span[1] <= context + 1]
                out.late += len(spans) - len(fit) - (not fit and not n)
                if fit:
                    out.examples.append(Example(ids[: fit[-1][1]], tuple(fit)))
                elif n == 0 and spans[0][0] <= context:
                    out.truncated += 1
                    out.examples.append(Example(ids[: context + 1], ((spans[0][0], context + 1),)))
                elif n == 0:
                    out.dropped += 1
                asked = item.turns[item.learned[n] - 1]
                if len(spans) == 1 and spans[0][0] > context and asked.role == "user":
                    # What was said before a question fills the context: so it does before all later answers.
                    out.late += len(item.learned) - n - 1
                    break
    return out


def supervise_prompts(examples: list[Example]) -> list[Example]:
    """The same examples with every token supervised that has a predecessor: for comparison."""
    return [replace(e, spans=((1, len(e.ids)),)) for e in examples]


def text_examples(selection, context: int, limit: int, seed: int) -> list[Example]:
    """Up to `limit` documents, drawn at random, as examples without a prompt; long ones in pieces of the
    context."""
    chosen = np.random.default_rng(seed).permutation(len(selection.indices))[:limit]
    out = []
    for k in sorted(chosen.tolist()):
        ids = selection.ids(k).astype(np.int64)
        pieces = (ids[i : i + context + 1] for i in range(0, len(ids) - 1, context))
        out += [Example(piece, ((1, len(piece)),), True) for piece in pieces]
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
            for start, end in example.spans:
                targets[b, at + start - 1 : at + end - 1] = ids[start:end]
            replayed[b, at : at + n] = example.replayed
            at += n
    if replayed.any():
        return Batch(idx, targets, pos, segments, replayed)
    return Batch(idx, targets, pos, segments) if max(map(len, rows)) > 1 else Batch(idx, targets)
