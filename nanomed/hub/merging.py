"""What peft's adapters change beyond plain LoRA, computed into a model's weights in fp32 as they are loaded:
a rank or scale of its own for each layer, magnitudes (DoRA), biases, changed bases (PiSSA, OLoRA), embeddings
and heads, whole modules, single tokens.

The tensors' names are peft's 0.21, without `base_model.model.`: of a layer X that has an adapter,
X.base_layer holds what X held."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nanomed.errors import UserError
from nanomed.memory import shortage
from nanomed.models.quant import QUANTISED, dequantise
from nanomed.precision import store_frozen

OUTPUT = "lm_head.weight"


class Stored:
    """The tensors of an adapter's file, each of which has to be taken."""

    def __init__(self, file: Path, tensors: dict[str, torch.Tensor]):
        self.file, self.tensors = file, tensors

    def take(self, key: str, shape) -> torch.Tensor:
        """In fp32. shape: what it must have; None in it stands for any size. Raises UserError, naming the
        tensor."""
        if key not in self.tensors:
            raise UserError(f"{self.file}: tensor {key} is missing")
        value = self.tensors.pop(key)
        if not value.is_floating_point():
            raise UserError(f"{self.file}: {key} holds no floating-point numbers")
        fits = len(value.shape) == len(shape) and 0 not in value.shape
        if not fits or any(s not in (None, v) for s, v in zip(shape, value.shape, strict=True)):
            wanted = ", ".join("any" if s is None else str(s) for s in shape) + "," * (len(shape) == 1)
            raise UserError(f"{self.file}: {key} has shape {tuple(value.shape)}, not ({wanted})")
        return value.float()

    def take_any(self, keys: list[str], shape, needed: bool = False) -> torch.Tensor | None:
        """The first of these that is there, or None. Raises UserError if another one says something else."""
        if needed and not self.tensors.keys() & keys:
            raise UserError(f"{self.file}: tensor {keys[0]} is missing")
        found = [(key, self.take(key, shape)) for key in keys if key in self.tensors]
        for key, value in found[1:]:
            if not torch.equal(value, found[0][1]):
                raise UserError(f"{self.file}: {key} differs from {found[0][0]}, which is the same weight")
        return found[0][1] if found else None

    def drop_copies(self, modules: list[str]) -> None:
        """Of modules that are saved whole, peft may save X once more as X.modules_to_save, with the adapter's
        name or without, and what it was before as X.original_module, which nothing uses."""
        for name in modules:
            copies, before = f"{name}.modules_to_save.", f"{name}.original_module."
            for key in [k for k in self.tensors if k.startswith((copies, before))]:
                part = key.removeprefix(copies)
                names = [f"{name}.{p}" for p in (part, part.partition(".")[2])]
                found = next((n for n in names if n in self.tensors), None)
                if key.startswith(before) or (found and torch.equal(self.tensors[found], self.tensors[key])):
                    del self.tensors[key]

    def check_empty(self) -> None:
        if self.tensors:
            raise UserError(f"{self.file}: tensor {min(self.tensors)} is unexpected")


def spellings(weight: str) -> list[str]:
    """The names under which the weight of an embedding or a head can be saved whole."""
    module = weight.removesuffix(".weight")
    return [f"{module}.{part}weight" for part in ("", "base_layer.", "token_adapter.base_layer.")]


