"""What a GPU computes against what the CPU computes in fp32: logits, loss, gradients, packed rows, writing.
Skipped without one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nanomed import hub
from nanomed.evaluation import generate
from nanomed.evaluation.generate import Sampling, stream
from nanomed.evaluation.measure import open_model
from nanomed.models import attention, kernels, loss
from nanomed.models.attention import Mask, attend, packed
from nanomed.models.loss import clm_loss
from nanomed.precision import autocast
from nanomed.text.batch import Batch
from nanomed.training.loop import make_optimizer, one_update
from nanomed.training.model import compile_backbone
from nanomed.training.settings import Settings
from tests.conftest import ROOT, every_family

if "NANOMED_TEST_CUDA" in os.environ:  # who asks for them wants no test that is skipped
    assert torch.cuda.is_available(), "this PyTorch sees no CUDA device"
else:
    pytestmark = pytest.mark.skip(
        reason="for a GPU: make gpu-check, or NANOMED_TEST_CUDA=1 python -m pytest tests/test_cuda.py"
    )

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# of the norm of what fp32 gives: 8 and 11 bits of precision, summed over a few layers
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}


def loss_and_gradient(directory, batch, device, dtype):
    model = hub.load_model(hub.find(str(directory)), dropout=0.0).to(device)
    with autocast(device, dtype):
        nll, _ = clm_loss(model, batch)
    (nll / batch.supervised).backward()
    return nll.item() / batch.supervised, torch.cat(
        [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    )


def plain_batch():
    ids = torch.randint(0, 400, (3, 41), generator=torch.Generator().manual_seed(0))
    return Batch(ids[:, :-1], ids[:, 1:])


def packed_batch():
    ids = torch.randint(0, 400, (2, 41), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 12 + [1] * 28, [0] * 33 + [-1] * 7])
    pos = torch.cat(
        [torch.arange(12), torch.arange(28), torch.arange(33), torch.zeros(7, dtype=torch.long)]
    ).view(2, 40)
    targets = ids[:, 1:].masked_fill(segments < 0, -100)
    return Batch(ids[:, :-1], targets, pos, segments)


@every_family
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("made", [plain_batch, packed_batch])
def test_loss_and_gradient(model_dir, dtype, made):
    loss, gradient = loss_and_gradient(model_dir, made(), CPU, "fp32")
    other, found = loss_and_gradient(model_dir, made(), CUDA, dtype)
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


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kv", [4, 2])
def test_the_kernel_for_packed_rows_is_the_mask(kv, window):
    segments = torch.tensor([[0] * 12 + [1] * 28, [0] * 33 + [-1] * 7])
    (B, T), real = segments.shape, (segments >= 0)[:, None, :, None].cuda()
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(B, nh, T, 16, device="cuda", dtype=torch.bfloat16).requires_grad_() for nh in (4, kv, kv)
    )
    mask = packed(segments, CUDA)
    assert mask.ends.has_kernel == (torch.cuda.get_device_capability() >= (8, 0))

    def run(mask, *qkv):
        y = attend(*qkv, mask.within(window, T, T, "cuda"))
        loss = (y.view(B, T, 4, 16).transpose(1, 2).float() * real).pow(2).sum()
        return [y * real[:, 0], *torch.autograd.grad(loss, qkv)]

    exact = run(Mask(mask.allowed), *(t.detach().double().requires_grad_() for t in (q, k, v)))
    for found, expected in zip(run(mask, q, k, v), exact, strict=True):
        assert (found - expected).norm() < 2e-2 * expected.norm()


def test_a_recorded_step_writes_what_a_plain_one_does(monkeypatch):
    """In bf16 too: the same kernels but for attention's, so that few of the tokens may differ where two are
    as likely."""
    o = open_model("nano", "cuda", "bf16")
    prompts = torch.randint(0, 8000, (3, 20), generator=torch.Generator().manual_seed(0)).tolist()
    prompts[1] = prompts[1][:7]
    seeds, drawn = range(3), Sampling(temperature=0.8, top_k=40, repetition_penalty=1.2)
    written = {}
    for worth in (8, 10**6):
        monkeypatch.setattr(generate, "WORTH_RECORDING", worth)
        for sampling in (Sampling(), drawn):
            written[worth, sampling] = torch.tensor(
                list(stream(o.model, prompts, 40, sampling, seeds, o.device, o.dtype))
            )
    for sampling in (Sampling(), drawn):
        a, b = written[8, sampling], written[10**6, sampling]
        assert (a == b)[:12].float().mean() > 0.9


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_recorded_step_reads_quantised_weights(kind):
    o = open_model("nano", "cuda", "bf16", quantize=kind)
    written = list(stream(o.model, [[5, 6, 7]], 20, Sampling(), [0], o.device, o.dtype))
    again = list(
        stream(o.model, [[5, 6, 7]], 7, Sampling(), [0], o.device, o.dtype)
    )  # too few to be recorded
    assert len(written) == 20 and written[:7] == again


def test_two_updates_compiled_and_not(model_dir, monkeypatch):
    found = {}
    for module, name in ((kernels, "tiled"), (attention, "_by_length"), (loss, "_nll_and_gradient")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that they are put back
    for compiled in (False, True):
        for made in (plain_batch, packed_batch):
            batch = made()
            model = hub.load_model(hub.find(str(model_dir)), dropout=0.0).cuda()
            if compiled:
                compile_backbone(model)
            s = Settings(lr=1e-3, dtype="bf16")
            optimizer, scaler = make_optimizer(model, s), torch.amp.GradScaler("cuda", enabled=False)
            found[compiled, made] = [
                one_update(model, [batch], clm_loss, optimizer, scaler, s).losses[0] for _ in range(2)
            ]
    for made in (plain_batch, packed_batch):
        assert found[True, made] == pytest.approx(found[False, made], rel=1e-3)
        assert found[True, made][1] < found[True, made][0]


PHASES = {
    "all weights": ("train_clm.py", "--data", "docs.jsonl"),
    "fp16": ("train_clm.py", "--data", "docs.jsonl", "--dtype", "fp16", "--grad-checkpoint"),
    "lora over nf4": (
        "train_clm.py",
        "--data",
        "docs.jsonl",
        "--lora-r",
        "4",
        "--quantize",
        "nf4",
        "--merge",
    ),
    "answers": ("train_sft.py", "--data", "pairs.jsonl"),
    "a classifier": ("train_cls.py", "--positives", "docs.jsonl", "--negatives", "others.jsonl"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_runs(tmp_path, phase):
    rows = {
        "docs": [
            {"text": f"Document {k} is about the treatment of patients. " * (k % 5 + 1)} for k in range(40)
        ],
        "others": [{"text": f"Passage {k} tells of ships and of the sea. " * (k % 4 + 1)} for k in range(40)],
        "pairs": [{"question": f"What is {k}?", "answer": "A number. " * (k % 7 + 1)} for k in range(40)],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    name, *flags = PHASES[phase]
    flags = [
        "--model",
        "nano",
        "--out",
        "out",
        "--max-steps",
        "4",
        "--context",
        "64",
        "--log-every",
        "1",
        *flags,
    ]
    done = subprocess.run([sys.executable, ROOT / name, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert (
        losses[-1] < losses[0]
        and json.loads((tmp_path / "out" / "summary.json").read_text())["device"] == "cuda"
    )
