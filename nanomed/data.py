"""Documents to token ids: encode once into a memory-mapped file, select, pack into blocks.

    file rows -> read_documents -> encode_corpus -> Corpus -> Selection -> Stream -> Mixture -> fit
                                                          \\-> Selection -> perplexity

A corpus on disk is never held in memory: its tokens are mapped, and only the table of its documents is an array.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nanomed.claim import LOCK, claimed, sweep
from nanomed.errors import UserError
from nanomed.files import read_json, sync_directory, write_json
from nanomed.loss import IGNORE
from nanomed.rows import all_bad, data_file, placed_documents, read_documents
from nanomed.tokenizer import Unencodable

FORMAT = "3"  # of the cached token file; part of its key
FILES = ("tokens.bin", "documents.bin")

# One row a document: where its tokens start, how many there are (the leading <|endoftext|> counted), and of its text
# the bytes in UTF-8, the words between blanks, and the first half of its SHA-256.
DOCUMENT = np.dtype([("start", "<i8"), ("length", "<i8"), ("n_bytes", "<i8"), ("n_words", "<i8"), ("digest", "V16")])


# --- encoding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Encoded documents. tokens: uint16 or uint32, mapped, each document led by <|endoftext|>; documents: their table;
    sha256: of the texts in order, each followed by a NUL byte; bad_rows: how many rows were left out."""

    name: str
    tokens: np.ndarray
    documents: np.ndarray
    sha256: str
    bad_rows: int

    def all(self) -> "Selection":
        return Selection(self, np.arange(len(self.documents)))


@dataclass(frozen=True)
class Selection:
    """Some documents of a corpus, by index."""

    corpus: Corpus
    indices: np.ndarray

    def table(self) -> np.ndarray:
        return self.corpus.documents[self.indices]

    def ids(self, k: int) -> np.ndarray:
        """<|endoftext|> and the tokens of the k-th selected document."""
        d = self.corpus.documents[self.indices[k]]
        return self.corpus.tokens[d["start"] : d["start"] + d["length"]]


def cache_directory() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanomed"
    return Path(os.environ.get("NANOMED_CACHE") or default)


def encode_corpus(names, tokenizer, text_field="text", limit=None, skip_bad_rows=False) -> Corpus:
    """Encode the documents of `names`, in order, into a token file in the cache, or map the one that is there.

    The key is a hash of the files' contents and of the tokenizer, so neither a change nor a renaming goes wrong. Of several
    processes one encodes and the others wait for it; a damaged token file is made anew. `limit` takes the first documents
    of each name. Raises UserError for a bad row, or a file that changes meanwhile, before anything is kept.
    """
    names = [names] if isinstance(names, str) else list(names)
    key = hashlib.sha256("\0".join([FORMAT, tokenizer.hash, text_field, str(limit), str(skip_bad_rows)]).encode())
    contents = [_content_hash(name, text_field, limit, skip_bad_rows) for name in names]
    key.update("".join(contents).encode())
    directory = cache_directory() / key.hexdigest()[:32]
    corpus = _map_corpus(directory, names)
    if corpus is not None:
        return corpus
    try:
        sweep(directory.parent.glob("encoding-*"), (*FILES, "meta.json"))
        unfinished = directory.with_name(f"encoding-{directory.name}")
        with claimed(unfinished):
            if _map_corpus(directory, names) is None:  # another process may have been faster
                _encode_into(unfinished, names, tokenizer, text_field, limit, skip_bad_rows)
                for name, content in zip(names, contents, strict=True):
                    if _content_hash(name, text_field, limit, skip_bad_rows) != content:
                        raise UserError(f"{name}: changed while it was being encoded; start again once it is complete")
                shutil.rmtree(directory) if directory.is_dir() else directory.unlink(missing_ok=True)  # a damaged one
                os.replace(unfinished, directory)
                (directory / LOCK).unlink(missing_ok=True)
                sync_directory(directory.parent)
            corpus = _map_corpus(directory, names)
            if corpus is None:
                raise OSError("it is gone again, or is not what was written")
            return corpus
    except OSError as e:
        raise UserError(
            f"{directory.parent}: the encoded corpus could not be written ({e}); NANOMED_CACHE names another place"
        ) from e


