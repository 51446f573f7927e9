"""What the files of a model directory say of its vocabulary: whether it is of a kind that is known here,
which tokens stand for no text, and which of them a text may spell."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import read_object
from nanomed.text.byte_level import pattern_of, pre_tokenizers
from nanomed.text.lines import note_once

EOT = "<|endoftext|>"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
CHAT, MORE = "chat_template.jinja", "additional_chat_templates"  # a model's default one, and its others
Id = Annotated[int, Meta(ge=0, lt=2**31)]


@dataclass
class AddedToken:
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
    added_tokens: list[AddedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def check_spec(spec: dict, where: Path) -> str | None:
    """The pattern of a tokenizer.json that tiktoken can run; None if it is one for the library. Raises
    UserError for others."""
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
        kinds = "the pre-tokenisation of GPT-2, SmolLM2, Llama or Qwen"
        raise UserError(f"{where}: not {kinds}: {what} is not supported")
    return pattern


def check_ids(ids: dict[str, int], where: Path) -> None:
    """Raises UserError for a token whose id is no number from 0 up, or is another's too."""
    odd = next((t for t, i in ids.items() if type(i) is not int or not 0 <= i < 2**31), None)
    if odd is not None:
        raise UserError(f"{where}: the token {odd!r} has no whole number from 0 up for its id")
    if len(set(ids.values())) < len(ids):
        i, n = Counter(ids.values()).most_common(1)[0]
        raise UserError(f"{where}: {n} tokens have the id {i}")


def check_added(vocab: dict[str, int], added: list[dict], where: Path) -> None:
    """Raises UserError for an added token under another id than the `tokenizers` library gives it: that of
    the vocabulary, or the next free one, whatever the file says."""
    following = len(vocab)
    for token in added:
        name, theirs = token["content"], vocab.get(token["content"], following)
        if token["id"] != theirs:
            why = f"which the tokenizers library takes for {theirs} (its ids have no gap)"
            mend = "write the file anew with the id that the model was trained with"
            raise UserError(f"{where}: the added token {name!r} has the id {token['id']}, {why}; {mend}")
        following += name not in vocab


def naming(directory: Path) -> dict:
    """tokenizer_config.json, with the names of the tokens for eos and so on from the older file where
    transformers takes them from there: where the newer has no added_tokens_decoder."""
    config = read_object(directory / CONFIG, {})
    return config if "added_tokens_decoder" in config else config | read_object(directory / MAP, {})


def added_tokens(spec: dict, vocab: dict[str, int], directory: Path) -> list[dict]:
    """The tokens that are looked for in texts before anything else, as tokenizer.json has them under
    added_tokens, with those of the files beside it, as transformers puts them together
    (`PreTrainedTokenizerBase._from_pretrained`): the decoder in tokenizer_config.json stands in place of
    added_tokens.json, and what a file names pad, eos and so on is special, as <|endoftext|> always is."""
    config = read_object(directory / CONFIG, {})
    named, tokens = _special_names(config), {t["content"]: dict(t) for t in spec.get("added_tokens") or []}
    if "added_tokens_decoder" in config:
        beside = _decoder(config, directory / CONFIG)
    else:
        named |= _special_names(read_object(directory / MAP, {}))
        ids = read_object(directory / "added_tokens.json", {})
        beside = [{"content": name, "id": i} for name, i in ids.items() if name not in tokens]
    named.add(EOT)
    beside += [{"content": n, "id": vocab[n]} for n in vocab.keys() & named if n not in tokens]
    for token in sorted(beside, key=lambda token: token["id"]):
        special = bool(token.get("special")) or token["content"] in named
        given = {"special": special, "normalized": not special} | token
        given |= {flag: bool(given.get(flag)) for flag in FLAGS}
        tokens[token["content"]] = {key: given[key] for key in ("id", "content", *FLAGS)}
    for name in tokens.keys() & named:
        tokens[name]["special"] = True
    return list(tokens.values())


def check_prefix_space(directory: Path, puts_blank: bool) -> None:
    """Refuse an add_prefix_space that says otherwise than the vocabulary itself, which puts a blank before a
    text or puts none."""
    asked = read_object(directory / CONFIG, {}).get("add_prefix_space")
    if isinstance(asked, bool) and asked != puts_blank:
        does = f"a vocabulary that puts {'a' if puts_blank else 'no'} blank before a text"
        what = f"add_prefix_space: {str(asked).lower()} is not supported beside {does}"
        raise UserError(f"{directory / CONFIG}: {what}")


