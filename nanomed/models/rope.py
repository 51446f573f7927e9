"""Rotary positions (Su et al. 2021, RoFormer, section 3.2), and the ways to stretch them beyond the length of
pretraining."""

import math

import torch

from nanomed.errors import UserError


def rope_frequencies(hs: int, theta: float, scaling: dict, n_positions: int) -> tuple[torch.Tensor, float]:
    """By how many radians each pair of channels turns from one position to the next, fp32 (hs / 2,), and a
    factor on cosine and sine. Pair i turns by theta^(-2i / hs), but for what `scaling` (config.json's) says
    by its `rope_type`:

        default   nothing
        linear    all turn `factor` times slower (Chen et al. 2023, position interpolation)
        llama3    slow pairs do, fast ones do not, with a passage between (Llama 3.1)
        yarn      the same, the passage being a ramp over pairs, and scores are sharpened (Peng et al. 2023,
                  section 3.2 to 3.4)

    Raises UserError for any other type, and for a key that is not read here: a model that was trained with it
    is another one."""
    rope = dict(scaling)
    older = rope.pop("type", None)  # the key's name before transformers 4.43
    kind = rope.pop("rope_type", None) or older or "default"
    original = _number(rope, "original_max_position_embeddings", n_positions)
    theta = _positive("rope_theta", theta)
    inv_freq = 1.0 / (theta ** (torch.arange(0, hs, 2, dtype=torch.int64, device="cpu").float() / hs))
    sharpened = 1.0
    if kind == "linear":
        inv_freq = inv_freq / _number(rope, "factor")
    elif kind == "llama3":
        factor, low, high = (_number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        if low >= high:
            raise UserError(f"rope scaling: low_freq_factor {low} must be less than high_freq_factor {high}")
        length = 2 * math.pi / inv_freq  # of a full turn, in positions
        smooth = (original / length - low) / (high - low)
        between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
        faster = torch.where(length < original / high, inv_freq, between)
        inv_freq = torch.where(length > original / low, inv_freq / factor, faster)
    elif kind == "yarn":
        factor = _number(rope, "factor")
        fast, slow = _number(rope, "beta_fast", 32), _number(rope, "beta_slow", 1)
        sharpened = _number(rope, "attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        # the pairs that make `fast` and `slow` turns within the original length
        lengths = (original / (turns * 2 * math.pi) for turns in (fast, slow))  # of a wave
        low, high = (hs * math.log(length) / (2 * math.log(theta)) for length in lengths)
        if rope.pop("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, hs - 1)
        ramp = ((torch.arange(hs // 2, device="cpu").float() - low) / (high - low or 0.001)).clamp(0, 1)
        inv_freq = inv_freq / factor * ramp + inv_freq * (1 - ramp)
    elif kind != "default":
        raise UserError(f"rope_type {kind!r} is not supported; default, linear, llama3 and yarn are")
    for key, value in rope.items():
        if value is not None and (key, value) != ("partial_rotary_factor", 1.0):
            raise UserError(f"rope scaling of type {kind}: {key} = {value!r} is not supported")
    return inv_freq, sharpened


def _number(rope: dict, key: str, otherwise: float | None = None) -> float:
    value = rope.pop(key, None)
    return _positive(key, otherwise if value is None else value)


def _positive(key: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise UserError(f"rope scaling: {key} must be a positive number, not {value!r}")
    return float(value)


def rotate(x, cos, sin):
    """Turn each pair of channels (i, i + hs / 2) of x (B, nh, T, hs) by its angle: (a, b) becomes (a cos - b
    sin, b cos + a sin). cos and sin (B or 1, 1, T, hs), of which both halves are the same."""
    return _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype))


class _Rotate(torch.autograd.Function):
    """The gradient of a turn is turned back: by the same angle, the other way."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        return turned(dy, *ctx.saved_tensors, -1), None, None


def turned(x, cos, sin, way=1):
    """rotate() without a gradient of its own, in x's dtype."""
    y, sin = x * cos, sin.chunk(2, dim=-1)[0]
    (a, b), (turned_a, turned_b) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    turned_a.addcmul_(b, sin, value=-way)
    turned_b.addcmul_(a, sin, value=way)
    return y
