"""Llama's and Gemma's blocks as they are only measured with: each in fewer and larger operations.

A token that is written is little to compute: starting an operation takes longer than most of them do, and a
large product reads its weights faster than three small ones. So queries, keys and values are one product
here, and gate and up another; queries and keys are turned together; a norm is five operations. The pages
(llama.py, gemma.py) say what is computed, and the result is theirs but for rounding. There are no gradients
and no dropout."""

import torch
from torch import nn

from nanomed.models import gemma, llama
from nanomed.models.attention import CAUSAL, attend
from nanomed.precision import weightless


def fuse(model: nn.Module) -> None:
    """Put these blocks in the place of the plain ones, in place, on a CPU. One that holds an adapter or
    quantised weights stays as it is."""
    blocks = [n for n, m in model.backbone.named_modules() if isinstance(m, llama.Block | gemma.Block)]
    for name in blocks:  # by their names, so that each plain block goes when its own is there
        block = model.backbone.get_submodule(name)
        if _is_plain(block):
            model.backbone.set_submodule(name, Block(block))


def _is_plain(block: nn.Module) -> bool:
    layers = [*block.self_attn.children(), *block.mlp.children()]
    known = nn.Linear, nn.Identity, llama.RMSNorm, gemma.RMSNorm
    return all(type(m) in known for m in layers) and next(block.parameters()).device.type == "cpu"


class Block(nn.Module):
    def __init__(self, plain: llama.Block | gemma.Block):
        super().__init__()
        a, mlp = plain.self_attn, plain.mlp
        self.hs, self.n_q, self.n_k = a.hs, a.q_proj.out_features // a.hs, a.k_proj.out_features // a.hs
        self.scale, self.act = getattr(a, "scale", a.hs**-0.5), mlp.act
        self.qkv_proj, self.o_proj = _joined(a.q_proj, a.k_proj, a.v_proj), a.o_proj
        self.gate_up_proj, self.down_proj = _joined(mlp.gate_proj, mlp.up_proj), mlp.down_proj
        self.q_norm, self.k_norm = (None if type(n) is nn.Identity else Norm(n) for n in (a.q_norm, a.k_norm))
        norms = [plain.input_layernorm, plain.post_attention_layernorm]
        if isinstance(plain, gemma.Block):  # which has a norm behind each part as well
            norms += [plain.pre_feedforward_layernorm, plain.post_feedforward_layernorm]
        norms = [Norm(n) for n in norms]
        before, after = (norms[::2], norms[1::2]) if len(norms) == 4 else (norms, [None, None])
        self.attention_norm, self.mlp_norm = before
        self.after_attention, self.after_mlp = after

    def forward(self, x, cos, sin, mask=CAUSAL, cache=None):
        B, T, _ = x.shape
        qkv = self.qkv_proj(self.attention_norm(x)).view(B, T, -1, self.hs).transpose(1, 2)
        qk, v = qkv.split((self.n_q + self.n_k, self.n_k), 1)  # (B, heads, T, hs)
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, : self.n_q]), self.k_norm(qk[:, self.n_q :])), 1)
        q, k = turned(qk, cos, sin).split((self.n_q, self.n_k), 1)
        y = self.o_proj(attend(q, k, v, mask, cache, self.scale))
        x = x + (y if self.after_attention is None else self.after_attention(y))
        gate, up = self.gate_up_proj(self.mlp_norm(x)).chunk(2, -1)
        y = self.down_proj(self.act(gate).mul_(up))
        return x.add_(y if self.after_mlp is None else self.after_mlp(y))


def _joined(*layers: nn.Linear) -> nn.Linear:
    """One layer whose outputs are theirs, one after the other."""
    with weightless():
        joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    biases = [layer.bias for layer in layers]
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    joined.bias = None if biases[0] is None else nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


class Norm(nn.Module):
    def __init__(self, plain: llama.RMSNorm | gemma.RMSNorm):
        super().__init__()
        self.rounds_first = isinstance(plain, llama.RMSNorm)  # to x's dtype, and multiplies then
        gain = plain.weight.detach() if self.rounds_first else 1 + plain.weight.detach().float()
        self.weight = nn.Parameter(gain, requires_grad=False)
        self.eps, self.part = torch.tensor(plain.eps), 1 / len(gain)

    def forward(self, x):
        y = x.float()
        length = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        y = y * torch.addcmul(self.eps, length, length, value=self.part).rsqrt_()
        return self.weight * y.to(x.dtype) if self.rounds_first else (y * self.weight).to(x.dtype)


def turned(x, cos, sin):
    """rotate() of nanomed.models.rope, without the halves' copies."""
    half, cos, sin = x.size(-1) // 2, cos.to(x.dtype), sin.to(x.dtype)
    y = x * cos
    (y1, y2), (x1, x2) = y.split(half, -1), x.split(half, -1)
    s = sin[..., :half]
    y1.addcmul_(x2, s, value=-1)
    y2.addcmul_(x1, s)
    return y
