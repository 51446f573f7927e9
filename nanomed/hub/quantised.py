"""Quantised weights in a file, as transformers with bitsandbytes writes and reads them.

A linear layer X in NF4 is X.weight (two codes a byte) with X.weight.absmax, X.weight.quant_map (the 16
numbers) and X.weight.quant_state.bitsandbytes__nf4 (JSON in bytes: what the weight was); if its scales are
quantised too, X.weight.nested_absmax and X.weight.nested_quant_map. In int8 it is X.weight, X.SCB (the
largest of each row) and X.weight_format (0). GPT-2's are stored (out, in) then, unlike its others.
config.json says which it is, under quantization_config."""

import json
from pathlib import Path

import torch

from nanomed.errors import UserError
from nanomed.models import quant
from nanomed.precision import DTYPES

# What transformers writes under quantization_config, with the only values that are supported. Nothing here
# depends on the others: the threshold is of activations, and the compute dtype is --dtype.
KEYS = dict.fromkeys(
    """load_in_8bit load_in_4bit _load_in_8bit _load_in_4bit llm_int8_threshold bnb_4bit_compute_dtype
    llm_int8_enable_fp32_cpu_offload bnb_4bit_quant_type bnb_4bit_use_double_quant bnb_4bit_quant_storage
    quant_method""".split()
)
KEYS |= {"llm_int8_has_fp16_weight": [None, False], "llm_int8_skip_modules": [None, [], ["lm_head"]]}
STATE = "quant_state.bitsandbytes__nf4"


def kind_of(raw: dict, path: Path) -> tuple[str, dict] | None:
    """("nf4" or "int8", what quant.quantise_linears needs besides) of a config.json; None if nothing is
    quantised. Raises UserError for another quantisation."""
    how, where = raw.get("quantization_config"), f"{path}: quantization_config"
    if how is None:
        return None
    if not isinstance(how, dict) or how.get("quant_method") != "bitsandbytes":
        raise UserError(f"{where} is not of bitsandbytes; nf4 and int8 of that are supported")
    for key, value in how.items():
        if key not in KEYS or value not in (KEYS[key] or [value]):
            raise UserError(f"{where}: {key} = {value!r} is not supported")
    if how.get("load_in_8bit") and how.get("load_in_4bit"):
        raise UserError(f"{where}: load_in_8bit and load_in_4bit cannot both be true")
    if how.get("load_in_8bit"):
        return "int8", {}
    stored = (how.get("bnb_4bit_quant_type"), how.get("bnb_4bit_quant_storage", "uint8"))
    if not how.get("load_in_4bit") or stored != ("nf4", "uint8"):
        raise UserError(f"{where} is neither nf4 in bytes nor int8; others (fp4) are not supported")
    return "nf4", {"double": bool(how.get("bnb_4bit_use_double_quant"))}


def config_of(model) -> dict | None:
    """quantization_config of a model; None if nothing in it is quantised."""
    layer = next((m for m in model.modules() if isinstance(m, quant.QUANTISED)), None)
    if layer is None:
        return None
    nf4 = isinstance(layer, quant.NF4Linear)
    how = {"quant_method": "bitsandbytes", "load_in_8bit": not nf4, "load_in_4bit": nf4}
    if nf4:
        how |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": layer.double}
        how |= {"bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": "float32"}
    return how


def prepare(model, stored: tuple[str, dict] | None, quantize: str | None, directory: Path) -> None:
    """Give a model on the meta device the quantised layers that its files, or --quantize, ask for. Raises
    UserError where these are different ones."""
    if stored and quantize and stored[0] != quantize:
        raise UserError(f"--quantize {quantize}: {directory} is stored in {stored[0]} already")
    if stored or quantize:
        kind, how = stored or (quantize, {})
        quant.quantise_linears(model, kind, **how)


