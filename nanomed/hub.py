"""Find a model, read it, write it: Hugging Face's directory layout and peft's adapters, safetensors only.

A model is named by a Hub id (`gpt2`), a directory with config.json, a peft adapter directory, whose base is found through
`base_model_name_or_path`, or `nano`, the bundled one.
"""

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from nanomed import tokenizer
from nanomed.errors import UserError
from nanomed.files import read_object, read_safetensors, write_json, write_safetensors
from nanomed.lora import LoRAConfig, adapter_state, inject
from nanomed.models.classifier import Classifier
from nanomed.models.gpt2 import GPT2

ARCHITECTURES = {"gpt2": GPT2}
BUNDLED = {"nano": Path(__file__).parent / "demo" / "nano"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
HEAD = "score.weight"  # a classifier's
SUMMARY = "summary.json"  # of a run: says on what state of its base an adapter was trained
CONNECT_SECONDS = 5
OFFLINE = constants.HF_HUB_OFFLINE  # as the user set it

# Keys of config.json that change nothing that is computed here: bookkeeping, generation defaults, other heads.
INERT = set(
    """architectures bos_token_id eos_token_id pad_token_id dtype torch_dtype transformers_version use_cache n_ctx
    output_attentions output_hidden_states output_past return_dict torchscript id2label label2id num_labels finetuning_task
    problem_type task_specific_params summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout gradient_checkpointing use_bfloat16 tokenizer_class prefix max_length min_length do_sample
    early_stopping num_beams num_beam_groups temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate diversity_penalty forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens decoder_start_token_id sep_token_id
    tf_legacy_loss n_special predict_special_tokens""".split()
)
# Keys that would change what is computed, with the only value that is supported.
FIXED = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
}
# The same for adapter_config.json: what LoRAConfig holds or is bookkeeping; all else must be unset.
ADAPTER_INERT = set(
    """task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha
    lora_dropout target_modules fan_in_fan_out megatron_core qalora_group_size runtime_config loftq_config""".split()
)


@dataclass(frozen=True)
class Source:
    """Where a model's files lie. name: what others find it by (Hub id or absolute path); directory: its config,
    weights and tokenizer; adapter: the adapter's directory, `name` and `directory` being its base's."""

    name: str
    directory: Path
    adapter: Path | None = None

    @property
    def tokenizer_directory(self) -> Path:
        own = self.adapter is not None and any((self.adapter / f).exists() for f in tokenizer.FILES[:2])
        return self.adapter if own else self.directory


