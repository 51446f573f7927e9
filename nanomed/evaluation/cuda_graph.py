"""A step of writing on a GPU, recorded as a CUDA graph.

One token a row is little to compute and some two hundred kernels to start, each of which takes the processor
longer than the GPU needs for it. A graph is all of them, started at once (CUDA C++ Programming Guide, "CUDA
Graphs"). It does the very same to the very same memory each time: so tokens, positions and mask lie in
tensors of their own, which the step itself moves on, and attention looks at the whole room of the cache under
a mask that grows."""

import torch

from nanomed.models.attention import Mask


class RecordedStep:
    """Called with the tokens (B, 1) written last, gives the logits (B, V) after them; the same memory each
    time."""

    def __init__(self, logits_after, cache: list, real, pos, last: int):
        """logits_after(idx, pos, mask): the step, on `cache`; real (B, T): which of the T tokens so far are
        no padding; pos (B, 1): the positions of the tokens that come next; last: the last position that there
        is."""
        B, T = real.shape
        self.logits_after, self.last = logits_after, last
        self.idx, self.pos = torch.zeros_like(pos), pos.clone()
        self.at = torch.tensor([T], device=real.device)
        self.allowed = torch.zeros(B, 1, 1, cache[0].k.size(2), dtype=torch.bool, device=real.device)
        self.allowed[:, 0, 0, :T] = real
        for layer in cache:
            layer.fix(self.at)
        self.graph = self.logits = None

    def __call__(self, idx):
        self.idx.copy_(idx)
        if self.logits is None:  # once as it is, in which libraries get ready
            self.logits = self._step()
            return self.logits
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = self._step()
        self.graph.replay()
        return self.logits

    def _step(self):
        self.allowed.index_fill_(3, self.at, True)
        logits = self.logits_after(self.idx, self.pos, Mask(self.allowed))
        self.at += 1
        self.pos.add_(1).clamp_(max=self.last)
        return logits
