"""Several processes that train one model together, as `torchrun --nproc-per-node N train_clm.py ...` starts
them, a GPU each.

All do the same: they read the data, walk the same windows, decide the same. What each has of its own are some
rows of every micro-batch, and 1/N of every weight, gradient and moment (torch's fully_shard; Zhao et al.
2023, PyTorch FSDP): a layer's weights are gathered when it is their turn, and thrown away after it. Only the
first process prints and writes.

Without torchrun there is one process, whose model is whole: then everything here gives back what it was
given."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from nanomed.errors import UserError
from nanomed.precision import DTYPES
from nanomed.text.batch import IGNORE, Batch
from nanomed.threads import of_torchrun

# In what gloo and NCCL say of an exchange whose other side has ended.
GONE = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
PATIENCE = timedelta(hours=1)  # of a process that waits: the first one may be writing a large model


def world() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if of_torchrun() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if of_torchrun() else 0


def together(main: Callable):
    """main() of one of several processes. The first alone speaks; but of those that fail, whichever fails
    first says why, and torchrun ends the others."""
    if world() == 1:
        return main()
    stderr, nowhere = sys.stderr, open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    if rank():
        sys.stdout = sys.stderr = nowhere
    try:
        result = main()
        if dist.is_initialized():
            dist.destroy_process_group()
        return result
    except (Exception, KeyboardInterrupt) as e:
        sys.stderr = stderr if _fails_first() else nowhere
        by_gloo = isinstance(e, RuntimeError) and "gloo" in str(e)  # which has no class for it
        if not (isinstance(e, dist.DistError) or by_gloo):
            raise
        said = str(e).strip().splitlines()[0]
        if any(words in said for words in GONE):
            said = f"another of the {world()} processes is gone (torchrun's report below says how it ended)"
        mend = "the same command with --resume goes on from the last checkpoint, if there is one"
        raise UserError(f"{said}; {mend}") from e


def _fails_first() -> bool:
    """Asked of torchrun's own store, which outlives the processes."""
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
        return store.add(f"nanomed/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except RuntimeError:  # it is gone, with torchrun
        return True


def start(device: torch.device) -> None:
    """Meet the other processes: through NCCL with a GPU for each, through gloo on the CPU. Raises UserError
    for too few GPUs."""
    if world() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        here, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > there:
            mend = f"torchrun --nproc-per-node {there}"
            raise UserError(f"{here} processes, but this PyTorch sees {there} CUDA device(s): {mend}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


# --- what each takes, and what all of them have -------------------------------------------------------------


def own_rows(batch: Batch) -> Batch:
    """This process's rows of a micro-batch. Where there are fewer rows than processes, it is a row without
    targets: it adds nothing, but all must take part in every exchange."""
    rows = batch.map(lambda t: t[rank() :: world()])
    if len(rows.idx):
        return rows
    return replace(batch.map(lambda t: t[:1]), targets=torch.full_like(batch.targets[:1], IGNORE))


def total(x):
    """The sum of a tensor, or of a number, over all processes."""
    return x if world() == 1 else _reduced(x, dist.ReduceOp.SUM)


def most(n: int) -> int:
    """The largest of all processes' numbers."""
    return n if world() == 1 else _reduced(n, dist.ReduceOp.MAX)


def _reduced(x, op):
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = x.clone() if torch.is_tensor(x) else torch.tensor(x, device=device)
    dist.all_reduce(tensor, op)
    return tensor if torch.is_tensor(x) else tensor.item()


def of_first(value):
    """What the first process has: for what all must decide alike."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def of_each(value) -> list:
    """What every process has, in their order."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all have come here."""
    if world() > 1:
        dist.barrier()


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """One process after another: so that a model which each has to load lies whole in the computer's memory
    only once."""
    for _ in range(rank()):
        wait()
    yield
    for _ in range(world() - rank()):
        wait()


# --- the sharded model --------------------------------------------------------------------------------------


def shard(model, device: torch.device, dtype: str) -> None:
    """Leave this process its shard of each weight of `model` (whole and the same in all of them, in fp32, on
    the CPU), in place.

    What is trained stays fp32. What autocast multiplies in `dtype`, a block's attention and MLP, is gathered
    in it, each when its turn comes; the rest (embedding, head and norms) in fp32, for as long as a forward or
    a backward lasts. Gradients are summed over the processes, in fp32."""
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (world(),))
    # autocast would make a copy of each gathered weight, and backward would keep all the copies; the
    # residual stream stays fp32
    policy = fsdp.MixedPrecisionPolicy(DTYPES[dtype], torch.float32, cast_forward_inputs=False)
    (blocks,) = (m for m in model.backbone.children() if isinstance(m, nn.ModuleList))
    for part in (part for block in blocks for part in block.children()):
        if any(isinstance(m, nn.Linear) for m in part.modules()):
            fsdp.fully_shard(part, mesh=mesh, mp_policy=policy)
    # no block adds to it in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    fsdp.fully_shard(model, mesh=mesh, reshard_after_forward=True)  # outside of a forward all are sharded
    for module in (m for m in model.modules() if isinstance(m, fsdp.FSDPModule)):
        module.set_gradient_divide_factor(1.0)  # a sum, no average: one_update divides by the tokens of all
        module.set_force_sum_reduction_for_comms(True)
    model.call = lambda f, *args: f(model, *args)
    fsdp.register_fsdp_forward_method(model, "call")
    if rank():  # the first goes on with the numbers that a single process would draw
        torch.manual_seed(torch.initial_seed() + rank())


def forward(f: Callable) -> Callable:
    """f(model, ...), which may look at any weight and call any part of the model: they are gathered for as
    long as it runs."""
    return f if world() == 1 else lambda model, *args: model.call(f, *args)


def gathered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors put together from their shards, one at a time, on the first process's CPU; nothing on the
    others."""
    if world() == 1:
        return state
    from torch.distributed.tensor import DTensor

    full = {}
    for name, tensor in state.items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            full[name] = tensor.cpu()
    return full


def shard_of(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor, laid out as that of the parameter `like`: the inverse of
    gathered()."""
    if world() == 1 or full.shape != like.shape:  # an optimizer's count of its steps
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
