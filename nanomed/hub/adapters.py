"""peft's adapter directories, read and written: adapter_config.json and adapter_model.safetensors.

A tensor is called `base_model.model.` and its name in the model: `...c_attn.lora_A.weight` (r, in), `lora_B` (out, r).
"""

from pathlib import Path

import torch

from nanomed.errors import UserError
from nanomed.files import read_object, write_json
from nanomed.hub.source import ADAPTER, ADAPTER_CONFIG
from nanomed.models.classifier import HEAD, Classifier
from nanomed.models.lora import LoRAConfig, adapter_state, inject
from nanomed.tensors import read_safetensors, write_safetensors
from nanomed.text.tokenizer import copy_tokenizer

PEFT_PREFIX = "base_model.model."
# Of adapter_config.json: what LoRAConfig holds or is bookkeeping; all else must be unset.
ADAPTER_INERT = set(
    """task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha
    lora_dropout target_modules fan_in_fan_out megatron_core qalora_group_size runtime_config loftq_config""".split()
)


def load_adapter(model, directory: Path, classifier: bool) -> None:
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
    named = isinstance(targets, str) or (isinstance(targets, list) and all(isinstance(t, str) for t in targets))
    for key, fits in (
        ("r", _number(config["r"], whole=True)),
        ("lora_alpha", _number(config["lora_alpha"])),
        ("lora_dropout", _number(config["lora_dropout"]) and config["lora_dropout"] < 1),
        ("target_modules", named),
    ):
        if not fits:
            raise UserError(f"{path}: {key} = {config[key]!r} is not what peft writes there")
    try:
        targets = targets if isinstance(targets, str) else tuple(targets)
        inject(model, LoRAConfig(config["r"], config["lora_alpha"], config["lora_dropout"], targets))
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    file = directory / ADAPTER
    if not file.exists():
        raise UserError(f"{directory}: no {ADAPTER} there; an adapter in another format is never loaded")
    stored = {k.removeprefix(PEFT_PREFIX): v for k, v in read_safetensors(file).items()}
    floating = {k: v.is_floating_point() for k, v in stored.items()}
    state = {k: v.float() if floating[k] else v for k, v in stored.items()}
    if state.pop(HEAD, None) is not None and not classifier:
        raise UserError(f"{file}: unexpected tensor {HEAD} (a classifier, not a language model)")
    expected = {k: v.shape for k, v in adapter_state(model).items()}
    for key in sorted(expected.keys() | state.keys()):
        if key not in state or key not in expected:
            raise UserError(f"{file}: tensor {key} is {'missing' if key not in state else 'unexpected'}")
        if not floating[key]:
            raise UserError(f"{file}: {key} holds no floating-point numbers")
        if state[key].shape != expected[key]:
            raise UserError(f"{file}: {key} has shape {tuple(state[key].shape)}, not {tuple(expected[key])}")
    model.load_state_dict(state, strict=False)


def _number(value, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and 0 <= value < 2**31


def head_of(directory: Path) -> torch.Tensor | None:
    """The head (K, C) that is saved with a classifier's adapter."""
    head = read_safetensors(directory / ADAPTER).get(PEFT_PREFIX + HEAD)
    return None if head is None else head.float()


def save_adapter(model, directory: Path, base: str, tokenizer_from: Path, state: dict | None = None) -> None:
    """Write the adapter in peft's layout. `base` is a Hub id or an absolute path, so that it loads from anywhere. A
    classifier's head goes with it, and its labels into a config.json beside it. state: in place of the model's own (adapter_state,
    and HEAD), where that is a part of the whole."""
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
        "fan_in_fan_out": bool(model.family.CONV1D),  # Conv1D keeps (in, out); A and B are r x in and out x r all the same
        "bias": "none",
        "modules_to_save": ["score"] if is_classifier else None,
    }
    state = state or adapter_state(model) | ({HEAD: model.score.weight} if is_classifier else {})
    state = {PEFT_PREFIX + k: v.detach().float().contiguous() for k, v in state.items()}
    if is_classifier:
        write_json(model.hf_config | {"architectures": [model.architecture]}, directory / "config.json")
    write_safetensors(state, directory / ADAPTER)
    write_json(config, directory / ADAPTER_CONFIG)
    copy_tokenizer(tokenizer_from, directory)
