"""A model directory's tokenizer: text to ids and back, and the three tokens that stand for no text:
beginning, end, padding.

GPT-2's, SmolLM2's and Llama 3's kinds are run by tiktoken (byte_level.py). Llama 2's and Qwen's kinds are
left to the `tokenizers` library, an extra; all else is refused by name."""

import hashlib
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from nanomed.errors import Unencodable, UserError
from nanomed.files import no_pipe, read_json, read_object, typed
from nanomed.text import vocabulary
from nanomed.text.added import Added, Spellings
from nanomed.text.byte_level import GPT2, ByteLevel
from nanomed.text.library import Library
from nanomed.text.special import Written, written
from nanomed.text.vocabulary import EOT, Spec, Special

FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
FILES += ("added_tokens.json",)
NAMES = "tokenizer.json, or vocab.json and merges.txt"
CONVERTERS = "pip install transformers sentencepiece protobuf"  # which read a tokenizer.model
# Not read here, but others ask the model by them: they go where the tokenizer goes.
BESIDE = (vocabulary.CHAT, "generation_config.json")


class Tokenizer:
    """Words that were added to a vocabulary are found in texts; special tokens are read out of one only where
    a template wrote them, or `reading` says so (nanomed.text.special): by default `encode("<|endoftext|>")`
    gives the pieces of that string. The program itself puts them where they belong:

    bos         what a text begins with, or None; adds_bos: its own tokenizer puts it before every text
    eos         what a text ends with; ends: all ids after which nothing more is to be read
    pad         what fills a row; only a classifier's head has to know it
    lead        what a document of running text begins with, in training and in every measurement:
                <|endoftext|> where the vocabulary has it, as GPT-2, GPT-Neo, SmolLM2 and Qwen read theirs;
                else bos (Llama), else eos
    added       ids of tokens that are looked for in texts, and made of no others
    vocab_size  largest id + 1; size: how many of these the model knows (limit())
    hash        of everything that decides the ids of a text"""

    def __init__(self, codec, ids, special: Special, spellings: Spellings, added: set[int], reading="text"):
        self.codec, self.spellings, self.added, self.reading = codec, spellings, added, reading
        self.bos, self.eos, self.pad, self.adds_bos = special.bos, special.eos, special.pad, special.adds_bos
        self.lead = ids.get(EOT, self.eos if self.bos is None else self.bos)
        self.ends = special.ends | {self.eos} | ({self.lead} if self.lead == ids.get(EOT) else set())
        # Special tokens, and any other that no merge makes, are never encoded but can be decoded.
        self._bytes_of_id = {i: token.encode() for token, i in ids.items()}
        if isinstance(codec, ByteLevel):
            self._bytes_of_id |= codec.tokens
        self.size = self.vocab_size = max(self._bytes_of_id) + 1
        parts = f"{codec.pattern} {self.lead}"
        if self.eos != self.lead or self.adds_bos:
            parts += f" {self.eos} {self.bos if self.adds_bos else None}"
        known = sorted((token.content, token) for token in spellings.tokens.values())
        if reading != "text":
            parts += f" {reading} {[(name, token) for name, token in known if token.special]}"
        if words := [(token, token.normalized) for _, token in known if not token.special]:
            parts += f" {words}"
        self.hash = hashlib.sha256(parts.encode() + codec.content()).hexdigest()

    def encode(self, text: str | Written) -> np.ndarray:
        """The ids of a text, uint32 (T,), with no token put before or behind it. Raises Unencodable for a
        text that has none, or one that is refused."""
        text = written(text)
        return self._known(self.codec.encode(text.text, self.spellings.real(text, self.reading)))

    def encode_ends(self, text: Written) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text, as encode() gives them, and the number of its characters that have begun where
        each of them ends: both (T,)."""
        ids, ends = self.codec.encode_ends(text.text, self.spellings.real(text, self.reading))
        return self._known(ids), ends

    @staticmethod
    def joined(parts: list) -> np.ndarray:
        """The ids of several parts one after the other, int64 (T,)."""
        return np.concatenate(parts).astype(np.int64)

    def document(self, text: str | Written) -> np.ndarray:
        """The ids of a text after the token that a document begins with; one that spells it itself gets no
        second."""
        return _after(self.lead, self.encode(text))

    def prompt(self, text: str | Written) -> np.ndarray:
        """The ids that a model is given to write on from, or to judge: after bos if its own tokenizer puts
        that there."""
        ids = self.encode(text)
        return _after(self.bos, ids) if self.adds_bos and not written(text).complete else ids

    def continuation(self, before: str | Written, text: str | Written) -> np.ndarray:
        """The ids of a text that follows another: those that the whole has behind the border, so without the
        blank that some vocabularies put before a text. Where a token of the whole lies across the border
        ("dose 1" + "00 mg"), the text is encoded from the border on, so that all of it is there and nothing
        else."""
        before, text = written(before), written(text)
        whole, border, at, parts = before + text, len(before.text), 0, []
        end = len(whole.text)
        for start, end, i in [*self.spellings.real(whole, self.reading, border), (end, end, None)]:
            piece = whole.text[max(at, border) : start]
            if piece and at < border:
                parts.append(self.codec.behind(whole.text[at:border], piece, at == 0))
            elif piece:
                parts.append(self.codec.encode(piece, begins=at == 0))
            parts += [np.array([i], np.uint32)] if i is not None and start >= border else []
            at = end
        return self._known(np.concatenate(parts) if parts else np.zeros(0, np.uint32))

    def ids_from(self, size: int) -> set[int]:
        return {i for i in self._bytes_of_id if i >= size}

    def limit(self, size: int) -> None:
        """Refuse texts that need ids from `size` on, which the model has no embedding for."""
        self.size = size
        self.hash = hashlib.sha256(f"{self.hash} {size}".encode()).hexdigest()

    def _known(self, ids: np.ndarray) -> np.ndarray:
        if self.size < self.vocab_size and len(ids) and (largest := ids.max()) >= self.size:
            what = f"needs the token {self.name(largest)!r} ({largest})"
            raise Unencodable(f"a text {what}, and the model knows {self.size} tokens, from 0 on")
        return ids

    def decode(self, ids, inside: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 (half a character, say) become U+FFFD, as in
        transformers. inside: they follow others, so that Llama 2's kind keeps a blank in front."""
        if isinstance(self.codec, Library):
            return self.codec.decode([int(i) for i in ids], inside)
        return b"".join(self._bytes_of_id.get(int(i), b"") for i in ids).decode("utf-8", errors="replace")

    def name(self, i: int) -> str:
        """A special token as the files write it."""
        return self._bytes_of_id[i].decode("utf-8", errors="replace")


