"""Documents to token ids: encoded once into a memory-mapped file, then selected.

    file rows -> read_documents -> encode_corpus -> Corpus -> Selection -> nanomed.text.blocks
                                                                       \\-> perplexity

A corpus on disk is never held in memory: its tokens are mapped, and only the table of its documents is an
array."""

import hashlib
import json
import os
import tempfile
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanomed.errors import Unencodable, UserError
from nanomed.files import read_json, write_json
from nanomed.outputs import filled
from nanomed.text import special
from nanomed.text.formats import content_hash
from nanomed.text.rows import all_bad, placed_documents, read_documents

FORMAT = "5"  # of the cached token file; part of its key
FILES = ("tokens.bin", "documents.bin")

# One row a document: where its tokens start, how many there are (the leading one counted), and of its text
# the bytes in UTF-8, the words between blanks, and the first half of its SHA-256.
DOCUMENT = np.dtype(
    [("start", "<i8"), ("length", "<i8"), ("n_bytes", "<i8"), ("n_words", "<i8"), ("digest", "V16")]
)


# --- encoding -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Encoded documents. tokens: uint16 or uint32, mapped, each document led by tokenizer.lead
    (<|endoftext|>, say); documents: their table; sha256: of the texts in order, each followed by a NUL byte;
    bad_rows: how many rows were left out; special_tokens: special.report() of the texts."""

    name: str
    tokens: np.ndarray
    documents: np.ndarray
    sha256: str
    bad_rows: int
    special_tokens: dict

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
        """The leading token and the tokens of the k-th selected document."""
        d = self.corpus.documents[self.indices[k]]
        return self.corpus.tokens[d["start"] : d["start"] + d["length"]]


def cache_directory() -> Path:
    """NANOMED_CACHE, or nanomed/ in the user's cache; for a user without a home (of a number only, in a
    container) in the place for temporary files."""
    if named := os.environ.get("NANOMED_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanomed"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"nanomed-{os.getuid()}"


def encode_corpus(names, tokenizer, text_field="text", limit=None, skip_bad_rows=False) -> Corpus:
    """Encode the documents of `names`, in order, into a token file in the cache, or map the one that is
    there.

    The key is a hash of the files' contents and of the tokenizer, so neither a change nor a renaming goes
    wrong. Of several processes one encodes and the others wait for it; a damaged token file is made anew.
    `limit` takes the first documents of each name. Raises UserError for a bad row, or a file that changes
    meanwhile, before anything is kept."""
    names = [names] if isinstance(names, str) else list(names)
    key = hashlib.sha256(
        "\0".join([FORMAT, tokenizer.hash, text_field, str(limit), str(skip_bad_rows)]).encode()
    )
    contents = [_content_hash(name, text_field, limit, skip_bad_rows) for name in names]
    key.update("".join(contents).encode())
    directory = cache_directory() / key.hexdigest()[:32]

    def fill(unfinished: Path) -> None:
        _encode_into(unfinished, names, tokenizer, text_field, limit, skip_bad_rows)
        for name, content in zip(names, contents, strict=True):
            if _content_hash(name, text_field, limit, skip_bad_rows) != content:
                raise UserError(
                    f"{name}: changed while it was being encoded; start again once it is complete"
                )

    try:
        return filled(directory, "encoding", (*FILES, "meta.json"), lambda d: _map_corpus(d, names), fill)
    except OSError as e:
        raise UserError(
            f"{directory.parent}: the encoded corpus could not be written ({e}); NANOMED_CACHE names another"
            " place"
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
    return Corpus(
        " + ".join(names), tokens, documents, meta["sha256"], meta["bad_rows"], meta["special_tokens"]
    )


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
        for text in read_documents(name, text_field, limit, skip_bad_rows):
            raw = None if text is None else text.encode("utf-8")
            digest.update(b"bad " if raw is None else b"%d %b" % (len(raw), raw))
        return digest.hexdigest()
    return content_hash(name)


def _encode_into(directory: Path, names, tokenizer, text_field, limit, skip_bad_rows) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    sha, start, count, bad, spelled = hashlib.sha256(), 0, 0, 0, Counter()
    lead = np.array([tokenizer.lead], dtype).tobytes()

    def encode(batch):
        """Tokens and table rows of a few documents; tiktoken releases the interpreter lock, so threads run at
        once."""
        out = []
        for place, text in batch:
            try:
                raw = text.encode("utf-8")
                ids = tokenizer.encode(text).astype(dtype)
            except Unencodable as e:
                out.append((place, str(e), None, None, None))
            else:
                head = b"" if tokenizer.is_led(ids) else lead
                row = (
                    0,
                    bool(head) + len(ids),
                    len(raw),
                    len(text.split()),
                    hashlib.sha256(raw).digest()[:16],
                )
                out.append((place, raw, head + ids.tobytes(), row, tokenizer.spellings.names_in(text)))
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
                for place, raw, ids, row, names in pending.popleft().result():
                    if ids is None:
                        if not skip_bad_rows:
                            raise UserError(f"{name}, {place}: {raw} (--skip-bad-rows leaves such rows out)")
                        bad, first_bad = bad + 1, first_bad or f"{place}: {raw}"
                        continue
                    sha.update(raw + b"\0")
                    spelled.update(names)
                    tokens.write(ids)
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
    found = special.report(tokenizer, spelled)
    meta = {"dtype": dtype.name, "sha256": sha.hexdigest(), "bad_rows": bad, "special_tokens": found}
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


# --- selecting ----------------------------------------------------------------------------------------------


def split(selection: Selection, fraction: float, seed: int) -> tuple[Selection, Selection]:
    """(training, validation) documents of a selection, drawn by document. Raises UserError if there are too
    few."""
    n = len(selection.indices)
    n_val = max(1, round(fraction * n)) if fraction > 0 else 0
    if n_val >= n > 0:
        raise UserError(
            f"{selection.corpus.name}: {n} document(s) cannot be split; give --val-data, or --val-fraction 0"
        )
    order = np.random.default_rng(seed).permutation(n)
    sides = (np.sort(order[n_val:]), np.sort(order[:n_val]))
    return tuple(Selection(selection.corpus, selection.indices[side]) for side in sides)


def without(selection: Selection, documents: set[bytes]) -> tuple[Selection, int]:
    """The documents whose text is not in `documents` (digests as in the table), and how many were taken
    out."""
    if not documents:
        return selection, 0
    keep = ~np.isin(selection.table()["digest"].view("S16"), np.array(list(documents), "V16").view("S16"))
    return Selection(selection.corpus, selection.indices[keep]), int((~keep).sum())


class Texts:
    """The texts of the documents of some selections, as a sequence; each is decoded when it is asked for."""

    def __init__(self, selections: list[Selection], tokenizer):
        self.places = [(s, k) for s in selections for k in range(len(s.indices))]
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, k: int) -> str:
        selection, at = self.places[k]
        return self.tokenizer.decode(selection.ids(at)[1:].tolist())


def kept(selections: list[Selection], keep: np.ndarray) -> list[Selection]:
    """Of the documents of some selections, one after another, those where `keep` is true."""
    ends = np.cumsum([len(s.indices) for s in selections])
    return [
        Selection(s.corpus, s.indices[k]) for s, k in zip(selections, np.split(keep, ends[:-1]), strict=True)
    ]


def digests(selections: list[Selection]) -> set[bytes]:
    """Those of the documents of some selections."""
    return {bytes(d) for s in selections for d in s.table()["digest"]}
