"""Linear layers that are only measured with, on a CPU: their weights laid out once as the matrix library
reads them.

oneDNN multiplies with weights in blocks. Given a plain matrix it first puts it into blocks, at every call,
which for a few tokens takes longer than the product; and in fp32 PyTorch asks another library (MKL), which on
some processors is half as fast. PyTorch's own compiler lays weights out in this way when it freezes a model
(torch._inductor.fx_passes.mkldnn_fusion), with these operators."""

import torch
import torch.nn.functional as F
from torch import nn

FEW = 8  # rows that the layout is made for; the product with one row or thousands is as fast


def available(weight: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether this weight can be laid out here, in its own dtype or another. oneDNN refuses bf16 on a CPU
    without AVX512."""
    onednn, dtype = torch.ops.mkldnn, dtype or weight.dtype
    if not (hasattr(onednn, "_reorder_linear_weight") and torch.backends.mkldnn.is_available()):
        return False
    fits = dtype == torch.float32 or (dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())
    return fits and weight.device.type == "cpu"


def pays_for_texts() -> bool:
    """Whether laid-out weights are faster with thousands of rows too: where oneDNN has AVX512, of which MKL
    makes no use on an AMD. Both being of AVX2, MKL is a tenth faster, and a second head takes memory."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def in_blocks(weight: torch.Tensor) -> torch.Tensor:
    """A copy of weight (out, in) that product() alone can read."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), FEW)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias for x (..., in) in the weight's dtype; weight: plain, or in_blocks()."""
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class PrepackedLinear(nn.Module):
    """A linear layer without gradients. As autocast would, it takes its input in the dtype that its weight is
    stored in."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = self.lay_out(plain.weight.detach()), plain.bias

    def lay_out(self, weight):
        return in_blocks(weight)

    def forward(self, x):
        return product(x.to(self.weight.dtype), self.weight, self.bias)


def prepack(model: nn.Module) -> None:
    """Lay out the linear layers below the head, in place; the head, when it is first asked for (head_of).
    Where the library is missing, or weights are elsewhere or in another dtype, nothing changes."""
    replace_linears(model.backbone, lambda plain: PrepackedLinear(plain) if available(plain.weight) else None)
    model.head_blocks = {}


def replace_linears(model: nn.Module, another) -> int:
    """Put another(layer) in the place of each linear layer, in place, unless it is None; returns how many
    there were. Adapters stay plain."""
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n]
    for name in linears:  # by their names, so that each plain layer goes when its own is there
        layer = another(model.get_submodule(name))
        if layer is not None:
            model.set_submodule(name, layer)
    return len(linears)


def head_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weights of a language model's head for product() and nanomed.models.loss, in `dtype` if they are
    laid out here; else as they are stored."""
    weight, blocks = model.lm_head.weight, model.head_blocks
    if blocks is None or not available(weight, dtype):
        return weight
    if dtype not in blocks:
        blocks[dtype] = in_blocks(weight.to(dtype))
    return blocks[dtype]


def head_for_texts(model: nn.Module) -> torch.Tensor:
    """To score texts with, thousands of rows at once, in fp32: laid out, which is a second copy, only where
    that pays."""
    return head_of(model) if pays_for_texts() else model.lm_head.weight
