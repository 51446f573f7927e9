"""Llama and what is built like it (Llama 2 and 3, TinyLlama, SmolLM2, Mistral, Qwen 2.5 and 3): one page.

Touvron et al., "LLaMA" (2023), section 2.2. Against GPT-2: norms divide by the root mean square and subtract
nothing (Zhang & Sennrich 2019); positions turn queries and keys instead of being added to the input (Su et
al. 2021, RoFormer, section 3.2); the MLP has a gate (Shazeer 2020, SwiGLU); several heads of queries share
one of keys and values (Ainslie et al. 2023); few layers have biases.

Letters in the shape comments: B batch, T time, C channels (hidden_size), nh heads, hs head size (head_dim).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanomed.errors import UserError
from nanomed.models.attention import CAUSAL, attend
from nanomed.models.gpt2 import ACTIVATIONS
from nanomed.models.gradients import gated, rms_norm
from nanomed.models.rope import rope_frequencies, rotate
from nanomed.precision import as_multiplied

ARCHITECTURES = {
    kind: (f"{name}ForCausalLM", f"{name}ForSequenceClassification")
    for kind, name in (("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3"))
}
DEFAULTS = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
}
FIXED = {"rope_interleaved": False, "use_mrope": False}  # SmolLM2's and Qwen 2.5's configs say so
INERT = {"pretraining_tp", "is_llama_config", "max_sequence_length"}
MEMBERS = {"attention_bias": ("llama", "qwen3"), "mlp_bias": ("llama",)}  # that have what Config calls so
MEMBERS |= dict.fromkeys(("use_sliding_window", "layer_types"), ("qwen2", "qwen3"))
DROPOUTS = ("attention_dropout",)
BACKBONE = "model"
EMBEDDING = "model.embed_tokens.weight"
CONV1D = ()
BUFFERS = (".rotary_emb.inv_freq",)
RESIDUAL = ("o_proj.weight", "down_proj.weight")
LORA_TARGETS = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Config:
    """The fields of Hugging Face's `config.json` that change what the model computes. Sizes have no defaults:
    the members of the family would have different ones."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    model_type: str = "llama"
    num_key_value_heads: int | None = None  # None: as many as there are of queries
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False  # of q, k, v and o; Qwen 2's q, k and v have one always
    mlp_bias: bool = False
    rope_theta: float | None = None  # 10,000 where nothing says otherwise
    rope_scaling: dict | None = None  # nanomed.models.rope
    rope_parameters: dict | None = None  # theta and scaling together, as transformers 5 writes them
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 0  # layers before this one have no window
    layer_types: list | None = None  # the same, a word a layer
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self):
        heads, (_, n_kv, hs) = self.num_attention_heads, self.cache_shape
        if self.head_dim is None and self.hidden_size % heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of its {heads} heads")
        if heads % n_kv or hs % 2:
            raise UserError(f"{heads} heads of size {hs} over {n_kv} of keys: do not divide evenly")
        kinds, known = self.layer_types or (), {"full_attention", "sliding_attention"}
        if kinds and (len(kinds) != self.num_hidden_layers or not set(kinds) <= known):
            raise UserError(f"layer_types must say {' or '.join(sorted(known))} of each layer, not {kinds}")
        if "sliding_attention" in kinds and not (self.use_sliding_window and self.sliding_window):
            raise UserError("layer_types has sliding_attention, but use_sliding_window gives no window")
        for field, members in MEMBERS.items():
            if getattr(self, field) and self.model_type not in members:
                only = " and ".join(members)
                raise UserError(f"{field} of a {self.model_type} is not supported; {only} have one")
        self.rope()  # raises for what is not honoured

    def rope(self) -> tuple[torch.Tensor, float]:
        """How fast each pair of channels turns: rope_frequencies() of both ways of writing it down."""
        scaling = dict(self.rope_scaling or self.rope_parameters or {})
        theta = scaling.pop("rope_theta", None) or self.rope_theta or 10_000.0
        return rope_frequencies(self.cache_shape[2], theta, scaling, self.max_position_embeddings)

    def windows(self) -> list[int | None]:
        """How far back each layer looks."""
        if self.model_type == "mistral":  # in every layer
            return [self.sliding_window] * self.num_hidden_layers
        if not (self.use_sliding_window and self.sliding_window):
            return [None] * self.num_hidden_layers
        sliding = [kind == "sliding_attention" for kind in self.layer_types or ()]
        sliding = sliding or [layer >= self.max_window_layers for layer in range(self.num_hidden_layers)]
        return [self.sliding_window if s else None for s in sliding]

    n_positions = property(lambda self: self.max_position_embeddings)  # by GPT-2's names
    n_embd = property(lambda self: self.hidden_size)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        heads = self.num_key_value_heads or self.num_attention_heads
        return self.num_hidden_layers, heads, self.head_dim or self.hidden_size // self.num_attention_heads


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps)"""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C, (_, n_kv, hs) = config.hidden_size, config.cache_shape
        self.hs = hs
        bias = config.attention_bias or config.model_type == "qwen2"
        self.q_proj = nn.Linear(C, config.num_attention_heads * hs, bias=bias)
        self.k_proj = nn.Linear(C, n_kv * hs, bias=bias)
        self.v_proj = nn.Linear(C, n_kv * hs, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * hs, C, bias=config.attention_bias)
        headwise = config.model_type == "qwen3"  # a norm of each head, before it is turned
        self.q_norm = RMSNorm(hs, config.rms_norm_eps) if headwise else nn.Identity()
        self.k_norm = RMSNorm(hs, config.rms_norm_eps) if headwise else nn.Identity()
        self.attention_dropout = config.attention_dropout

    def forward(self, x, cos, sin, mask=CAUSAL, cache=None):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.hs) for proj in (self.q_proj, self.k_proj, self.v_proj))
        # (B, nh, T, hs); k and v have fewer heads
        q, k, v = (t.transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        dropout = self.attention_dropout if self.training else 0.0
        return self.o_proj(attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask, cache, dropout=dropout))


class MLP(nn.Module):
    def __init__(self, hidden_size: int, inner: int, activation: str, bias: bool):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.up_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden_size, bias=bias)
        self.act = ACTIVATIONS[activation]

    def forward(self, x):
        return self.down_proj(gated(self.act, self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        inner = config.intermediate_size
        self.mlp = MLP(config.hidden_size, inner, config.hidden_act, config.mlp_bias)

    def forward(self, x, cos, sin, mask=CAUSAL, cache=None):
        y = as_multiplied(self.input_layernorm(x))  # by three matrices, and below by two
        x = x + self.self_attn(y, cos, sin, mask, cache)
        return x + self.mlp(as_multiplied(self.post_attention_layernorm(x)))


class Transformer(nn.Module):
    """Everything below the head: token ids (B, T) in, hidden states (B, T, C) after the last norm out."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_positions, self.windows = config.max_position_embeddings, config.windows()
        inv_freq, self.rope_factor = config.rope()
        self.register_buffer("inv_freq", inv_freq, persistent=False)  # files do not hold it
        # transformers never trains the row of pad_token_id, whatever it stands for besides; here it is a row
        # like any other
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.grad_checkpoint = False  # True: keep each block's input only and recompute the rest in backward

    def forward(self, idx, pos=None, mask=CAUSAL, cache=None):
        T = idx.size(1)
        if self.n_positions < T and mask.slots is None:  # of packed rows, each example is within
            raise ValueError(f"{T} tokens, but the model has {self.n_positions} positions")
        if pos is None:
            pos = torch.arange(T, device=idx.device)[None]
        angles = pos[:, None, :, None].float() * self.inv_freq  # (B or 1, 1, T, hs / 2)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.rope_factor, angles.sin() * self.rope_factor
        S, first = cache[0].extent(T) if cache else (T, 0)
        masks = {window: mask.within(window, T, S, idx.device, first) for window in set(self.windows)}
        x = self.embed_tokens(idx)  # (B, T, C)
        for layer, (block, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            if self.grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, masks[window], use_reentrant=False)
            else:
                x = block(x, cos, sin, masks[window], cache[layer] if cache else None)
        return self.norm(x)