def merge(model, config, layers: dict, stored: Stored) -> None:
    """Compute an adapter into the model's weights, in place. config: hub.adapters.AdapterConfig; layers: the
    LoRAConfig of each layer that has an adapter, by its name. Raises UserError, naming the tensor."""
    size = 4 * sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, QUANTISED))
    if why := shortage(size):
        raise UserError(f"an adapter that is more than plain LoRA is merged into its base in fp32: {why}")
    dequantise(model)
    store_frozen(model, "fp32", torch.device("cpu"))
    names = [n for n, _ in model.named_modules()]
    ends = [model.family.EMBEDDING] + [OUTPUT] * ("lm_head" in names)  # a classifier has no output
    tied = model.config.tie_word_embeddings and len(ends) == 2
    if tied:  # until it is known whether they still are the same
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    modules = [n for n in names if n and n.endswith(tuple(config.modules_to_save))]  # peft's rule
    if config.ensure_weight_tying:  # adds the head where the embedding has it, and not to the config
        modules += ["lm_head"] * ("lm_head.modules_to_save.weight" in stored.tensors)
        layers |= {"lm_head": config.of("lm_head")} if "lm_head.lora_A.weight" in stored.tensors else {}
    whole = {key for key in model.state_dict() if key.startswith(tuple(f"{n}." for n in modules))}
    stored.drop_copies(modules)
    _replace_ends(model, ends, whole, tied, stored)
    for key in sorted(whole.difference(ends)):
        turned, shape = key.endswith(model.family.CONV1D), model.get_parameter(key).shape
        value = stored.take(key, shape[::-1] if turned else shape)
        put(model, key, value.t() if turned else value)
    biases = {key for key in model.state_dict() if key.endswith(".bias")}
    saved = {"none": set(), "all": biases, "lora_only": biases & {f"{n}.bias" for n in layers}}[config.bias]
    for key in sorted(saved - whole):
        name = key.removesuffix(".bias")
        there = f"{name}.base_layer.bias" if name in layers else key
        put(model, key, stored.take(there, model.get_parameter(key).shape))
    for name, lora in layers.items():
        _change(model, name, lora, config, stored)
    _replace_tokens(model, config.trainable_token_indices, tied, stored)
    if tied:
        tied = torch.equal(*(model.get_parameter(key) for key in ends))
        _configure(model, tie_word_embeddings=tied)
        model.tie_weights()


def _configure(model, **changes) -> None:
    model.config, model.hf_config = replace(model.config, **changes), model.hf_config | changes


def put(model, key: str, value: torch.Tensor) -> None:
    """A new value for a parameter, of another number of rows perhaps."""
    name, _, child = key.rpartition(".")
    module = model.get_submodule(name)
    setattr(module, child, nn.Parameter(value.contiguous()))
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(value)
    elif isinstance(module, nn.Linear):
        module.out_features = len(value)


def _replace_ends(model, ends: list[str], whole: set[str], tied: bool, stored: Stored) -> None:
    """The embedding and the head, where the file holds them: as modules_to_save, each on its own; or because
    the vocabulary was resized, or they have an adapter, and then a tied head goes with its embedding."""
    shape = (None, model.config.n_embd)
    based = {key: stored.take_any(spellings(key), shape) for key in ends if key not in whole}
    based = {key: value for key, value in based.items() if value is not None}
    if tied and based:
        first, *other = based.values()
        if other and not torch.equal(first, *other):
            what = "the embedding that the base's config.json ties it to"
            raise UserError(f"{stored.file}: {OUTPUT} differs from {what}")
        based = dict.fromkeys(ends, first)
    for key, value in (based | {key: stored.take(key, shape) for key in whole.intersection(ends)}).items():
        put(model, key, value)
    rows = [len(model.get_parameter(key)) for key in ends]
    if len(set(rows)) > 1:
        mend = "save it again from the model that was trained, with modules_to_save=[embedding, lm_head]"
        why = f"{rows[0]:,} rows of the embedding and {rows[1]:,} of the head: one was resized and not saved"
        raise UserError(f"{stored.file}: {why}; {mend}")
    _configure(model, vocab_size=rows[0])


