"""GPT-Neo: one page, Hugging Face's parameter names.

Black et al., "GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow" (2021). GPT-2, but:
every other layer looks back over a window of 256 tokens only (Beltagy et al. 2020, Longformer, section 3.1);
scores are not divided by sqrt(hs), and are computed in fp32; query, key and value are three matrices without
biases; nothing is stored as (in, out).

Letters in the shape comments: B batch, T time, C channels (hidden_size), nh heads, hs head size."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanomed.errors import UserError
from nanomed.models.attention import CAUSAL, attend
from nanomed.models.gpt2 import MLP, Block

ARCHITECTURES = {"gpt_neo": ("GPTNeoForCausalLM", "GPTNeoForSequenceClassification")}
DEFAULTS = {"gpt_neo": {}}
FIXED = {}
INERT = {"classifier_dropout"}  # of another head
DROPOUTS = ("embed_dropout", "attention_dropout", "resid_dropout")
BACKBONE = "transformer"
EMBEDDING = "transformer.wte.weight"
CONV1D = ()
BUFFERS = (".attn.attention.bias", ".attn.attention.masked_bias")  # the causal mask, and what filled it
RESIDUAL = ("out_proj.weight", "c_proj.weight")
LORA_TARGETS = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Config:
    """The fields of Hugging Face's `config.json` that change what the model computes, with its defaults."""

    model_type: str = "gpt_neo"
    vocab_size: int = 50257
    max_position_embeddings: int = 2048
    hidden_size: int = 2048
    num_layers: int = 24
    num_heads: int = 16
    intermediate_size: int | None = None  # width of the MLP; None means 4 * hidden_size
    attention_types: list | None = None  # [[["global", "local"], 12]]: that pair of layers, 12 times
    attention_layers: list | None = None  # the same, a word a layer
    window_size: int = 256
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    resid_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        kinds = self.layer_kinds()
        if len(kinds) != self.num_layers or not set(kinds) <= {"global", "local"}:
            raise UserError(f"attention_types must say global or local of each layer, not {kinds}")
        if self.attention_layers not in (None, kinds):
            raise UserError(f"attention_layers are not what attention_types says: {kinds}")

    def layer_kinds(self) -> list[str]:
        if self.attention_layers and not self.attention_types:
            return self.attention_layers
        types = self.attention_types or [[["global", "local"], 12]]
        return [kind for kinds, times in types for _ in range(times) for kind in kinds]

    n_positions = property(lambda self: self.max_position_embeddings)  # by GPT-2's names
    n_embd = property(lambda self: self.hidden_size)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        return self.num_layers, self.num_heads, self.hidden_size // self.num_heads


class SelfAttention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.n_head = config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_dropout = config.attention_dropout
        self.resid_dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x, mask=CAUSAL, cache=None):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, self.n_head, -1) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, nh, T, hs)
        dropout = self.attention_dropout if self.training else 0.0
        y = attend(q, k, v, mask, cache, scale=1.0, dropout=dropout, upcast=True)  # (B, T, C)
        return self.resid_dropout(self.out_proj(y))


class Attention(nn.Module):
    """Hugging Face's name for the layer has a level more."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention = SelfAttention(config)

    def forward(self, x, mask=CAUSAL, cache=None):
        return self.attention(x, mask, cache)


class Transformer(nn.Module):
    """Everything below the head: token ids (B, T) in, hidden states (B, T, C) after the last layer norm
    out."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_positions = config.max_position_embeddings
        self.windows = [config.window_size if kind == "local" else None for kind in config.layer_kinds()]
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.embed_dropout)
        self.h = nn.ModuleList()
        for _ in range(config.num_layers):
            inner, act = config.intermediate_size, config.activation_function
            mlp = MLP(config.hidden_size, inner, act, config.resid_dropout)
            self.h.append(Block(config.hidden_size, config.layer_norm_epsilon, Attention(config), mlp))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.grad_checkpoint = False  # True: keep each block's input only and recompute the rest in backward

    def forward(self, idx, pos=None, mask=CAUSAL, cache=None):
        T = idx.size(1)
        if self.n_positions < T and mask.slots is None:  # of packed rows, each example is within
            raise ValueError(f"{T} tokens, but the model has {self.n_positions} positions")
        if pos is None:
            pos = torch.arange(T, device=idx.device)
        S, first = cache[0].extent(T) if cache else (T, 0)
        masks = {window: mask.within(window, T, S, idx.device, first) for window in set(self.windows)}
        x = self.drop(self.wte(idx) + self.wpe(pos))  # (B, T, C)
        for layer, (block, window) in enumerate(zip(self.h, self.windows, strict=True)):
            if self.grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, masks[window], use_reentrant=False)
            else:
                x = block(x, masks[window], cache[layer] if cache else None)
        return self.ln_f(x)