def _after(token: int, ids: np.ndarray) -> np.ndarray:
    """Ids behind a token, unless they begin with it."""
    return ids if len(ids) and ids[0] == token else np.concatenate([np.array([token], ids.dtype), ids])


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
            raise UserError(f"{directory}: no tokenizer there ({NAMES}); {_mend(directory)}")
    spec = read_object(where) if where.name == "tokenizer.json" else None
    try:
        if spec is None:
            pattern, vocab, all_splits = GPT2, read_json(where), False
            lines = no_pipe(merges_file).read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
        else:
            pattern = vocabulary.check_spec(spec, where)
            vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
            all_splits = bool(spec["model"].get("ignore_merges"))
        added = vocabulary.added_tokens(spec or {}, vocab, directory)
        ids = vocab | {token["content"]: token["id"] for token in added}
        vocabulary.check_ids(ids, where)
        vocabulary.check_added(vocab, added, where)
        looked_for = [
            Added(t["content"], t["id"], **{flag: bool(t.get(flag)) for flag in vocabulary.FLAGS})
            for t in added
        ]
        if pattern:
            merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
            codec = ByteLevel(vocab, merges, pattern, all_splits, where, [token.id for token in looked_for])
        else:
            codec = Library(where, added)
            looked_for = [replace(token, normalized=False) for token in looked_for if not codec.finds(token)]
        vocabulary.check_prefix_space(directory, codec.puts_blank)
        special = vocabulary.find_special(ids, spec or {}, directory, Path(model or directory))
        added_ids = {token["id"] for token in added}
        return Tokenizer(codec, ids, special, Spellings(looked_for), added_ids, reading)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        if spec:
            typed(Spec, spec, where)  # names the place
        raise UserError(f"{where}: not a byte-level BPE vocabulary ({type(e).__name__}: {e})") from e


def _mend(directory: Path) -> str:
    if not (directory / "tokenizer.model").exists():
        return "copy it from the model that this one was made of"
    # transformers 5.23 forgets the blank before a text, and <s>, unless it is told the class.
    told = "tokenizer_class" in read_object(directory / vocabulary.CONFIG, {})
    name, more = ("AutoTokenizer", "") if told else ("LlamaTokenizer", ", add_bos_token=True")
    call = f"from transformers import {name}; {name}.from_pretrained('.'{more}).save_pretrained('.')"
    command = f'cd {shlex.quote(str(directory))} && python -c "{call}"'
    return f"tokenizer.model alone is not read; to convert it: {CONVERTERS} && {command}"


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in FILES[:2])


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put a tokenizer's files, and how others ask the model, beside another model."""
    if source.resolve() == directory.resolve():
        return
    for name in FILES + BESIDE:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)
    vocabulary.copy_more_templates(source, directory)
