"""Gemma 3, the text part of those that see pictures (MedGemma too) included: one page.

Gemma Team, "Gemma 3 Technical Report" (2025), section 2. Against Llama: five layers of six look back over a
window only, with a rotary base of their own (Beltagy et al. 2020, Longformer, section 3.1); a norm stands
behind each sub-block as before it, and one on each head of queries and keys (Dehghani et al. 2023, section
2); a norm multiplies by 1 + its weight; the MLP's gate is a GELU (Shazeer 2020, GEGLU); the embedding, to
which the head is tied, goes in times sqrt(C), so that it is as large as what the blocks add to it.

Letters in the shape comments: B batch, T time, C channels (hidden_size), nh heads, hs head size (head_dim).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanomed.errors import UserError
from nanomed.models.attention import CAUSAL, attend
from nanomed.models.gradients import rms_norm
from nanomed.models.llama import MLP
from nanomed.models.rope import rope_frequencies, rotate
from nanomed.precision import as_multiplied

# gemma3 holds a gemma3_text (nanomed.hub.config.language_part)
ARCHITECTURES = {
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
    "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification"),
}
DEFAULTS = {"gemma3_text": {}, "gemma3": {}}
FIXED = {"use_bidirectional_attention": False}  # EmbeddingGemma's is True
FIXED |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}  # Gemma 2's
INERT = {"cache_implementation", "text_config", "vision_config", "mm_tokens_per_image"}
INERT |= {"boi_token_index", "eoi_token_index", "image_token_index"}
DROPOUTS = ("attention_dropout",)
BACKBONE = "model"
EMBEDDING = "model.embed_tokens.weight"
CONV1D = ()
BUFFERS = (".rotary_emb.inv_freq",)
RESIDUAL = ("o_proj.weight", "down_proj.weight")
LORA_TARGETS = ("q_proj", "v_proj")

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # the kinds of layer
BASES = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}  # rotary, where nothing says otherwise


@dataclass(frozen=True)
class Config:
    """The fields of Hugging Face's `config.json` that change what the model computes, with its defaults."""

    model_type: str = "gemma3_text"
    vocab_size: int = 262_208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    query_pre_attn_scalar: int = 256  # scores are divided by its root, whatever the size of a head
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False  # of q, k, v and o
    layer_types: list | None = None  # GLOBAL or LOCAL of each layer
    sliding_window_pattern: int = 6  # without them: of so many layers, the last is global
    sliding_window: int | None = 4096  # of local layers
    rope_theta: float | None = None  # of global layers
    rope_scaling: dict | None = None  # of global layers (nanomed.models.rope)
    rope_local_base_freq: float | None = None
    rope_parameters: dict | None = None  # {kind: base and scaling}, as transformers 5 writes all three
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self):
        C, heads, n_kv, hs = self.hidden_size, self.num_attention_heads, *self.cache_shape[1:]
        if C % heads or heads % n_kv or hs % 2:
            what = f"width {C}, {heads} heads of size {hs} over {n_kv} of keys"
            raise UserError(f"{what}: do not divide evenly")
        kinds, n_layer = self.layer_types or list(BASES), self.num_hidden_layers
        if len(self.layer_types or []) not in (0, n_layer) or not set(kinds) <= BASES.keys():
            raise UserError(f"layer_types must say {' or '.join(BASES)} of each layer, not {kinds}")
        if LOCAL in kinds and self.sliding_window is None:
            raise UserError(f"layer_types has {LOCAL}, but sliding_window gives no window")
        if unknown := sorted((self.rope_parameters or {}).keys() - BASES):
            raise UserError(f"rope_parameters must say {' and '.join(BASES)}, not {', '.join(unknown)}")
        for kind in set(kinds):
            self.rope(kind)  # raises for what is not honoured

    def kinds(self) -> list[str]:
        """Which layers are local and which global."""
        numbers, every = range(1, self.num_hidden_layers + 1), self.sliding_window_pattern
        return self.layer_types or [LOCAL if n % every else GLOBAL for n in numbers]

    def rope(self, kind: str) -> tuple[torch.Tensor, float]:
        """How fast each pair of channels turns in such a layer: rope_frequencies() of both ways of writing it
        down."""
        scaling = dict((self.rope_parameters or {}).get(kind) or {})
        theta = self.rope_theta if kind == GLOBAL else self.rope_local_base_freq
        scaling |= (self.rope_scaling or {}) if kind == GLOBAL else {}
        if "type" in scaling:  # of Llama's older files; here transformers passes over it
            raise UserError(f"rope scaling of {kind}: its kind must be called rope_type, not type")
        theta = scaling.pop("rope_theta", None) or theta or BASES[kind]
        return rope_frequencies(self.head_dim, theta, scaling, self.max_position_embeddings)

    n_positions = property(lambda self: self.max_position_embeddings)  # by GPT-2's names
    n_embd = property(lambda self: self.hidden_size)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        return self.num_hidden_layers, self.num_key_value_heads, self.head_dim


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x):
        # whose product Llama's rounds before, and this one after
        return rms_norm(x.float(), 1 + self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C, nh, (_, n_kv, hs) = config.hidden_size, config.num_attention_heads, config.cache_shape
        self.hs, self.scale = hs, config.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(C, nh * hs, bias=config.attention_bias)  # nh * hs need not be C
        self.k_proj = nn.Linear(C, n_kv * hs, bias=config.attention_bias)
        self.v_proj = nn.Linear(C, n_kv * hs, bias=config.attention_bias)
        self.o_proj = nn.Linear(nh * hs, C, bias=config.attention_bias)
        self.q_norm = RMSNorm(hs, config.rms_norm_eps)  # of each head, before it is turned: so scores stay
        self.k_norm = RMSNorm(hs, config.rms_norm_eps)  # small, as Gemma 2's soft cap kept them
        self.attention_dropout = config.attention_dropout

    def forward(self, x, cos, sin, mask=CAUSAL, cache=None):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.hs) for proj in (self.q_proj, self.k_proj, self.v_proj))
        # (B, nh, T, hs); k and v have fewer heads
        q, k, v = (t.transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        q, k, dropout = rotate(q, cos, sin), rotate(k, cos, sin), self.attention_dropout * self.training
        return self.o_proj(attend(q, k, v, mask, cache, self.scale, dropout))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(C, eps)
        self.self_attn = Attention(config)
        # Llama's of this name stands behind `x +`.
        self.post_attention_layernorm = RMSNorm(C, eps)
        self.pre_feedforward_layernorm = RMSNorm(C, eps)
        self.mlp = MLP(C, config.intermediate_size, config.hidden_activation, bias=False)
        self.post_feedforward_layernorm = RMSNorm(C, eps)

    def forward(self, x, cos, sin, mask=CAUSAL, cache=None):
        y = self.self_attn(as_multiplied(self.input_layernorm(x)), cos, sin, mask, cache)
        x = x + self.post_attention_layernorm(y)
        y = self.mlp(as_multiplied(self.pre_feedforward_layernorm(x)))
        return x + self.post_feedforward_layernorm(y)


class Transformer(nn.Module):
    """Everything below the head: token ids (B, T) in, hidden states (B, T, C) after the last norm out."""

    def __init__(self, config: Config):
        super().__init__()
        self.n_positions, self.kinds = config.max_position_embeddings, config.kinds()
        self.windows = {GLOBAL: None, LOCAL: config.sliding_window}
        self.rope_factors = {}
        for kind in dict.fromkeys(self.kinds):
            inv_freq, self.rope_factors[kind] = config.rope(kind)
            self.register_buffer(f"inv_freq_{kind}", inv_freq, persistent=False)  # files do not hold it
        scale = torch.tensor(config.hidden_size**0.5, device="cpu")
        self.register_buffer("scale", scale, persistent=False)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.grad_checkpoint = False  # True: keep each block's input only and recompute the rest in backward

    def turns(self, kind: str, pos):
        """cos and sin (B or 1, 1, T, hs) of the angles at positions (B or 1, T)."""
        angles = pos[:, None, :, None].float() * getattr(self, f"inv_freq_{kind}")  # (B or 1, 1, T, hs / 2)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.rope_factors[kind], angles.sin() * self.rope_factors[kind]

    def forward(self, idx, pos=None, mask=CAUSAL, cache=None):
        T = idx.size(1)
        if self.n_positions < T and mask.slots is None:  # of packed rows, each example is within
            raise ValueError(f"{T} tokens, but the model has {self.n_positions} positions")
        if pos is None:
            pos = torch.arange(T, device=idx.device)[None]
        S, first = cache[0].extent(T) if cache else (T, 0)
        context = {
            kind: (*self.turns(kind, pos), mask.within(self.windows[kind], T, S, idx.device, first))
            for kind in dict.fromkeys(self.kinds)
        }
        x = self.embed_tokens(idx)  # (B, T, C)
        # sqrt(C) in the dtype of the weights, with which it was trained: 33.94 of 1,152 is 34 in bf16
        x = x * self.scale.to(x.dtype)
        for layer, (block, kind) in enumerate(zip(self.layers, self.kinds, strict=True)):
            if self.grad_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, *context[kind], use_reentrant=False)
            else:
                x = block(x, *context[kind], cache[layer] if cache else None)
        return self.norm(x)
