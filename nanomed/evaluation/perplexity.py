"""Perplexity that can be trusted: every token of every document counts once, in float64, and nothing else
does.

A document is a leading token (Tokenizer.lead: `<|endoftext|>`, say) and its tokens. Windows of `context` ids
start at 0, stride, 2 x stride, ... until one reaches the end; each scores the tokens that no earlier window
scored. So a document within the context is scored in one piece, and a longer one with at least `context -
stride` tokens of history (after the strided evaluation in transformers' guide). Documents never see each
other."""

import math
import time
from itertools import chain, pairwise

import numpy as np
import torch

from nanomed.errors import UserError
from nanomed.evaluation.bootstrap import interval
from nanomed.models.attention import packed
from nanomed.models.loss import token_nll
from nanomed.models.prepacked import head_for_texts
from nanomed.precision import DTYPES, autocast, evaluating, mend, to_device
from nanomed.streams import progress_bar
from nanomed.text.corpus import Selection


def perplexity(
    model, documents: list[Selection], context, stride, batch_size, device, dtype, seed=0, per_document=False
):
    """Score `documents`; returns a dict: loss (nats a token), ppl = exp(loss), nll = loss x tokens_scored,
    bits_per_byte, word_ppl (per whitespace-separated word), ppl_ci95 (bootstrap over documents; None for a
    single one), and the counts.

    With per_document, `document_nll` too: float64, an array. Neither batch_size nor the order of documents
    changes the result, rounding apart. Raises UserError as window_sizes() does, and for a non-finite loss."""
    window_sizes(model.config, context, stride)
    table = np.concatenate([selection.table() for selection in documents])
    places = [(selection, k) for selection in documents for k in range(len(selection.indices))]
    windows, start = windows_of(table["length"], context, stride), time.perf_counter()

    def ids_of(document):
        selection, k = places[document]
        return selection.ids(k)

    nll = _score_all(model, ids_of, windows, len(table), batch_size, device, dtype)
    seconds = time.perf_counter() - start
    result = figures(nll, table["length"] - 1, seed)
    words, n_bytes = (int(table[name].sum()) for name in ("n_words", "n_bytes"))
    return result | {
        "bits_per_byte": result["nll"] / math.log(2) / n_bytes,
        "word_ppl": exp(result["nll"] / words) if words else None,
        "documents": len(table),
        "words": words,
        "bytes": n_bytes,
        "context": context,
        "stride": stride,
        "dtype": dtype,
        "device": str(device),
        "seconds": seconds,
        "tokens_per_s": result["tokens_scored"] / seconds,
        **({"document_nll": nll} if per_document else {}),
    }


def answer_perplexity(model, examples: list, batch_size, device, dtype, seed=0) -> dict:
    """The same for instruction examples (nanomed.text.examples.Example): only the answers and their ends are
    scored, each after all that stands before it. Returns loss, ppl, nll, tokens_scored, examples and
    ppl_ci95."""
    windows = [(k, 0, e.spans[-1][1], e.spans) for k, e in enumerate(examples)]
    windows.sort(key=lambda w: -w[2])
    nll = _score_all(model, lambda k: examples[k].ids, windows, len(examples), batch_size, device, dtype)
    tokens = np.array([e.supervised for e in examples])
    return figures(nll, tokens, seed) | {"examples": len(examples)}


def score_ids(model, documents: list[np.ndarray], context, stride, batch_size, device, dtype) -> np.ndarray:
    """Summed nll, float64 (n,), of documents that are there as ids, the leading token first, in the same
    windows."""
    windows = windows_of(np.array([len(ids) for ids in documents]), context, stride)
    return _score_all(model, documents.__getitem__, windows, len(documents), batch_size, device, dtype)


def figures(nll: np.ndarray, tokens: np.ndarray, seed: int = 0) -> dict:
    """loss, ppl, nll, tokens_scored and ppl_ci95 of documents, by each one's summed nll and scored tokens."""
    total, n = float(nll.sum()), int(tokens.sum())
    result = {"loss": total / n, "ppl": exp(total / n), "nll": total, "tokens_scored": n}
    return result | {"ppl_ci95": ppl_interval(nll, tokens, seed)}


def ppl_interval(nll: np.ndarray, tokens: np.ndarray, seed: int = 0) -> list[float] | None:
    """95 % interval of the corpus perplexity, drawing whole documents: tokens of one document are not
    independent, documents are."""

    def ppl(rows):
        n = tokens[rows].sum()
        return exp(nll[rows].sum() / n) if n > 0 else math.nan

    return interval(ppl, len(nll), seed=seed)


def exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf  # a lost model may well be beyond what a float64 holds


# --- windows ------------------------------------------------------------------------------------------------


def window_sizes(config, context: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """(context, stride), by default the model's positions (1024 at most) and half of that. Raises UserError
    unless 1 <= stride < context <= n_positions."""
    context = context or min(config.n_positions, 1024)
    if context < 2:
        raise UserError("--context 1: must be at least 2, so that a token has a predecessor in its window")
    stride = context // 2 if stride is None else stride
    if not 1 <= stride < context:
        raise UserError(
            f"--stride {stride}: must be at least 1 and less than the context {context}, so that every token "
            "has a predecessor in its window"
        )
    if context > config.n_positions:
        raise UserError(f"--context {context}: more than the model's {config.n_positions} positions")
    return context, stride


def windows_of(lengths: np.ndarray, context: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(document, start, end, first scored position) of every window, longest first, so that batches pad
    little."""
    windows = []
    for document, length in enumerate(lengths.tolist()):
        scored = 1  # position 0 is the leading token, which is context only
        for start in range(0, length, stride):
            end = min(start + context, length)
            if scored < end:
                windows.append((document, start, end, scored))
            scored = end
            if end == length:
                break
    return sorted(windows, key=lambda w: (w[1] - w[2], w[0], w[1]))


# --- scores -------------------------------------------------------------------------------------------------


def _score_all(model, ids_of, windows, n, batch_size, device, dtype) -> np.ndarray:
    """Summed nll, float64 (n,), of the scored tokens of each document; ids_of(k) gives the ids of the k-th. A
    window's last part is the first scored position, or the spans that are scored. Model in eval mode, and put
    back. Raises UserError for a non-finite loss."""
    nll, total = np.zeros(n), sum(map(_scored, windows))
    batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    losses = ((batch, _score(model, ids_of, batch, device, dtype)) for batch in batches)
    bar = progress_bar(total=total, desc="perplexity", unit=" scored tokens")
    with evaluating(model), bar:
        # in pairs: a batch's losses are fetched when the next one has been sent off, so a GPU need not wait
        for (batch, values), _ in pairwise(chain(losses, [None])):
            values = values.double().cpu().numpy()
            ends = np.cumsum([_scored(window) for window in batch])
            for (document, *_), part in zip(batch, np.split(values, ends[:-1]), strict=True):
                nll[document] += part.sum()
            bar.update(len(values))
    bad = np.flatnonzero(~np.isfinite(nll))
    if len(bad):
        raise UserError(f"document {bad[0] + 1} has a non-finite loss in {dtype}; {mend(dtype)}")
    return nll


def _spans(window) -> tuple[tuple[int, int], ...]:
    _, _, end, scored = window
    return scored if isinstance(scored, tuple) else ((scored, end),)


def _scored(window) -> int:
    return sum(end - start for start, end in _spans(window))


@torch.no_grad()
def _score(model, ids_of, batch, device, dtype):
    """Losses in fp32 of the newly scored tokens of each window of a batch, one window after the other.

    On a CPU all windows stand in one row, packed, so that nothing is computed of padding. On a GPU each is a
    row, padded on the right, where no causal query looks."""
    together = device.type == "cpu"
    sizes = [end - start - 1 for _, start, end, _ in batch]  # the last id is predicted, never an input
    shape = (1, sum(sizes)) if together else (len(batch), max(sizes))
    idx, targets, pos, segments = torch.zeros(4, *shape, dtype=torch.long)
    scored, at = torch.zeros(shape, dtype=torch.bool), 0
    for k, (window, size) in enumerate(zip(batch, sizes, strict=True)):
        document, start, end, _ = window
        ids = torch.from_numpy(ids_of(document)[start:end].astype(np.int64))
        row, here = (0, slice(at, at + size)) if together else (k, slice(size))
        idx[row, here], targets[row, here] = ids[:-1], ids[1:]
        pos[row, here], segments[row, here] = torch.arange(size), k
        for first, last in _spans(window):
            scored[row, here][first - start - 1 : last - start - 1] = True
        at += size
    packing = (pos, packed(segments, device)) if together else ()
    with autocast(device, dtype):
        x = model.backbone(to_device(idx, device), *packing)
    x = x.flatten(0, 1).index_select(0, to_device(scored.flatten().nonzero().squeeze(1), device))
    return token_nll(x, head_for_texts(model), to_device(targets[scored], device), DTYPES[dtype])
