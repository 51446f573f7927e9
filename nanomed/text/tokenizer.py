"""GPT-2's byte-level BPE from a model directory's own files, run by tiktoken.

tiktoken knows a vocabulary as {bytes: rank}: it merges, of all neighbouring pairs whose union is in the vocabulary, the
one of lowest rank, and gives out ranks as ids. Hugging Face's files say the same in three parts: which bytes a token's
characters stand for, in which order pairs merge, and which id each token has. So ranks are made from the order of the
merges, and a table turns ranks into the model's ids, whatever their order.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import tiktoken

from nanomed.errors import UserError
from nanomed.files import read_json, read_object

# GPT-2's pre-tokenisation (encoder.py of the GPT-2 release): no merge crosses a boundary between these pieces.
# Possessive quantifiers and the split-off `\s++$` change no result; they keep long runs of blanks linear.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
EOT = "<|endoftext|>"
FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def _byte_characters() -> dict[str, int]:
    """GPT-2 writes each byte as a printable character: itself where it is one, else the next from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_characters()


class Unencodable(UserError):
    """A text that has no ids."""


class Tokenizer:
    """Text to ids and back. Special tokens are never read out of text: `encode("<|endoftext|>")` gives the pieces of
    that string; the program itself puts `eot` where it belongs.

    encoding: the tiktoken.Encoding, whose ids are merge ranks; eot: the id of <|endoftext|>; vocab_size: largest id + 1;
    hash: of everything that decides the ids of a text.
    """

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], special: dict[str, int], eot: int, where):
        ranks, ids = _ranks(vocab, merges, where)
        self.encoding = tiktoken.Encoding(Path(where).name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._id_of_rank = np.array(ids, dtype=np.uint32)
        # Special tokens, and any other that no merge makes, are never encoded but can be decoded.
        self._bytes_of_id = {i: token.encode() for token, i in (vocab | special).items()}
        self._bytes_of_id |= {i: token for token, i in zip(ranks, ids, strict=True)}
        self.eot = eot
        self.vocab_size = max([*self._bytes_of_id, eot]) + 1
        digest = hashlib.sha256(f"{PATTERN} {eot}".encode())
        for token, i in zip(ranks, ids, strict=True):
            digest.update(b"%d %d " % (len(token), i) + token)
        self.hash = digest.hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, uint32 (T,), without special tokens. Raises Unencodable for a lone surrogate, which tiktoken would
        replace silently, and for a million blanks in a row, which overflow the pre-tokeniser's stack."""
        try:
            text.encode("utf-8")
            return self._id_of_rank[self.encoding.encode_to_numpy(text, disallowed_special=())]
        except ValueError as e:
            raise Unencodable(f"a text cannot be encoded ({e}); it begins {text[:40]!r}") from e

    def decode(self, ids) -> str:
        """The text of ids; bytes that are not UTF-8 (half a character, say) become U+FFFD, as in transformers."""
        return b"".join(self._bytes_of_id.get(int(i), b"") for i in ids).decode("utf-8", errors="replace")


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Build the tokenizer from `tokenizer.json`, or from `vocab.json` and `merges.txt`, of a model directory.

    Raises UserError if there is none, or one that is not GPT-2's kind: byte-level BPE with all 256 bytes.
    """
    directory = Path(directory)
    where = directory / "tokenizer.json"
    if not where.exists():
        where = directory / "vocab.json"
    if not where.exists() or (where.name == "vocab.json" and not (directory / "merges.txt").exists()):
        raise UserError(f"{directory}: no tokenizer there (tokenizer.json, or vocab.json and merges.txt)")
    special: dict[str, int] = {}
    try:
        if where.name == "tokenizer.json":
            spec = read_json(where)
            vocab, merges = _check_spec(spec, where)
            for token in spec.get("added_tokens") or []:
                if not token.get("special"):
                    raise UserError(f"{where}: the added token {token['content']!r} is not a special one; not supported")
                special[token["content"]] = token["id"]
        else:
            vocab = read_json(where)
            lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
        _check_side_files(directory, special)
        eot = _find_eot(vocab | special, directory)
        return Tokenizer(vocab, merges, special, eot, where)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{where}: not a byte-level BPE vocabulary ({type(e).__name__}: {e})") from e


def _check_spec(spec: dict, where: Path):
    """vocab and merges of a tokenizer.json, once everything else in it is known to be GPT-2's."""
    model, pre = spec.get("model") or {}, spec.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or not {"vocab", "merges"} <= model.keys():
        raise UserError(f"{where}: a {model.get('type')} tokenizer; only byte-level BPE is supported")
    byte_level = pre.get("type") == "ByteLevel" and not pre.get("add_prefix_space") and pre.get("use_regex", True)
    changed = [k for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback") if model.get(k)]
    if not byte_level or spec.get("normalizer") or changed:
        what = f"model.{changed[0]}" if changed else "normalizer" if spec.get("normalizer") else f"pre_tokenizer {pre}"
        raise UserError(f"{where}: not GPT-2's pre-tokenisation: {what} is not supported")
    return model["vocab"], model["merges"]


def _check_side_files(directory: Path, special: dict[str, int]) -> None:
    """Refuse what makes other ids of a text from beside the vocabulary: a blank put before it, tokens that are looked for in
    it. As transformers reads them (`PreTrainedTokenizerBase._from_pretrained`), beside a tokenizer.json too: the decoder
    in tokenizer_config.json stands in place of added_tokens.json, and what a file names pad, eos and so on is special."""
    config, named, added = (
        read_object(directory / name) if (directory / name).exists() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    where = directory / "tokenizer_config.json"
    if config.get("add_prefix_space"):
        raise UserError(f"{where}: add_prefix_space: true is not supported; GPT-2's own tokenizer adds no blank")
    if "added_tokens_decoder" in config:
        names = {EOT, *_special_names(config)}
        try:
            tokens = [t["content"] for t in config["added_tokens_decoder"].values() if not t.get("special")]
        except (AttributeError, KeyError, TypeError) as e:
            raise UserError(f"{where}: added_tokens_decoder must map ids to tokens ({type(e).__name__}: {e})") from e
        of = " (added_tokens_decoder)"
    else:
        where, tokens, of = directory / "added_tokens.json", list(added), ""
        names = {EOT, *special, *_special_names(config), *_special_names(named)}
    for token in tokens:
        if token not in names:
            raise UserError(f"{where}: the added token {token!r}{of} is not a special one; not supported")


def _special_names(settings: dict) -> set[str]:
    """The tokens that are special because a file gives them a part: `pad_token` and its like, or a list of further ones."""
    values = [v for key, v in settings.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or []
        values += more.values() if isinstance(more, dict) else more
    contents = [v.get("content") if isinstance(v, dict) else v for v in values]
    return {v for v in contents if isinstance(v, str)}


def _find_eot(vocab: dict[str, int], directory: Path) -> int:
    """<|endoftext|> by name, else whatever the directory's files call the end of a text."""
    if EOT in vocab:
        return vocab[EOT]
    for name, key in (("tokenizer_config.json", "eos_token"), ("config.json", "eos_token_id")):
        if (directory / name).exists():
            eos = read_object(directory / name).get(key)
            eos = eos.get("content") if isinstance(eos, dict) else eos
            if isinstance(eos, int) or eos in vocab:
                return eos if isinstance(eos, int) else vocab[eos]
    raise UserError(f"{directory}: its tokenizer has no {EOT} and names no other end-of-text token")


def _ranks(vocab, merges, where) -> tuple[dict[bytes, int], list[int]]:
    """tiktoken's {bytes: rank}, single bytes first and then the merges in order, and the model's id of each rank."""
    characters = sorted((c for c in BYTE_OF if c in vocab), key=vocab.__getitem__)
    if len(characters) < 256:  # tiktoken would panic on the first text that needs a missing one
        missing = sorted(BYTE_OF[c] for c in BYTE_OF if c not in vocab)
        raise UserError(
            f"{where}: {len(missing)} of the 256 bytes have no token (first 0x{missing[0]:02x}), so some texts could not "
            "be encoded; train it with initial_alphabet=ByteLevel.alphabet()"
        )
    ranks = {bytes([BYTE_OF[c]]): i for i, c in enumerate(characters)}
    ids = [vocab[c] for c in characters]
    pair_rank: dict[tuple[bytes, bytes], int] = {}
    for left, right in merges:
        a, b = (bytes(BYTE_OF[c] for c in part) for part in (left, right))
        if a + b in ranks or a not in ranks or b not in ranks:
            raise UserError(f"{where}: the merge {left!r} {right!r} is a repetition, or comes before its parts")
        pair_rank[a, b] = ranks[a + b] = len(ranks)
        ids.append(vocab[left + right])
    _check_reachable(pair_rank, where)
    return ranks, ids


def _check_reachable(pair_rank: dict[tuple[bytes, bytes], int], where) -> None:
    """Every token must come out of its own bytes by the listed pairs alone.

    Then tiktoken, which merges any two neighbours whose union is a token, never does what the list does not: inside
    the span of a token the list's order of merges leads to that token, so the last two parts before it are a listed pair.
    A vocabulary that was trained has this property; one put together by hand may not, and its ids would differ.
    """
    for (a, b), rank in pair_rank.items():
        parts = [bytes([c]) for c in a + b]
        while len(parts) > 1:
            best = min(range(len(parts) - 1), key=lambda i: pair_rank.get((parts[i], parts[i + 1]), rank + 1))
            if pair_rank.get((parts[best], parts[best + 1]), rank + 1) > rank:
                raise UserError(f"{where}: the token of the merge {a!r} {b!r} cannot be reached by the merges before it")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put a tokenizer's files beside another model."""
    for name in FILES:
        if (source / name).exists() and source.resolve() != directory.resolve():
            shutil.copyfile(source / name, directory / name)
