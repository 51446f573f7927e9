"""A model directory's tokenizer: text to ids and back, and the three tokens that stand for no text: beginning, end, padding.

GPT-2's, SmolLM2's and Llama 3's kinds are run by tiktoken (byte_level.py). Llama 2's and Qwen's kinds are left to the
`tokenizers` library, an extra; all else is refused by name.
"""

import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import read_json, read_object, typed
from nanomed.optional import need
from nanomed.text.byte_level import GPT2, ByteLevel, Unencodable, pattern_of, pre_tokenizers

EOT = "<|endoftext|>"
FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Not read here, but others ask the model by them: they go where the tokenizer goes.
BESIDE = ("chat_template.jinja", "generation_config.json")


class Library:
    """Text to ids and back by the `tokenizers` library, special tokens being text like any other."""

    def __init__(self, where: Path):
        try:
            self._tokenizer = need("tokenizers").Tokenizer.from_file(str(where))
        except Exception as e:  # the library raises nothing more special
            raise e if isinstance(e, UserError) else UserError(f"{where}: the tokenizers library cannot read it ({e})") from e
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pattern, self._file = "tokenizers", where.read_bytes()

    def content(self) -> bytes:
        return self._file

    def encode(self, text: str) -> np.ndarray:
        try:
            text.encode("utf-8")
        except ValueError as e:
            raise Unencodable(f"a text cannot be encoded ({e}); it begins {text[:40]!r}") from e
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class Tokenizer:
    """Special tokens are never read out of text: `encode("<|endoftext|>")` gives the pieces of that string; the program itself
    puts them where they belong:

    bos         what a text begins with, or None; adds_bos: whether the model's own tokenizer puts it before every text
    eos         what a text ends with; ends: all ids after which nothing more is to be read
    pad         what fills a row; only a classifier's head has to know it
    lead        what a document of running text begins with, in training and in every measurement: <|endoftext|> where the
                vocabulary has it, as GPT-2, GPT-Neo, SmolLM2 and Qwen read theirs; else bos (Llama), else eos
    vocab_size  largest id + 1; hash: of everything that decides the ids of a text
    """

    def __init__(self, codec, ids: dict[str, int], special: dict[str, int | None], ends: set[int], adds_bos: bool):
        self.codec = codec
        self.bos, self.eos, self.pad = special["bos"], special["eos"], special["pad"]
        self.adds_bos = adds_bos
        self.lead = ids.get(EOT, self.eos if self.bos is None else self.bos)
        self.ends = ends | {self.eos, self.lead} if self.lead == ids.get(EOT) else ends | {self.eos}
        # Special tokens, and any other that no merge makes, are never encoded but can be decoded.
        self._bytes_of_id = {i: token.encode() for token, i in ids.items()}
        if isinstance(codec, ByteLevel):
            self._bytes_of_id |= codec.tokens
        self.vocab_size = max(self._bytes_of_id) + 1
        parts = f"{codec.pattern} {self.lead}"
        if self.eos != self.lead or self.adds_bos:
            parts += f" {self.eos} {self.bos if self.adds_bos else None}"
        self.hash = hashlib.sha256(parts.encode() + codec.content()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, uint32 (T,), without special tokens. Raises Unencodable for one that has none."""
        return self.codec.encode(text)

    def prompt(self, text: str) -> np.ndarray:
        """The ids that a model is given to write on from, or to judge: after bos if its own tokenizer puts that there."""
        ids = self.encode(text)
        return np.concatenate([np.array([self.bos], ids.dtype), ids]) if self.adds_bos else ids

    def decode(self, ids) -> str:
        """The text of ids; bytes that are not UTF-8 (half a character, say) become U+FFFD, as in transformers."""
        if isinstance(self.codec, Library):
            return self.codec.decode([int(i) for i in ids])
        return b"".join(self._bytes_of_id.get(int(i), b"") for i in ids).decode("utf-8", errors="replace")

    def name(self, i: int) -> str:
        """A special token as the files write it."""
        return self._bytes_of_id[i].decode("utf-8", errors="replace")


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Build the tokenizer from `tokenizer.json`, or from `vocab.json` and `merges.txt`, of a model directory.

    Raises UserError if there is none, or one of a kind that is not known here.
    """
    directory = Path(directory)
    where = directory / "tokenizer.json"
    if not where.exists():
        where = directory / "vocab.json"
    if not where.exists() or (where.name == "vocab.json" and not (directory / "merges.txt").exists()):
        old = "; tokenizer.model alone is not read: let transformers write tokenizer.json from it"
        hint = old if (directory / "tokenizer.model").exists() else ""
        raise UserError(f"{directory}: no tokenizer there (tokenizer.json, or vocab.json and merges.txt){hint}")
    added: dict[str, int] = {}
    try:
        pattern, spec, all_splits = GPT2, {}, False
        if where.name == "tokenizer.json":
            spec = read_object(where)
            pattern = _check_spec(spec, where)
            vocab, merges, all_splits = spec["model"]["vocab"], spec["model"]["merges"], bool(spec["model"].get("ignore_merges"))
            for token in spec.get("added_tokens") or []:
                if pattern and not token.get("special"):
                    raise UserError(f"{where}: the added token {token['content']!r} is not a special one; not supported")
                added[token["content"]] = token["id"]
        else:
            vocab = read_json(where)
            lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
        ids = vocab | added
        odd = next((t for t, i in ids.items() if type(i) is not int or not 0 <= i < 2**31), None)
        if odd is not None:
            raise UserError(f"{where}: the token {odd!r} has no whole number from 0 up for its id")
        if len(set(ids.values())) < len(ids):
            i, n = Counter(ids.values()).most_common(1)[0]
            raise UserError(f"{where}: {n} tokens have the id {i}")
        if pattern:
            merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
            _check_side_files(directory, added)
            codec = ByteLevel(vocab, merges, pattern, all_splits, where)
        else:
            codec = Library(where)
        return Tokenizer(codec, ids, *_find_special(ids, spec, directory))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        if spec:
            typed(Spec, spec, where)  # names the place
        raise UserError(f"{where}: not a byte-level BPE vocabulary ({type(e).__name__}: {e})") from e


Id = Annotated[int, Meta(ge=0, lt=2**31)]


@dataclass
class Added:
    content: str
    id: Id


@dataclass
class Model:
    vocab: dict[str, Id]
    merges: list[str | tuple[str, str]]


@dataclass
class Spec:
    """What a tokenizer.json must hold, as the `tokenizers` library writes it."""

    model: Model
    added_tokens: list[Added] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def _check_spec(spec: dict, where: Path) -> str | None:
    """The pattern of a tokenizer.json that tiktoken can run; None if it is one for the library. Raises UserError for others."""
    model, pre = spec.get("model") or {}, spec.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or not {"vocab", "merges"} <= model.keys():
        raise UserError(f"{where}: a {model.get('type')} tokenizer; only BPE is supported")
    pattern = pattern_of(spec)
    normalizer = (spec.get("normalizer") or {}).get("type")
    split = [part.get("type") for part in pre_tokenizers(spec)] == ["Split", "ByteLevel"]  # Qwen's
    for_library = model.get("byte_fallback") or (split and normalizer in (None, "NFC"))
    if pattern is None and not for_library:
        what = "a normalizer" if normalizer else f"pre_tokenizer {pre}"
        changed = [k for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(k)]
        what = f"model.{changed[0]}" if changed else what
        raise UserError(f"{where}: not the pre-tokenisation of GPT-2, SmolLM2, Llama or Qwen: {what} is not supported")
    return pattern


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


def _find_special(ids: dict[str, int], spec: dict, directory: Path) -> tuple[dict[str, int | None], set[int], bool]:
    """({"bos", "eos", "pad"}, all ids that end a text, whether bos comes before every text), from what the directory's files
    say. Raises UserError if none says what ends a text."""
    config, model = (
        read_object(directory / name) if (directory / name).exists() else {} for name in ("tokenizer_config.json", "config.json")
    )

    def known(i) -> bool:
        return isinstance(i, int) and not isinstance(i, bool) and i in ids.values()

    def find(part: str) -> int | None:
        named = config.get(f"{part}_token")
        named = named.get("content") if isinstance(named, dict) else named
        if isinstance(named, str) and named in ids:
            return ids[named]
        if EOT in ids and part == "eos":
            return ids[EOT]
        given = model.get(f"{part}_token_id")
        given = given[0] if isinstance(given, list) and given else given
        return given if known(given) else None

    bos, eos, pad = map(find, ("bos", "eos", "pad"))
    if eos is None:
        raise UserError(f"{directory}: its tokenizer has no {EOT} and names no other end-of-text token")
    more = model.get("eos_token_id")
    ends = {i for i in (more if isinstance(more, list) else [more]) if known(i)}
    processors = spec.get("post_processor") or {}
    begins = [
        piece.get("SpecialToken", {}).get("id")
        for p in processors.get("processors", [processors])
        if p.get("type") == "TemplateProcessing"
        for piece in p["single"][:1]
    ]
    adds_bos = bos is not None and any(ids.get(name) == bos for name in begins)
    return {"bos": bos, "eos": eos, "pad": eos if pad is None else pad}, ends, adds_bos


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put a tokenizer's files, and how others ask the model, beside another model."""
    for name in FILES + BESIDE:
        if (source / name).exists() and source.resolve() != directory.resolve():
            shutil.copyfile(source / name, directory / name)
