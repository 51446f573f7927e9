"""peft's adapter directories, read and written: adapter_config.json and adapter_model.safetensors.

A tensor is called `base_model.model.` and its name in the model: `...c_attn.lora_A.weight` (r, in), `lora_B`
(out, r). What is plain LoRA is loaded beside the layers, and can be trained on; what is more than that is
computed into the weights (nanomed.hub.merging)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import regex
from msgspec import Meta
from torch import nn

from nanomed.errors import UserError, naming
from nanomed.files import read_object, typed, write_json
from nanomed.hub import merging
from nanomed.hub.config import EYES, PART
from nanomed.hub.source import ADAPTER, ADAPTER_CONFIG
from nanomed.memory import shortage
from nanomed.models.classifier import HEAD, Classifier
from nanomed.models.lora import LoRAConfig, adapter_state, fits, inject, is_linear, lora_layers, resolve
from nanomed.models.quant import QUANTISED
from nanomed.streams import note
from nanomed.tensors import read_safetensors, safetensors_shapes, write_safetensors
from nanomed.text.tokenizer import copy_tokenizer

PEFT_PREFIX = "base_model.model."
LONGEST = 1.0  # second that a regular expression, which may come from anybody, may take for one name
CALLS = "PeftModel.from_pretrained(BASE, DIR).merge_and_unload().save_pretrained(NEW)"
MERGE = f"merge it with peft first: {CALLS}"
CONVERT = "save it again with peft, with path_initial_model_for_weight_conversion, and it is plain LoRA"
# Of adapter_config.json, beside what AdapterConfig holds: bookkeeping, and what only a training needs. All
# else must be unset.
INERT = set(
    """task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    fan_in_fan_out megatron_core qalora_group_size runtime_config loftq_config eva_config corda_config
    lora_ga_config""".split()
)
# Ways to start an adapter after which the file holds all that there is to know; merging.principal() knows the
# last two.
STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica", "pissa", "olora")
# What cannot be had from the file, and what to do.
NO_WEIGHTS = "which no weights can say; measure it with peft"
LOST = {
    "pissa_niter": f"its base is drawn anew, at random, at each load, and cannot be had again; {CONVERT}",
    "corda": f"its base was changed by a data set that the adapter does not hold; {CONVERT}",
    "lora_ga": f"its base was changed by gradients that the adapter does not hold; {CONVERT}",
    "alora_invocation_tokens": f"it acts from these tokens on, {NO_WEIGHTS}",
    "arrow_config": f"it chooses among adapters for each token, {NO_WEIGHTS}",
}

Rank = Annotated[int, Meta(ge=0, lt=2**31)]
Number = Annotated[float, Meta(ge=0, lt=2**31)]
Names = list[str] | str


@dataclass(frozen=True)
class AdapterConfig:
    """The keys of adapter_config.json that decide what is computed, with peft's names and defaults."""

    r: Annotated[int, Meta(ge=1, lt=2**31)]
    lora_alpha: Number
    lora_dropout: Annotated[float, Meta(ge=0, lt=1)]
    target_modules: Names
    exclude_modules: Names = ()
    layers_to_transform: Rank | list[Rank] = ()
    layers_pattern: Names = ()
    rank_pattern: dict[str, Annotated[int, Meta(ge=1, lt=2**31)]] = field(default_factory=dict)
    alpha_pattern: dict[str, Number] = field(default_factory=dict)
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    ensure_weight_tying: bool = False
    modules_to_save: list[Annotated[str, Meta(pattern=r"^[\w.]+$")]] = ()
    trainable_token_indices: list[Rank] | dict[str, list[Rank]] = ()

    def of(self, name: str) -> LoRAConfig:
        """What the layer of this name has: the first pattern that fits the end of its name, if any does."""

        def first(patterns: dict, otherwise):
            return next((v for p, v in patterns.items() if regex.fullmatch(_at_end(p), name)), otherwise)

        r, alpha = first(self.rank_pattern, self.r), first(self.alpha_pattern, self.lora_alpha)
        return LoRAConfig(r, alpha, self.lora_dropout, (name,), self.use_rslora)

    def adapts(self, name: str) -> bool:
        """Whether a layer that fits the targets has an adapter: the other keys may leave it out."""
        if fits(self.exclude_modules, name) or any(f".{m}." in f".{name}." for m in self.modules_to_save):
            return False
        wanted = self.layers_to_transform
        if wanted == () or wanted == []:
            return True
        found = next(filter(None, (regex.fullmatch(layer, name) for layer in self._layers())), None)
        return found is not None and int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)

    def _layers(self) -> list[str]:
        """Expressions that find the layer's number in a name."""
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        return [rf"(?:^|.*?\.){p}\.(\d+)\..*" for p in patterns if p] or [r".*?\.[^.]*\.(\d+)\..*"]

    def expressions(self) -> list[str]:
        """All regular expressions in it, as a whole name is matched against them."""
        named = [p for p in (self.target_modules, self.exclude_modules) if isinstance(p, str)]
        return named + self._layers() + [_at_end(p) for p in (*self.rank_pattern, *self.alpha_pattern)]

    @property
    def is_plain(self) -> bool:
        """Whether every layer has the same A and B beside it, and nothing else is changed."""
        more = (self.rank_pattern, self.alpha_pattern, self.lora_bias, self.use_dora)
        whole = set(self.modules_to_save) - {"classifier", "score"}  # peft's, for classifiers
        changed = self.bias != "none" or self.init_lora_weights in ("pissa", "olora")
        return not (any(more) or self.trainable_token_indices or whole or changed)


