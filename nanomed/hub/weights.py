"""A model's directory in Hugging Face's layout, read and written: config.json and safetensors weights, of any
family."""

import math
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import torch

from nanomed.errors import UserError
from nanomed.files import read_object, write_json
from nanomed.hub import quantised
from nanomed.hub.adapters import head_rows, load_adapter, vocabulary
from nanomed.hub.labels import labels_of
from nanomed.hub.source import INDEX, WEIGHTS, Source, weight_map
from nanomed.memory import in_words, physical
from nanomed.models import FAMILIES
from nanomed.models.classifier import HEAD, Classifier
from nanomed.models.language_model import LanguageModel
from nanomed.models.quant import QUANTISED
from nanomed.tensors import safetensors_keys, tensors, write_safetensors
from nanomed.text.tokenizer import Tokenizer, copy_tokenizer

# Keys of config.json that change nothing that is computed here: bookkeeping, generation defaults, other
# heads.
INERT = set(
    """architectures bos_token_id eos_token_id pad_token_id dtype torch_dtype transformers_version use_cache
    output_attentions output_hidden_states output_past return_dict torchscript id2label label2id num_labels finetuning_task
    problem_type task_specific_params summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout gradient_checkpointing use_bfloat16 tokenizer_class prefix max_length min_length do_sample
    early_stopping num_beams num_beam_groups temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate diversity_penalty forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens decoder_start_token_id sep_token_id
    auto_map neftune_noise_alpha tokenizer_model_max_length transformers.js_config unsloth_fixed unsloth_version unk_token_id
    tf_legacy_loss quantization_config""".split()
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


MOST_LAYERS = 10_000
# What torch.compile, DataParallel and the wrappers of shares and of recomputed activations put into the names
# of tensors.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Heads that are trained beside a language model: trl's of PPO, GPT2DoubleHeadsModel's.
OTHER_HEADS = ("v_head", "multiple_choice_head")


# --- config.json --------------------------------------------------------------------------------------------


def read_config(directory: Path) -> tuple[dict, object]:
    """config.json as it stands, and the family's own Config made from it. Raises UserError for an unknown
    architecture, or a flag that the model here would not honour."""
    path = Path(directory) / "config.json"
    raw = read_object(path)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{path}: unknown architecture {model_type!r}; known: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    known, fixed = {f.name for f in fields(family.Config)}, FIXED | family.FIXED
    for key, value in raw.items():
        if key in fixed and value != fixed[key]:
            raise UserError(f"{path}: {key} = {value!r} is not supported")
        if key not in known | INERT | family.INERT | fixed.keys() and not key.startswith("_"):
            raise UserError(
                f"{path}: {key!r} is not supported; if it changes nothing, take it out of the file"
            )
    hints = get_type_hints(family.Config)
    for key, value in raw.items():
        if key in known and not _can_be(key, value, get_args(hints[key]) or (hints[key],), family):
            raise UserError(f"{path}: {key} = {value!r} is not what it must be: {_in_words(hints[key])}")
    try:
        config = family.Config(**(family.DEFAULTS[model_type] | {k: v for k, v in raw.items() if k in known}))
        # Far fewer weights than it has, at 4 bits: what is more than that is refused before anything is
        # built.
        least = (config.cache_shape[0] * config.n_embd + config.vocab_size) * config.n_embd / 2
        if config.cache_shape[0] > MOST_LAYERS or least > physical():
            layers, words = (
                f"{config.cache_shape[0]:,} layers of width {config.n_embd:,}",
                f"{config.vocab_size:,} words",
            )
            raise UserError(f"{layers} over {words} are no model for a machine of {in_words(physical())}")
        return raw, config
    except (UserError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise UserError(f"{path}: {e}") from e


def _can_be(key: str, value, kinds, family) -> bool:
    """Whether a value of config.json is of one of the types of its field. Numbers there are sizes, factors
    and probabilities: none is negative, sizes are at least 1."""
    for kind in kinds:
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if (
            kind is int
            and number
            and (value >= 1 or (value == 0 and key == "max_window_layers"))
            and value < 2**31
        ):
            return True
        if kind is float and number and 0 <= value < (1 if key in family.DROPOUTS else math.inf):
            return True
        if kind not in (int, float) and isinstance(value, kind):
            return True
    return False


def _in_words(hint) -> str:
    names = {
        int: "a size",
        float: "a number (a probability, of dropout)",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
    return " or ".join(names.get(kind, f"a {kind.__name__}") for kind in get_args(hint) or (hint,))


def check_vocabulary(tok: Tokenizer, config, source: Source) -> None:
    """Raises UserError if the tokenizer gives ids that the model has no embedding for. A padding token that
    somebody added and that nothing else is (LLaMA's [PAD]) is no harm: rows are filled with tok.eos then, and
    it is said."""
    resized = vocabulary(source.adapter, FAMILIES[config.model_type].EMBEDDING) if source.adapter else None
    size, alone = resized or config.vocab_size, tok.pad not in (tok.bos, tok.eos, tok.lead)
    if tok.vocab_size == size + 1 and tok.pad == size and alone and tok.reading != "read":
        pad, tok.pad = tok.name(tok.pad), tok.eos
        print(
            f"note: {source.tokenizer_directory}: its padding token {pad} has the id {size}, which the model"
            f" has no embedding for; rows are filled with {tok.name(tok.eos)} here (transformers fails on"
            " filled rows)",
            file=sys.stderr,
        )
    elif tok.vocab_size > size:
        raise UserError(
            f"{source.tokenizer_directory}: the tokenizer has ids up to {tok.vocab_size - 1}, but the model's"
            f" vocab_size is {size}"
        )


# --- reading ------------------------------------------------------------------------------------------------


def load_model(
    source: Source, from_scratch=False, dropout: float | None = None, quantize: str | None = None
) -> LanguageModel:
    """The model in fp32 on the CPU, with `hf_config` (config.json as a dict); if the source has an adapter,
    it is injected, or merged where it is more than plain LoRA, and `model.lora` is None then. `dropout`, if
    given, takes the place of the probabilities in the config; `quantize`: nf4 or int8, what the linear layers
    are put into as they are read. What is stored quantised stays so.

    Raises UserError, naming file and tensor, for weights that are missing, unexpected, misshapen, pickled or
    corrupt."""
    raw, config = read_config(source.directory)
    family = FAMILIES[raw["model_type"]]
    if dropout is not None:
        config = replace(config, **dict.fromkeys(family.DROPOUTS, dropout))
    if from_scratch and source.adapter:
        raise UserError(
            f"--from-scratch takes a shape and a tokenizer, and {source.adapter} is an adapter; give"
            f" {source.name}"
        )
    with torch.device("meta"):
        model = LanguageModel(family, config)
    size = 4 * sum(p.numel() for p in model.parameters())
    if size > physical() and not (quantize or "quantization_config" in raw):
        raise UserError(
            f"{source.directory}: {in_words(size)} of weights in fp32 do not fit this machine's"
            f" {in_words(physical())} of memory; --quantize nf4 or int8 takes less"
        )
    if code := raw.get("auto_map"):
        named = ", ".join(map(str, code.values())) if isinstance(code, dict) else code
        print(
            f"note: {source.directory / 'config.json'}: auto_map names code of its own ({named}), which is"
            f" never run; the model is read as any {raw['model_type']}, as by transformers without"
            " trust_remote_code",
            file=sys.stderr,
        )
    if from_scratch:
        model = LanguageModel(family, config)
        model.init_weights()
    else:
        model.load_state_dict(_read_state(model, source.directory, raw, quantize), assign=True)
        model.tie_weights()
    model.hf_config = raw
    if source.adapter:
        load_adapter(model, source.adapter)
    return model.train()


def is_classifier(source: Source) -> bool:
    """Whether a source says, by its config.json or by its adapter's head, that it is one."""
    if source.adapter and head_rows(source.adapter):
        return True
    known = [classifier for family in FAMILIES.values() for _, classifier in family.ARCHITECTURES.values()]
    return read_object(source.directory / "config.json").get("architectures") in [[name] for name in known]


def load_classifier(source: Source, dropout: float | None = None, quantize: str | None = None) -> Classifier:
    """A classifier, full or adapter, as save_model and save_adapter wrote it, or transformers and peft; the
    rest as of load_model. An adapter's base is a language model, or a classifier itself. Raises UserError as
    load_model does, and if the directory holds no classifier."""
    directory = source.adapter or source.directory
    if not is_classifier(source):
        raise UserError(f"{directory}: not a classifier (train_cls.py makes one)")
    path = next(
        d / "config.json" for d in (directory, source.directory) if (d / "config.json").exists()
    )  # peft's has none
    raw, rows = read_object(path), head_rows(source.adapter) if source.adapter else None
    like = (*labels_of(raw, path, rows), raw.get("pad_token_id") or 0)
    if source.adapter:
        base = replace(source, adapter=None)
        model = (load_classifier if is_classifier(base) else load_model)(
            base, dropout=dropout, quantize=quantize
        )
        if rows:
            model = Classifier(model, *like)
        load_adapter(model, source.adapter)
        return model.train()
    _, config = read_config(source.directory)
    if dropout is not None:
        config = replace(config, **dict.fromkeys(FAMILIES[raw["model_type"]].DROPOUTS, dropout))
    with torch.device("meta"):
        lm = LanguageModel(FAMILIES[raw["model_type"]], config)
        lm.hf_config = raw
        model = Classifier(lm, *like)
    model.load_state_dict(_read_state(model, source.directory, raw, quantize), assign=True)
    return model.train()


def _read_state(model, directory: Path, raw: dict, quantize: str | None) -> dict[str, torch.Tensor]:
    """The files' tensors as the model's parameters, checked both ways. One is read at a time, and quantised
    if it is to be, so that beside the model there is never more than one in memory. Gives the model its
    quantised layers, if it has any."""
    stored = quantised.kind_of(raw, directory / "config.json")
    quantised.prepare(model, stored, quantize, directory)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QUANTISED)}
    expected = {k: v.shape for k, v in model.state_dict().items()}
    state, origin, others = {}, {}, set()
    for file, key, tensor in _read_weights(directory):
        if key.endswith(model.family.BUFFERS):
            continue
        name, tensor = _to_parameter(model.family, key, tensor)
        if (head := name.removeprefix(f"{model.family.BACKBONE}.").split(".")[0]) in OTHER_HEADS:
            others.add(head)
            continue
        layer, part = quantised.layer_of(layers, name) or (None, None)
        if layer and stored:
            for buffer, value in quantised.read_part(layers[layer], part, tensor, f"{file}: {key}").items():
                state[f"{layer}.{buffer}"] = value
            continue
        if name in state:
            raise UserError(
                f"{file}: {key} is stored twice, with and without the prefix `{model.family.BACKBONE}.`"
            )
        if name not in expected:
            hint = " (a classifier, not a language model)" if name == HEAD else ""
            raise UserError(f"{file}: unexpected tensor {key}{hint}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(f"{file}: {key} is stored as {tensor.dtype}; fp32, fp16 and bf16 are supported")
        wanted = (
            expected[name]
            if not layer
            else torch.Size([layers[layer].out_features, layers[layer].in_features])
        )
        if tensor.shape != wanted:
            raise UserError(
                f"{file}: {key} has shape {tuple(tensor.shape)}, but config.json asks for {tuple(wanted)}"
            )
        if layer:
            layers[layer].dtype = tensor.dtype
            state |= {f"{layer}.{buffer}": value for buffer, value in layers[layer].quantise(tensor).items()}
            continue
        state[name], origin[name] = tensor.float().contiguous(), file
    head, embedding = "lm_head.weight", model.family.EMBEDDING
    if others:
        print(
            f"note: {directory}: {', '.join(sorted(others))}: heads beside the language model's, not read",
            file=sys.stderr,
        )
    if head in expected and model.config.tie_word_embeddings and {head, embedding} & state.keys():
        state.setdefault(embedding, state.get(head))  # safetensors' save_model keeps one name of the two
        if not torch.equal(state.setdefault(head, state[embedding]), state[embedding]):
            raise UserError(
                f"{origin[head]}: {head} differs from the embedding that config.json ties it to; "
                "set tie_word_embeddings to false there if the head was trained by itself"
            )
        state[head] = state[embedding]
    missing = sorted(expected.keys() - state.keys())
    if missing:
        more = f" (and {len(missing) - 1} more)" * (len(missing) > 1)
        raise UserError(f"{directory}: tensor {missing[0]} is missing{more}")
    return state


def _to_parameter(family, key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The parameter's name and orientation of a file's tensor. Files of a bare backbone leave its name out;
    those of a wrapped model have the wrapper's in it."""
    key = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    bare = not key.startswith((f"{family.BACKBONE}.", "lm_head.", "score."))
    name = f"{family.BACKBONE}.{key}" if bare else key
    turned = (
        name.endswith(family.CONV1D) and tensor.dim() == 2 and tensor.is_floating_point()
    )  # quantised, it is (out, in)
    return name, tensor.t() if turned else tensor


def _to_file(family, name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The inverse."""
    turned = name.endswith(family.CONV1D) and tensor.is_floating_point()
    return name, (tensor.t() if turned else tensor).contiguous()


def _read_weights(directory: Path) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """(file, key, tensor) of model.safetensors, or of every shard that the index names, one after the
    other."""
    directory = Path(directory)
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
        odd = sorted(keys ^ safetensors_keys(file))
        if odd:
            raise UserError(
                f"{file}: tensor {odd[0]} is {'missing' if odd[0] in keys else 'not in the index'}"
            )
        yield from ((file, key, tensor) for key, tensor in tensors(file))


# --- writing ------------------------------------------------------------------------------------------------


def save_model(
    model,
    directory: Path,
    tokenizer_from: Path,
    dtype: torch.dtype = torch.float32,
    state: dict | None = None,
) -> None:
    """Write a full model in Hugging Face's layout: config.json, model.safetensors, and the tokenizer's files.
    What is quantised is written as it is, and `dtype` is that of the rest. state: in place of the model's
    own, where that is a part of the whole."""
    directory.mkdir(parents=True, exist_ok=True)
    state = dict(state or model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)  # a classifier has none
    scales = {
        f"{n}.{b}" for n, m in model.named_modules() if isinstance(m, QUANTISED) for b, _ in m.named_buffers()
    }
    kept = {k for k, v in state.items() if k in scales or not v.is_floating_point()}
    state = quantised.to_file(
        model, {k: v.detach() if k in kept else v.detach().to(dtype) for k, v in state.items()}
    )
    state = dict(_to_file(model.family, k, v) for k, v in state.items())
    stored_as = {"architectures": [model.architecture], "dtype": str(dtype).removeprefix("torch.")}
    config = {
        k: v
        for k, v in model.hf_config.items()
        if k not in ("torch_dtype", "quantization_config", "auto_map")
    } | stored_as
    if how := quantised.config_of(model):
        config["quantization_config"] = how
    write_safetensors(state, directory / WEIGHTS)
    write_json(config, directory / "config.json")
    copy_tokenizer(tokenizer_from, directory)
