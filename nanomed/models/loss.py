"""The language-model loss: head and cross-entropy together, a chunk of tokens at a time.

The logits of a GPT-2 batch are by far its largest tensor: 8 x 512 tokens x 50,257 words in fp32 are 823 MB,
and the plain `cross_entropy(lm_head(x))` keeps several of them for backward. Here a chunk of tokens goes
through the head, gives its losses and, in training, at once its gradients with respect to hidden states and
head weights; then its logits are thrown away (the idea of Liger-Kernel, Hsu et al. 2024, section 3.2, in
plain PyTorch).

Losses are sums, never means: only the caller knows by how many tokens (Batch.supervised) to divide."""

import torch
import torch.nn.functional as F

from nanomed.models.attention import CAUSAL, packed
from nanomed.models.prepacked import product
from nanomed.precision import multiplied_in, to_device
from nanomed.text.batch import IGNORE, Batch

# logits held at once: 256 MiB in fp32, 1,335 tokens of GPT-2's; on a GPU twice as many
CHUNK_ELEMENTS = 2**26
ALIGN = 64  # a GPU multiplies several times slower where a side is no multiple of 8, as 50,257 is not


def linear_cross_entropy(x, weight, targets, per_token=False):
    """Cross-entropy of the logits `x @ weight.T` against `targets`, summed over the supervised positions.

    x: hidden states (..., C); weight: the head (V, C); targets: ids (...), IGNORE where not supervised; best
    left on the CPU, since counting them where x is would wait for a GPU. Multiplies in autocast's dtype if
    autocast is on; softmax and loss are fp32, gradients are summed over chunks in fp32. Returns (sum, count):
    a differentiable fp32 scalar in nats, and the number of supervised positions, an int; or with `per_token`
    (sum, losses), the latter (count,) in the order of the supervised positions, without a gradient. The sum
    can be taken backward once."""
    targets = targets.reshape(-1)
    keep = targets != IGNORE
    count = int(keep.sum())
    x = x.reshape(-1, x.size(-1))
    if count < keep.numel():  # rows that are not supervised never reach the head
        x, targets = x.index_select(0, to_device(keep.nonzero().squeeze(1), x.device)), targets[keep]
    total, nll = _LinearCrossEntropy.apply(x, weight, to_device(targets, x.device), multiplied_in(x))
    return total, nll if per_token else count


@torch.no_grad()
def token_nll(x, weight, targets, dtype=torch.float32):
    """Negative log-likelihood in nats of each of `targets` (N,) after hidden states x (N, C): fp32 (N,).

    Evaluation's loss, so the logits are fp32: GPT-2's lie around -35, where bf16 knows only steps of 0.25.
    CUDA multiplies inputs of `dtype` into fp32 directly; elsewhere the inputs are made fp32 too."""
    vocab = weight.size(0)
    if not weight.is_mkldnn:
        weight = _aligned(weight.to(dtype if x.is_cuda else torch.float32))
    return torch.cat([_nll(_logits(xs, weight, vocab), ts) for xs, ts in _chunks(x, targets, vocab)])


