"""Byte-level BPE from a model directory's own files, run by tiktoken: GPT-2's, SmolLM2's and Llama 3's kind.

tiktoken knows a vocabulary as {bytes: rank}: it merges, of all neighbouring pairs whose union is in the
vocabulary, the one of lowest rank, and gives out ranks as ids. Hugging Face's files say the same in three
parts: which bytes a token's characters stand for, in which order pairs merge, and which id each token has. So
ranks are made from the order of the merges, and a table turns ranks into the model's ids, whatever their
order."""

import itertools
import secrets
from functools import partial
from pathlib import Path

import numpy as np
import tiktoken

from nanomed.errors import Unencodable, UserError

# Pre-tokenisation: no merge crosses a boundary between these pieces. Possessive quantifiers and the split-off
# `\s++$` change no result; they keep long runs of blanks linear. GPT-2's (encoder.py of its release):
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# SmolLM2's: each digit by itself, then GPT-2's.
DIGITS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?=\p{N})|\s+(?!\S)|\s"
# Llama 3's, as its tokenizer.json has it, and for tiktoken:
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)

# GPT-2 writes each byte as a printable character: itself if it is one, else the next from U+0100 on.
PRINTABLE = [b for first, last in ("!~", "¡¬", "®ÿ") for b in range(ord(first), ord(last) + 1)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + i): b for i, b in enumerate(OTHERS)}
MARK = f"\0{secrets.token_hex(8)} "  # begins what stands for an added token in a text; no text can know it


class ByteLevel:
    """Text to ids and back. `vocab`: {token: id}; `merges`: pairs in order; `pattern`: of the pieces;
    `added`: the ids of tokens that are no text's pieces."""

    puts_blank = False  # before a text of its own, as Llama 2's kind does

    def __init__(self, vocab, merges: list, pattern: str, all_splits: bool, where: Path, added: list[int]):
        ranks, ids = _ranks(vocab, merges, all_splits, where)
        self._mark_of = {i: f"{MARK}{i}\0" for i in added}
        # The last is in no text: where there is no special token at all, tiktoken 0.14 takes twice as long.
        marks = [*self._mark_of.values(), f"{MARK}never"]
        how = {"special_tokens": {mark: len(ranks) + k for k, mark in enumerate(marks)}}
        encoding = tiktoken.Encoding(where.name, pat_str=pattern, mergeable_ranks=ranks, **how)
        self._tiktoken = partial(encoding.encode_to_numpy, disallowed_special=())
        self._id_of_rank = np.array([*ids, *added], dtype=np.uint32)
        self._without_token = bytes(b for c, b in BYTE_OF.items() if c not in vocab)  # tiktoken would panic
        self.tokens = dict(zip(ids, ranks, strict=True))  # {id: bytes}
        self._lengths = np.array([*map(len, ranks), *(0 for _ in added)], np.int64)  # of each rank, in bytes
        self.pattern = pattern

    def content(self) -> bytes:
        """Everything that decides the ids of a piece."""
        return b"".join(b"%d %d %b" % (len(token), i, token) for i, token in self.tokens.items())

    def encode(self, text: str, tokens=(), begins: bool = True) -> np.ndarray:
        """The ids of a text in which tokens stand, (start, end, id) from left to right: uint32 (T,). begins:
        whether a text begins here, which changes nothing in this kind of vocabulary.

        Raises Unencodable for a lone surrogate, which tiktoken would replace silently, for a byte that has no
        token, and for a million blanks in a row, which overflow the pre-tokeniser's stack."""
        return self._id_of_rank[self._ranks_of(text, tokens)]

    def encode_ends(self, text: str, tokens=()) -> tuple[np.ndarray, np.ndarray]:
        """What encode() gives, and the number of characters that have begun where each id ends: both (T,)."""
        ranks = self._ranks_of(text, tokens)
        sizes = self._lengths[ranks]
        sizes[sizes == 0] = [len(text[start:end].encode()) for start, end, _ in tokens]
        ends = np.cumsum(sizes)
        if not text.isascii():
            ends = np.cumsum((np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80)[ends - 1]
        return self._id_of_rank[ranks], ends

    def behind(self, before: str, text: str, begins: bool = True) -> np.ndarray:
        """The ids of `text` where it follows `before`: those that both together have behind the border, or of
        the text alone if a token lies across it."""
        before = before[_last_piece(before) :]
        whole = self._ranks_of(before + text)
        ends = np.cumsum(self._lengths[whole])
        border = len(before.encode())
        first = int(np.searchsorted(ends, border, side="right"))  # the first token that ends behind it
        across = border != (ends[first - 1] if first else 0)
        return self.encode(text) if across else self._id_of_rank[whole[first:]]

    def _ranks_of(self, text: str, tokens=()) -> np.ndarray:
        """The ranks of a text in which tokens stand. Piece by piece would take long, so a mark is put in the
        place of each token, which is a special token to tiktoken."""
        parts, at, marks = [], 0, set()
        for start, end, i in tokens:
            parts += text[at:start], self._mark_of[i]
            marks.add(self._mark_of[i])
            at = end
        try:
            raw = text.encode("utf-8")
            if len(raw.translate(None, self._without_token)) < len(raw):
                byte = next(b for b in raw if b in self._without_token)
                raise ValueError(f"its byte 0x{byte:02x} has no token")
            return self._tiktoken("".join(parts) + text[at:], allowed_special=marks)
        except ValueError as e:
            raise Unencodable(f"a text cannot be encoded ({e}); it begins {text[:40]!r}") from e


def _last_piece(text: str) -> int:
    """From where on a text can change the ids of what follows it: from the last blank behind another
    character, since that begins a piece in all three patterns. Prompts are long, and answers short."""
    at = text.rfind(" ")
    while at > 0 and text[at - 1].isspace():
        at = text.rfind(" ", 0, at)
    return max(at, 0)


def pre_tokenizers(spec: dict) -> list[dict]:
    """The steps of a tokenizer.json's pre-tokenisation."""
    pre = spec.get("pre_tokenizer") or {}
    return pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]


