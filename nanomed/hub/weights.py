"""A model's directory in Hugging Face's layout, read and written: config.json and safetensors weights, of any
family."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from nanomed.errors import UserError
from nanomed.files import read_object, write_json
from nanomed.hub import quantised
from nanomed.hub.adapters import head_rows, load_adapter, vocabulary
from nanomed.hub.config import EYES, PART, labels_of, language_part, read_config
from nanomed.hub.source import INDEX, WEIGHTS, Source, weight_map
from nanomed.memory import shortage
from nanomed.models import FAMILIES
from nanomed.models.classifier import HEAD, Classifier
from nanomed.models.language_model import LanguageModel
from nanomed.models.quant import QUANTISED
from nanomed.precision import weightless
from nanomed.streams import note
from nanomed.tensors import safetensors_dtypes, safetensors_shapes, tensors, write_safetensors
from nanomed.text.tokenizer import Tokenizer, copy_tokenizer

# What torch.compile, DataParallel and the wrappers of sharding and of gradient checkpointing put into names,
# and a model that sees pictures too.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", PART}
# What a file may hold beside a language model: heads (trl's of PPO, GPT2DoubleHeadsModel's), the eyes.
BESIDE = ("v_head", "multiple_choice_head", *EYES)


def check_vocabulary(tok: Tokenizer, config, source: Source) -> None:
    """Limit the tokenizer to the ids that the model has an embedding for, and say so. Somebody may have added
    tokens (LLaMA's [PAD], words) without a row for them: no harm, as long as no text needs one. Raises
    UserError if the others of its ids are too many."""
    resized = vocabulary(source.adapter, FAMILIES[config.model_type].EMBEDDING) if source.adapter else None
    size, where = resized or config.vocab_size, source.tokenizer_directory
    if tok.vocab_size <= size:
        return
    beyond = tok.ids_from(size)
    if not beyond <= tok.added or beyond & {tok.bos, tok.eos, tok.lead}:
        largest = tok.vocab_size - 1
        raise UserError(f"{where}: the tokenizer has ids up to {largest}, but vocab_size is {size}")
    named = ", ".join(f"{tok.name(i)} ({i})" for i in sorted(beyond)[:3]) + ", ..." * (len(beyond) > 3)
    what = f"added tokens without an embedding (vocab_size {size}): {named}; a text that needs one is refused"
    if tok.pad in beyond:
        tok.pad = tok.eos
        what += f"; rows are filled with {tok.name(tok.eos)} here (transformers fails on filled rows)"
    note(f"{where}: {what}")
    tok.limit(size)


# --- reading ------------------------------------------------------------------------------------------------


def load_model(
    source: Source, from_scratch=False, dropout=None, quantize=None, as_stored=False
) -> LanguageModel:
    """The model in fp32 on the CPU, with `hf_config` (config.json as a dict). An adapter is injected, or
    merged where it is more than plain LoRA; `model.lora` is None then. dropout: in place of the config's
    probabilities; quantize: nf4 or int8, what the linear layers are put into as they are read. What is stored
    quantised stays so. as_stored: matrices are views of the files, in their dtype, and not read yet:
    nanomed.precision.store_frozen() makes each what it is used as, without all of them in fp32 before.

    Raises UserError, naming file and tensor, for weights that are missing, unexpected, misshapen, pickled or
    corrupt."""
    if from_scratch and source.adapter:
        what = f"a shape and a tokenizer, and {source.adapter} is an adapter"
        raise UserError(f"--from-scratch takes {what}; give {source.name}")
    model = _empty(source, dropout, quantize)
    if from_scratch:
        raw, model = model.hf_config, LanguageModel(model.family, model.config)
        model.init_weights()
        model.hf_config = raw
    else:
        model.load_state_dict(_read_state(model, source.directory, quantize, as_stored), assign=True)
        model.tie_weights()
    if source.adapter:
        load_adapter(model, source.adapter)
    return model.train()


def _empty(source: Source, dropout: float | None, quantize: str | None) -> LanguageModel:
    """The model of a config.json, on the meta device. Raises UserError if its weights do not fit here."""
    raw, config = read_config(source.directory)
    family, path = FAMILIES[raw["model_type"]], source.directory / "config.json"
    if dropout is not None:
        config = replace(config, **dict.fromkeys(family.DROPOUTS, dropout))
    with weightless():
        model = LanguageModel(family, config)
    model.hf_config = raw
    size = 4 * sum(p.numel() for p in model.parameters())
    if (why := shortage(size)) and not (quantize or "quantization_config" in raw):
        raise UserError(f"{source.directory}: in fp32 {why}; --quantize nf4 or int8 takes less")
    if code := raw.get("auto_map"):
        named = ", ".join(map(str, code.values())) if isinstance(code, dict) else code
        how = f"read as any {raw['model_type']}, as by transformers without trust_remote_code"
        note(f"{path}: auto_map names code of its own ({named}), which is never run; the model is {how}")
    return model


def is_classifier(source: Source) -> bool:
    """Whether a source says, by its config.json or by its adapter's head, that it is one."""
    if source.adapter and head_rows(source.adapter):
        return True
    known = [classifier for family in FAMILIES.values() for _, classifier in family.ARCHITECTURES.values()]
    return read_object(source.directory / "config.json").get("architectures") in [[name] for name in known]


def load_classifier(source: Source, dropout=None, quantize=None, as_stored=False) -> Classifier:
    """A classifier, full or adapter, as save_model and save_adapter wrote it, or transformers and peft; the
    rest as of load_model. An adapter's base is a language model, or a classifier itself. Raises UserError as
    load_model does, and if the directory holds no classifier."""
    directory = source.home
    if not is_classifier(source):
        raise UserError(f"{directory}: not a classifier (train_cls.py makes one)")
    paths = (d / "config.json" for d in (directory, source.directory))  # peft writes none
    path = next(path for path in paths if path.exists())
    raw, rows = language_part(read_object(path), path), head_rows(source.adapter) if source.adapter else None
    like = (*labels_of(raw, path, rows), raw.get("pad_token_id") or 0)
    if source.adapter:
        base = replace(source, adapter=None)
        load = load_classifier if is_classifier(base) else load_model
        model = load(base, dropout=dropout, quantize=quantize, as_stored=as_stored)
        model = Classifier(model, *like) if rows else model
        load_adapter(model, source.adapter)
        return model.train()
    lm = _empty(source, dropout, quantize)
    with weightless():
        model = Classifier(lm, *like)
    model.load_state_dict(_read_state(model, source.directory, quantize, as_stored), assign=True)
    return model.train()


def _read_state(model, directory: Path, quantize: str | None, as_stored: bool) -> dict[str, torch.Tensor]:
    """The files' tensors as the model's parameters, checked both ways. One is read at a time, and quantised
    if it is to be, so that beside the model there is never more than one in memory. Gives the model its
    quantised layers, if it has any."""
    stored = quantised.kind_of(model.hf_config, directory / "config.json")
    quantised.prepare(model, stored, quantize, directory)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QUANTISED)}
    expected, backbone = {k: v.shape for k, v in model.state_dict().items()}, f"{model.family.BACKBONE}."
    state, origin, others = {}, {}, set()
    for file, key, tensor in _read_weights(directory):
        name, tensor = _to_parameter(model.family, key, tensor)
        head, where = name.removeprefix(backbone).split(".")[0], f"{file}: {key}"
        if key.endswith(model.family.BUFFERS) or head in BESIDE:
            others |= {head} & set(BESIDE)
            continue
        owner, part = quantised.layer_of(layers, name) or (None, None)
        layer = layers.get(owner)
        if layer and stored:
            values = quantised.read_part(layer, part, tensor, where)
            state |= {f"{owner}.{buffer}": value for buffer, value in values.items()}
            continue
        wanted = expected.get(name)
        if layer:  # which is quantised now
            wanted = (layer.out_features, layer.in_features) if part == "weight" else None
        if name in state:
            raise UserError(f"{where} is stored twice, with and without the prefix `{backbone}`")
        if wanted is None:
            hint = " (a classifier, not a language model)" if name == HEAD else ""
            raise UserError(f"{file}: unexpected tensor {key}{hint}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(f"{where} is stored as {tensor.dtype}; fp32, fp16 and bf16 are supported")
        if tensor.shape != wanted:
            raise UserError(f"{where} has shape {(*tensor.shape,)}, but config.json asks for {(*wanted,)}")
        if layer:
            layer.dtype = tensor.dtype
            state |= {f"{owner}.{buffer}": value for buffer, value in layer.quantise(tensor).items()}
        else:
            small = tensor.dim() == 1 or tensor.dtype == torch.float64
            state[name], origin[name] = tensor.float() if small else tensor, file
    if not as_stored:
        _read_all(state)
    if others:
        note(f"{directory}: {', '.join(sorted(others))}: beside the language model, left out")
    if "lm_head.weight" in expected and model.config.tie_word_embeddings:
        _tie(state, "lm_head.weight", model.family.EMBEDDING, origin)
    if missing := sorted(expected.keys() - state.keys()):
        more = f" (and {len(missing) - 1} more)" * (len(missing) > 1)
        raise UserError(f"{directory}: tensor {missing[0]} is missing{more}")
    return state


def _read_all(state: dict[str, torch.Tensor]) -> None:
    """Put what is still as the files have it into fp32, row after row, in place; several tensors at a time,
    since PyTorch transposes each with one thread."""

    def is_ready(tensor):
        return not tensor.is_floating_point() or (tensor.dtype == torch.float32 and tensor.is_contiguous())

    new = {name: torch.empty(tensor.shape) for name, tensor in state.items() if not is_ready(tensor)}

    def read(name: str) -> None:
        state[name] = new[name].copy_(state[name].float())

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(read, new))