def _n_chunks(tokens: int, vocab: int, on_gpu: bool) -> int:
    """As few as fit."""
    return max(1, -(-tokens * vocab // (2 * CHUNK_ELEMENTS if on_gpu else CHUNK_ELEMENTS)))


def _chunks(x, targets, vocab):
    n = _n_chunks(x.size(0), vocab, x.is_cuda)  # of equal length
    return zip(x.chunk(n), targets.chunk(n), strict=True)


def head_logits(x, weight):
    """Logits (N, V) in fp32 of hidden states x (N, C), multiplied in the dtype in which the head is stored
    (or laid out: nanomed.models.prepacked)."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(weight.dtype)
        if x.is_cuda and weight.dtype != torch.float32:
            return torch.mm(x, weight.t(), out_dtype=torch.float32)
        return product(x, weight).float()


def _aligned(weight):
    """The head with rows of zeros, which are no words, up to a multiple of ALIGN, where that pays."""
    return F.pad(weight, (0, 0, 0, -weight.size(0) % ALIGN)) if weight.is_cuda else weight


def _logits(x, weight, vocab):
    """head_logits() (N, V or more) of a head that is _aligned(), or, in fp32 on a CPU, with room behind each
    row: what is no word gets no probability. MKL is a third slower where a row begins in the middle of a
    vector, as after 50,257 words, and a tenth where rows lie a multiple of 4 KiB apart, as of 49,152."""
    if x.is_cuda or weight.is_mkldnn or weight.dtype != torch.float32:
        logits = head_logits(x, weight)
    else:
        logits = weight.new_empty(len(x), vocab + -vocab % ALIGN + ALIGN // 2)
        torch.mm(x.float(), weight.t(), out=logits[:, :vocab])
    logits[:, vocab:] = -torch.inf
    return logits


def _log_softmax(logits):
    """On a CPU in place: a row is summed before it is written."""
    return F.log_softmax(logits, dim=-1) if logits.is_cuda else torch.log_softmax(logits, -1, out=logits)


def _nll(logits, targets):
    return F.nll_loss(_log_softmax(logits), targets, reduction="none")


def _nll_and_gradient(logits, targets, dtype):
    """-log softmax(z)[t] (N,) in fp32 of logits z (N, V) and targets t, and its gradient in z, softmax(z) -
    onehot(t), in `dtype`."""
    log_probs = _log_softmax(logits)
    nll = -log_probs.gather(1, targets[:, None]).squeeze(1)
    d, rows = log_probs.exp_().to(dtype), torch.arange(len(targets), device=logits.device)
    d[rows, targets] = torch.expm1(-nll).to(dtype)  # exact, also where it is near 0
    return nll, d


_eager = _nll_and_gradient


def compile_gradient(wanted: bool = True) -> None:
    """Have torch.compile fuse the passes over the logits, or leave them, whatever an earlier run wanted."""
    global _nll_and_gradient
    _nll_and_gradient = torch.compile(_eager, dynamic=True) if wanted else _eager


def _add_product(total, a, b, dtype) -> None:
    """total (fp32) += a @ b, multiplied in `dtype`."""
    if dtype == total.dtype:
        total.addmm_(a, b)
    else:  # fp16 ends at 65,504, which a frequent word's gradient, summed over a chunk, can pass: sum a 256th
        shrink = 1 / 256 if dtype == torch.float16 else 1.0
        total.add_(a @ (b * shrink).to(dtype), alpha=1 / shrink)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of -log softmax(z)[t] with respect to z is softmax(z) - onehot(t), so nothing of the
    logits has to be kept: forward computes both gradients, backward multiplies them by the incoming scalar.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, dtype):
        need_x, need_w = ctx.needs_input_grad[:2]
        vocab, w = weight.size(0), _aligned(weight.to(dtype))
        nll = torch.empty(len(targets), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x) if need_x else None
        grad_w = torch.zeros_like(w, dtype=torch.float32) if need_w else None
        start = 0
        for xs, ts in _chunks(x, targets, vocab):
            here = slice(start, start + len(ts))
            if need_x or need_w:
                nll[here], d = _nll_and_gradient(_logits(xs, w, vocab), ts, dtype)
                d = d[:, : len(w)]  # without the room behind the rows
            else:
                nll[here] = _nll(_logits(xs, w, vocab), ts)
            if need_x:
                grad_x[here] = d @ w
            if need_w:
                _add_product(grad_w, d.t(), xs, dtype)
            start += len(ts)
            d = None  # before the next chunk's logits are made
        # no view, so that autograd adds a tied embedding's gradient to it in place
        grad_w = grad_w[:vocab].detach() if need_w else None
        ctx.grads = (grad_x, grad_w)
        ctx.mark_non_differentiable(nll)
        return nll.sum(), nll

    @staticmethod
    def backward(ctx, grad, _):
        if ctx.grads is None:  # they are multiplied in place: a second time would square the factor
            raise RuntimeError("linear_cross_entropy can be taken backward only once")
        grads, ctx.grads = ctx.grads, None
        return *(None if g is None else g.mul_(grad) for g in grads), None, None


def held_bytes(tokens: int, weight: torch.Tensor, dtype: torch.dtype) -> int:
    """The most that linear_cross_entropy() holds at a time for so many supervised tokens: a chunk's logits,
    on a GPU their log-softmax, and the gradient in `dtype`; the head in `dtype`; and of what is trained,
    hidden states and perhaps the head, the gradients."""
    (vocab, C), narrow = weight.shape, dtype.itemsize if dtype != torch.float32 else 0
    chunk = -(-tokens // _n_chunks(tokens, vocab, weight.is_cuda))
    copies = (0 if weight.dtype == dtype else narrow) + (4 + narrow if weight.requires_grad else 0)
    return chunk * vocab * (4 + 4 * weight.is_cuda + narrow) + vocab * C * copies + tokens * C * 4


# --- of a batch -------------------------------------------------------------------------------------------


def clm_loss(model, batch: Batch):
    """(summed next-token loss of a batch, parts); packed examples never see each other. parts is {}, or, if
    the batch has replayed text, {"answer": (sum, tokens), "replay": (sum, tokens)}, for the log. How many
    tokens to divide by: batch.supervised."""
    weight, targets, pos, mask = model.lm_head.weight, batch.targets, None, CAUSAL
    if batch.segments is not None:
        pos, mask = to_device(batch.pos, weight.device), packed(batch.segments, weight.device)
    x = model.backbone(to_device(batch.idx, weight.device), pos, mask)
    if batch.replayed is None:
        return linear_cross_entropy(x, weight, targets)[0], {}
    total, nll = linear_cross_entropy(x, weight, targets, per_token=True)
    is_replay = batch.replayed[targets != IGNORE]
    drop = to_device(is_replay, weight.device)
    answer, replay = nll.masked_fill(drop, 0).sum(), nll.masked_fill(~drop, 0).sum()
    return total, {"answer": (answer, int((~is_replay).sum())), "replay": (replay, int(is_replay.sum()))}
