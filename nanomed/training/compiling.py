"""Whether a run is compiled: torch.compile takes its time once, and gives some of it back with every
update."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn

from nanomed.models import FAMILIES
from nanomed.models.language_model import LanguageModel
from nanomed.precision import weightless
from nanomed.training.settings import Settings

# What it costs and gains, measured (docs/notebook: speed.md, gpu.md): {(device, family or any,
# what is trained): (seconds of compiling, floating-point operations a second before, share of the time that
# is saved)}. What is not here gains nothing, as GPT-2 on a CPU, or was not measured.
MEASURED = {
    ("cuda", "any", "all"): (30, 1e14, 0.2),
    ("cuda", "any", "lora"): (30, 1e14, 0.2),
    ("cpu", "llama", "all"): (20, 4e11, 0.09),
    ("cpu", "llama", "lora"): (20, 4e11, 0.14),
}


def flops_a_token(model: nn.Module, all_weights: bool, context: int) -> float:
    """Floating-point operations of a token in training, of a model that may be on the meta device: two for
    each weight and direction (Kaplan et al. 2020, section 2.1; frozen weights have no gradient of their own),
    and those of the attention's two products, half of them causal."""
    blocks = sum(m.weight.numel() for m in model.backbone.modules() if isinstance(m, nn.Linear))
    attention = 2 * 2 * model.config.cache_shape[0] * model.config.n_embd * context / 2 * 3
    return (6 if all_weights else 4) * (blocks + model.lm_head.weight.numel()) + attention


def can_compile(device: str) -> bool:
    """Whether there is what torch.compile needs: a compiler for what it writes, and Python's header; on a GPU
    Triton, and a card that it knows."""
    compiler = any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))
    found = compiler and Path(sysconfig.get_path("include"), "Python.h").exists()
    if device == "cuda":
        found &= torch.cuda.get_device_capability() >= (7, 0) and bool(importlib.util.find_spec("triton"))
    return found


def pays(s: Settings, model_type: str, config, updates: int) -> bool:
    """Whether it saves more than twice what it costs, in a run of `updates` updates of up to batch_size x
    grad_accum x context tokens. Not measured, so not compiled: batches of texts of many lengths, quantised
    weights, fp32 on a CPU."""
    what, family = "lora" if s.lora_r else "all", FAMILIES[model_type].__name__.rpartition(".")[2]
    measured = MEASURED.get((s.device, "any", what)) or MEASURED.get((s.device, family, what))
    lengths_vary = s.phase == "classify" or getattr(s, "no_packing", False)
    slow = s.device == "cpu" and s.dtype != "bf16"
    if not measured or lengths_vary or s.quantize or slow or not can_compile(s.device):
        return False
    with weightless():
        model = LanguageModel(FAMILIES[model_type], config)
    cost, speed, saved = measured
    tokens = updates * s.batch_size * s.grad_accum * s.context
    return saved * tokens * flops_a_token(model, not s.lora_r, s.context) / speed > 2 * cost
