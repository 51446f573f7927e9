"""Documents to token ids: encoded once into a memory-mapped file, then selected.

    file rows -> read_texts -> encode_corpus -> Corpus -> Selection -> nanomed.text.blocks
                                                                       \\-> perplexity

A corpus on disk is never held in memory: its tokens are mapped, and only the table of its documents is an
array."""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nanomed.caches import Watched, filled
from nanomed.errors import Unencodable, UserError
from nanomed.files import read_json, write_json
from nanomed.streams import progress_bar
from nanomed.text import special
from nanomed.text.heldout import Fetched, Items
from nanomed.text.names import content_hash
from nanomed.text.rows import all_bad, placed_documents, read_texts, say_empty

FORMAT = "6"  # of the cached token file; part of its key
FILES = ("tokens.bin", "documents.bin")
META = ("sha256", "bad_rows", "empty", "special_tokens")  # as Corpus has them

# One row a document: where its tokens start, how many there are (the leading one counted), and of its text
# the bytes in UTF-8, the words between blanks, and the first half of its SHA-256.
SIZES = ("start", "length", "n_bytes", "n_words")
DOCUMENT = np.dtype([*((name, "<i8") for name in SIZES), ("digest", "V16")])


# --- encoding -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Encoded documents. tokens: uint16 or uint32, mapped, each document led by tokenizer.lead
    (<|endoftext|>, say); documents: their table; sha256: of the texts in order, each followed by a NUL byte;
    bad_rows: how many rows were left out; empty: how many had no text; special_tokens: special.report()."""

    name: str
    tokens: np.ndarray
    documents: np.ndarray
    sha256: str
    bad_rows: int
    empty: int
    special_tokens: dict
    file: Watched  # of the tokens

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
        """The leading token and the tokens of the k-th selected document. Raises UserError if their file
        was changed meanwhile."""
        self.corpus.file.check()
        d = self.corpus.documents[self.indices[k]]
        return self.corpus.tokens[d["start"] : d["start"] + d["length"]]


def encode_corpus(names, tokenizer, text_field="text", limit=None, skip_bad_rows=False) -> Corpus:
    """Encode the documents of `names`, in order, into a token file in the cache, or map the one that is
    there.

    The key is a hash of the files' contents and of the tokenizer, so neither a change nor a renaming goes
    wrong. Of several processes one encodes and the others wait for it; a damaged token file is made anew.
    `limit` takes the first documents of each name. Raises UserError for a bad row, or a file that changes
    meanwhile, before anything is kept."""
    names, how = [names] if isinstance(names, str) else list(names), (text_field, limit, skip_bad_rows)

    def hashes() -> list[str]:
        return [_content_hash(name, *how) for name in names]

    def fill(unfinished: Path) -> None:
        _encode_into(unfinished, names, tokenizer, *how)
        for name, before, after in zip(names, contents, hashes(), strict=True):
            if before != after:
                mend = "start again once it is complete"
                raise UserError(f"{name}: changed while it was being encoded; {mend}")

    contents = hashes()
    key = hashlib.sha256("\0".join([FORMAT, tokenizer.hash, *map(str, how)]).encode())
    key.update("".join(contents).encode())
    corpus = filled(key.hexdigest()[:32], "encoding", lambda folder: _map_corpus(folder, names), fill)
    say_empty(names, corpus.empty)
    return corpus


def _map_corpus(directory: Path, names: list[str]) -> Corpus | None:
    """The corpus in a directory of the cache; None if there is none, or one that is not as it was written."""
    try:
        meta, file = read_json(directory / "meta.json"), Watched(directory / "tokens.bin")
        if meta.pop("check") != _checksum(directory, meta):
            return None
        documents = np.fromfile(directory / "documents.bin", DOCUMENT)
        tokens = np.memmap(file.file, meta["dtype"], mode="r")
    except (UserError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return Corpus(" + ".join(names), tokens, documents, *(meta[key] for key in META), file)


def _checksum(directory: Path, meta: dict) -> str:
    """Of all that a cached corpus consists of: it is opened after its texts were hashed, which takes longer
    than this."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in FILES:
        with open(directory / name, "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def _content_hash(name: str, text_field: str, limit: int | None, skip_bad_rows: bool) -> str:
    if name.startswith("hub:"):  # no file of its own: hash what it gives
        digest = hashlib.sha256()
        for text in read_texts(name, text_field, limit, skip_bad_rows):
            raw = None if text is None else text.encode("utf-8")
            digest.update(b"bad " if raw is None else b"%d %b" % (len(raw), raw))
        return digest.hexdigest()
    return content_hash(name)


def _encode_into(directory: Path, names, tokenizer, text_field, limit, skip_bad_rows) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    sha, start, count, bad, empty, spelled = hashlib.sha256(), 0, 0, 0, 0, Counter()
    with (
        open(directory / "tokens.bin", "wb") as tokens,
        open(directory / "documents.bin", "wb") as documents,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar(desc="encoding", unit=" documents") as bar,
    ):
        encode = partial(_encode_rows, tokenizer=tokenizer, dtype=dtype)
        for name in names:
            rows = placed_documents(name, text_field, limit, skip_bad_rows)
            n_rows, before, first_bad = 0, count, None
            for place, found in _encode_ahead(pool, encode, _batches(rows)):
                n_rows += 1
                if found is None:
                    bad += 1
                elif isinstance(found, Unencodable):
                    if not skip_bad_rows:
                        raise UserError(f"{name}, {place}: {found} (--skip-bad-rows leaves such rows out)")
                    bad, first_bad = bad + 1, first_bad or f"{place}: {found}"
                elif isinstance(found, str) or found[2][0] == 1:  # without a token of its own
                    empty += 1
                else:
                    raw, ids, row, special_tokens = found
                    sha.update(raw + b"\0")
                    spelled.update(special_tokens)
                    tokens.write(ids)
                    documents.write(np.array([(start, *row)], DOCUMENT).tobytes())
                    start += row[0]
                    count += 1
                    bar.update()
            if first_bad and count == before:
                raise all_bad(name, n_rows, first_bad)
        for f in (tokens, documents):  # on the disk before the table of contents is
            f.flush()
            os.fsync(f.fileno())
    if count == 0:
        without = f"; {empty:,} are without text" if empty else ""
        raise UserError(f"{', '.join(names)}: no documents there{without}")
    found = sha.hexdigest(), bad, empty, special.report(tokenizer, reports=[{"rows": spelled}])
    meta = {"dtype": dtype.name} | dict(zip(META, found, strict=True))
    write_json(meta | {"check": _checksum(directory, meta)}, directory / "meta.json")


def _encode_rows(rows: list, tokenizer, dtype) -> list:
    """(place, text) of a few rows -> (place, _encode(text)), or what it is where there is no text, or the
    error for one that is refused. tiktoken releases the interpreter lock, so that threads run at once."""
    out = []
    for place, text in rows:
        try:
            out.append((place, _encode(text, tokenizer, dtype) if text and text.strip() else text))
        except Unencodable as e:
            out.append((place, e))
    return out


def _encode(text: str, tokenizer, dtype) -> tuple[bytes, bytes, tuple, set[str]]:
    """Its bytes, its tokens', its row of the table but for `start`, and the special tokens it spells."""
    raw, ids = text.encode("utf-8"), tokenizer.document(text).astype(dtype)
    row = (len(ids), len(raw), len(text.split()), hashlib.sha256(raw).digest()[:16])
    return raw, ids.tobytes(), row, tokenizer.spellings.names_in(text)


def _encode_ahead(pool: ThreadPoolExecutor, encode, batches) -> Iterator:
    """What `encode` gives for each batch, in order; a few batches are encoded ahead, and no more."""
    pending = deque()
    for batch in batches:
        pending.append(pool.submit(encode, batch))
        if len(pending) >= 4 * pool._max_workers:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()


def _batches(rows, documents: int = 64, characters: int = 2**20) -> Iterator[list]:
    """A few rows at a time: few enough that those in flight fit in memory, however long they are."""
    batch, room = [], characters
    for row in rows:
        batch.append(row)
        room -= len(row[1] or "")
        if len(batch) == documents or room <= 0:
            yield batch
            batch, room = [], characters
    if batch:
        yield batch


# --- selecting ----------------------------------------------------------------------------------------------


def read_corpus(names, settings, tokenizer, limit: int | None = None) -> Selection:
    """All documents of `names`; says how many bad rows were left out."""
    corpus = encode_corpus(names, tokenizer, settings.text_field, limit, settings.skip_bad_rows)
    if corpus.bad_rows:
        print(f"{corpus.name}: {corpus.bad_rows} bad rows left out")
    return corpus.all()


def texts_of(selections: list[Selection], tokenizer) -> Fetched:
    """The texts of the documents of some selections, one after another."""
    places = [(s, k) for s in selections for k in range(len(s.indices))]
    return Fetched(places, lambda place: tokenizer.decode(place[0].ids(place[1])[1:].tolist()))


def items(selections: list[Selection], tokenizer) -> Items:
    """Their documents, one after another, for nanomed.text.divide."""
    digests = np.concatenate([s.table()["digest"] for s in selections])
    return Items(texts_of(selections, tokenizer), {"documents": digests[:, None]})


def kept(selections: list[Selection], keep: np.ndarray) -> list[Selection]:
    """Of the documents of some selections, one after another, those where `keep` is true."""
    ends = np.cumsum([len(s.indices) for s in selections])
    parts = np.split(keep, ends[:-1])
    return [Selection(s.corpus, s.indices[part]) for s, part in zip(selections, parts, strict=True)]
