"""When a run is compiled by itself, and that it goes on as it began."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanomed import hub
from nanomed.models import llama, loss
from nanomed.models.gpt2 import Config
from nanomed.models.lora import LoRAConfig, inject
from nanomed.models.loss import clm_loss
from nanomed.text.batch import Batch
from nanomed.training import compiling, run
from nanomed.training.compiling import can_compile, flops_a_token, pays
from nanomed.training.directory import record_start
from nanomed.training.model import make_ready
from nanomed.training.settings import Adapt, Classify, Instruct
from tests.conftest import every_family

PLAN = Adapt(model="m", device="cpu", dtype="bf16", context=512, lr=1e-4, compile=None, lora_r=8)


@every_family
@pytest.mark.parametrize("lora", [False, True])
def test_operations_are_those_that_pytorch_counts(model_dir, lora):
    """Its counter takes attention for all T x T scores, ours for the lower half; and knows that the first
    layer's input has no gradient, and what LoRA adds, which ours leaves out: within a tenth."""
    model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
    flops = flops_a_token(model, not lora, context=40)
    if lora:
        inject(model, LoRAConfig(1, 2.0, 0.0, model.family.LORA_TARGETS))
    idx = torch.randint(0, 400, (2, 41))
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        clm_loss(model, Batch(idx[:, :-1], idx[:, 1:]))[0].backward()
    attention = 2 * 2 * model.config.cache_shape[0] * model.config.n_embd * 40 / 2 * 3
    assert counter.get_total_flops() / 80 == pytest.approx(flops + attention, rel=0.1)


def test_a_compiled_run_leaves_nothing_to_the_next_one_of_its_process(model_dir, monkeypatch):
    eager = loss._nll_and_gradient
    monkeypatch.setattr(torch, "compile", lambda f, **how: lambda *args: f(*args))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    for compiled in (True, True, False):
        model = hub.load_model(hub.find(str(model_dir)))
        make_ready(model, replace(PLAN, compile=compiled, dtype="fp32"), torch.device("cpu"))
        assert (loss._nll_and_gradient is eager) != compiled


def test_a_long_run_is_compiled_where_it_was_seen_to_pay(monkeypatch):
    monkeypatch.setattr(compiling, "can_compile", lambda device: True)
    gpt2, smollm2 = (
        Config(),
        llama.Config(49152, 576, 1536, 30, 9, 2048, num_key_value_heads=3, tie_word_embeddings=True),
    )
    assert pays(PLAN, "llama", smollm2, updates=1000) and not pays(PLAN, "llama", smollm2, updates=10)
    assert not pays(PLAN, "gpt2", gpt2, 10**6)  # gains nothing on a CPU
    for unmeasured in ({"dtype": "fp32"}, {"quantize": "nf4"}):
        assert not pays(replace(PLAN, **unmeasured), "llama", smollm2, 10**6)
    cuda = replace(PLAN, device="cuda", lora_r=0)
    assert pays(cuda, "gpt2", gpt2, 50_000) and not pays(cuda, "gpt2", gpt2, 500)
    assert not pays(
        Classify(model="m", device="cuda", dtype="bf16", context=512, lr=1e-4, compile=None),
        "gpt2",
        gpt2,
        10**6,
    )
    sft = Instruct(**{f.name: getattr(cuda, f.name) for f in fields(cuda)}, no_packing=True)
    assert not pays(sft, "gpt2", gpt2, 50_000)  # its rows are of many lengths
    monkeypatch.setattr(compiling, "can_compile", lambda device: False)
    assert not pays(cuda, "gpt2", gpt2, 50_000)


def test_what_a_compiler_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    assert not can_compile("cpu")  # no Python.h
    (tmp_path / "Python.h").touch()
    assert can_compile("cpu")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert not can_compile("cpu")


def test_a_resumed_run_goes_on_as_it_began(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(run.compiling, "pays", lambda *a: asked.append(a) or True)
    job = SimpleNamespace(data=SimpleNamespace(windows_per_epoch=7))

    def decided(plan, resume):
        s = replace(plan, out=tmp_path, resume=resume)
        return run.decide_compile(SimpleNamespace(settings=s, config=Config()), job).compile

    assert decided(PLAN, resume=False) is True and "--no-compile" in capsys.readouterr().out
    assert asked[0][-1] == 7  # updates
    assert decided(replace(PLAN, compile=False), resume=False) is False and len(asked) == 1
    for began in (False, True):
        record_start(replace(PLAN, compile=began, out=tmp_path), {})
        assert decided(PLAN, resume=True) is began and len(asked) == 1
