"""What the files of a model directory say of its vocabulary: whether it is of a kind that is known here,
which tokens stand for no text, and which of them a text may spell."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import read_object
from nanomed.text.byte_level import pattern_of, pre_tokenizers
from nanomed.text.special import Added

EOT = "<|endoftext|>"
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
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


def check_added(spec: dict, where: Path) -> None:
    """Raises UserError for an added token under another id than the `tokenizers` library gives it: that of
    the vocabulary, or the next free one, whatever the file says."""
    vocab = spec["model"]["vocab"]
    following = len(vocab)
    for token in spec.get("added_tokens") or []:
        name, theirs = token["content"], vocab.get(token["content"], following)
        if token["id"] != theirs:
            why = f"which the tokenizers library takes for {theirs} (its ids have no gap)"
            mend = "write the file anew with the id that the model was trained with"
            raise UserError(f"{where}: the added token {name!r} has the id {token['id']}, {why}; {mend}")
        following += name not in vocab


def check_side_files(directory: Path, added: dict[str, int], finds_added: bool, puts_blank: bool) -> None:
    """Refuse what makes other ids of a text from beside the vocabulary: a blank put before it, tokens that
    are looked for in it. As transformers reads them (`PreTrainedTokenizerBase._from_pretrained`), beside a
    tokenizer.json too: the decoder in tokenizer_config.json stands in place of added_tokens.json, and what a
    file names pad, eos and so on is special. added: the vocabulary's own added tokens; finds_added: whether
    it looks for them in texts; puts_blank: whether it puts a blank before a text."""
    config, where = read_object(directory / CONFIG, {}), directory / CONFIG
    asked = config.get("add_prefix_space")
    if isinstance(asked, bool) and asked != puts_blank:
        does = f"a vocabulary that puts {'a' if puts_blank else 'no'} blank before a text"
        raise UserError(f"{where}: add_prefix_space: {str(asked).lower()} is not supported beside {does}")
    names = {EOT, *_special_names(config), *(added if finds_added else ())}
    if "added_tokens_decoder" in config:
        of = " (added_tokens_decoder)"
        tokens = [token for token, (_, special) in _decoder(where).items() if not special]
    else:
        where, of = directory / "added_tokens.json", ""
        tokens = read_object(where, {})
        names |= {*added, *_special_names(read_object(directory / MAP, {}))}
    for token in tokens:
        if token not in names:
            raise UserError(f"{where}: the added token {token!r}{of} is not a special one; not supported")


def side_ids(directory: Path) -> dict[str, int]:
    """{token: id} of tokens that stand beside vocab.json and merges.txt, which have no place for them."""
    decoder = _decoder(directory / CONFIG)
    return {token: i for token, (i, _) in decoder.items()} or read_object(directory / "added_tokens.json", {})


def _decoder(where: Path) -> dict[str, tuple[int, bool]]:
    """{token: (id, whether it is special)} of a tokenizer_config.json's added_tokens_decoder."""
    try:
        decoder = read_object(where, {}).get("added_tokens_decoder") or {}
        return {t["content"]: (int(i), bool(t.get("special"))) for i, t in decoder.items()}
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
    # transformers lets special_tokens_map.json win, where one is there.
    config = read_object(directory / CONFIG, {}) | read_object(directory / MAP, {})
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
    ends = {i for more in named for i in (more if isinstance(more, list) else [more]) if known(i)}
    begins, closes = _put_around(spec)
    if closes:
        what = f"its tokenizer puts {closes} behind every text; here it is behind answers alone"
        print(f"note: {directory}: {what}", file=sys.stderr)
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


def spelled(ids: dict[str, int], spec: dict, directory: Path) -> list[Added]:
    """The special tokens that a text may spell: those of tokenizer.json that say so, and whatever a file
    gives a part."""
    added = {t["content"]: t for t in spec.get("added_tokens") or []}
    names = {name for name, t in added.items() if t.get("special")} | ({EOT} & ids.keys())
    for file in (CONFIG, MAP):
        names |= _special_names(read_object(directory / file, {})) & ids.keys()

    def flags(name: str) -> dict[str, bool]:
        return {f: bool(added.get(name, {}).get(f)) for f in ("lstrip", "rstrip", "single_word")}

    return [Added(name, ids[name], **flags(name)) for name in sorted(names)]
