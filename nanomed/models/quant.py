"""Frozen linear layers in 4 or 8 bits: what QLoRA trains its adapters on.

NF4 (Dettmers et al., "QLoRA", 2023, section 3): the weights of a block of 64 are divided by the largest of
them, and each is replaced by the nearest of 16 numbers, the quantiles of a normal distribution, since trained
weights nearly are normal. 4 bits a weight, and one fp32 scale for 64 of them: half a bit more. Double
quantisation stores these scales in 8 bits too: an eighth of a bit.

int8 (Dettmers et al., "LLM.int8()", 2022, section 2.1): each row by its largest weight, rounded to -127..127.
The weights alone: what is multiplied with them is not quantised here, so that gradients are those of the
weights that the codes stand for, exactly.

Codes and scales are those of bitsandbytes, bit by bit. A layer is dequantised when it multiplies, forward,
and again backward, and the result thrown away: never more than one of them is in memory."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from nanomed.models.prepacked import PrepackedLinear, replace_linears
from nanomed.precision import as_multiplied, weightless

BLOCK, SCALES = 64, 256  # weights that share a scale; scales that share one
# fmt: off
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
])
# fmt: on


def dynamic_map() -> torch.Tensor:
    """The 256 numbers of the scales' codes, ascending (Dettmers, "8-bit approximations for parallelism in
    deep learning", 2015, section 2.3): a sign, a decimal exponent from -6 to 0, and the more steps between
    two powers of ten the larger they are."""
    values = [0.0, 1.0]
    for exponent in range(7):
        ends = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = 10 ** (exponent - 6) * ((ends[:-1] + ends[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


DYNAMIC = dynamic_map()


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(the two numbers of each byte of NF4 codes (256, 2), DYNAMIC) there. Once: a step of writing that is
    recorded on a GPU (nanomed.evaluation.cuda_graph) may copy nothing from the CPU."""
    pairs = torch.stack([NF4[:, None].expand(16, 16), NF4.expand(16, 16)], -1).reshape(256, 2)
    return pairs.to(device), DYNAMIC.to(device)


