"""GPT-2, DistilGPT-2 and BioMedLM: one page, Hugging Face's parameter names.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3: a decoder-only
transformer with the layer norms moved to the input of each sub-block, one more after the last block, and
learned positions.

Letters in the shape comments: B batch, T time, C channels (n_embd), nh heads, hs head size."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanomed.errors import UserError
from nanomed.models.attention import CAUSAL, attend

ARCHITECTURES = {"gpt2": ("GPT2LMHeadModel", "GPT2ForSequenceClassification")}
DEFAULTS = {"gpt2": {}}
FIXED = {}
INERT = {"n_ctx", "n_special", "predict_special_tokens", "use_cache"}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
BACKBONE = "transformer"
EMBEDDING = "transformer.wte.weight"
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask
RESIDUAL = ("c_proj.weight",)
LORA_TARGETS = ("c_attn",)

ACTIVATIONS = {
    "gelu_new": partial(F.gelu, approximate="tanh"),  # GPT-2's own: the tanh form, not the exact erf
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Config:
    """The fields of Hugging Face's `config.json` that change what the model computes, with its defaults."""

    model_type: str = "gpt2"
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the MLP; None means 4 * n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        return self.n_layer, self.n_head, self.n_embd // self.n_head


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.attn_pdrop = config.attn_pdrop
        self.resid_dropout = nn.Dropout(config.resid_pdrop)
        self.upcast = config.reorder_and_upcast_attn
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:  # BioMedLM, after Mistral (Stanford CRFM)
            self.scale /= layer + 1

    def forward(self, x, mask=CAUSAL, cache=None):
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, nh, T, hs) each
        dropout = self.attn_pdrop if self.training else 0.0
        y = attend(q, k, v, mask, cache, self.scale, dropout, self.upcast)  # (B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, n_embd: int, inner: int | None, activation: str, dropout: float):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, inner or 4 * n_embd)
        self.c_proj = nn.Linear(inner or 4 * n_embd, n_embd)
        self.act = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, n_embd: int, epsilon: float, attn: nn.Module, mlp: nn.Module):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd, eps=epsilon)
        self.attn = attn
        self.ln_2 = nn.LayerNorm(n_embd, eps=epsilon)
        self.mlp = mlp

    def forward(self, x, mask=CAUSAL, cache=None):
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Everything below the head: token ids (B, T) in, hidden states (B, T, C) after the last layer norm
    out."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_positions = config.n_positions
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList()
        for layer in range(config.n_layer):
            mlp = MLP(config.n_embd, config.n_inner, config.activation_function, config.resid_pdrop)
            self.h.append(Block(config.n_embd, config.layer_norm_epsilon, Attention(config, layer), mlp))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.grad_checkpoint = False  # True: keep each block's input only and recompute the rest in backward

    def forward(self, idx, pos=None, mask=CAUSAL, cache=None):
        T = idx.size(1)
        if self.n_positions < T and mask.slots is None:  # of packed rows, each example is within
            raise ValueError(f"{T} tokens, but the model has {self.n_positions} positions")
        if pos is None:
            pos = torch.arange(T, device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(pos))  # (B, T, C); wpe is fp32, and so is the residual stream
        for layer, block in enumerate(self.h):
            if self.grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask, cache[layer] if cache else None)
        return self.ln_f(x)
