"""What a training would take, before it is begun: memory by what it is for, time from two real updates."""

import time

import torch

from nanomed.memory import in_words, peak_rss
from nanomed.models.loss import held_bytes
from nanomed.models.quant import stored_bytes
from nanomed.precision import DTYPES, autocast
from nanomed.training.loop import make_optimizer, make_scaler, one_update, total_steps
from nanomed.training.settings import Settings

LOOKED_AT = 100  # windows of updates in which the widest micro-batch is looked for


def dry_run(model, data, loss_fn, s: Settings, validated: bool, anchor=None) -> None:
    """Do two updates in memory and print what all of them would take. The model is spoilt; nothing is written
    to DIR."""
    device = next(p for p in model.parameters() if p.requires_grad).device
    windows = [data.window(k) for k in range(min(data.windows_per_epoch, LOOKED_AT))]
    widest = max(windows, key=lambda window: max(batch.idx.numel() for batch in window))
    batch = max(widest, key=lambda batch: batch.idx.numel())
    rows, length = batch.idx.shape
    model.train()
    sizes = memory(model, batch, loss_fn, s.dtype, anchor)
    parts = ", ".join(f"{name} {in_words(n)}" for name, n in sizes.items())
    most = f"{in_words(at_most(sizes, len(widest)))} at most, and what the libraries take"
    print(f"memory    {parts} ({rows} x {length} tokens at once): {most}")
    optimizer, scaler = make_optimizer(model, s), make_scaler(model, s)
    for _ in range(2):  # the first also pays for compiling, and for memory that is taken for the first time
        start = time.perf_counter()
        done = one_update(model, widest, loss_fn, optimizer, scaler, s, anchor)
        seconds = time.perf_counter() - start
    cuda = device.type == "cuda"
    held = in_words(torch.cuda.max_memory_allocated(device) if cuda else peak_rss())
    print(f"          {held} were held at most in two updates" + ("" if cuda else ", libraries and all"))
    steps, speed = total_steps(data, s), done.count / seconds
    more = "; validations come on top" if validated else ""
    time_of_all = f"{_time(steps * seconds)} for {steps:,}{more}"
    print(f"time      {seconds:.2f} s an update ({speed:,.0f} {data.unit}/s), {time_of_all}")
    print(f"dry run: nothing was written to {s.out}")


def memory(model, batch, loss_fn, dtype: str, anchor=None) -> dict[str, int]:
    """Bytes by what they are for, of which not all are held at the same time (at_most)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    sizes = {
        "weights": stored_bytes(model),
        "optimizer": sum(p.numel() * 8 for p in trained),
        "gradients": sum(p.numel() * 4 for p in trained),
        "activations": kept_for_backward(model, batch, loss_fn, dtype),
    }
    if hasattr(model, "lm_head"):
        sizes["the loss"] = held_bytes(batch.supervised, model.lm_head.weight, DTYPES[dtype])
    return sizes | ({"where they started": anchor.nbytes()} if anchor else {})


def at_most(sizes: dict[str, int], micro_batches: int) -> int:
    """Of memory()'s: gradients come as activations go, but for those of earlier micro-batches, and what the
    loss holds goes before either."""
    earlier = sizes["gradients"] if micro_batches > 1 else 0
    at_the_loss = sizes["activations"] + sizes.get("the loss", 0) + earlier
    lasting = sum(n for name, n in sizes.items() if name in ("weights", "optimizer", "where they started"))
    return lasting + max(at_the_loss, sizes["gradients"])


def kept_for_backward(model, batch, loss_fn, dtype: str) -> int:
    """Bytes that autograd keeps of one micro-batch: every tensor once, weights and inputs not counted."""
    device = next(model.parameters()).device
    batch = batch.map(lambda t: t.to(device))
    inputs = [t for t in vars(batch).values() if t is not None]
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *inputs]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself might hold the graph that holds it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(device, dtype):
        loss_fn(model, batch)
    return sum(kept.values())


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
