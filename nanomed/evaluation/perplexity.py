"""Perplexity that can be trusted: every token of every document counts once, in float64, and nothing else
does.

A document is a leading token (Tokenizer.lead: `<|endoftext|>`, say) and its tokens. Windows of `context` ids
start at 0, stride, 2 x stride, ... until one reaches the end; each scores the tokens that no earlier window
scored. So a document within the context is scored in one piece, and a longer one with at least `context -
stride` tokens of history (after the strided evaluation in transformers' guide). Documents never see each
other."""

import math
import time
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from nanomed.errors import UserError
from nanomed.evaluation.bootstrap import interval
from nanomed.models.loss import token_nll
from nanomed.models.prepacked import head_of
from nanomed.precision import DTYPES, autocast, evaluating, mend, to_device
from nanomed.text.corpus import Selection


def perplexity(
    model, documents: list[Selection], context, stride, batch_size, device, dtype, seed=0, per_document=False
):
    """Score `documents`; returns a dict: loss (nats a token), ppl = exp(loss), nll = loss x tokens_scored,
    bits_per_byte, word_ppl (per whitespace-separated word), ppl_ci95 (bootstrap over documents; None for a
    single one), and the counts.

    With per_document, `document_nll` too: float64, an array. Neither batch_size nor the order of documents
    changes the result, rounding apart. Raises UserError as window_sizes() does, for nothing to score, and for
    a non-finite loss."""
    window_sizes(model.config, context, stride)
    table = np.concatenate([s.table() for s in documents])
    tokens = table["length"] - 1
    if tokens.sum() == 0:
        raise UserError(f"{documents[0].corpus.name}: no tokens to score; every document is empty")
    windows = windows_of(table["length"], context, stride)
    start = time.perf_counter()
    nll = _score_all(model, partial(_ids, documents), windows, len(table), batch_size, device, dtype)
    seconds = time.perf_counter() - start
    total, n, words = float(nll.sum()), int(tokens.sum()), int(table["n_words"].sum())
    loss = total / n
    return {
        "loss": loss,
        "ppl": exp(loss),
        "nll": total,
        "tokens_scored": n,
        "bits_per_byte": total / math.log(2) / int(table["n_bytes"].sum()),
        "word_ppl": exp(total / words) if words else None,
        "documents": len(table),
        "words": words,
        "bytes": int(table["n_bytes"].sum()),
        "ppl_ci95": ppl_interval(nll, tokens, seed=seed),
        "context": context,
        "stride": stride,
        "dtype": dtype,
        "device": str(device),
        "seconds": seconds,
        "tokens_per_s": n / seconds,
        **({"document_nll": nll} if per_document else {}),
    }


def window_sizes(config, context: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """(context, stride), by default the model's positions (1024 at most) and half of that. Raises UserError
    unless 1 <= stride < context <= n_positions."""
    context = context or min(config.n_positions, 1024)
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride < context:
        raise UserError(
            f"--stride {stride}: must be at least 1 and less than the context {context}, so that every token "
            "has a predecessor in its window"
        )
    if context > config.n_positions:
        raise UserError(f"--context {context}: more than the model's {config.n_positions} positions")
    return context, stride


def score_ids(model, documents: list[np.ndarray], context, stride, batch_size, device, dtype) -> np.ndarray:
    """Summed nll, float64 (n,), of documents that are there as ids, the leading token first, in the same
    windows."""
    windows = windows_of(np.array([len(ids) for ids in documents]), context, stride)
    return _score_all(model, documents.__getitem__, windows, len(documents), batch_size, device, dtype)


def answer_perplexity(model, examples: list, batch_size, device, dtype, seed=0) -> dict:
    """The same for instruction examples (nanomed.text.instructions.Example): only the response and its end
    are scored, each after its own prompt. Returns loss, ppl, nll, tokens_scored, examples and ppl_ci95."""
    windows = sorted(((k, 0, len(e.ids), e.start) for k, e in enumerate(examples)), key=lambda w: -w[2])
    nll = _score_all(model, lambda k: examples[k].ids, windows, len(examples), batch_size, device, dtype)
    tokens = np.array([len(e.ids) - e.start for e in examples])
    loss = float(nll.sum()) / int(tokens.sum())
    return {
        "loss": loss,
        "ppl": exp(loss),
        "nll": float(nll.sum()),
        "tokens_scored": int(tokens.sum()),
        "examples": len(examples),
        "ppl_ci95": ppl_interval(nll, tokens, seed=seed),
    }


def _score_all(model, ids_of, windows, n, batch_size, device, dtype) -> np.ndarray:
    """Summed nll, float64 (n,), of the scored tokens of each document; ids_of(k) gives the ids of the k-th.
    Model in eval mode, and put back. Raises UserError for a non-finite loss."""
    nll = np.zeros(n)
    total = sum(end - scored for _, _, end, scored in windows)
    with (
        evaluating(model),
        tqdm(total=total, desc="perplexity", unit=" tokens", leave=False, disable=None) as t,
    ):

        def add(windows, values):  # (tokens,) of all of them, one after the other
            values = values.double().cpu().numpy()
            ends = np.cumsum([end - scored for _, _, end, scored in windows])
            for (document, *_), part in zip(windows, np.split(values, ends[:-1]), strict=True):
                nll[document] += part.sum()
            t.update(len(values))

        # a batch's losses are fetched when the next one has been sent off, so that a GPU need not wait
        before = None
        for i in range(0, len(windows), batch_size):
            batch = windows[i : i + batch_size]
            losses = _score(model, ids_of, batch, device, dtype)
            if before:
                add(*before)
            before = batch, losses
        if before:
            add(*before)
    if not np.isfinite(nll).all():
        raise UserError(
            f"document {int(np.flatnonzero(~np.isfinite(nll))[0]) + 1} has a non-finite loss in {dtype};"
            f" {mend(dtype)}"
        )
    return nll


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


@torch.no_grad()
def _score(model, ids_of, batch, device, dtype):
    """Losses in fp32 of the newly scored tokens of each window of a batch, one window after the other."""
    T = max(end - start for _, start, end, _ in batch) - 1  # the last id is predicted, never an input
    idx = torch.zeros(len(batch), T, dtype=torch.long)
    targets = torch.zeros_like(idx)
    keep = torch.zeros_like(idx, dtype=torch.bool)
    for row, (document, start, end, scored) in enumerate(batch):
        ids = torch.from_numpy(ids_of(document)[start:end].astype(np.int64))
        idx[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
        keep[row, scored - start - 1 : end - start - 1] = True
    with autocast(
        device, dtype
    ):  # padding on the right is behind every query, where causal attention does not look
        x = model.backbone(to_device(idx, device))
    x = x.flatten(0, 1).index_select(0, to_device(keep.flatten().nonzero().squeeze(1), device))
    return token_nll(x, head_of(model), to_device(targets[keep], device), DTYPES[dtype])


def _ids(documents: list[Selection], k: int) -> np.ndarray:
    for selection in documents:
        if k < len(selection.indices):
            return selection.ids(k)
        k -= len(selection.indices)
    raise IndexError(k)


def exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf  # a lost model may well be beyond what a float64 holds


def ppl_interval(nll: np.ndarray, tokens: np.ndarray, seed: int = 0) -> list[float] | None:
    """95 % interval of the corpus perplexity, drawing whole documents: tokens of one document are not
    independent, documents are."""

    def ppl(rows):
        n = tokens[rows].sum()
        return exp(nll[rows].sum() / n) if n > 0 else math.nan

    return interval(ppl, len(nll), seed=seed)