def _blocks(values: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(values (blocks, size) in [-1, 1], the last block filled with zeros; the largest of each block, by
    which it was divided)."""
    flat = F.pad(values.reshape(-1).float(), (0, -values.numel() % size)).view(-1, size)
    largest = flat.abs().amax(1)
    return (flat * (1.0 / largest.clamp(min=1e-38))[:, None]).clamp(-1, 1), largest


def quantise_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, two a byte, the first in its upper half: uint8 (n/2, 1); scales fp32 (n/64,)) of a weight with
    n elements, n even."""
    scaled, scales = _blocks(weight, BLOCK)
    codes = torch.bucketize(scaled.view(-1), (NF4[:-1] + NF4[1:]).to(weight.device) / 2, out_int32=True)
    codes = codes[: weight.numel()].to(torch.uint8)
    return (codes[::2] << 4 | codes[1::2])[:, None], scales


def dequantise_nf4(packed: torch.Tensor, scales: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight, fp32, that codes and fp32 scales stand for."""
    pairs, _ = _tables(packed.device)
    values = pairs.index_select(0, packed.view(-1).int()).view(-1)
    if len(values) % BLOCK == 0:
        return values.view(-1, BLOCK).mul_(scales[:, None]).view(shape)
    return (values * scales.repeat_interleave(BLOCK)[: len(values)]).view(shape)


def quantise_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes uint8 (n,), the scales' own scales fp32 (n/256,), their mean, which is taken off before) of fp32
    scales (n,)."""
    offset = scales.mean()
    scaled, largest = _blocks(scales - offset, SCALES)
    # On a grid of 2^16 before the nearest is taken, as bitsandbytes does on a CPU, so that our files and its
    # are the same.
    grid = ((scaled + 1) * 0.5 * 65535 + 0.5).floor() / 65535 * 2 - 1
    codes = torch.bucketize(grid.view(-1), (DYNAMIC[:-1] + DYNAMIC[1:]).to(scales.device) / 2, out_int32=True)
    return codes[: len(scales)].to(torch.uint8), largest, offset


def dequantise_scales(codes: torch.Tensor, largest: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    _, dynamic = _tables(codes.device)
    return dynamic[codes.int()] * largest.repeat_interleave(SCALES)[: len(codes)] + offset


def quantise_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 (out, in), the largest of each row fp32 (out,)): what a code stands for is code / 127 times
    that."""
    largest = weight.abs().amax(1).float()
    return torch.round(weight * (127.0 / largest.clamp(min=1e-38)[:, None])).to(torch.int8), largest


# --- layers -------------------------------------------------------------------------------------------------


class _Product(torch.autograd.Function):
    """x W^T + b with a W that is made when it is needed: nothing of it is kept for backward but its codes."""

    @staticmethod
    def forward(ctx, x, bias, layer):
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.dequantise().to(x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.dequantise().to(gradient.dtype), None, None


class _Frozen(nn.Module):
    """What both have in common: a frozen linear layer from in_features to out_features. dtype: what the
    weight was quantised from, to which it is rounded before it is multiplied in the compute dtype."""

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, torch.float32
        self.register_buffer("bias", torch.empty(out_features) if bias else None)

    def forward(self, x):
        x = as_multiplied(x)
        return _Product.apply(x, None if self.bias is None else self.bias.to(x.dtype), self)


class NF4Linear(_Frozen):
    """double: the scales are quantised too."""

    def __init__(self, in_features: int, out_features: int, bias: bool, double: bool = True):
        super().__init__(in_features, out_features, bias)
        n = in_features * out_features
        blocks = -(-n // BLOCK)
        self.double = double
        self.register_buffer("weight", torch.empty((n + 1) // 2, 1, dtype=torch.uint8))
        self.register_buffer("absmax", torch.empty(blocks, dtype=torch.uint8 if double else torch.float32))
        if double:
            self.register_buffer("nested_absmax", torch.empty(-(-blocks // SCALES)))
            self.register_buffer("nested_offset", torch.empty(()))

    def quantise(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The layer's tensors, by their names in it, of a weight (out, in)."""
        packed, scales = quantise_nf4(weight)
        if not self.double:
            return {"weight": packed, "absmax": scales}
        codes, largest, offset = quantise_scales(scales)
        return {"weight": packed, "absmax": codes, "nested_absmax": largest, "nested_offset": offset}

    def dequantise(self) -> torch.Tensor:
        """The weight (out, in), in self.dtype."""
        scales = self.absmax
        if self.double:
            scales = dequantise_scales(self.absmax, self.nested_absmax, self.nested_offset)
        return dequantise_nf4(self.weight, scales, (self.out_features, self.in_features)).to(self.dtype)


class Int8Linear(_Frozen):
    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__(in_features, out_features, bias)
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("SCB", torch.empty(out_features))

    def quantise(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        codes, largest = quantise_int8(weight.half())  # as bitsandbytes' layer does
        return {"weight": codes, "SCB": largest}

    def dequantise(self) -> torch.Tensor:
        return self.weight.float().mul_(self.SCB[:, None]).mul_(1 / 127).to(self.dtype)


KINDS = {"nf4": NF4Linear, "int8": Int8Linear}
QUANTISED = tuple(KINDS.values())


def quantise_linears(model: nn.Module, kind: str, **how) -> None:
    """Put an empty quantised layer, on the meta device, in the place of each linear one below the head, in
    place. The head is left as it is: it decides about every token, and may be the embedding too."""

    def empty(plain: nn.Linear):
        with weightless():
            return KINDS[kind](plain.in_features, plain.out_features, plain.bias is not None, **how)

    replace_linears(model.backbone, empty)


def count_parameters(model: nn.Module) -> int:
    """How many weights a model has, the quantised and the prepacked among them: theirs are no parameters to
    PyTorch."""
    frozen = [m for m in model.backbone.modules() if isinstance(m, (*QUANTISED, PrepackedLinear))]
    codes = sum(m.in_features * m.out_features + (0 if m.bias is None else m.out_features) for m in frozen)
    plain = sum(m.bias.numel() for m in frozen if isinstance(m.bias, nn.Parameter))
    return sum(p.numel() for p in model.parameters()) + codes - plain


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, codes and scales."""
    frozen = [b for m in model.modules() if isinstance(m, QUANTISED) for b in m.buffers(recurse=False)]
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *frozen])


def dequantise(model: nn.Module) -> None:
    """Put plain layers, in fp32, in the place of quantised ones, in place, and say so: an adapter is added to
    the weights that the codes stand for, and not quantised again: rounding would take most of it away."""
    quantised = [(name, m) for name, m in model.named_modules() if isinstance(m, QUANTISED)]
    for name, layer in quantised:
        with weightless():
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.weight = nn.Parameter(layer.dequantise().float())
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.float())
        model.set_submodule(name, plain)
    if quantised:
        print("the quantised weights are dequantised before the adapter is merged into them")
