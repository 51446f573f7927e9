"""The language-model loss: head and cross-entropy together, a chunk of tokens at a time.

The logits of a GPT-2 batch are by far its largest tensor: 8 x 512 tokens x 50,257 words in fp32 are 823 MB, and the
plain `cross_entropy(lm_head(x))` keeps several of them for backward. Here a chunk of tokens goes through the head,
gives its losses and, in training, at once its gradients with respect to hidden states and head weights; then its
logits are thrown away (the idea of Liger-Kernel, Hsu et al. 2024, section 3.2, in plain PyTorch).

Losses are returned as a (sum, count) pair and never as a mean: only the caller knows by how many tokens to divide.
"""

import torch
import torch.nn.functional as F

from nanomed.models import attention
from nanomed.models.prepacked import product

IGNORE = -100  # the target of a position that is not supervised: padding, or a prompt
CHUNK_ELEMENTS = 2**26  # logits held at once: 256 MiB in fp32, 1,335 tokens of GPT-2's vocabulary


def linear_cross_entropy(x, weight, targets, per_token=False):
    """Cross-entropy of the logits `x @ weight.T` against `targets`, summed over the supervised positions.

    x: hidden states (..., C); weight: the head (V, C); targets: ids (...), IGNORE where not supervised.
    Multiplies in autocast's dtype if autocast is on; softmax and loss are fp32, gradients are summed over chunks in fp32.
    Returns (sum, count): a differentiable fp32 scalar in nats, and the number of supervised positions, an int; or with
    `per_token` (sum, losses), the latter (count,) in the order of the supervised positions, without a gradient.
    The sum can be taken backward once.
    """
    targets = targets.reshape(-1)
    keep = targets != IGNORE
    count = int(keep.sum())
    x = x.reshape(-1, x.size(-1))
    if count < keep.numel():  # rows that are not supervised never reach the head
        x, targets = x[keep], targets[keep]
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    total, nll = _LinearCrossEntropy.apply(x, weight, targets, dtype)
    return total, nll if per_token else count


@torch.no_grad()
def token_nll(x, weight, targets, dtype=torch.float32):
    """Negative log-likelihood in nats of each of `targets` (N,) after hidden states x (N, C): fp32 (N,).

    Evaluation's loss, so the logits are fp32: GPT-2's lie around -35, where bf16 knows only steps of 0.25. CUDA
    multiplies inputs of `dtype` into fp32 directly; elsewhere the inputs are made fp32 too.
    """
    if not weight.is_mkldnn:
        weight = weight.to(dtype if x.is_cuda else torch.float32)
    return torch.cat([-_log_probs(xs, weight, ts)[1] for xs, ts in _chunks(x, targets, weight.size(0))])


def _chunks(x, targets, vocab):
    n = max(1, -(-x.size(0) * vocab // CHUNK_ELEMENTS))  # as few chunks as fit, of equal length
    return zip(x.chunk(n), targets.chunk(n), strict=True)


def head_logits(x, weight):
    """Logits (N, V) in fp32 of hidden states x (N, C), multiplied in the dtype in which the head is stored (or laid out:
    nanomed.models.prepacked)."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(weight.dtype)
        if x.is_cuda and weight.dtype != torch.float32:
            return torch.mm(x, weight.t(), out_dtype=torch.float32)
        return product(x, weight).float()


def _log_probs(x, weight, targets):
    """All log-probabilities (N, V) in fp32, and those of the targets (N,)."""
    log_probs = F.log_softmax(head_logits(x, weight), dim=-1)
    return log_probs, log_probs.gather(1, targets[:, None]).squeeze(1)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of -log softmax(z)[t] with respect to z is softmax(z) - onehot(t), so nothing of the logits has to
    be kept: forward computes both gradients, backward multiplies them by the incoming scalar."""

    @staticmethod
    def forward(ctx, x, weight, targets, dtype):
        need_x, need_w = ctx.needs_input_grad[:2]
        w = weight.to(dtype)
        nll = torch.empty(len(targets), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x) if need_x else None
        grad_w = torch.zeros_like(weight, dtype=torch.float32) if need_w else None
        # fp16 ends at 65,504, which a frequent word's gradient, summed over a chunk, can pass: sum a 256th of it.
        shrink = 1 / 256 if dtype == torch.float16 else 1.0
        start = 0
        for xs, ts in _chunks(x, targets, weight.size(0)):
            log_probs, target_log_probs = _log_probs(xs, w, ts)
            nll[start : start + len(ts)] = -target_log_probs
            if need_x or need_w:
                d = log_probs.exp_()  # from here on softmax(z) - onehot(t), in the memory of the log-probabilities
                d[torch.arange(len(ts), device=d.device), ts] -= 1
                d = d.to(dtype)
            if need_x:
                grad_x[start : start + len(ts)] = d @ w
            if need_w:
                grad_w.add_(d.t() @ (xs * shrink).to(dtype), alpha=1 / shrink)
            start += len(ts)
        ctx.grads = (grad_x, grad_w)
        ctx.mark_non_differentiable(nll)
        return nll.sum(), nll

    @staticmethod
    def backward(ctx, grad, _):
        if ctx.grads is None:  # they are multiplied in place: a second time would square the factor
            raise RuntimeError("linear_cross_entropy can be taken backward only once")
        (grad_x, grad_w), ctx.grads = ctx.grads, None
        return (grad_x.mul_(grad) if grad_x is not None else None, grad_w.mul_(grad) if grad_w is not None else None, None, None)


# --- of a batch -------------------------------------------------------------------------------------------------------


def clm_loss(model, batch):
    """Summed next-token loss of (inputs, targets), each (B, T), and how many tokens it sums."""
    idx, targets = batch
    return linear_cross_entropy(model.backbone(idx), model.lm_head.weight, targets)


def instruction_loss(model, batch):
    """Summed loss of a batch of nanomed.text.instructions.collate, and how many tokens it sums: packed examples never see each
    other. With replayed text in it, also {"answer": (sum, count), "replay": (sum, count)}, to be logged apart."""
    idx, *packed, targets = batch
    pos = mask = replayed = None
    if packed:
        pos, segments, *replayed = packed
        mask = attention.packed(segments)
    x = model.backbone(idx, pos, mask)
    if not replayed:
        return linear_cross_entropy(x, model.lm_head.weight, targets)
    total, nll = linear_cross_entropy(x, model.lm_head.weight, targets, per_token=True)
    text = replayed[0][targets != IGNORE]
    return (total, len(nll), {"answer": (nll[~text].sum(), int((~text).sum())), "replay": (nll[text].sum(), int(text.sum()))})
