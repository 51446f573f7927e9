"""Where the numbers live and how wide they are: device, dtype, autocast, frozen weights in the compute dtype;
and whether a model is in training or in evaluation mode."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nanomed.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises UserError if CUDA is asked for and missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies it natively, else fp16 on CUDA and fp32 on the CPU."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def autocast(device: torch.device, dtype: str):
    """Matrix products in `dtype`; layer norms, softmax and loss stay fp32, and so does the residual stream
    (unless the embeddings were narrowed: store_frozen). fp32 is fp32: TF32, in which a GPU would be faster,
    is PyTorch's default for no matrix product, and it is not turned on here."""
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32")


def multiplied_in(x: torch.Tensor) -> torch.dtype:
    """The dtype that autocast multiplies x in: its own where autocast is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def as_multiplied(x: torch.Tensor) -> torch.Tensor:
    """x in that dtype, cast once for all the products that read it: each of them would cast it anew."""
    return x.to(multiplied_in(x))


def mend(dtype: str) -> str:
    """What may help where a model gives what is no number."""
    of_weights = "the weights themselves may be none (model.safetensors), or a training's rate too high"
    return of_weights if dtype == "fp32" else "try --dtype fp32"


def to_device(t: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU's, there; to a GPU from pinned memory, so that the copy need not be waited for."""
    if device.type == "cuda" and t.device.type == "cpu":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def weightless():
    """Modules that are made herein have weights without memory. None are drawn: PyTorch would load its
    compiler for that, 50 MB of it, and the first model would not be freed for a long time."""
    with torch.device("meta"), _Unfilled():
        yield


@contextmanager
def evaluating(model: nn.Module):
    """Dropout off, no gradients, shapes that vary; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), shapes_vary():
            yield
    finally:
        model.train(was_training)


@contextmanager
def shapes_vary():
    """On a GPU without cuDNN's attention, which is the fastest on new ones, but takes a twentieth of a second
    to get ready for each new shape."""
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


def store_frozen(model: nn.Module, dtype: str, device: torch.device) -> None:
    """Every weight in the dtype that it is used in, in place, one after another: frozen linear layers in the
    compute dtype, which is half the memory, and nothing to cast at each step. What is trained is fp32. So is
    the head (and the embedding tied to it) on the CPU, where the evaluator multiplies it in fp32; CUDA takes
    bf16 in and gives fp32 out."""
    kept = ("score",) if device.type == "cuda" else ("score", "lm_head")  # score: a classifier's few weights
    for name, module in model.named_modules():
        narrow = isinstance(module, nn.Linear) and not module.weight.requires_grad and name not in kept
        for p in module.parameters(recurse=False):
            # row after row; .data: a tied embedding keeps being the same parameter
            p.data = p.data.to(DTYPES[dtype] if narrow else torch.float32).contiguous()