def _tie(state: dict, head: str, embedding: str, origin: dict[str, Path]) -> None:
    """Make the two one tensor, of which a file may hold both, or either (safetensors' save_model)."""
    if not {head, embedding} & state.keys():
        return
    first = state.setdefault(embedding, state.get(head))
    second = state.setdefault(head, first)
    if second is not first and not torch.equal(second.float(), first.float()):
        mend = "set tie_word_embeddings to false there if the head was trained by itself"
        what = "differs from the embedding that config.json ties it to"
        raise UserError(f"{origin[head]}: {head} {what}; {mend}")
    state[head] = first


def _to_parameter(family, key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The parameter's name and orientation of a file's tensor. Files of a bare backbone leave its name out;
    those of a wrapped model have the wrapper's in it."""
    key = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    bare = not key.startswith((f"{family.BACKBONE}.", "lm_head.", "score."))
    name = f"{family.BACKBONE}.{key}" if bare else key
    return name, _turned(family, name, tensor)


def _turned(family, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight as files have it, or back: Conv1D's is (in, out) there, unless it is quantised."""
    conv1d = name.endswith(family.CONV1D) and tensor.dim() == 2 and tensor.is_floating_point()
    return tensor.t() if conv1d else tensor


def _read_weights(directory: Path) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """(file, key, tensor) of model.safetensors, or of every shard that the index names, one after another."""
    if (directory / WEIGHTS).exists():
        yield from ((directory / WEIGHTS, key, tensor) for key, tensor in tensors(directory / WEIGHTS))
        return
    if not (directory / INDEX).exists():
        pickled = sorted(p.name for p in directory.glob("*.bin"))
        why = "is a pickle, which could run any code and is never loaded: convert it to safetensors"
        raise UserError(f"{directory}: no {WEIGHTS} there" + (f"; {pickled[0]} {why}" if pickled else ""))
    shards = {}
    for key, file in weight_map(directory / INDEX).items():
        shards.setdefault(directory / file, set()).add(key)
    for file, keys in shards.items():
        if odd := sorted(keys ^ safetensors_shapes(file).keys()):
            what = "missing" if odd[0] in keys else "not in the index"
            raise UserError(f"{file}: tensor {odd[0]} is {what}")
        yield from ((file, key, tensor) for key, tensor in tensors(file))


def stored_dtype(directory: Path) -> str:
    """fp32, bf16 or fp16: what most of a model's weights are stored in, those that are quantised aside."""
    shards = weight_map(directory / INDEX).values() if (directory / INDEX).exists() else ()
    files = [WEIGHTS] if (directory / WEIGHTS).exists() else sorted(set(shards))
    found = sum((safetensors_dtypes(directory / file) for file in files), Counter())
    wide = {"fp32": found["F32"] + found["F64"], "bf16": found["BF16"], "fp16": found["F16"]}
    return max(wide, key=wide.get)


# --- writing ------------------------------------------------------------------------------------------------


def save_model(model, directory: Path, tokenizer_from: Path, dtype=torch.float32, state=None) -> None:
    """Write a full model in Hugging Face's layout: config.json, model.safetensors, and the tokenizer's files.
    What is quantised is written as it is, and `dtype` is that of the rest. state: in place of the model's
    own, where that is a part of the whole. Raises UserError for a number that is too large for `dtype`."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach() for k, v in (state or model.state_dict()).items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # a classifier has none
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QUANTISED)}
    kept = {f"{n}.{buffer}" for n, m in layers.items() for buffer, _ in m.named_buffers()}
    rounded = {k for k, v in state.items() if k not in kept and v.is_floating_point()}
    state = {k: _rounded(k, v, dtype) if k in rounded else v for k, v in state.items()}
    state = quantised.to_file(model, state)
    state = {k: _turned(model.family, k, v).contiguous() for k, v in state.items()}
    odd = ("torch_dtype", "quantization_config", "auto_map")
    config = {k: v for k, v in model.hf_config.items() if k not in odd}
    config |= {"architectures": [model.architecture], "dtype": str(dtype).removeprefix("torch.")}
    if how := quantised.config_of(model):
        config["quantization_config"] = how
    write_safetensors(state, directory / WEIGHTS)
    write_json(config, directory / "config.json")
    copy_tokenizer(tokenizer_from, directory)


def _rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    found = tensor.to(dtype)
    if dtype == torch.float16 and found.isinf().any() and not tensor.isinf().any():
        what = f"{name} holds numbers beyond 65,504, the largest in fp16"
        raise UserError(f"{what}; --save-dtype bf16 or fp32 (after a training with --resume)")
    return found