def _at_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})"


def _read_config(path: Path) -> AdapterConfig:
    """Raises UserError for what is wrong or missing in adapter_config.json, and for what is not read here,
    with what to do instead."""
    config = {key: value for key, value in read_object(path).items() if value is not None}
    kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    if kind != "LORA":
        mend = f"if peft can merge it, {MERGE}"
        raise UserError(f"{path}: peft_type {kind!r} is not supported, LORA is; {mend}")
    known = {f.name for f in fields(AdapterConfig)}
    for key, value in config.items():
        if key not in known | INERT and value and value != "none":
            raise UserError(f"{path}: {key} = {value!r} is not supported: {LOST.get(key, MERGE)}")
    if isinstance(start, str) and start.lower() in STARTS:
        config["init_lora_weights"] = start.lower()
    found = typed(AdapterConfig, config, path)
    if found.init_lora_weights not in STARTS:
        why = LOST.get(start.rstrip("_0123456789"), MERGE)
        raise UserError(f"{path}: init_lora_weights = {start!r} is not supported: {why}")
    return found


def load_adapter(model, directory: Path) -> None:
    """Give a model, or a classifier, the adapter of a directory, in place. Plain LoRA stays beside the
    layers, which are frozen, and `model.lora` says how; what is more than that is merged, and `model.lora`
    stays None. Raises UserError, naming the key or the tensor."""
    path, file = directory / ADAPTER_CONFIG, directory / ADAPTER
    config = _read_config(path)
    if not file.exists():
        mend = "an adapter in another format is never loaded (peft writes this one)"
        raise UserError(f"{directory}: no {ADAPTER} there; {mend}")
    keys, there = _shapes(directory).keys(), _inside(safetensors_shapes(file))
    if HEAD in keys and not isinstance(model, Classifier):
        raise UserError(f"{file}: unexpected tensor {HEAD} (a classifier, not a language model)")
    linear, ends = (nn.Linear, *QUANTISED), (".lora_A.weight", ".lora_B.weight")
    with naming(path):
        check_expressions(config.expressions(), [there(n) for n, _ in model.named_modules()])
        lora = _choose(model, config, there)
        layers = {n: m for n, m in model.named_modules() if fits(lora.targets, n)}
        plain = config.is_plain and all(k.endswith(ends) for k in keys - {HEAD})
        plain &= all(isinstance(m, linear) and n != "lm_head" for n, m in layers.items())
        if plain or not layers:
            check_size(model, lora)
            inject(model, lora)
            layers = {}
        layers = {n: config.of(there(n)) for n in layers}
    tensors = {_name(k): v for k, v in read_safetensors(file).items()}
    if others := ", ".join(eye for eye in EYES if any(f"{eye}." in k for k in tensors)):
        note(f"{file}: {others}: beside the language model, left out")
    stored = merging.Stored(file, {k: v for k, v in tensors.items() if k in keys})
    if layers:
        merging.merge(model, config, layers, stored)
    else:
        headed = isinstance(model, Classifier) and (HEAD in keys or "score" in config.modules_to_save)
        own = adapter_state(model) | ({HEAD: model.score.weight} if headed else {})
        model.load_state_dict({k: stored.take(k, v.shape) for k, v in own.items()}, strict=False)
    stored.check_empty()


def check_expressions(patterns: Iterable[str], names: list[str]) -> None:
    """Try regular expressions on all names that they will be matched against: some would take years. Raises
    UserError for such a one, and for what is none."""
    for pattern in patterns:
        for name in names:
            try:
                regex.fullmatch(pattern, name, timeout=LONGEST)
            except regex.error as e:
                raise UserError(f"LoRA's target {pattern!r} is no regular expression ({e})") from e
            except TimeoutError as e:
                why = f"takes too long to be matched against {name}"
                raise UserError(f"LoRA's target {pattern!r} {why}") from e