def find(name: str, weights: bool = True) -> Source:
    """Locate a model, downloading what is not there yet: config, safetensors and tokenizer files, nothing else.

    Raises UserError if it is neither a directory nor a Hub id, or cannot be had; within 10 seconds if there is no network.
    """
    if name in BUNDLED:
        return Source(str(BUNDLED[name].resolve()), BUNDLED[name])
    path = Path(name).expanduser()
    if (path / ADAPTER_CONFIG).exists():
        return _find_adapter(path, weights)
    if path.is_file() and path.name == "config.json":  # for training from scratch
        path = path.parent
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"{path}: not a model directory (no config.json, no {ADAPTER_CONFIG})")
        return Source(str(path.resolve()), path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such model directory")
    return _download(name, weights)


def _find_adapter(path: Path, weights: bool) -> Source:
    base = read_object(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UserError(f"{path / ADAPTER_CONFIG}: no base_model_name_or_path, so the adapter's base is unknown")
    if Path(base).name == "base" and (path / "base" / "config.json").exists():
        base = str(path / "base")  # its own, wherever the two of them have been moved to
    try:
        source = find(base, weights)
    except UserError as e:
        raise UserError(f"{path}: the adapter's base cannot be had: {e}") from e
    if source.adapter:
        raise UserError(f"{path}: its base {base} is an adapter too; merge that one first (--merge)")
    known = read_object(path / SUMMARY).get("base_sha256") if weights and (path / SUMMARY).exists() else None
    if known and known != fingerprint(source):
        raise UserError(
            f"{path}: its base {source.name} is not what it was when the adapter was trained on it; put that back, "
            f"or train again (to use it all the same, take base_sha256 out of {path / SUMMARY})"
        )
    return Source(source.name, source.directory, path.resolve())


@cache
def online() -> bool:
    """Whether the Hub answers at all, asked once: huggingface_hub itself retries for half a minute before it gives up."""
    if OFFLINE:
        return False
    answers = []

    def ask():
        with contextlib.suppress(Exception):
            answers.append(huggingface_hub.get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS))

    # In a thread: a dead name server, or a host of many addresses, would outlast any timeout of the request's.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answers:
        # Else huggingface_hub would go on to ask for things of its own (which agent it runs under), and wait for those.
        constants.HF_HUB_OFFLINE = True
    return bool(answers)


def explain(repo: str, error: Exception, what: str) -> UserError:
    """One line for whatever huggingface_hub or datasets raised about a repository."""
    endpoint = constants.ENDPOINT
    local = f"; or give a local {what}"
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    if any(isinstance(e, GatedRepoError) for e in chain):
        return UserError(f"{repo}: gated on {endpoint}; accept its terms there and run `hf auth login`{local}")
    if any(isinstance(e, RepositoryNotFoundError | HFValidationError) for e in chain):
        return UserError(f"{repo}: no such repository on {endpoint}, and no such directory here{local}")
    if not online():
        why = "HF_HUB_OFFLINE is set" if OFFLINE else f"no network: {endpoint} is out of reach"
        return UserError(f"{repo}: no such {what} here, nor in the Hub's cache, and {why}{local}")
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{repo}: could not be had from {endpoint} ({first}){local}")


def _download(repo: str, weights: bool) -> Source:
    def get(filename: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, filename, local_files_only=not online()))
        except LocalEntryNotFoundError:  # offline and not in the cache, or the connection broke
            if online():
                raise
            return None
        except EntryNotFoundError:
            return None

    try:
        config = get("config.json")
        if config is None:
            raise explain(repo, FileNotFoundError("it has no config.json"), "directory")
        if weights and get(WEIGHTS) is None:
            index = get(INDEX)
            if index is None:
                raise explain(repo, FileNotFoundError("it has no safetensors weights"), "directory")
            for shard in sorted(set(_weight_map(index).values())):
                get(shard)
        if get("tokenizer.json") is None:
            get("vocab.json"), get("merges.txt")
        get("tokenizer_config.json")
    except (HfHubHTTPError, HTTPError, HFValidationError, OSError) as e:
        raise explain(repo, e, "directory") from e
    return Source(repo, config.parent)


def fingerprint(source: Source, weights: bool = True) -> str:
    """SHA-256 of everything that decides what the model computes: config, weights and adapter."""
    digest = hashlib.sha256()
    for directory, patterns in ((source.directory, ("config.json", "model*.safetensors")), (source.adapter, ("adapter*",))):
        for pattern in patterns if directory else ():
            for file in sorted(directory.glob(pattern)):
                if weights or file.suffix == ".json":
                    s = file.stat()
                    digest.update(file.name.encode() + _digest(file.resolve(), s.st_ino, s.st_mtime_ns, s.st_size))
    return digest.hexdigest()


