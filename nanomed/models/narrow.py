"""Linear layers to write with, on a CPU: their weights are read in fp16 and multiplied in fp32.

One token is a product of all weights with one row, and lasts as long as the weights take to be read: half as
long in 16 bits. fp16 has 11 bits for a weight. One that was stored in bf16, as most models' are, has 8 and
keeps them, and then the result is that of fp32. The products are FBGEMM's (Khudia et al. 2021), by PyTorch's
own operators for quantised layers. FBGEMM lays weights out anew, which takes as long as some hundred tokens
gain: so only a model that is to write has such layers."""

import math

import torch
from torch import nn

from nanomed.errors import UserError
from nanomed.models.prepacked import PrepackedLinear, replace_linears
from nanomed.precision import multiplied_in

STORED, ROUNDED = "stored", "fp16"  # --write-in: in fp16 what that holds as it is stored; all, rounded
# the most that a weight may lose; stored: half a step of fp16's smallest numbers
LOSS = {STORED: 2.0**-25, ROUNDED: math.inf}


def available() -> bool:
    """Whether this PyTorch has FBGEMM, which x86's processors have."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def fits(weight: torch.Tensor, loss: float) -> bool:
    """Whether fp16 holds these weights, of which none may lose more, nor more than rounding takes of the
    largest: beyond 65,504 it has no numbers, and near 0 few."""
    rows = weight.split(512)
    most = min(loss, max(w.abs().max().item() for w in rows) * 2.0**-11)
    return all((w.float() - w.half().float()).abs().max() <= most for w in rows)


class HalfLinear(PrepackedLinear):
    """Weights in fp16, multiplied in fp32."""

    def lay_out(self, weight):
        return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def forward(self, x):
        y = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.weight)
        y = y if self.bias is None else y.add_(self.bias)
        return y.to(multiplied_in(x))  # as a plain layer would give it


def narrow(model: nn.Module, write_in: str, dtype: str = "fp32") -> None:
    """Put such layers in the place of a model's linear ones, in place, and beside its head; a layer whose
    weights do not fit stays. dtype: in which it computes; in bf16, what is stored so stays, and the head
    alone is written in fp16. Raises UserError for weights that are stored in 8 or 4 bits and are to be
    rounded."""

    def another(layer: nn.Linear) -> HalfLinear | None:
        return HalfLinear(layer) if available() and fits(layer.weight, LOSS[write_in]) else None

    if write_in == ROUNDED or dtype == "fp32":
        n = replace_linears(model.backbone, another)
        if write_in == ROUNDED and not n:
            raise UserError(f"--write-in {ROUNDED}: it is stored in 8 or 4 bits; leave the flag out")
    # in fp32 as store_frozen() will have it, which so needs no other copy
    model.lm_head.weight.data = model.lm_head.weight.data.float()
    model.writing_head = another(model.lm_head)


def check(device: torch.device, quantize: str | None) -> None:
    """Raises UserError where weights are to be rounded and cannot be."""
    why = None
    if device.type != "cpu":
        why = f"for a CPU, and the model is on {device}; use --device cpu"
    elif not available():
        why = "this PyTorch has no FBGEMM, which is for x86; leave the flag out"
    elif quantize:
        why = f"its weights are in {quantize} already; --quantize none takes them as they are stored"
    if why:
        raise UserError(f"--write-in {ROUNDED}: {why}")
