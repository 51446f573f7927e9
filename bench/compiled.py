"""A written token of Llama's or Gemma's shape on a CPU, one row, fp32: nanomed as it writes, and its step
compiled by PyTorch with its weights frozen, from the page (llama.py, gemma.py) and from the fused blocks.

    python bench/compiled.py runs/models/smollm2-135m

Milliseconds a token after 64 others, medians of five times 40; all must choose the same tokens."""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanomed.threads import share_cores

share_cores(writes=True)  # before PyTorch is loaded

import torch
import torch._inductor.config

from nanomed.evaluation.measure import open_model
from nanomed.evaluation.next_token import next_logits
from nanomed.memory import reuse_memory
from nanomed.models.attention import CAUSAL, Mask
from nanomed.models.cache import make_cache
from nanomed.models.fused import fuse

BEFORE, NEW, TIMES = 64, 40, 5


def opened(kind: str):
    """(the model, what gives logits after one token of a cache that stays as long as it is)."""
    o = open_model(sys.argv[1], "cpu", "fp32", plain=kind != "eager", write_in="stored")
    if kind == "compiled, fused":
        fuse(o.model)

    def step(token, pos, mask, cache):
        return next_logits(o.model, o.model.backbone(token, pos, mask, cache)[:, -1], torch.float32)

    return o.model, step if kind == "eager" else torch.compile(step, dynamic=False)


@torch.no_grad()
def write(model, step, ids, fixed: bool) -> tuple[list[int], float]:
    """(the tokens, seconds)."""
    room, written = BEFORE + NEW, []
    cache = make_cache(model.config, 1, room, ids.device, torch.float32)
    token = next_logits(model, model.backbone(ids, None, CAUSAL, cache)[:, -1], torch.float32).argmax(-1)
    there = torch.arange(room)
    at = torch.tensor([BEFORE])
    for layer in cache if fixed else ():
        layer.fix(at)
    start = time.perf_counter()
    for k in range(BEFORE, room):
        mask = Mask((there <= k)[None, None, None]) if fixed else CAUSAL
        token = step(token[:, None], torch.tensor([[k]]), mask, cache).argmax(-1)
        at += 1
        written.append(int(token))
    return written, time.perf_counter() - start


def main():
    reuse_memory()
    torch._inductor.config.freezing = True
    said = {}
    for kind in ("eager", "compiled", "compiled, fused"):
        torch.manual_seed(0)
        model, step = opened(kind)
        ids = torch.randint(0, model.config.vocab_size, (1, BEFORE))
        first = time.perf_counter()
        write(model, step, ids, kind != "eager")
        first = time.perf_counter() - first
        found = [write(model, step, ids, kind != "eager") for _ in range(TIMES)]
        said[kind] = found[0][0]
        ms = statistics.median(seconds for _, seconds in found) / NEW * 1e3
        print(f"{kind}: {ms:.1f} ms a token; the first {NEW} took {first:.0f} s", flush=True)
    assert all(tokens == said["eager"] for tokens in said.values())


if __name__ == "__main__":
    main()