def _decoder(config: dict, where: Path) -> list[dict]:
    try:
        decoder = config["added_tokens_decoder"] or {}
        return [{"content": t["content"], "id": int(i)} | t for i, t in decoder.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        what = f"added_tokens_decoder must map ids to tokens ({type(e).__name__}: {e})"
        raise UserError(f"{where}: {what}") from e


def _special_names(settings: dict) -> set[str]:
    """The tokens that are special because a file gives them a part: `pad_token` and its like, or a list of
    further ones."""
    values = [v for key, v in settings.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or []
        values += more.values() if isinstance(more, dict) else more
    contents = [v.get("content") if isinstance(v, dict) else v for v in values]
    return {v for v in contents if isinstance(v, str)}


@dataclass(frozen=True)
class Special:
    """Ids of the tokens that stand for no text, as Tokenizer has them. ends: what the model's own files
    name."""

    bos: int | None
    eos: int
    pad: int
    ends: set[int]
    adds_bos: bool


def find_special(ids: dict[str, int], spec: dict, directory: Path, model_directory: Path) -> Special:
    """What the directories' files say. A generation ends at every id that config.json or
    generation_config.json names, here or beside the model (transformers 5.23 forgets config.json's where
    there is a generation_config.json). Raises UserError if none says what ends a text."""
    config = naming(directory)
    places = dict.fromkeys((directory, model_directory))
    models = [read_object(d / "config.json", {}) for d in places]
    generations = [read_object(d / "generation_config.json", {}) for d in places]
    there = set(ids.values())

    def known(i) -> bool:
        return isinstance(i, int) and not isinstance(i, bool) and i in there

    def find(part: str) -> int | None:
        named = config.get(f"{part}_token")
        named = named.get("content") if isinstance(named, dict) else named
        if isinstance(named, str) and named in ids:
            return ids[named]
        if isinstance(named, str) and part == "eos":  # transformers would make a new id of it
            what = f"eos_token is {named!r}, which its vocabulary has not"
            raise UserError(f"{directory}: {what}; name the token that ends a text")
        if EOT in ids and part == "eos":
            return ids[EOT]
        given = (file.get(f"{part}_token_id") for file in models)
        given = (i[0] if isinstance(i, list) and i else i for i in given)
        return next((i for i in given if known(i)), None)

    bos, eos, pad = map(find, ("bos", "eos", "pad"))
    if eos is None:
        raise UserError(f"{directory}: its tokenizer has no {EOT} and names no other end-of-text token")
    named = [file.get("eos_token_id") for file in models + generations]
    named = [i for more in named for i in (more if isinstance(more, list) else [more]) if i is not None]
    ends = {i for i in named if known(i)}
    if odd := [repr(i) for i in named if not known(i)]:
        what = f"eos_token_id names {', '.join(dict.fromkeys(odd))}, no token of its vocabulary"
        note_once(f"{model_directory}: {what}; what ends a text is {EOT if eos == ids.get(EOT) else eos}")
    begins, closes = _put_around(spec)
    if closes:
        what = f"its tokenizer puts {closes} behind every text; here it is behind answers alone"
        note_once(f"{directory}: {what}")
    begin = ids.get(begins)
    return Special(bos if begin is None else begin, eos, eos if pad is None else pad, ends, begin is not None)


def _put_around(spec: dict) -> tuple[str | None, str | None]:
    """The tokens that a tokenizer.json's post-processor puts before a text, and behind it."""
    step = spec.get("post_processor") or {}
    for p in step.get("processors", [step]):
        if p.get("type") == "TemplateProcessing":
            names = [piece.get("SpecialToken", {}).get("id") for piece in p["single"]]
            return names[0] if names else None, names[-1] if len(names) > 1 else None
        if p.get("type") in ("RobertaProcessing", "BertProcessing"):
            return p["cls"][0], p["sep"][0]
    return None, None


def copy_more_templates(source: Path, directory: Path) -> None:
    """Put a model's other chat templates beside another model."""
    if (source / MORE).is_dir() and source.resolve() != directory.resolve():
        shutil.copytree(source / MORE, directory / MORE, dirs_exist_ok=True)
