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
from nanomed.models.rope import turned
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
    return all(type(m) in known for m in layers)


class Block(nn.Module):
    def __init__(self, plain: llama.Block | gemma.Block):
        super().__init__()
        a, mlp = plain.self_attn, plain.mlp
        self.hs, self.n_q, self.n_k = a.hs, a.q_proj.out_features // a.hs, a.k_proj.out_features // a.hs
        self.scale, self.act = getattr(a, "scale", a.hs**-0.5), mlp.act
        self.qkv_proj, self.o_proj = _joined(a.q_proj, a.k_proj, a.v_proj), a.o_proj
        self.gate_up_proj, self.down_proj = _joined(mlp.gate_proj, mlp.up_proj), mlp.down_proj
        self.q_norm, self.k_norm = (None if type(n) is nn.Identity else Norm(n) for n in (a.q_norm, a.k_norm))
        self.attention_norm = Norm(plain.input_layernorm)
        self.after_attention = self.after_mlp = None
        if isinstance(plain, gemma.Block):  # which has a norm behind each part as well
            self.mlp_norm = Norm(plain.pre_feedforward_layernorm)
            self.after_attention = Norm(plain.post_attention_layernorm)
            self.after_mlp = Norm(plain.post_feedforward_layernorm)
        else:
            self.mlp_norm = Norm(plain.post_attention_layernorm)

    def forward(self, x, cos, sin, mask=CAUSAL, cache=None):
        B, T, _ = x.shape
        n_q, n_qk = self.n_q, self.n_q + self.n_k
        qkv = self.qkv_proj(self.attention_norm(x)).view(B, T, -1, self.hs).transpose(1, 2)
        qk, v = qkv[:, :n_qk], qkv[:, n_qk:]  # (B, heads, T, hs)
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :n_q]), self.k_norm(qk[:, n_q:])), 1)
        qk = turned(qk, cos.to(qk.dtype), sin.to(qk.dtype))
        y = self.o_proj(attend(qk[:, :n_q], qk[:, n_q:], v, mask, cache, self.scale))
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
    """A page's norm in five operations. gradients.rms_norm has seven, and other last bits, which trained
    weights depend on."""

    def __init__(self, plain: llama.RMSNorm | gemma.RMSNorm):
        super().__init__()
        self.rounds_first = isinstance(plain, llama.RMSNorm)  # to x's dtype, and multiplies then
        gain = plain.weight.detach() if self.rounds_first else 1 + plain.weight.detach().float()
        self.weight = nn.Parameter(gain, requires_grad=False)
        self.eps, self.part = torch.tensor(plain.eps), 1 / len(gain)

    def forward(self, x):
        if x.dtype == torch.float32:
            return self.scaled(x).mul_(self.weight)
        y = self.scaled(x.float())
        return self.weight * y.to(x.dtype) if self.rounds_first else y.mul_(self.weight).to(x.dtype)

    def scaled(self, x):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.eps, length, length, value=self.part).rsqrt_()
