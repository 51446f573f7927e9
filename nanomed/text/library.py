"""Llama 2's and Qwen's kinds of vocabulary, left to the `tokenizers` library (an extra).

Llama 2's kind puts a blank before a text: `yes` is `▁yes`, as ` yes` inside a text is. What follows a prompt
is no text of its own and must not get that blank, so beside the vocabulary as it is stands one that puts
none."""

import json
from pathlib import Path

import numpy as np

from nanomed.errors import Unencodable, UserError
from nanomed.optional import need
from nanomed.text.added import Added


class Library:
    """Text to ids and back by the `tokenizers` library, which finds added words that are `normalized`; all
    other added tokens are text like any other. `begins`: the text begins here, and not behind such a token,
    where some of these vocabularies put no blank."""

    def __init__(self, where: Path, added: list[dict]):
        self._file = where.read_bytes()
        spec = json.loads(self._file)
        if added != spec.get("added_tokens"):  # files beside it know more
            self._file = json.dumps(spec | {"added_tokens": added}).encode()
        # What is special to the library is text here (_build).
        spec["added_tokens"] = [t | {"special": t.get("special") or not t.get("normalized")} for t in added]
        self._whole = self._build(json.dumps(spec), where)
        behind_special, inside = _without_blank(spec, {"first"}), _without_blank(spec, {"first", "always"})
        texts = (None if changed == spec else json.dumps(changed) for changed in (behind_special, inside))
        self._behind_special, self._inside = (self._build(t, where) if t else self._whole for t in texts)
        self.puts_blank = inside != spec
        self.pattern = "tokenizers"

    @staticmethod
    def finds(token: Added) -> bool:
        """Whether an added token is found in encode()."""
        return token.normalized and not token.special

    @staticmethod
    def _build(spec: str, where: Path):
        library = need("tokenizers")
        try:
            tokenizer = library.Tokenizer.from_str(spec)
        except Exception as e:  # the library raises nothing more special
            raise UserError(f"{where}: the tokenizers library cannot read it ({e})") from e
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def content(self) -> bytes:
        """Everything that decides the ids of a text."""
        return self._file

    def encode(self, text: str, tokens=(), begins: bool = True) -> np.ndarray:
        """As ByteLevel.encode(). Raises Unencodable for a lone surrogate."""
        if tokens:
            return self.encode_ends(text, tokens)[0]
        return np.array(self._encoded(text, begins).ids, dtype=np.uint32)

    def encode_ends(self, text: str, tokens=()) -> tuple[np.ndarray, np.ndarray]:
        """As ByteLevel.encode_ends()."""
        at, ids, ends = 0, [], []
        for start, end, i in [*tokens, (len(text), len(text), None)]:
            if start > at:
                piece = self._encoded(text[at:start], at == 0)
                ids += piece.ids
                ends += [at + stop for _, stop in piece.offsets]
            if i is not None:
                ids.append(i)
                ends.append(end)
            at = end
        return np.array(ids, np.uint32), np.array(ends, np.int64)

    def _encoded(self, text: str, begins: bool):
        try:
            text.encode("utf-8")
        except ValueError as e:
            raise Unencodable(f"a text cannot be encoded ({e}); it begins {text[:40]!r}") from e
        tokenizer = self._whole if begins else self._behind_special
        return tokenizer.encode(text, add_special_tokens=False)

    def behind(self, before: str, text: str, begins: bool = True) -> np.ndarray:
        """As ByteLevel.behind(); a text that has to be encoded alone gets no blank."""
        whole, border = self._encoded(before + text, begins), len(before)
        if any(start < border < end for start, end in whole.offsets):
            return np.array(self._inside.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        ids = [i for i, (start, _) in zip(whole.ids, whole.offsets, strict=True) if start >= border]
        return np.array(ids, dtype=np.uint32)

    def decode(self, ids: list[int], inside: bool = False) -> str:
        """inside: the ids are no text's beginning, so a blank at theirs is one."""
        return (self._inside if inside else self._whole).decode(ids, skip_special_tokens=False)


def _without_blank(spec: dict, schemes: set[str]) -> dict:
    """A tokenizer.json without the steps that put a blank before a text, and take it off in decoding.
    schemes: of Metaspace; "always" stands for the other steps too, which know no exception."""
    keys = [key for key in ("normalizer", "pre_tokenizer", "decoder") if key in spec]
    return spec | {key: _step(spec[key], schemes, key == "decoder") for key in keys}


def _step(step, schemes: set[str], decoding: bool):
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence":
        (name,) = step.keys() - {"type"}  # normalizers, pretokenizers or decoders
        inner = [_step(s, schemes, decoding) for s in step[name]]
        return step | {name: [s for s in inner if s is not None]}
    if kind == "Metaspace":
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        kept = {k: v for k, v in step.items() if k != "add_prefix_space"}
        return kept | {"prepend_scheme": "never"} if scheme in schemes else step
    if "always" in schemes and (kind == "Prepend" or (kind == "Strip" and decoding)):
        return None
    if "always" in schemes and kind == "ByteLevel" and step.get("add_prefix_space") and not decoding:
        return step | {"add_prefix_space": False}
    return step
