"""Several processes, one training: full fine-tuning of what one device cannot hold.

torchrun --nproc-per-node 4 train_clm.py ...     four processes of this machine, each a rank with a device of its own

PyTorch's FSDP2 (`fully_shard`; Zhao et al., "PyTorch FSDP", 2023; the third stage of ZeRO, Rajbhandari et al. 2020, section 5.3):
each rank keeps its part of every weight, of its gradient and of its moments. Before a block computes, its weights are put together
from all ranks; afterwards each keeps its part again. Every rank walks through the same windows of data and takes its own rows of
each micro-batch, so that what one process would add up is added up over the ranks, and the schedule, the log and the checkpoint are
those of one process. Files hold whole weights; rank 0 alone writes and speaks.

Without torchrun every function here leaves things as they are.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from nanomed.errors import UserError
from nanomed.loss import IGNORE

PATIENCE = timedelta(minutes=30)  # until a rank that waits for another gives up: a validation, say, must not take longer


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def start(device: torch.device) -> None:
    """Join the other ranks, if torchrun started this process. Raises UserError where a rank would have no device."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(f"{torch.cuda.device_count()} CUDA devices, but torchrun started more processes (--nproc-per-node)")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends; cli.execute keeps the old one)


def stop() -> None:
    """Part from the others, all work being done."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def check(plan) -> None:
    """Raises UserError for what several processes cannot do."""
    if world() == 1:
        return
    odd = {
        "--lora-r": plan.lora_r,
        "--ewc": plan.ewc,
        "--l2-sp": plan.l2_sp,
        "--compile": plan.compile,
        "--dtype fp16": plan.dtype == "fp16",
        "train_cls.py": plan.phase == "classify",
    }
    for what, given in odd.items():
        if given:
            raise UserError(f"{what}: for one process; under torchrun all weights of a language model are trained, in bf16 or fp32")


# --- what the ranks tell each other -----------------------------------------------------------------------------------


def from_first(ask: Callable):
    """What ask() gives on rank 0, which alone calls it, on every rank."""
    found = [ask() if is_first() else None]
    if world() > 1:
        dist.broadcast_object_list(found)
    return found[0]


def in_turn(work: Callable):
    """work(), one rank after the other: what is large for a moment is then large in one process at a time."""
    for rank in range(world()):
        if rank == (dist.get_rank() if dist.is_initialized() else 0):
            done = work()
        if world() > 1:
            dist.barrier()
    return done


def total(values: torch.Tensor) -> torch.Tensor:
    """Summed over the ranks."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device) -> bool:
    """Whether it is so on any rank: all must stop after the same update."""
    return flag if world() == 1 else bool(total(torch.tensor(float(flag), device=device)) > 0)


def own_rows(batch: tuple) -> tuple:
    """This rank's rows of a micro-batch (B, ...); where there are fewer rows than ranks, one without anything supervised, since
    all ranks have to take part in every pass."""
    if world() == 1:
        return batch
    rank = dist.get_rank()
    if rank < len(batch[0]):
        return tuple(t[rank :: world()] for t in batch)
    return (*(t[:1] for t in batch[:-1]), torch.full_like(batch[-1][:1], IGNORE))


# --- sharded weights --------------------------------------------------------------------------------------------------


class Sharded(nn.Module):
    """A language model whose weights are shared out among the ranks. sharded(f) calls f() where the embedding, the last norm and
    the head are whole, as they must be for whoever goes past the model's own forward (nanomed.loss does); blocks become whole one
    by one, when they are called."""

    def __init__(self, model: nn.Module, device: torch.device):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        super().__init__()
        self.model = model
        mesh = init_device_mesh(device.type, (world(),))
        blocks = next(m for m in model.backbone.children() if isinstance(m, nn.ModuleList))
        for part in [*blocks, self]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum: the loss has been divided by the tokens of all ranks
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def forward(self, work: Callable):
        return work()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this rank has a part. Every rank must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor, shared out as `like` is."""
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