def layer_of(layers: dict, name: str) -> tuple[str, str] | None:
    """(layer's name, which part of it) of a file's tensor, if it is a quantised layer's: "weight",
    "weight.absmax", "SCB"."""
    for cut in (name.find(".weight"), name.rfind(".")):
        if name[:cut] in layers and name[cut + 1 :] != "bias":
            return name[:cut], name[cut + 1 :]
    return None


def read_part(layer, part: str, tensor: torch.Tensor, where: str) -> dict[str, torch.Tensor]:
    """The layer's buffers that one of its tensors in a file is, checked: none of a constant. Raises
    UserError; where: its place."""
    constants = {
        "weight_format": (torch.zeros(()), "row-major"),
        "weight.quant_map": (quant.NF4, "NF4's 16 numbers"),
        "weight.nested_quant_map": (quant.DYNAMIC, "the dynamic map of the scales"),
    }
    if part in constants:
        expected, what = constants[part]
        if tensor.shape != expected.shape or not torch.equal(tensor.float(), expected):
            raise UserError(f"{where} is not {what}; nothing else is supported")
        return {}
    if part == f"weight.{STATE}":
        return _read_state_of(layer, tensor, where)
    name, buffers = part.removeprefix("weight."), dict(layer.named_buffers())
    if name not in buffers or name in ("bias", "nested_offset"):
        raise UserError(f"{where} is unexpected in a layer of {type(layer).__name__}")
    found, wanted = ((t.dtype, tuple(t.shape)) for t in (tensor, buffers[name]))
    if found != wanted:
        raise UserError(f"{where} is {found[0]} {found[1]}, but must be {wanted[0]} {wanted[1]}")
    return {name: tensor}


def _read_state_of(layer, tensor: torch.Tensor, where: str) -> dict[str, torch.Tensor]:
    wanted = [layer.out_features, layer.in_features]
    try:
        state = json.loads(bytes(tensor.tolist()))
        shape, dtype = state["shape"], getattr(torch, state["dtype"])
        offset = torch.tensor(float(state["nested_offset"])) if layer.double else None
        kind = (state.get("quant_type"), state["blocksize"], state.get("nested_blocksize", quant.SCALES))
        if offset is not None and not offset.isfinite():
            raise ValueError(f"nested_offset is {offset}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{where} is not what bitsandbytes writes there ({type(e).__name__}: {e})") from e
    if shape != wanted:
        raise UserError(f"{where} says the shape {shape}, but config.json asks for {wanted}")
    if kind != ("nf4", quant.BLOCK, quant.SCALES) or dtype not in DTYPES.values():
        what = f"only NF4 in blocks of {quant.BLOCK}, of a float weight"
        raise UserError(f"{where}: {what}, is supported")
    layer.dtype = dtype
    return {} if offset is None else {"nested_offset": offset}


def to_file(model, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the quantised layers' tensors by their names in a file."""
    state = dict(state)
    for name, layer in model.named_modules():
        if isinstance(layer, quant.Int8Linear):
            state[f"{name}.weight_format"] = torch.zeros((), dtype=torch.uint8)
        if not isinstance(layer, quant.NF4Linear):
            continue
        dtype = str(layer.dtype).removeprefix("torch.")
        what = {"quant_type": "nf4", "blocksize": quant.BLOCK, "dtype": dtype}
        what["shape"] = [layer.out_features, layer.in_features]
        state[f"{name}.weight.absmax"] = state.pop(f"{name}.absmax")
        state[f"{name}.weight.quant_map"] = quant.NF4.clone()
        if layer.double:
            offset = state.pop(f"{name}.nested_offset").item()
            what |= {"nested_blocksize": quant.SCALES, "nested_dtype": "float32", "nested_offset": offset}
            state[f"{name}.weight.nested_absmax"] = state.pop(f"{name}.nested_absmax")
            state[f"{name}.weight.nested_quant_map"] = quant.DYNAMIC.clone()
        state[f"{name}.weight.{STATE}"] = torch.tensor(list(json.dumps(what).encode()), dtype=torch.uint8)
    return state
