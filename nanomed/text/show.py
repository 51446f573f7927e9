"""Rows of a batch as text, with what is supervised in [[ ]]: what masks and packing really do. A special
token stands as its name; a text that only spells it has a backslash there."""

import sys

from nanomed.models.loss import IGNORE


def rows(window: list[tuple], tokenizer, n: int, labels: list[str] | None = None) -> None:
    """Print the first n rows of a window of updates: (..., targets) batches of blocks, of packed examples, or
    of texts to classify (`labels` given)."""
    places = [(batch, b) for batch in window for b in range(len(batch[0]))]
    places.sort(
        key=lambda place: len(place[0]) == 5 and not _answers(*place)
    )  # rows of replayed text alone come last
    for batch, b in places[:n]:
        if labels is None:
            lines, size = _text(batch, b, tokenizer)
            print(f"\nrow of {size} tokens:")
        else:
            lines = [_spelled_out(batch[0][b][: batch[1][b]].tolist(), tokenizer)]
            print(f"\n{_labels(batch[-1][b], labels)}:")
        print("".join(f"  {line}\n" for line in lines), end="")
    print()


def _answers(batch: tuple, b: int) -> bool:
    """Whether there is more than replayed text in row b."""
    return bool(((batch[-1][b] != IGNORE) & ~batch[3][b]).any())


def _text(batch: tuple, b: int, tokenizer) -> tuple[list[str], int]:
    """A line for each example of row b, and how many inputs they have together. Inputs and targets are the
    same ids, one place apart: the supervised ones are those that are targets; the last of an example is a
    target only."""
    idx, targets = batch[0][b], batch[-1][b]
    segments = batch[2][b] if len(batch) > 2 else None
    if segments is None:  # a block of running text, or an example alone, filled up on the right
        used = len(idx) if (targets != IGNORE).all() else int((targets != IGNORE).nonzero().max()) + 1
        spans = [slice(0, used)]
    else:
        spans, used = (
            [(segments == k).nonzero().flatten() for k in range(int(segments.max()) + 1)],
            int((segments >= 0).sum()),
        )
    on_tty = sys.stdout is not None and sys.stdout.isatty()
    begin, end = ("\033[32m[[", "]]\033[0m") if on_tty else ("[[", "]]")
    lines = []
    for k, span in enumerate(spans):
        ids, wanted = idx[span].tolist(), targets[span].tolist()
        last = [wanted[-1]] if wanted[-1] != IGNORE else []
        marked = [False] + [t != IGNORE for t in wanted]
        text, run, on = "", [], False
        for token, supervised in [*zip(ids + last, marked, strict=False), (None, not marked[-1])]:
            if supervised != on or token is None:
                part = _spelled_out(run, tokenizer, inside=bool(text))
                text += (begin + part + end) if on and run else part
                run, on = [], supervised
            run.append(token)
        replayed = len(batch) == 5 and bool(batch[3][b][span][0])
        number = f"{k + 1}. " if segments is not None else ""
        lines.append(number + ("(replayed) " if replayed else "") + text.replace("\n", "\\n"))
    return lines, used


def _spelled_out(ids: list[int], tokenizer, inside: bool = False) -> str:
    """The text of ids, in which a special token that is only spelled has a backslash in front:
    \\<|endoftext|>."""
    real = {token.id for token in tokenizer.spellings.tokens.values()}
    text, piece = "", []
    for i in [*ids, None]:
        if i is not None and i not in real:
            piece.append(i)
            continue
        if piece:
            text += tokenizer.spellings.marked(tokenizer.decode(piece, inside or bool(text)))
        text, piece = text + ("" if i is None else tokenizer.name(i)), []
    return text


def _labels(target, labels: list[str]) -> str:
    if target.dim():
        return ", ".join(name for name, there in zip(labels, target.tolist(), strict=True) if there) or "none"
    return labels[int(target)]
