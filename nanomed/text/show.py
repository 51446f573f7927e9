"""Rows of a batch as text, with what is supervised in [[ ]]: what masks and packing really do. A special
token stands as its name; a text that only spells it has a backslash there."""

import sys
from itertools import groupby

from nanomed.streams import in_notebook
from nanomed.text.batch import IGNORE, Batch


def rows(window: list[Batch], tokenizer, n: int, labels: list[str] | None = None) -> None:
    """Print the first n rows of a window of updates: of blocks, of packed examples, or of texts to classify
    (`labels` given)."""
    places = [(batch, b) for batch in window for b in range(len(batch.idx))]
    places.sort(key=lambda place: not _answers(*place))  # rows of replayed text alone come last
    for batch, b in places[:n]:
        if labels is None:
            lines, size = _text(batch, b, tokenizer)
            print(f"\nrow of {size} tokens:")
        else:
            lines = [_spelled_out(batch.idx[b][: batch.lengths[b]].tolist(), tokenizer)]
            print(f"\n{_labels(batch.targets[b], labels)}:")
        print("".join(f"  {line}\n" for line in lines), end="")
    print()


def _answers(batch: Batch, b: int) -> bool:
    """Whether there is more than replayed text in row b."""
    return batch.replayed is None or bool(((batch.targets[b] != IGNORE) & ~batch.replayed[b]).any())


def _text(batch: Batch, b: int, tokenizer) -> tuple[list[str], int]:
    """A line for each example of row b, and how many inputs they have together. Inputs and targets are the
    same ids, one place apart: the supervised ones are those that are targets; the last of an example is a
    target only."""
    idx, targets = batch.idx[b], batch.targets[b]
    segments = None if batch.segments is None else batch.segments[b]
    if segments is None:  # a block of running text, or an example alone, filled up on the right
        used = len(idx) if (targets != IGNORE).all() else int((targets != IGNORE).nonzero().max()) + 1
        spans = [slice(0, used)]
    else:
        used = int((segments >= 0).sum())
        spans = [(segments == k).nonzero().flatten() for k in range(int(segments.max()) + 1)]
    in_colour = in_notebook() or (sys.stdout is not None and sys.stdout.isatty())
    begin, end = ("\033[32m[[", "]]\033[0m") if in_colour else ("[[", "]]")
    lines = []
    for k, span in enumerate(spans):
        ids, wanted = idx[span].tolist(), targets[span].tolist()
        last = [wanted[-1]] if wanted[-1] != IGNORE else []
        marked = [False] + [t != IGNORE for t in wanted]
        text = ""
        for supervised, run in groupby(zip(ids + last, marked, strict=False), key=lambda pair: pair[1]):
            part = _spelled_out([token for token, _ in run], tokenizer, inside=bool(text))
            text += begin + part + end if supervised else part
        replayed = batch.replayed is not None and bool(batch.replayed[b][span][0])
        number = f"{k + 1}. " if segments is not None else ""
        lines.append(number + ("(replayed) " if replayed else "") + text.replace("\n", "\\n"))
    return lines, used


def _spelled_out(ids: list[int], tokenizer, inside: bool = False) -> str:
    """The text of ids, in which a special token that is only spelled has a backslash in front:
    \\<|endoftext|>."""
    real = {token.id for token in tokenizer.spellings.tokens.values() if token.special}
    text = ""
    for is_special, run in groupby(ids, key=real.__contains__):
        if is_special:
            text += "".join(map(tokenizer.name, run))
        else:
            text += tokenizer.spellings.marked(tokenizer.decode(list(run), inside or bool(text)))
    return text


def _labels(target, labels: list[str]) -> str:
    if target.dim():
        return ", ".join(name for name, there in zip(labels, target.tolist(), strict=True) if there) or "none"
    return labels[int(target)]
