"""Linear layers to write with, on a CPU: their weights take fewer bits than what they are multiplied in.

One token is a product of all weights with one row, and lasts as long as the weights take to be read: half as
long in 16 bits, a quarter in 8. The products are FBGEMM's (Khudia et al. 2021), by PyTorch's own operators
for quantised layers. FBGEMM lays weights out anew, which takes as long as some hundred tokens gain: so only a
model that is to write has such layers.

fp16   rounds each weight to 11 bits; one that was stored in bf16, as most models' are, has 8 and keeps them,
       and then the result is that of fp32
int8   rounds weights to -127..127 of the largest in each row, and the inputs too, each token's by its own
       largest"""

import warnings
from functools import partial

import torch
from torch import nn

from nanomed.errors import UserError
from nanomed.models.prepacked import PrepackedLinear, replace_linears

VNNI = torch.cpu._is_vnni_supported()
SUBNORMAL = 2.0**-25  # half a step of fp16's smallest numbers: what a weight near 0 may lose


def available() -> bool:
    """Whether this PyTorch has FBGEMM, which x86's processors have."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def is_16_bit(weight: torch.Tensor) -> bool:
    """Whether fp16 holds these weights as they are."""
    return all((w.float() - w.half().float()).abs().max() <= SUBNORMAL for w in weight.split(512))


class HalfLinear(PrepackedLinear):
    """Weights in fp16, multiplied in fp32."""

    width = 2  # bytes a weight

    def lay_out(self, weight):
        return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def forward(self, x):
        y = torch.ops.quantized.linear_dynamic_fp16(x.float(), self.weight)
        return (y if self.bias is None else y.add_(self.bias)).to(_dtype(x))


class ByteLinear(PrepackedLinear):
    """Weights and inputs in 8 bits, summed in 32."""

    width = 1

    def lay_out(self, weight):
        weight = weight.float()
        scales = (weight.abs().amax(1) / 127).clamp(min=1e-12).double()
        with warnings.catch_warnings():  # that another library will make such tensors one day
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(weight), dtype=torch.long)
            codes = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(codes, None)

    def forward(self, x):
        if x.numel() == self.in_features:
            y = self.product(x.float())
        else:
            # one scale is chosen for all rows: each is made as long as any other, and hardly depends on them
            largest = x.float().abs().amax(-1, keepdim=True).clamp_(min=1e-12)
            y = self.product(x / largest).mul_(largest)
        return (y if self.bias is None else y.add_(self.bias)).to(_dtype(x))

    def product(self, x):
        # without VNNI, sums of two products end at 2^15: inputs of 7 bits stay below
        return torch.ops.quantized.linear_dynamic(x, self.weight, not VNNI)


def _dtype(x) -> torch.dtype:
    """What a layer of autocast's would give."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


STORED = "stored"  # in fp16 where that is exact, else as they are
KINDS = {"fp16": HalfLinear, "int8": ByteLinear}


def narrow(model: nn.Module, write_in: str, dtype: str = "fp32") -> None:
    """Put such layers in the place of a model's linear ones, in place, and beside its head. dtype: in which
    it computes; in bf16, what is stored so stays, and the head alone is written in fp16. Raises UserError
    for weights that are stored in 8 or 4 bits, where other ones are asked for."""
    if write_in != STORED or dtype == "fp32":
        n = replace_linears(model.backbone, partial(_narrowed, write_in))
        if write_in != STORED and not n:
            why = "the weights are stored in 8 or 4 bits; leave the flag out"
            raise UserError(f"--write-in {write_in}: {why}")
    model.writing_head = _narrowed(write_in, model.lm_head)


def _narrowed(write_in: str, layer: nn.Linear) -> PrepackedLinear | None:
    """None where it stays, which only STORED has."""
    if write_in != STORED:
        return KINDS[write_in](layer)
    return HalfLinear(layer) if available() and is_16_bit(layer.weight) else None


def check(write_in: str, device: torch.device, quantize: str | None) -> None:
    """Raises UserError where such layers cannot be had."""
    why = None
    if device.type != "cpu":
        why = f"for a CPU, and the model is on {device}; use --device cpu"
    elif not available():
        why = "this PyTorch has no FBGEMM, which is for x86; leave the flag out"
    elif quantize:
        why = f"its weights are in {quantize} already; --quantize none takes them as they are stored"
    if why and write_in != STORED:
        raise UserError(f"--write-in {write_in}: {why}")
