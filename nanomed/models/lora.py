"""LoRA: freeze the model and learn a low-rank change of some of its matrices.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4.1: W x becomes W x + (alpha
/ r) B A x, with A (r, in) random and B (out, r) zero, so that training starts at the pretrained model."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import regex
import torch
from torch import nn

from nanomed.errors import UserError
from nanomed.models.quant import QUANTISED, dequantise

ALL_LINEAR = "all-linear"  # in place of targets: every linear layer below the head


@dataclass(frozen=True)
class LoRAConfig:
    r: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | str  # what fits() takes
    # rsLoRA (Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023, theorem
    # 3.2): alpha / sqrt(r), with which the change neither grows nor vanishes when the rank is raised.
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)


def fits(targets: Iterable[str] | str, name: str) -> bool:
    """Whether a module is one of those named: at the end of its dotted path ("c_proj" is both the attention's
    and the MLP's, "attn.c_proj" the attention's alone), or by one regular expression for the whole path:
    peft's rule."""
    if isinstance(targets, str):
        return regex.fullmatch(targets, name) is not None  # tried with a time limit by nanomed.hub.adapters
    return any(name == t or name.endswith("." + t) for t in targets)


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank change. It uses the layer's `in_features`,
    `out_features` and the device of its `weight`; only merged() touches the values."""

    def __init__(self, base: nn.Module, config: LoRAConfig):
        super().__init__()
        self.base_layer = base
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout)
        device = base.weight.device
        self.lora_A = nn.Linear(base.in_features, config.r, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(config.r, base.out_features, bias=False, device=device, dtype=torch.float32)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        # the scale is multiplied in where there are few numbers
        return self.base_layer(x) + self.lora_B(self.scale * self.lora_A(self.dropout(x)))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer, with the change added to its weight: computed in fp32 and cast once."""
        w = self.base_layer.weight
        w.copy_(w.float() + self.scale * (self.lora_B.weight.float() @ self.lora_A.weight.float()))
        return self.base_layer


def is_linear(name: str, module: nn.Module) -> bool:
    """Whether a layer can have an adapter; the head cannot, which may be the embedding too, or is trained
    whole."""
    linear = isinstance(module, (nn.Linear, *QUANTISED))
    return linear and name not in ("lm_head", "score") and ".lora_" not in name


def resolve(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """The config with names in place of `all-linear`."""
    if config.targets not in (ALL_LINEAR, (ALL_LINEAR,)):
        return config
    linears = [n.removesuffix(".base_layer") for n, m in model.named_modules() if is_linear(n, m)]
    return replace(config, targets=tuple(sorted({n.rpartition(".")[2] for n in linears})))


def inject(model: nn.Module, config: LoRAConfig) -> None:
    """Freeze every parameter of a loaded model and wrap the target linears, in place; `model.lora` says how.
    Raises UserError if a target matches nothing, or something that is not a linear layer."""
    config = resolve(model, config)
    chosen = {n: m for n, m in model.named_modules() if fits(config.targets, n)}
    targets = () if isinstance(config.targets, str) else config.targets
    unused = [t for t in targets if not any(fits((t,), n) for n in chosen)]
    odd = [f"{n} ({type(m).__name__})" for n, m in chosen.items() if not is_linear(n, m)]
    if unused or odd or not chosen:
        what = f"{', '.join(odd)} cannot have an adapter" if odd else "match no module"
        names = ", ".join(resolve(model, replace(config, targets=(ALL_LINEAR,))).targets)
        asked = ", ".join(unused or targets) or config.targets
        raise UserError(f"LoRA targets {asked}: {what}; linear layers here: {names}")
    model.requires_grad_(False)
    model.lora = config
    for name, module in chosen.items():
        model.set_submodule(name, LoRALinear(module, config))


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}


def merge_and_unwrap(model: nn.Module) -> None:
    """Fold every adapter into its base layer and put the plain layers back, in place. Nothing stays frozen;
    what was quantised is dequantised first."""
    dequantise(model)
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.merged())
    model.requires_grad_(True)
    model.lora = None


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors by their names in the model: `...c_attn.lora_A.weight` (r, in), `lora_B` (out,
    r)."""
    return {k: v for k, v in model.state_dict().items() if ".lora_A." in k or ".lora_B." in k}
