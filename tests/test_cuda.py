"""What a GPU computes against what the CPU computes in fp32: logits, loss, gradients, packed rows, writing. Skipped without one."""

import pytest
import torch

from nanomed import hub
from nanomed.evaluation.generate import Sampling, stream
from nanomed.evaluation.measure import open_model
from nanomed.loss import clm_loss, instruction_loss
from nanomed.precision import autocast, to_device
from tests.conftest import every_family

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch sees no CUDA device")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# of the norm of what fp32 gives: 8 and 11 bits of precision, summed over a few layers
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}


def loss_and_gradient(directory, loss_fn, batch, device, dtype):
    model = hub.load_model(hub.find(str(directory)), dropout=0.0).to(device)
    with autocast(device, dtype):
        nll, count, *_ = loss_fn(model, [to_device(t, device) for t in batch])
    (nll / count).backward()
    return nll.item() / count, torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None])


def plain_batch():
    ids = torch.randint(0, 400, (3, 41), generator=torch.Generator().manual_seed(0))
    return clm_loss, [ids[:, :-1], ids[:, 1:]]


def packed_batch():
    ids = torch.randint(0, 400, (2, 41), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 12 + [1] * 28, [0] * 33 + [-1] * 7])
    pos = torch.cat([torch.arange(12), torch.arange(28), torch.arange(33), torch.zeros(7, dtype=torch.long)]).view(2, 40)
    targets = ids[:, 1:].masked_fill(segments < 0, -100)
    return instruction_loss, [ids[:, :-1], pos, segments, targets]


@every_family
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("made", [plain_batch, packed_batch])
def test_loss_and_gradient(model_dir, dtype, made):
    loss, gradient = loss_and_gradient(model_dir, *made(), CPU, "fp32")
    other, found = loss_and_gradient(model_dir, *made(), CUDA, dtype)
    assert other == pytest.approx(loss, rel=TOLERANCE[dtype])
    assert (found - gradient).norm() < TOLERANCE[dtype] * gradient.norm()


@every_family
def test_what_is_written_is_the_same(model_dir):
    written = []
    for device in ("cpu", "cuda"):
        o = open_model(str(model_dir), device, "fp32")
        tokens = stream(o.model, [[5, 6, 7], [8]], 12, Sampling(), range(2), o.device, o.dtype)
        written.append(list(tokens))
    assert written[0] == written[1]