def _map_corpus(directory: Path, names: list[str]) -> Corpus | None:
    """The corpus in a directory of the cache; None if there is none, or one that is not as it was written."""
    try:
        meta = read_json(directory / "meta.json")
        if meta.pop("check") != _checksum(directory, meta):
            return None
        documents = np.fromfile(directory / "documents.bin", DOCUMENT)
        tokens = np.memmap(directory / "tokens.bin", meta["dtype"], mode="r")
    except (UserError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return Corpus(" + ".join(names), tokens, documents, meta["sha256"], meta["bad_rows"])


def _checksum(directory: Path, meta: dict) -> str:
    """Of all that a cached corpus consists of: it is opened after its texts were hashed, which takes longer than this."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in FILES:
        with open(directory / name, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def _content_hash(name: str, text_field: str, limit: int | None, skip_bad_rows: bool) -> str:
    if name.startswith("hub:"):  # no file of its own: hash what it gives
        digest = hashlib.sha256()
        for text in read_documents(name, text_field, limit, skip_bad_rows):
            raw = None if text is None else text.encode("utf-8")
            digest.update(b"bad " if raw is None else b"%d %b" % (len(raw), raw))
        return digest.hexdigest()
    path = data_file(name)
    with open(path, "rb") as f:
        return path.suffix.lower() + hashlib.file_digest(f, "sha256").hexdigest()


def _encode_into(directory: Path, names, tokenizer, text_field, limit, skip_bad_rows) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    sha, start, count, bad = hashlib.sha256(), 0, 0, 0

    def encode(batch):
        """Tokens and table rows of a few documents; tiktoken releases the interpreter lock, so threads run at once."""
        out = []
        for place, text in batch:
            try:
                raw = text.encode("utf-8")
                ids = tokenizer.encode(text).astype(dtype)
            except Unencodable as e:
                out.append((place, str(e), None, None))
            else:
                row = (0, 1 + len(ids), len(raw), len(text.split()), hashlib.sha256(raw).digest()[:16])
                out.append((place, raw, ids, row))
        return out

    with (
        open(directory / "tokens.bin", "wb") as tokens,
        open(directory / "documents.bin", "wb") as documents,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(desc="encoding", unit=" documents", leave=False, disable=None) as bar,
    ):
        for name in names:
            rows = placed_documents(name, text_field, limit, skip_bad_rows)
            pending, n_rows, before, first_bad = deque(), 0, count, None
            while True:
                batch = _batch(rows)
                n_rows += len(batch)
                bad += sum(text is None for _, text in batch)
                if batch:
                    pending.append(pool.submit(encode, [(p, t) for p, t in batch if t is not None]))
                if not pending:
                    break
                if batch and len(pending) < 4 * pool._max_workers:  # a few batches ahead, and no more
                    continue
                for place, raw, ids, row in pending.popleft().result():
                    if ids is None:
                        if not skip_bad_rows:
                            raise UserError(f"{name}, {place}: {raw} (--skip-bad-rows leaves such rows out)")
                        bad, first_bad = bad + 1, first_bad or f"{place}: {raw}"
                        continue
                    sha.update(raw + b"\0")
                    tokens.write(np.array([tokenizer.eot], dtype).tobytes() + ids.tobytes())
                    documents.write(np.array([(start, *row[1:])], DOCUMENT).tobytes())
                    start += row[1]
                    count += 1
                    bar.update()
            if first_bad and count == before:
                raise all_bad(name, n_rows, first_bad)
        for f in (tokens, documents):  # on the disk before the table of contents is
            f.flush()
            os.fsync(f.fileno())
    if count == 0:
        raise UserError(f"{', '.join(names)}: no documents there")
    meta = {"dtype": dtype.name, "sha256": sha.hexdigest(), "bad_rows": bad}
    write_json(meta | {"check": _checksum(directory, meta)}, directory / "meta.json")


def _batch(rows, documents: int = 64, characters: int = 2**20) -> list:
    """The next few rows: few enough that those in flight fit in memory, however long they are."""
    batch = []
    for row in islice(rows, documents):
        batch.append(row)
        characters -= len(row[1] or "")
        if characters <= 0:
            break
    return batch


# --- selecting --------------------------------------------------------------------------------------------------------


def split(selection: Selection, fraction: float, seed: int) -> tuple[Selection, Selection]:
    """(training, validation) documents of a selection, drawn by document. Raises UserError if there are too few."""
    n = len(selection.indices)
    n_val = max(1, round(fraction * n)) if fraction > 0 else 0
    if n_val >= n > 0:
        raise UserError(f"{selection.corpus.name}: {n} document(s) cannot be split; give --val-data, or --val-fraction 0")
    order = np.random.default_rng(seed).permutation(n)
    sides = (np.sort(order[n_val:]), np.sort(order[:n_val]))
    return tuple(Selection(selection.corpus, selection.indices[side]) for side in sides)


def without(selection: Selection, documents: set[bytes]) -> tuple[Selection, int]:
    """The documents whose text is not in `documents` (digests as in the table), and how many were taken out."""
    if not documents:
        return selection, 0
    keep = ~np.isin(selection.table()["digest"].view("S16"), np.array(list(documents), "V16").view("S16"))
    return Selection(selection.corpus, selection.indices[keep]), int((~keep).sum())


def digests(selections: list[Selection]) -> set[bytes]:
    """Those of the documents of some selections."""
    return {bytes(d) for s in selections for d in s.table()["digest"]}


# --- packing ----------------------------------------------------------------------------------------------------------


class Stream:
    """The selected documents one after another, cut into blocks of `context` predicted tokens, as GPT-2 was trained.

    Each pass shuffles the documents before cutting and the blocks after it, by a seed of its own, so that block i of
    pass p is the same whenever it is asked for: the position in the data is a number.
    """

    def __init__(self, selection: Selection, context: int, seed):
        self.selection, self.context, self.seed = selection, context, seed
        self.lengths = selection.table()["length"]
        self.n_tokens = int(self.lengths.sum()) - 1  # predicted ones: the first has no predecessor
        self.n_blocks = -(-self.n_tokens // context)
        self._orders = {}  # of the pass at hand, and of the one before: an epoch of a mixture may reach into both

    def block(self, passed: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of block i, both (context,); the last block of the stream is filled up with IGNORE."""
        documents, ends, blocks = self._order(passed)
        start = int(blocks[i]) * self.context
        stop = min(start + self.context + 1, self.n_tokens + 1)
        parts, d = [], int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            ids = self.selection.ids(documents[d])
            begin = int(ends[d]) - len(ids)
            parts.append(ids[start - begin : stop - begin])
            start, d = int(ends[d]), d + 1
        ids = np.concatenate(parts).astype(np.int64)
        idx, targets = np.zeros(self.context, np.int64), np.full(self.context, IGNORE)
        idx[: len(ids) - 1], targets[: len(ids) - 1] = ids[:-1], ids[1:]
        return idx, targets

    def _order(self, passed: int):
        """Of one pass: the documents' order, where each ends in the stream, and the blocks' order."""
        if passed not in self._orders:
            rng = np.random.default_rng([*self.seed, passed])
            documents = rng.permutation(len(self.lengths))
            order = (documents, np.cumsum(self.lengths[documents]), rng.permutation(self.n_blocks))
            self._orders = dict([*self._orders.items()][-1:]) | {passed: order}
        return self._orders[passed]


class Mixture:
    """Blocks of one or more streams, dealt into the windows of optimiser updates.

    Without weights there is one stream, and an epoch is one pass over it. With weights, they are the streams' shares of
    the blocks, and an epoch ends where the first stream has been read once, so that none is repeated within it; the
    next epoch reads the longer ones on from there.
    """

    def __init__(self, selections: list[Selection], weights: list[float], context, batch_size, grad_accum, seed):
        self.streams = [Stream(s, context, (seed, k)) for k, s in enumerate(selections)]
        for stream in self.streams:
            if stream.n_blocks < 1:
                raise UserError(f"{stream.selection.corpus.name}: not a single token to train on")
        shares = np.array(weights) / np.sum(weights)
        epoch = min(s.n_blocks / share for s, share in zip(self.streams, shares, strict=True))
        self.counts = [max(1, round(epoch * share)) for share in shares]
        self.batch_size, self.window_size, self.seed = batch_size, batch_size * grad_accum, seed
        self.windows_per_epoch = -(-sum(self.counts) // self.window_size)
        self._epoch = None

    def window(self, k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The micro-batches of the k-th update: (inputs, targets), each (up to batch_size, context)."""
        epoch, w = divmod(k, self.windows_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._deal = epoch, self._dealt(epoch)
        blocks = []
        for which, nth in self._deal[w * self.window_size : (w + 1) * self.window_size]:
            stream = self.streams[which]
            blocks.append(stream.block(*divmod(epoch * self.counts[which] + int(nth), stream.n_blocks)))
        batches = [blocks[i : i + self.batch_size] for i in range(0, len(blocks), self.batch_size)]
        return [tuple(torch.from_numpy(np.stack(side)) for side in zip(*b, strict=True)) for b in batches]

    def _dealt(self, epoch: int) -> np.ndarray:
        """(stream, number of the block among this epoch's of that stream), (blocks, 2), in the order of training."""
        which = np.repeat(np.arange(len(self.streams)), self.counts)
        nth = np.concatenate([np.arange(c) for c in self.counts])
        deal = np.stack([which, nth], 1)  # a single stream shuffles its blocks itself
        return np.random.default_rng([self.seed, epoch]).permutation(deal) if len(self.streams) > 1 else deal