@cache
def _digest(file: Path, *state: int) -> bytes:
    """SHA-256 of a file, read once as long as its state, whatever tells one version of it from another, is the same."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


def read_config(directory: Path) -> tuple[dict, object]:
    """config.json as it stands, and the architecture's own config made from it. Raises UserError for an unknown
    architecture, or a flag that the model here would not honour."""
    path = Path(directory) / "config.json"
    raw = read_object(path)
    if raw.get("model_type") not in ARCHITECTURES:
        raise UserError(f"{path}: unknown architecture {raw.get('model_type')!r}; known: {', '.join(ARCHITECTURES)}")
    config_class = ARCHITECTURES[raw["model_type"]].config_class
    known = {f.name for f in fields(config_class)}
    for key, value in raw.items():
        if key in FIXED and value != FIXED[key]:
            raise UserError(f"{path}: {key} = {value!r} is not supported")
        if key not in known | INERT | FIXED.keys() | {"model_type"} and not key.startswith("_"):
            raise UserError(f"{path}: {key!r} is not supported; if it changes nothing, take it out of the file")
    try:
        return raw, config_class(**{k: v for k, v in raw.items() if k in known})
    except (UserError, TypeError, ZeroDivisionError) as e:
        raise UserError(f"{path}: {e}") from e


def check_vocabulary(tok: tokenizer.Tokenizer, config, source: Source) -> None:
    """Raises UserError if the tokenizer gives ids that the model has no embedding for."""
    if tok.vocab_size > config.vocab_size:
        raise UserError(
            f"{source.tokenizer_directory}: the tokenizer has ids up to {tok.vocab_size - 1}, but the model's vocab_size "
            f"is {config.vocab_size}"
        )


def load_model(source: Source, from_scratch=False, dropout: float | None = None, classifier=False) -> torch.nn.Module:
    """The model in fp32 on the CPU, adapter injected if the source has one, with `hf_config` (config.json as a dict).
    `dropout`, if given, takes the place of the three probabilities in the config; `classifier`: the adapter is one's.

    Raises UserError, naming file and tensor, for weights that are missing, unexpected, misshapen, pickled or corrupt.
    """
    raw, config = read_config(source.directory)
    if dropout is not None:
        config = replace(config, embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout)
    model_class = ARCHITECTURES[raw["model_type"]]
    if from_scratch and source.adapter:
        raise UserError(f"--from-scratch takes a shape and a tokenizer, and {source.adapter} is an adapter; give {source.name}")
    if from_scratch:
        model = model_class(config)
        model.init_weights()
    else:
        with torch.device("meta"):
            model = model_class(config)
        model.load_state_dict(_model_state(model, source.directory), assign=True)
        model.tie_weights()
    model.hf_config = raw
    if source.adapter:
        _load_adapter(model, source.adapter, classifier)
    return model.train()


def load_classifier(source: Source) -> Classifier:
    """A classifier, full or adapter, as save_model and save_adapter wrote it, or transformers. Raises UserError as
    load_model does, and if the directory holds no classifier."""
    directory = source.adapter or source.directory
    raw = read_object(directory / "config.json") if (directory / "config.json").exists() else {}
    names = raw.get("id2label") or {}
    if raw.get("architectures") != [Classifier.architecture] or not names:
        raise UserError(f"{directory}: not a classifier (train_cls.py makes one)")
    labels = [names.get(str(k)) for k in range(len(names))]
    multi_label = raw.get("problem_type") == "multi_label_classification"
    if source.adapter:
        model = Classifier(load_model(source, classifier=True), labels, multi_label, raw.get("pad_token_id") or 0)
        head = read_safetensors(source.adapter / ADAPTER).get(PEFT_PREFIX + HEAD)
    else:
        _, config = read_config(source.directory)
        lm = ARCHITECTURES[raw["model_type"]](config)
        lm.hf_config = raw
        model = Classifier(lm, labels, multi_label, raw.get("pad_token_id") or 0)
        state = _model_state(model, source.directory)
        model.load_state_dict(state)
        head = state[HEAD]
    if head is None or head.shape != model.score.weight.shape:
        raise UserError(f"{directory}: no {HEAD} of shape {tuple(model.score.weight.shape)} there")
    with torch.no_grad():
        model.score.weight.copy_(head)
    return model.train()


def _model_state(model, directory: Path) -> dict[str, torch.Tensor]:
    """The files' tensors under the model's own names and orientation, checked both ways."""
    expected = {k: v.shape for k, v in model.state_dict().items()}
    state, origin = {}, {}
    for file, key, tensor in _read_weights(directory):
        name = key if key.startswith(("transformer.", "lm_head.", "score.")) else "transformer." + key
        if name.endswith(model.mask_buffers):
            continue
        if name in state:
            raise UserError(f"{file}: {key} is stored twice, with and without the prefix `transformer.`")
        if name not in expected:
            hint = " (a classifier, not a language model)" if name == HEAD else ""
            raise UserError(f"{file}: unexpected tensor {key}{hint}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(f"{file}: {key} is stored as {tensor.dtype}; fp32, fp16 and bf16 are supported")
        if name.endswith(model.conv1d) and tensor.dim() == 2:
            tensor = tensor.t()
        if tensor.shape != expected[name]:
            raise UserError(f"{file}: {key} has shape {tuple(tensor.shape)}, but config.json asks for {tuple(expected[name])}")
        state[name], origin[name] = tensor.float().contiguous(), file
    head, embedding = "lm_head.weight", "transformer.wte.weight"
    if head in expected and model.config.tie_word_embeddings and embedding in state:
        if head in state and not torch.equal(state[head], state[embedding]):
            raise UserError(f"{origin[head]}: {head} differs from the embedding that config.json ties it to")
        state[head] = state[embedding]
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise UserError(f"{directory}: tensor {missing[0]} is missing" + f" (and {len(missing) - 1} more)" * (len(missing) > 1))
    return state


def _read_weights(directory: Path) -> Iterable[tuple[Path, str, torch.Tensor]]:
    """(file, key, tensor) of model.safetensors, or of every shard that the index names."""
    directory = Path(directory)
    if (directory / WEIGHTS).exists():
        shards = {WEIGHTS: None}
    elif (directory / INDEX).exists():
        shards = {}
        for key, file in _weight_map(directory / INDEX).items():
            shards.setdefault(file, set()).add(key)
    else:
        pickled = sorted(p.name for p in directory.glob("*.bin"))
        hint = (
            f"; {pickled[0]} is a pickle, which could run any code and is never loaded: convert it to safetensors"
            if pickled
            else ""
        )
        raise UserError(f"{directory}: no {WEIGHTS} there{hint}")
    for file, keys in shards.items():
        state = read_safetensors(directory / file)
        if keys is not None and keys != state.keys():
            odd = sorted(keys ^ state.keys())[0]
            raise UserError(f"{directory / file}: tensor {odd} is {'missing' if odd in keys else 'not in the index'}")
        for key, tensor in state.items():
            yield directory / file, key, tensor


def _weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor; the files lie beside the index."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or any(Path(f).name != f for f in weight_map.values()):
        raise UserError(f"{index}: no weight_map of file names there")
    return weight_map


def _load_adapter(model, directory: Path, classifier: bool) -> None:
    path = directory / ADAPTER_CONFIG
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')!r} is not supported; LORA is")
    for key, value in config.items():
        harmless = not value or value == "none" or (key == "init_lora_weights" and value in (True, "gaussian"))
        harmless |= key == "modules_to_save" and value in (["score"], ["classifier", "score"])  # peft's, for classifiers
        if key not in ADAPTER_INERT and not harmless:
            raise UserError(f"{path}: {key} = {value!r} is not supported")
    for key in ("r", "lora_alpha", "lora_dropout", "target_modules"):
        if config.get(key) is None:
            raise UserError(f"{path}: {key} is missing")
    targets = config["target_modules"]
    lora = LoRAConfig(
        r=config["r"],
        alpha=config["lora_alpha"],
        dropout=config["lora_dropout"],
        targets=targets if isinstance(targets, str) else tuple(targets),
    )
    inject(model, lora)
    file = directory / ADAPTER
    if not file.exists():
        raise UserError(f"{directory}: no {ADAPTER} there; an adapter in another format is never loaded")
    state = {k.removeprefix(PEFT_PREFIX): v.float() for k, v in read_safetensors(file).items()}
    if state.pop(HEAD, None) is not None and not classifier:
        raise UserError(f"{file}: unexpected tensor {HEAD} (a classifier, not a language model)")
    expected = {k: v.shape for k, v in adapter_state(model).items()}
    for key in sorted(expected.keys() | state.keys()):
        if key not in state or key not in expected:
            raise UserError(f"{file}: tensor {key} is {'missing' if key not in state else 'unexpected'}")
        if state[key].shape != expected[key]:
            raise UserError(f"{file}: {key} has shape {tuple(state[key].shape)}, not {tuple(expected[key])}")
    model.load_state_dict(state, strict=False)


def save_model(model, directory: Path, tokenizer_from: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a full model in Hugging Face's layout: config.json, model.safetensors, and the tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # a classifier has none
    state = {k: v.detach().to(dtype) for k, v in state.items()}
    state = {k: (v.t() if k.endswith(model.conv1d) else v).contiguous() for k, v in state.items()}
    stored_as = {"architectures": [model.architecture], "dtype": str(dtype).removeprefix("torch.")}
    config = {k: v for k, v in model.hf_config.items() if k != "torch_dtype"} | stored_as
    write_safetensors(state, directory / WEIGHTS)
    write_json(config, directory / "config.json")
    _copy_tokenizer(tokenizer_from, directory)


def save_adapter(model, directory: Path, base: str, tokenizer_from: Path) -> None:
    """Write the adapter in peft's layout. `base` is a Hub id or an absolute path, so that it loads from anywhere. A
    classifier's head goes with it, and its labels into a config.json beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    lora, is_classifier = model.lora, isinstance(model, Classifier)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        "fan_in_fan_out": bool(model.conv1d),  # Conv1D keeps (in, out); A and B are r x in and out x r all the same
        "bias": "none",
        "modules_to_save": ["score"] if is_classifier else None,
    }
    state = {PEFT_PREFIX + k: v.detach().contiguous() for k, v in adapter_state(model).items()}
    if is_classifier:
        state[PEFT_PREFIX + HEAD] = model.score.weight.detach().float().contiguous()
        write_json(model.hf_config | {"architectures": [model.architecture]}, directory / "config.json")
    write_safetensors(state, directory / ADAPTER)
    write_json(config, directory / ADAPTER_CONFIG)
    _copy_tokenizer(tokenizer_from, directory)


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for name in tokenizer.FILES:
        if (source / name).exists() and source.resolve() != directory.resolve():
            shutil.copyfile(source / name, directory / name)
