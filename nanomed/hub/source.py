"""Find a model: the bundled one, a directory, a peft adapter and its base, or a Hub id, which is downloaded.

A model is named by a Hub id (`gpt2`), a directory with config.json, a peft adapter directory, whose base is
found through `base_model_name_or_path`, or `nano`, the bundled one."""

import hashlib
import json
import os.path
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import errors

from nanomed.errors import UserError
from nanomed.files import no_pipe, read_object, typed
from nanomed.network import CONNECT_SECONDS, busy, explain, folder_of, online, patiently, watched
from nanomed.streams import note
from nanomed.text import tokenizer

BUNDLED = {"nano": Path(__file__).parent.parent / "demo" / "nano"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SUMMARY = "summary.json"  # of a run: says on what state of its base an adapter was trained


@dataclass(frozen=True)
class Source:
    """The files of a model. name: what others find it by (Hub id or absolute path); directory: its config,
    weights and tokenizer; adapter: the adapter's directory, `name` and `directory` being its base's."""

    name: str
    directory: Path
    adapter: Path | None = None

    @property
    def places(self) -> tuple[Path | None, Path]:
        """Where it keeps what it knows of its training: with the adapter, if it is one, and with the base."""
        return self.adapter, self.directory

    @property
    def home(self) -> Path:
        """The directory that was named: an adapter's, or the model's."""
        return self.adapter or self.directory

    @cached_property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer is: with the adapter, else with its base, else with what that was made of."""
        if self.adapter and tokenizer.has_tokenizer(self.adapter):
            return self.adapter
        return self.directory if tokenizer.has_tokenizer(self.directory) else _made_of(self.directory)


def find(name: str, weights: bool = True) -> Source:
    """Locate a model, downloading what is not there yet: config, safetensors and tokenizer files, nothing
    else.

    Raises UserError if it is neither a directory nor a Hub id, or cannot be had; within 10 seconds if there
    is no network."""
    if name in BUNDLED:
        return Source(str(BUNDLED[name].resolve()), BUNDLED[name])
    if not name:
        raise UserError("--model '': name a model")
    path = Path(os.path.expanduser(name))
    if path.is_symlink() and not path.exists():
        raise UserError(f"{name}: a link to {path.readlink()}, which is not there")
    if (path / ADAPTER_CONFIG).exists():
        return _find_adapter(path, weights)
    if path.is_file() and path.name == "config.json":  # for training from scratch
        path = path.parent
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"{path}: not a model directory (no config.json, no {ADAPTER_CONFIG})")
        return Source(str(path.resolve()), path)
    if path.is_file():
        raise UserError(f"{path}: a file; a model is named by the directory that it lies in")
    if path.exists() or is_path(name):
        bundled = f"; the bundled model is {path}" if str(path) in BUNDLED else ""
        raise UserError(f"{name}: no such model directory{bundled}")
    return _download(name, weights)


def is_path(name: str) -> bool:
    """Whether a name that nothing is found under can be nothing but a path, also one of Windows
    (C:\\models\\gpt2): it is not sent to the Hub."""
    outside = name.startswith((".", "/", "~")) or name.endswith("/")
    return outside or name.count("/") > 1 or bool({*":\\"} & {*name})


def _made_of(directory: Path) -> Path:
    """Where the tokenizer of a model lies that was saved without: with the model that config.json says it was
    made of, if it says so; else there. Raises UserError if that cannot be had."""
    name = read_object(directory / "config.json").get("_name_or_path")
    if not isinstance(name, str) or not name or Path(name).resolve() == directory.resolve():
        return directory
    try:
        found = find(name, weights=False).tokenizer_directory
    except UserError as e:
        where = f"{directory}: no tokenizer there, nor at {name} (_name_or_path in its config.json)"
        raise UserError(f"{where}: {e}; copy it from the model that this one was made of") from e
    if tokenizer.has_tokenizer(found):
        note(f"{directory}: no tokenizer; that of {name} is taken (_name_or_path)")
    return found


def _find_adapter(path: Path, weights: bool) -> Source:
    base = read_object(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        why = "no base_model_name_or_path, so the adapter's base is unknown"
        raise UserError(f"{path / ADAPTER_CONFIG}: {why}")
    if Path(base).name == "base" and (path / "base" / "config.json").exists():
        base = str(path / "base")  # its own, wherever the two of them have been moved to
    if Path(os.path.expanduser(base), ADAPTER_CONFIG).exists():  # perhaps this very one
        raise UserError(f"{path}: its base {base} is an adapter too; merge that one first (docs/adapters.md)")
    try:
        source = find(base, weights)
    except UserError as e:
        mend = f"where it is now belongs into base_model_name_or_path in {path / ADAPTER_CONFIG}"
        raise UserError(f"{path}: the adapter's base cannot be had: {e}; {mend}") from e
    known = read_object(path / SUMMARY, {}).get("base_sha256") if weights else None
    if known and known != fingerprint(source):
        why = f"its base {source.name} is not what it was when the adapter was trained on it"
        mend = f"to use it all the same, take base_sha256 out of {path / SUMMARY}"
        raise UserError(f"{path}: {why}; put that back, or train again ({mend})")
    return Source(source.name, source.directory, path.resolve())


def _download(repo: str, weights: bool) -> Source:
    def get(filename: str) -> Path | None:
        try:
            found = watched(lambda: _fetch(repo, filename), folder_of("models", repo))
            return Path(found) if found else None
        except errors.LocalEntryNotFoundError:  # offline and not in the cache, or the connection broke
            if online():
                raise
            return None
        except errors.EntryNotFoundError:
            return None

    def needed(filename: str, what: str) -> Path:
        if found := get(filename):
            return found
        raise explain(repo, FileNotFoundError(f"it has no {what}"), "directory")

    try:
        config = needed("config.json", "config.json")
        if weights and get(WEIGHTS) is None:
            for shard in sorted(set(weight_map(needed(INDEX, "safetensors weights")).values())):
                get(shard)
        files = {*tokenizer.FILES, *tokenizer.BESIDE}
        if get("tokenizer.json"):  # vocab.json and merges.txt say the same
            files -= {"vocab.json", "merges.txt"}
        for filename in sorted(files - {"tokenizer.json"}):
            get(filename)
    except (errors.HfHubHTTPError, errors.HTTPError, errors.HFValidationError, OSError) as e:
        raise explain(repo, e, "directory") from e
    return Source(repo, config.parent)


def _fetch(repo: str, filename: str) -> str | None:
    """Where a file of the Hub's is here, after it was downloaded if it is not there, or newer. What is in
    the cache will do where the Hub itself is in trouble; None if it is not among what is there."""
    if not online():
        return hf.hf_hub_download(repo, filename, local_files_only=True)
    try:  # asked for itself, since the library would hide what the Hub answers, and try for a minute
        url = hf.hf_hub_url(repo, filename)
        patiently(lambda: hf.get_hf_file_metadata(url, timeout=CONNECT_SECONDS))
    except errors.EntryNotFoundError:
        raise
    except errors.HTTPError as e:  # or the connection broke
        if isinstance(e, errors.HfHubHTTPError) and not busy(e):
            raise
        try:
            return hf.hf_hub_download(repo, filename, local_files_only=True)
        except errors.LocalEntryNotFoundError:
            if isinstance(hf.try_to_load_from_cache(repo, "config.json"), str):  # the model is, without this
                return None
            raise e from None
    return patiently(lambda: hf.hf_hub_download(repo, filename))


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor; the files are beside the index."""
    weight_map = typed(dict[str, str], read_object(index).get("weight_map"), f"{index}: weight_map")
    for name in weight_map.values():
        if not name.isprintable() or Path(name).name != name or name in ("", ".."):
            raise UserError(f"{index}: weight_map: {name!r} is no name of a file beside it")
    return weight_map


def fingerprint(source: Source, weights: bool = True) -> str:
    """SHA-256 of everything that decides what the model computes: config, weights and adapter."""
    digest, directory = hashlib.sha256(), source.directory
    index = directory / INDEX
    shards = {directory / name for name in weight_map(index).values()} if index.exists() else set()
    files = [directory / "config.json", *sorted(shards | {*directory.glob("model*.safetensors")})]
    files += sorted(source.adapter.glob("adapter*")) if source.adapter else []
    for file in files:
        if file.name == ADAPTER_CONFIG:  # where the base lies may change
            config = {k: v for k, v in read_object(file).items() if k != "base_model_name_or_path"}
            digest.update(json.dumps(config, sort_keys=True).encode())
        elif file.exists() and (weights or file.suffix == ".json"):
            s = file.stat()
            digest.update(file.name.encode() + _digest(file.resolve(), s.st_ino, s.st_mtime_ns, s.st_size))
    return digest.hexdigest()


@cache
def _digest(file: Path, *state: int) -> bytes:
    """SHA-256 of a file, read once as long as its state, which tells one version from another, is the
    same."""
    with open(no_pipe(file), "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
