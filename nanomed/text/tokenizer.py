"""A model directory's tokenizer: text to ids and back, and the three tokens that stand for no text:
beginning, end, padding.

GPT-2's, SmolLM2's and Llama 3's kinds are run by tiktoken (byte_level.py). Llama 2's and Qwen's kinds are
left to the `tokenizers` library, an extra; all else is refused by name."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from nanomed.errors import UserError
from nanomed.files import read_json, read_object, typed
from nanomed.text import vocabulary
from nanomed.text.byte_level import GPT2, ByteLevel
from nanomed.text.library import Library
from nanomed.text.special import Spellings, Written, written
from nanomed.text.vocabulary import EOT, Spec, Special

FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
FILES += ("added_tokens.json",)
# Not read here, but others ask the model by them: they go where the tokenizer goes.
BESIDE = ("chat_template.jinja", "generation_config.json")


class Tokenizer:
    """Special tokens are read out of a text only where a template wrote them, or `reading` says so
    (nanomed.text.special): by default `encode("<|endoftext|>")` gives the pieces of that string. The program
    itself puts them where they belong:

    bos         what a text begins with, or None; adds_bos: its own tokenizer puts it before every text
    eos         what a text ends with; ends: all ids after which nothing more is to be read
    pad         what fills a row; only a classifier's head has to know it
    lead        what a document of running text begins with, in training and in every measurement:
                <|endoftext|> where the vocabulary has it, as GPT-2, GPT-Neo, SmolLM2 and Qwen read theirs;
                else bos (Llama), else eos
    vocab_size  largest id + 1; hash: of everything that decides the ids of a text"""

    def __init__(self, codec, ids: dict[str, int], special: Special, spellings: Spellings, reading="text"):
        self.codec, self.spellings, self.reading = codec, spellings, reading
        self.bos, self.eos, self.pad, self.adds_bos = special.bos, special.eos, special.pad, special.adds_bos
        self.lead = ids.get(EOT, self.eos if self.bos is None else self.bos)
        self.ends = special.ends | {self.eos} | ({self.lead} if self.lead == ids.get(EOT) else set())
        # Special tokens, and any other that no merge makes, are never encoded but can be decoded.
        self._bytes_of_id = {i: token.encode() for token, i in ids.items()}
        if isinstance(codec, ByteLevel):
            self._bytes_of_id |= codec.tokens
        self.vocab_size = max(self._bytes_of_id) + 1
        parts = f"{codec.pattern} {self.lead}"
        if self.eos != self.lead or self.adds_bos:
            parts += f" {self.eos} {self.bos if self.adds_bos else None}"
        if reading != "text":
            parts += f" {reading} {sorted(spellings.tokens.items())}"
        self.hash = hashlib.sha256(parts.encode() + codec.content()).hexdigest()

    def encode(self, text: str | Written) -> np.ndarray:
        """The ids of a text, uint32 (T,), with no token put before or behind it. Raises Unencodable for a
        text that has none, or one that is refused."""
        if isinstance(text, str) and not self.spellings.matches(text):
            return self.codec.encode(text)
        text, at, parts = written(text), 0, []
        for start, end, i in self._real(text):
            parts += [self.codec.encode(text.text[at:start], at == 0)] if start > at else []
            parts += [] if i is None else [np.array([i], np.uint32)]
            at = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else self.codec.encode("")

    def placed(self, text: Written) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text, as encode() gives them, and where in the text each begins and ends: (T,) and
        (T, 2), in characters; one that a token holds a part of counts as a whole."""
        at, ids, places = 0, [np.zeros(0, np.uint32)], [np.zeros((0, 2), np.int64)]
        for start, end, i in self._real(text):
            if start > at:
                found, where = self.codec.placed(text.text[at:start], at == 0)
                ids, places = [*ids, found], [*places, where + at]
            if i is not None:
                ids, places = [*ids, np.array([i], np.uint32)], [*places, np.array([[start, end]])]
            at = end
        return np.concatenate(ids), np.concatenate(places)

    @staticmethod
    def joined(parts: list) -> np.ndarray:
        """The ids of several parts one after the other, int64 (T,)."""
        return np.concatenate(parts).astype(np.int64)

    def document(self, text: str | Written) -> np.ndarray:
        """The ids of a text after the token that a document begins with; one that spells it itself gets no
        second."""
        ids = self.encode(text)
        return ids if self.is_led(ids) else np.concatenate([np.array([self.lead], ids.dtype), ids])

    def is_led(self, ids: np.ndarray) -> bool:
        """Whether a text's ids have the token already that a document begins with."""
        return len(ids) > 0 and ids[0] == self.lead

    def prompt(self, text: str | Written) -> np.ndarray:
        """The ids that a model is given to write on from, or to judge: after bos if its own tokenizer puts
        that there."""
        ids = self.encode(text)
        if not self.adds_bos or written(text).complete or (len(ids) and ids[0] == self.bos):
            return ids
        return np.concatenate([np.array([self.bos], ids.dtype), ids])

    def continuation(self, before: str | Written, text: str | Written) -> np.ndarray:
        """The ids of a text that follows another: those that the whole has behind the border, so without the
        blank that some vocabularies put before a text. Where a token of the whole lies across the border
        ("dose 1" + "00 mg"), the text is encoded from the border on, so that all of it is there and nothing
        else."""
        before, text = written(before), written(text)
        whole, border, at, parts = before + text, len(before.text), 0, []
        for start, end, i in self._real(whole, border):
            piece = whole.text[max(at, border) : start]
            if piece and at < border:
                parts.append(self.codec.behind(whole.text[at:border], piece, at == 0))
            elif piece:
                parts.append(self.codec.encode(piece, at == 0))
            parts += [np.array([i], np.uint32)] if i is not None and start >= border else []
            at = end
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def _real(self, text: Written, border: int = 0) -> list[tuple[int, int, int | None]]:
        """Spellings.real(), and the text's end as one more place."""
        end = len(text.text)
        return [*self.spellings.real(text, self.reading, border), (end, end, None)]

    def decode(self, ids, inside: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 (half a character, say) become U+FFFD, as in
        transformers. inside: they follow others, so that Llama 2's kind keeps a blank in front."""
        if isinstance(self.codec, Library):
            return self.codec.decode([int(i) for i in ids], inside)
        return b"".join(self._bytes_of_id.get(int(i), b"") for i in ids).decode("utf-8", errors="replace")

    def name(self, i: int) -> str:
        """A special token as the files write it."""
        return self._bytes_of_id[i].decode("utf-8", errors="replace")


def load_tokenizer(directory: str | Path, model: str | Path | None = None, reading="text") -> Tokenizer:
    """Build the tokenizer from `tokenizer.json`, or from `vocab.json` and `merges.txt`, of a model directory.
    model: where the model's config.json and generation_config.json are, if not there too (an adapter's base);
    reading: of special tokens that texts spell: text, read or refuse (--special-tokens).

    Raises UserError if there is none, or one of a kind that is not known here."""
    directory = Path(directory)
    where, merges_file = directory / "tokenizer.json", directory / "merges.txt"
    if not where.exists():
        where = directory / "vocab.json"
        if not where.exists() or not merges_file.exists():
            old = "; tokenizer.model alone is not read: let transformers write tokenizer.json from it"
            hint = old if (directory / "tokenizer.model").exists() else ""
            names = "tokenizer.json, or vocab.json and merges.txt"
            raise UserError(f"{directory}: no tokenizer there ({names}){hint}")
    spec = read_object(where) if where.name == "tokenizer.json" else None
    try:
        if spec is None:
            pattern, vocab, added, all_splits = GPT2, read_json(where), {}, False
            lines = merges_file.read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
            ids = vocab | vocabulary.side_ids(directory)
        else:
            pattern = vocabulary.check_spec(spec, where)
            vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
            all_splits = bool(spec["model"].get("ignore_merges"))
            added = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
            plain = [t["content"] for t in spec.get("added_tokens") or [] if not t.get("special")]
            if pattern and plain:
                raise UserError(f"{where}: the added token {plain[0]!r} is not a special one; not supported")
            ids = vocab | added
        vocabulary.check_ids(ids, where)
        if spec:
            vocabulary.check_added(spec, where)
        if pattern:
            merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
            codec = ByteLevel(vocab, merges, pattern, all_splits, where)
        else:
            codec = Library(where)
        vocabulary.check_side_files(directory, added, not pattern, codec.puts_blank)
        special = vocabulary.find_special(ids, spec or {}, directory, Path(model or directory))
        spellings = Spellings(vocabulary.spelled(ids, spec or {}, directory))
        return Tokenizer(codec, ids, special, spellings, reading)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        if spec:
            typed(Spec, spec, where)  # names the place
        raise UserError(f"{where}: not a byte-level BPE vocabulary ({type(e).__name__}: {e})") from e


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put a tokenizer's files, and how others ask the model, beside another model."""
    for name in FILES + BESIDE:
        if (source / name).exists() and source.resolve() != directory.resolve():
            shutil.copyfile(source / name, directory / name)
