"""What common mistakes give in place of the perplexity, on the same model and texts, each under its name.

docs/measuring-perplexity.md shows the line of code that makes each, and what published figures it may
explain. Each is made alone: whatever it does not touch is as in nanomed.evaluation.perplexity."""

from dataclasses import dataclass

import numpy as np
import torch

from nanomed.errors import UserError
from nanomed.evaluation.perplexity import exp, score_ids, windows_of
from nanomed.evaluation.training_texts import read_training
from nanomed.models.attention import Mask
from nanomed.models.loss import token_nll
from nanomed.models.prepacked import head_for_texts
from nanomed.precision import DTYPES, autocast, evaluating
from nanomed.training.curves import read_metrics


@dataclass(frozen=True)
class Measured:
    """What the honest measurement knows: documents' ids (the leading token first), their summed nll, and how
    it was done."""

    ids: list[np.ndarray]
    nll: np.ndarray
    context: int
    stride: int
    batch_size: int

    @property
    def tokens(self) -> np.ndarray:
        return np.array([len(ids) - 1 for ids in self.ids])


def also(names, o, m: Measured) -> tuple[dict[str, float | None], dict[str, str]]:
    """({name: perplexity}, {name: why there is none}) of some of PERPLEXITIES; o: an open model
    (measure.Opened)."""
    found, missing = {}, {}
    for name in names:
        try:
            found[name] = PERPLEXITIES[name](o, m)
        except UserError as e:
            found[name], missing[name] = None, str(e)
    return found, missing


def _document_mean(o, m: Measured) -> float:
    return float(np.mean([exp(nll / n) for nll, n in zip(m.nll, m.tokens, strict=True) if n]))


def _batch_mean(o, m: Measured) -> float:
    tokens, starts = m.tokens, range(0, len(m.nll), m.batch_size)
    sums = [(m.nll[i : i + m.batch_size].sum(), tokens[i : i + m.batch_size].sum()) for i in starts]
    return exp(float(np.mean([nll / n for nll, n in sums if n])))


def _padding_counted(o, m: Measured) -> float:
    """The last window of each document is filled up with padding. An attention mask hides it from the
    document; but it is not left out of the labels, so it is predicted from the document, and counted."""
    lengths = np.array([len(i) for i in m.ids])
    windows = sorted(windows_of(lengths, m.context, m.stride), key=lambda w: w[1])
    last = {document: m.ids[document][start:end] for document, start, end, _ in windows}
    rows = [ids.astype(np.int64) for ids in last.values() if len(ids) < m.context]
    nll, count = 0.0, 0
    with evaluating(o.model):
        for i in range(0, len(rows), m.batch_size):
            batch = rows[i : i + m.batch_size]
            ids = torch.full((len(batch), m.context), o.tokenizer.pad)
            real = torch.zeros(len(batch), m.context, dtype=torch.bool)
            for row, text in enumerate(batch):
                ids[row, : len(text)], real[row, : len(text)] = torch.from_numpy(text), True
            idx, targets, padding = ids[:, :-1].to(o.device), ids[:, 1:], ~real[:, 1:]
            seen = real[:, None, None, :-1].to(o.device)
            mask = seen & torch.ones(m.context - 1, m.context - 1, dtype=torch.bool, device=o.device).tril()
            with autocast(o.device, o.dtype):
                x = o.model.backbone(idx, None, Mask(mask))
            x, targets = x[padding.to(o.device)], targets[padding].to(o.device)
            losses = token_nll(x, head_for_texts(o.model), targets, DTYPES[o.dtype])
            nll, count = nll + float(losses.double().sum()), count + len(losses)
    return exp((float(m.nll.sum()) + nll) / (int(m.tokens.sum()) + count))


def _train_set(o, m: Measured) -> float:
    texts = []
    for text in read_training(o.directory):  # to the end, where it says whether they are what they were
        texts += [text] if len(texts) < len(m.ids) else []
    if not texts:
        raise UserError("all that it was trained on was held out")
    ids = [o.tokenizer.document(text) for text in texts]
    return _corpus_perplexity(o, ids, m.stride, m)


def _truncated(o, m: Measured) -> float:
    return _corpus_perplexity(o, [i[: m.context] for i in m.ids], m.stride, m)


def _corpus_perplexity(o, ids: list[np.ndarray], stride: int, m: Measured) -> float:
    nll = score_ids(o.model, ids, m.context, stride, m.batch_size, o.device, o.dtype)
    return exp(float(nll.sum()) / sum(len(i) - 1 for i in ids))


def _last_loss(o, m: Measured) -> float:
    if not (o.directory / "metrics.jsonl").exists():
        raise UserError(f"{o.directory / 'metrics.jsonl'} is not there: no training that was logged")
    losses = [r["loss"] for r in read_metrics(o.directory) if r.get("loss") is not None]
    if not losses:
        raise UserError(f"{o.directory / 'metrics.jsonl'}: no training loss there")
    return exp(losses[-1])


PERPLEXITIES = {
    "batch-mean": _batch_mean,
    "document-mean": _document_mean,
    "padding-counted": _padding_counted,
    "train-set": _train_set,
    "truncated": _truncated,
    "last-loss": _last_loss,
}
