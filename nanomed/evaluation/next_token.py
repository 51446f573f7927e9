"""The next token of each row: its logits, and how one is chosen by them."""

import math
from dataclasses import dataclass

import torch

from nanomed.errors import UserError
from nanomed.models.loss import head_logits
from nanomed.models.prepacked import head_of
from nanomed.precision import DTYPES, autocast, mend

EXACT = 64  # logits of a token that are computed in fp32, whatever the rest is


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. What is asked for is applied in this order, which is transformers'.

    repetition_penalty divides positive logits, and multiplies negative ones, of tokens that the row holds
    already (CTRL, Keskar et al. 2019, section 4.1). temperature 0: always the likeliest. top_k: only the k
    likeliest; 0: all. top_p: only the likeliest that together reach this probability (Holtzman et al. 2020,
    section 3.1)."""

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def logits_after(model, idx, pos, mask, cache, device, dtype: str):
    """next_logits() (B, V) after the last of the tokens idx (B, T) at positions pos, which the cache gets."""
    with autocast(device, dtype):
        x = model.backbone(idx, pos, mask, cache)[:, -1]  # (B, C)
    return next_logits(model, x, DTYPES[dtype])


def check_finite(logits, dtype: str) -> None:
    """Raises UserError for logits of which one is no number: of NaN, the likeliest word is any."""
    if not bool(logits.isfinite().all()):
        raise UserError(f"the model's logits are not finite in {dtype}; {mend(dtype)}")


def next_logits(model, x, dtype: torch.dtype):
    """Logits (B, V) in fp32 after hidden states x (B, C). On a CPU a head of bf16 gives logits of bf16, which
    knows steps of 0.25 around GPT-2's -35, and several likeliest words; reading it in fp32 takes as long as
    all layers. So: all in bf16, and those that can be the likeliest once more, exactly."""
    if model.writing_head is not None:
        return model.writing_head(x.float())
    weight = head_of(model, dtype)
    logits = head_logits(x, weight)
    if not weight.is_mkldnn or dtype == torch.float32:
        return logits
    best = logits.topk(min(EXACT, logits.size(1))).indices  # (B, EXACT)
    exact = model.lm_head.weight[best].float() @ x.float()[:, :, None]
    return logits.scatter(1, best, exact.squeeze(-1))


def choose(logits, sampling: Sampling, seen, generators):
    """The next token (B,) of each row by its logits (B, V). seen (B, V): the tokens that the row holds
    already, which a repetition penalty alone asks for."""
    if sampling.repetition_penalty != 1:
        p = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / p, logits * p), logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    cumulative = distribution(logits, sampling).cumsum(-1)
    # The token in whose share of [0, 1) a random number falls. Counting shares that end at or before it never
    # lands on a token of probability 0.
    u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    return (cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1)


def distribution(logits, sampling: Sampling):
    """Probabilities (B, V), float64, after temperature, top-k and top-p."""
    logits = logits.double() / sampling.temperature
    if 0 < sampling.top_k < logits.size(-1):
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        p = ordered.softmax(-1)
        drop = p.cumsum(-1) - p >= sampling.top_p  # what all likelier ones have; 0 for the first
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)
    return logits.softmax(-1)