def pattern_of(spec: dict) -> str | None:
    """The pattern of a tokenizer.json whose every part is known to be one of the three kinds; None if it is
    another's."""
    model, parts = spec["model"], pre_tokenizers(spec)
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if spec.get("normalizer") or any(model.get(key) for key in odd):
        return None
    kinds = [part.get("type") for part in parts]
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    own_regex = parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and own_regex:
        return GPT2
    if kinds == ["Digits", "ByteLevel"] and own_regex and parts[0].get("individual_digits"):
        return DIGITS
    isolated = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}
    return LLAMA3 if len(parts) == 2 and not own_regex and parts[0] == isolated else None


def _ranks(vocab, merges, all_splits: bool, where) -> tuple[dict[bytes, int], list[int]]:
    """tiktoken's {bytes: rank}, single bytes first and then the merges in order, and the model's id of each
    rank.

    all_splits: the list was itself made from ranks (Llama 3's was), and names one after the other every pair
    of tokens that a token can be made of, also of ones that come later; these pairs have one rank. Some
    hundred of Llama 3's tokens no merging leads to."""
    characters = sorted((c for c in BYTE_OF if c in vocab), key=vocab.__getitem__)
    ranks = {bytes([BYTE_OF[c]]): i for i, c in enumerate(characters)}
    ids = [vocab[c] for c in characters]
    pair_rank: dict[tuple[bytes, bytes], int] = {}
    last = None
    for left, right in merges:
        a, b = (bytes(BYTE_OF[c] for c in part) for part in (left, right))
        again = all_splits and a + b == last and (a, b) not in pair_rank
        known = {left, right} <= vocab.keys() if all_splits else a in ranks and b in ranks
        if (a + b in ranks and not again) or not known:
            raise UserError(f"{where}: the merge {left!r} {right!r} is repeated, or comes before its parts")
        if not again:
            ranks[a + b] = len(ranks)
            ids.append(vocab[left + right])
        pair_rank[a, b], last = ranks[a + b], a + b
    if not all_splits:
        _check_reachable(pair_rank, where)
        return ranks, ids
    # Whole pieces are looked up first, there as here: so are tokens that no pair makes.
    for token, i in sorted(vocab.items(), key=lambda item: item[1]):
        whole = bytes(BYTE_OF[c] for c in token) if all(c in BYTE_OF for c in token) else b""
        if whole and whole not in ranks:
            ranks[whole] = len(ranks)
            ids.append(i)
    return ranks, ids


def _check_reachable(pair_rank: dict[tuple[bytes, bytes], int], where) -> None:
    """Every token must come out of its own bytes by the listed pairs alone.

    Then tiktoken, which merges any two neighbours whose union is a token, never does what the list does not:
    inside the span of a token the list's order of merges leads to that token, so the last two parts before it
    are a listed pair. A vocabulary that was trained has this property; one put together by hand may not, and
    its ids would differ."""
    for (a, b), rank in pair_rank.items():
        parts = [bytes([c]) for c in a + b]
        while len(parts) > 1:
            ranks = [pair_rank.get(pair, rank + 1) for pair in itertools.pairwise(parts)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] > rank:
                what = f"the token of the merge {a!r} {b!r} cannot be reached by the merges before it"
                raise UserError(f"{where}: {what}")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