@torch.no_grad()
def _change(model, name: str, lora, config, stored: Stored) -> None:
    """One layer: W + scale B A. DoRA (Liu et al. 2024, equation 5): m (W + scale B A) / ||W + scale B A||,
    with a length m for each output: that is a row of a linear layer's weight (out, in), and a column of an
    embedding's (words, width)."""
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Embedding):
        a = stored.take(f"{name}.lora_embedding_A", (lora.r, layer.num_embeddings))
        change, dim = (stored.take(f"{name}.lora_embedding_B", (layer.embedding_dim, lora.r)) @ a).t(), 0
    elif isinstance(layer, nn.Linear):
        a = stored.take(f"{name}.lora_A.weight", (lora.r, layer.in_features))
        change, dim = stored.take(f"{name}.lora_B.weight", (layer.out_features, lora.r)) @ a, 1
    else:
        what = f"{name} ({type(layer).__name__}) cannot have an adapter"
        raise UserError(f"{stored.file}: {what}; linear layers and embeddings can")
    weight = layer.weight.float()
    if config.init_lora_weights in ("pissa", "olora"):
        conv1d = f"{name}.weight".endswith(model.family.CONV1D)
        weight = weight - principal(weight, config.init_lora_weights, lora, conv1d)
    weight = weight + lora.scale * change
    if config.use_dora:
        lengths = stored.take(f"{name}.lora_magnitude_vector", (weight.shape[1 - dim],))
        weight = weight * (lengths / weight.norm(dim=dim)).unsqueeze(dim)
    put(model, f"{name}.weight", weight)
    if config.lora_bias:
        bias = stored.take(f"{name}.lora_B.bias", (layer.out_features,))
        if layer.bias is None:
            _give_biases(model, name, stored)
        put(model, f"{name}.bias", layer.bias.float() + lora.scale * bias)


def _give_biases(model, name: str, stored: Stored) -> None:
    """Give a layer without a bias one of zeros, and all others for which the same key of Llama's config.json
    decides that."""
    part, kind = name.split(".")[-2], model.config.model_type
    keys = {
        "self_attn": ("attention_bias", ("llama", "qwen3", "gemma3_text", "gemma3")),
        "mlp": ("mlp_bias", ("llama",)),
    }
    key, kinds = keys.get(part, ("", ()))
    if kind not in kinds:
        what = f"lora_bias on {name}, and no {kind} has a bias there"
        raise UserError(f"{stored.file}: {what}; measure it with peft")
    for other, layer in model.named_modules():
        if f".{part}." in other and isinstance(layer, nn.Linear) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_features))
    _configure(model, **{key: True})


def principal(weight: torch.Tensor, start: str, lora, conv1d: bool) -> torch.Tensor:
    """The part of a weight (out, in) that the adapter began as, and that was taken off its base: of rank r,
    by a singular value decomposition (PiSSA, Meng et al. 2024, section 3), or by a QR decomposition (OLoRA,
    Buyukakyuz 2024) of the weight as transformers has it, which is (in, out) for a Conv1D."""
    if start == "pissa":
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u[:, : lora.r] * s[: lora.r] @ v[: lora.r]
    q, r = torch.linalg.qr(weight.t() if conv1d else weight)
    part = lora.scale * q[:, : lora.r] @ r[: lora.r]
    return part.t() if conv1d else part


def _replace_tokens(model, indices: list | dict, tied: bool, stored: Stored) -> None:
    """Replace single rows of the embedding and of the head. A head that is tied to the embedding gets its
    rows, unless others are named for it."""
    embedding, key = model.family.EMBEDDING, "trainable_token_indices"
    if not isinstance(indices, dict):
        indices = {embedding.removesuffix(".weight"): indices} if indices else {}
    names = [n for n, _ in model.named_modules() if n]
    wanted = {f"{n}.weight": ids for end, ids in indices.items() for n in names if n.endswith(end)}
    if wanted.keys() - {embedding, OUTPUT} or len(wanted) < len(indices):
        raise UserError(f"{stored.file}: {key} name {', '.join(indices)}; embeddings and heads can be named")
    together = tied and embedding in wanted and wanted.get(OUTPUT, wanted[embedding]) == wanted[embedding]
    if together:
        wanted = {embedding: wanted[embedding]}
    for end, ids in wanted.items():
        weight = model.get_parameter(end).detach()
        if len(set(ids)) < len(ids) or max(ids, default=0) >= len(weight):
            where = f"{end}, which has {len(weight):,}"
            raise UserError(f"{stored.file}: {key} are not different rows of {where}")
        ends = [end, OUTPUT] if together else [end]
        places = [f"{k.removesuffix('.weight')}.token_adapter.trainable_tokens_delta" for k in ends]
        rows = stored.take_any(places, (len(ids), weight.shape[1]), needed=True)
        for k in ends:
            put(model, k, model.get_parameter(k).detach().index_copy(0, torch.tensor(ids), rows))