def check_size(model, lora: LoRAConfig) -> None:
    """Raises UserError for an adapter whose weights would not fit this machine."""
    linears = [m for n, m in model.named_modules() if fits(lora.targets, n) and is_linear(n, m)]
    if why := shortage(4 * lora.r * sum(m.in_features + m.out_features for m in linears)):
        raise UserError(f"LoRA of rank {lora.r}: {why}")


def _choose(model, config: AdapterConfig, there) -> LoRAConfig:
    """The adapter's rank, and which layers have it: as the file names them, or by their full names where
    other keys leave some out, or where it names them otherwise (there: _inside)."""
    targets = config.target_modules
    targets = targets if isinstance(targets, str) else tuple(targets)
    lora = LoRAConfig(config.r, config.lora_alpha, config.lora_dropout, targets, config.use_rslora)
    lora = resolve(model, lora)
    named = [n for n, _ in model.named_modules() if fits(lora.targets, there(n))]
    chosen = tuple(n for n in named if config.adapts(there(n)))
    if named and not chosen:
        keys = "exclude_modules, layers_to_transform and modules_to_save"
        raise UserError(f"{keys} leave no layer that has an adapter")
    unused = not isinstance(targets, str) and any(not any(fits((t,), n) for n in named) for t in lora.targets)
    differs = unused or chosen != tuple(n for n, _ in model.named_modules() if fits(lora.targets, n))
    return replace(lora, targets=chosen) if chosen and differs else lora


def _name(key: str) -> str:
    """What a tensor of an adapter's file is called in a model that is a language model alone."""
    return key.removeprefix(PEFT_PREFIX).replace(f"{PART}.", "", 1)


def _inside(keys: Iterable[str]):
    """A function that turns a module's name here into its name in the model that an adapter's file was
    trained on. transformers 5 has a language model's layers in `model.language_model`, 4.50 the whole of it
    in `language_model`."""
    prefixes = {k.removeprefix(PEFT_PREFIX).partition(f"{PART}.")[0] for k in keys if f"{PART}." in k}
    prefix = next(iter(prefixes), None)
    if prefix is None:
        return lambda name: name
    return lambda name: f"{prefix}{PART}.{name.removeprefix(prefix)}" if name else name


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors of an adapter's file that are a language model's, by their names here."""
    shapes = safetensors_shapes(directory / ADAPTER) if (directory / ADAPTER).exists() else {}
    return {_name(k): shape for k, shape in shapes.items() if not any(f"{eye}." in k for eye in EYES)}


def vocabulary(directory: Path, embedding: str) -> int | None:
    """How many rows the embedding has that is saved with an adapter, if there is one: the base's vocabulary
    may have been resized."""
    shapes = _shapes(directory)
    found = (shapes.get(key, ()) for key in merging.spellings(embedding))
    return next((shape[0] for shape in found if shape), None)


def head_rows(directory: Path) -> int | None:
    """How many labels the head has that is saved with a classifier's adapter, if there is one."""
    return next(iter(_shapes(directory).get(HEAD, ())), None)


def save_adapter(model, directory: Path, base: str, tokenizer_from: Path, state: dict | None = None) -> None:
    """Write the adapter in peft's layout. `base` is a Hub id or an absolute path, so that it loads from
    anywhere. A classifier's head goes with it, and its labels into a config.json beside it. state: in place
    of the model's own (adapter_state, and HEAD), where that is a part of the whole."""
    directory.mkdir(parents=True, exist_ok=True)
    lora, is_classifier, targets = model.lora, isinstance(model, Classifier), model.lora.targets
    state = state or adapter_state(model) | ({HEAD: model.score.weight} if is_classifier else {})
    if model.config.model_type != model.hf_config["model_type"]:  # the base has it inside (language_part)
        backbone = f"{model.family.BACKBONE}."
        there = _inside([f"{backbone}{PART}."])
        targets = [there(name) for name in lora_layers(model)]  # and not the eyes' layers of such names
        state = {there(k) if k.startswith(backbone) else k: v for k, v in state.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_rslora": lora.rslora,
        # Conv1D keeps its weight as (in, out); A and B are r x in and out x r all the same.
        "fan_in_fan_out": bool(model.family.CONV1D),
        "bias": "none",
        "modules_to_save": ["score"] if is_classifier else None,
    }
    state = {PEFT_PREFIX + k: v.detach().float().contiguous() for k, v in state.items()}
    if is_classifier:
        write_json(model.hf_config | {"architectures": [model.architecture]}, directory / "config.json")
    write_safetensors(state, directory / ADAPTER)
    write_json(config, directory / ADAPTER_CONFIG)
    copy_tokenizer(tokenizer_from, directory)
