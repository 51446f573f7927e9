"""Which passages of a corpus fit a question best, by shared words or by the model's own embeddings; and how
often the right one is among them.

    passages, questions -> retrieve -> (Q, k) indices, best first -> recall

Both ways are deterministic: of passages that fit equally well, the one that comes first in the corpus comes
first."""

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from nanomed import hub
from nanomed.caches import filled
from nanomed.errors import UserError
from nanomed.evaluation.bootstrap import wilson
from nanomed.evaluation.measure import Opened
from nanomed.files import read_object, write_json
from nanomed.optional import need
from nanomed.precision import autocast, evaluating, mend
from nanomed.streams import progress_bar
from nanomed.text.lines import sha256_of
from nanomed.text.nfkc import nfkc
from nanomed.text.rows import Field, full_texts

FORMAT = "passages 2"  # of the cached embeddings; part of their key
ROWS = "rows.npy"


def retrieve(
    how: str, o: Opened | None, passages: list[str], queries: list[str], k: int, context: int, batch_size: int
):
    """Indices (Q, k) of the passages that fit each query best, best first, int64. how: "embeddings", or
    "bm25", which asks no model. Raises UserError for more passages than there are, and as the two ways do."""
    if k > len(passages):
        raise UserError(f"--retrieve {k}: the corpus has {len(passages)} passages")
    if how == "bm25":
        return bm25(passages, queries, k)
    asked = embed(o, queries, context, batch_size)  # first: the mapped file is read as soon as it is checked
    return nearest(passage_embeddings(o, passages, context, batch_size), asked, k)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices (Q, k) of the largest of each row of scores (Q, N), largest first, of equal ones the lower
    first."""
    found = np.empty((len(scores), k), np.int64)
    for row, values in zip(found, scores, strict=True):
        # All that could be among the k, in order; more if several equal the least.
        candidates = np.flatnonzero(values >= np.partition(values, -k)[-k])
        row[:] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return found


@dataclass(frozen=True)
class Retrieved:
    """passages: of each query its k best, the best last, so that it stands next to the question and is not
    what is cut off; report: how they were found, and how often the right one is among them."""

    passages: list[list[str]]
    report: dict


def look_up(args, o: Opened, queries: list[str], golds: list[str | None]) -> Retrieved:
    """What --retrieve, --corpus, --corpus-field and --retriever ask for. Raises UserError as retrieve() does,
    and for a bad row."""
    field = Field(args.corpus_field, "--corpus-field")
    corpus = list(full_texts(args.corpus, field, None, args.skip_bad_rows))
    context = min(512, o.model.config.n_positions)
    found = retrieve(args.retriever, o, corpus, queries, args.retrieve, context, args.batch_size)
    report = {"k": args.retrieve, "retriever": args.retriever, "corpus": args.corpus, "passages": len(corpus)}
    report |= {"corpus_sha256": sha256_of(corpus), "recall": recall(found, right_passages(corpus, golds))}
    return Retrieved([[corpus[k] for k in row[::-1]] for row in found], report)


# --- by words -----------------------------------------------------------------------------------------------


def bm25(passages: list[str], queries: list[str], k: int) -> np.ndarray:
    """Indices (Q, k), int64, of the passages with the highest BM25 (Robertson & Zaragoza 2009, The
    Probabilistic Relevance Framework, section 3.4), k1 = 1.5, b = 0.75, in Lucene's variant, which no
    frequent word makes negative (Kamphuis et al. 2020, Which BM25 Do You Mean?, section 2). Words of `nfkc`
    texts, of one letter too (hepatitis B, type 2), in lower case, unstemmed, without English stop words, of
    which a capital A within a sentence is none (vitamin A); a query that shares no word with any passage gets
    the first k. Raises UserError if bm25s is not installed."""
    bm25s = need("bm25s")
    bar, stop = sys.stderr.isatty(), set(need("bm25s.stopwords").STOPWORDS_EN)

    def words(texts):
        found = (re.finditer(r"(?P<named>(?<=\w )A\b)|\w+", nfkc(text)) for text in texts)
        return [[w for m in ms if (w := m[0].lower()) not in stop or m["named"]] for ms in found]

    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    with np.errstate(invalid="ignore"):  # the mean length of passages without a word is 0
        index.index(words(passages), create_empty_token=False, show_progress=bar)
    found = np.empty((len(queries), k), np.int64)
    for row, query in enumerate(words(queries)):
        ids = index.get_tokens_ids(query)
        # Not index.retrieve(): which of several equal passages it gives is left to chance.
        scores = index.get_scores_from_ids(ids) if ids else np.zeros(len(passages), np.float32)
        found[row] = _best(scores[None], k)[0]
    return found


# --- by embeddings ------------------------------------------------------------------------------------------


def embed(
    o: Opened, texts: list[str], context: int, batch_size: int, out: np.ndarray | None = None
) -> np.ndarray:
    """One vector a text, (N, C) float32 of unit length: the mean of the model's last hidden states, after the
    final norm, over the first `context` ids of Tokenizer.prompt (Reimers & Gurevych 2019, Sentence-BERT,
    section 3: MEAN); a text without any has the leading token. out: where to write the rows, if not into
    memory. Neither batch_size nor the order of texts changes a row, rounding apart. Raises UserError for a
    text without ids, and for values that are not finite."""
    rows: dict[bytes, list[int]] = {}  # of equal ids: read once, so that equal passages are equally near
    for i, text in enumerate(texts):
        ids = o.tokenizer.prompt(text)[:context]
        ids = ids if len(ids) else np.array([o.tokenizer.lead])
        rows.setdefault(ids.astype(np.int32).tobytes(), []).append(i)
    if out is None:
        out = np.empty((len(texts), o.model.config.n_embd), np.float32)
    longest_first = sorted(rows, key=len, reverse=True)  # so that batches pad little
    bar = progress_bar(total=len(texts), desc="embedding", unit=" texts")
    with evaluating(o.model), bar:
        for start in range(0, len(longest_first), batch_size):
            batch = longest_first[start : start + batch_size]
            for ids, vector in zip(batch, _mean_states(o, batch), strict=True):
                if not np.isfinite(vector).all():
                    i = rows[ids][0]
                    why = f"a non-finite embedding in {o.dtype}; {mend(o.dtype)}"
                    raise UserError(f"text {i + 1} has {why}; it begins {texts[i][:40]!r}")
                out[rows[ids]] = vector
                bar.update(len(rows[ids]))
    return out


def _mean_states(o: Opened, batch: list[bytes]) -> np.ndarray:
    """(B, C) float32, unit rows, of B sequences of ids (int32)."""
    batch = [torch.frombuffer(bytearray(ids), dtype=torch.int32).long() for ids in batch]
    # Padding on the right is behind every query, where causal attention does not look.
    idx = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    with autocast(o.device, o.dtype):
        x = o.model.backbone(idx.to(o.device)).float()
    means = torch.stack([states[: len(ids)].mean(0) for states, ids in zip(x, batch, strict=True)])
    return normalize(means, dim=-1).cpu().numpy()


def nearest(matrix: np.ndarray, queries: np.ndarray, k: int, chunk: int = 8192) -> np.ndarray:
    """Indices (Q, k), int64, of the rows of matrix (N, C) with the largest cosine to each of queries (Q, C),
    all of unit length. Reads `chunk` rows at a time, so that the matrix may be a mapped file larger than
    memory."""
    best, cosines = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(matrix), chunk):
        rows = matrix[start : start + chunk]
        # float64, then rounded: a product's last bits depend on the row's place, and equal rows are to stay
        # equal.
        new = (queries.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
        indices = np.broadcast_to(np.arange(start, start + len(rows)), new.shape)
        # Earlier rows win ties.
        best, cosines = np.concatenate([best, indices], 1), np.concatenate([cosines, new], 1)
        keep = _best(cosines, min(k, cosines.shape[1]))
        best, cosines = np.take_along_axis(best, keep, 1), np.take_along_axis(cosines, keep, 1)
    return best


# --- embeddings that are kept -------------------------------------------------------------------------------


def passage_embeddings(o: Opened, passages: list[str], context: int, batch_size: int) -> np.memmap:
    """embed() of the passages, (N, C) float32, mapped from a file in the cache, which is made if it is not
    there.

    The key is a hash of all that decides the values, batch_size apart: model, tokenizer, dtype, quantisation,
    kind of device, context and texts. Of several processes one computes and the others wait for it; a damaged
    file is made anew. Raises UserError as embed() does, and if the cache cannot be written."""
    parts = [FORMAT, hub.fingerprint(hub.find(o.name)), o.tokenizer.hash, o.dtype, str(o.quantize)]
    key = hashlib.sha256("\0".join([*parts, o.device.type, str(context)]).encode())
    for text in passages:
        raw = text.encode("utf-8", "surrogatepass")  # that it has no ids is embed()'s to say
        key.update(b"%d %b" % (len(raw), raw))
    fill = partial(_embed_into, o=o, passages=passages, context=context, batch_size=batch_size)
    return filled(key.hexdigest()[:32], "embedding", _map_rows, fill)


def _map_rows(directory: Path) -> np.memmap | None:
    """The matrix in a directory of the cache; None if there is none, or one that is not as it was written."""
    try:
        if read_object(directory / "meta.json").get("sha256") != _checksum(directory / ROWS):
            return None
        return np.load(directory / ROWS, mmap_mode="r")
    except (UserError, OSError, ValueError):
        return None


def _checksum(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _embed_into(directory: Path, o: Opened, passages: list[str], context: int, batch_size: int) -> None:
    path = directory / ROWS
    matrix = np.lib.format.open_memmap(path, "w+", np.float32, (len(passages), o.model.config.n_embd))
    # A disk that fills up under a mapped file would kill the process.
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as f:
            os.posix_fallocate(f.fileno(), 0, path.stat().st_size)
    embed(o, passages, context, batch_size, out=matrix)
    matrix.flush()
    write_json({"sha256": _checksum(path)}, directory / "meta.json")


# --- how well it works --------------------------------------------------------------------------------------


def right_passages(passages: list[str], golds: list[str | None]) -> list[int | None]:
    """Index of the first passage that is each gold text, differences in blanks apart; None for one that is no
    passage."""
    index: dict[str, int] = {}
    for i, passage in enumerate(passages):
        index.setdefault(" ".join(passage.split()), i)
    return [None if gold is None else index.get(" ".join(gold.split())) for gold in golds]


def recall(found: np.ndarray, right: list[int | None]) -> dict | None:
    """The share of questions whose right passage is among the first k of found (Q, K), for k = 1, 2, 3, 5,
    10, 20, 50, 100, ... and K (top-k accuracy of Karpukhin et al. 2020, Dense Passage Retrieval, section 5),
    each with its 95 % interval: {"questions": n, "recall": {"1": ...}, "recall_ci95": {"1": [low, high],
    ...}}. Questions with None for right are left out; None if no other is left. The interval of a single
    question is None."""
    known = [(row, passage) for row, passage in zip(found, right, strict=True) if passage is not None]
    if not known:
        return None
    hits = np.array([row == passage for row, passage in known])  # (n, K)
    K, result = hits.shape[1], {"questions": len(known), "recall": {}, "recall_ci95": {}}
    steps = [1, 2, 3, 5, *(digit * 10**power for power in range(1, len(str(K))) for digit in (1, 2, 5))]
    for k in sorted({*(step for step in steps if step < K), K}):
        hit = hits[:, :k].any(1)
        result["recall"][str(k)] = float(hit.mean())
        result["recall_ci95"][str(k)] = wilson(hit)
    return result
