"""The loop: accumulation, schedule, clipping, decay, precision, early stopping, and how it ends when it
must."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open

from nanomed import hub
from nanomed.errors import UserError
from nanomed.models.lora import LoRAConfig, inject
from nanomed.models.loss import clm_loss
from nanomed.precision import resolve_dtype, store_frozen
from nanomed.text.batch import IGNORE, Batch
from nanomed.text.blocks import Mixture
from nanomed.text.corpus import encode_corpus
from nanomed.text.tokenizer import load_tokenizer
from nanomed.training import checkpoint
from nanomed.training.curves import plot_curves
from nanomed.training.loop import Settings, fit, learning_rate, make_optimizer
from tests.conftest import assert_near, every_family, linears, make_texts, write_jsonl


@pytest.fixture(scope="module")
def corpus(bpe_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("d") / "t.jsonl"
    return encode_corpus(str(write_jsonl(path, make_texts(25, 21))), load_tokenizer(bpe_dir))


@pytest.fixture
def model(model_dir):
    torch.manual_seed(0)
    return hub.load_model(hub.find(str(model_dir)), dropout=0.0)


class Ragged:
    """Micro-batches with unequal numbers of supervised tokens, and a last window that is short."""

    unit = "tokens"

    def __init__(self, batch_size, grad_accum):
        g = torch.Generator().manual_seed(5)
        idx, targets = (torch.randint(0, 400, (20, 12), generator=g) for _ in range(2))
        for row in range(20):
            targets[row, (row * 5) % 11 + 1 :] = IGNORE
        size = batch_size * grad_accum
        self.windows_per_epoch = -(-20 // size)
        self.windows = [
            [
                Batch(idx[i : i + batch_size], targets[i : i + batch_size])
                for i in range(w, min(w + size, 20), batch_size)
            ]
            for w in range(0, 20, size)
        ]

    def window(self, k):
        return self.windows[k % self.windows_per_epoch]


def weights(model):
    return {k: p.detach().clone() for k, p in model.named_parameters()}


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@every_family
@pytest.mark.parametrize("batch_size, grad_accum", [(1, 8), (3, 3), (4, 2)])
def test_accumulated_equals_one_batch_on_ragged_data(
    model_dir, tmp_path, plain_steps, batch_size, grad_accum
):
    before = weights(hub.load_model(hub.find(str(model_dir))))

    def run(b, a, out):
        model = hub.load_model(
            hub.find(str(model_dir)), dropout=0.0
        ).double()  # small changes of large weights
        out.mkdir()
        fit(model, Ragged(b, a), clm_loss, Settings(lr=0.1, epochs=2, log_every=1), out)
        return weights(model), records(out)

    one, one_log = run(batch_size * grad_accum, 1, tmp_path / "one")
    many, many_log = run(batch_size, grad_accum, tmp_path / "many")
    for name in one:
        assert_near(many[name] - before[name], one[name] - before[name], 1e-4, name)
    for a, b in zip(one_log, many_log, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert (a["step"], a["tokens"], a["lr"]) == (b["step"], b["tokens"], b["lr"])


def test_one_update_is_that_of_transformers_and_torch(model, model_dir, tmp_path):
    """An independent update: transformers' loss, torch's clipping and AdamW, written out here. In fp64, where
    nothing that rounding leaves is large enough for AdamW to blow it up to a step: an update of up to 1e-3 is
    the same to seven digits."""
    x = torch.randint(0, 400, (4, 20), generator=torch.Generator().manual_seed(1))

    class One:
        windows_per_epoch, unit = 1, "tokens"
        window = staticmethod(lambda k: [Batch(x[:, :-1], x[:, 1:])])

    def loss_in_fp64(model, batch):
        logits = model(batch.idx).flatten(0, 1)
        return F.cross_entropy(logits, batch.targets.flatten(), reduction="sum"), {}

    s = Settings(lr=1e-3, max_steps=2, warmup_ratio=0.0, weight_decay=0.3, grad_clip=0.5, log_every=1)
    fit(model.double(), One(), loss_in_fp64, s, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_dir).double()
    decayed = {id(p) for p in theirs.parameters() if p.dim() > 1}
    groups = [
        {"params": [p for p in theirs.parameters() if (id(p) in decayed) == d], "weight_decay": 0.3 * d}
        for d in (1, 0)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=False)
    theirs.eval()  # the config's dropout is not what is compared
    for step in (0, 1):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 2))
        assert theirs(x, labels=x).loss.item() == pytest.approx(records(tmp_path)[step]["loss"], rel=1e-5)
        loss = F.cross_entropy(
            theirs(x).logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()
        )  # theirs, but not in fp32
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert records(tmp_path)[step]["loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert records(tmp_path)[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-10)
        assert norm > 0.5
    ours = weights(model)
    for name, p in theirs.named_parameters():
        q = ours[name].t() if name.endswith(model.family.CONV1D) else ours[name]
        torch.testing.assert_close(q, p.detach(), atol=1e-10, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def their_loss(theirs, batch):
    """transformers' summed loss of a batch; theirs: the model, or its directory."""
    if not isinstance(theirs, torch.nn.Module):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(theirs).eval()
    logits = theirs(batch.idx).logits.flatten(0, 1)
    return F.cross_entropy(logits, batch.targets.flatten(), reduction="sum")


@every_family
def test_the_first_loss_and_its_gradient_in_fp32_are_those_of_transformers(model, model_dir, tmp_path):
    """The update above once more as it is really done: in fp32, with the loss that never holds all logits."""
    data = Ragged(4, 2)
    fit(model, data, clm_loss, Settings(lr=1e-3, max_steps=1, log_every=1), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_dir).eval()
    count = sum(int((batch.targets != IGNORE).sum()) for batch in data.window(0))
    loss = sum(their_loss(theirs, batch) for batch in data.window(0)) / count
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    (record,) = records(tmp_path)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_schedule_is_that_of_transformers_shifted_by_one():
    """transformers starts its warm-up at 0, which wastes the first update; apart from that the curves are the
    same."""
    s = Settings(lr=2.0, warmup_ratio=0.1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 10, 100)
    theirs = []
    for _ in range(100):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = [learning_rate(k, 100, s) for k in range(100)]
    assert ours[:10] == pytest.approx(theirs[1:11]) and ours[10:] == pytest.approx(theirs[10:])
    assert all(lr > 0 for lr in ours)
    assert [learning_rate(0, 1, s), learning_rate(0, 1, Settings(lr=2.0, warmup_ratio=0))] == [2.0, 2.0]


@every_family
def test_only_matrices_and_embeddings_are_decayed(model):
    optimizer = make_optimizer(model, Settings(lr=1.0, weight_decay=0.1))
    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        plain = p.dim() < 2  # biases, gains of norms
        assert plain == (name.endswith("bias") or "ln_" in name or "norm" in name)
        assert decayed[id(p)] == (0.0 if plain else 0.1), name
    assert len(decayed) == len(list(model.parameters()))


@every_family
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2), ("fp16", 1e-3)])
def test_training_in_every_dtype(model, model_dir, corpus, tmp_path, dtype, tolerance):
    """The first loss is transformers' in fp32, up to what the dtype rounds; and it falls."""
    data = Mixture([corpus.all()], [1.0], 32, 8, 1, 0)
    (batch,) = data.window(0)
    expected = their_loss(model_dir, batch).item() / batch.supervised
    fit(model, data, clm_loss, Settings(lr=3e-3, max_steps=15, log_every=1, dtype=dtype), tmp_path)
    log = records(tmp_path)
    off = abs(log[0]["loss"] / expected - 1)
    assert off < tolerance and (dtype == "fp32" or off > 1e-7)  # the dtype did something
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@every_family
def test_lora_trains_the_adapter_alone_over_a_base_stored_in_bf16(model, corpus, tmp_path):
    inject(model, LoRAConfig(4, 8.0, 0.0, linears(model)[:-1]))
    store_frozen(model, "bf16", torch.device("cpu"))
    before = weights(model)
    data = Mixture([corpus.all()], [1.0], 32, 8, 1, 0)
    fit(model, data, clm_loss, Settings(lr=1e-2, max_steps=10, log_every=1, dtype="bf16"), tmp_path)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != ("lora_" in name), name
        frozen_linear = "lora_" not in name and any(f".{linear}." in name for linear in linears(model))
        assert p.dtype == (torch.bfloat16 if frozen_linear else torch.float32), name
    assert records(tmp_path)[-1]["loss"] < records(tmp_path)[0]["loss"]


def test_an_overflow_in_fp16_skips_the_step_and_not_the_schedule(model, corpus, tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=enabled, init_scale=2.0**40)
    )
    data = Mixture([corpus.all()], [1.0], 32, 8, 1, 0)
    summary = fit(model, data, clm_loss, Settings(lr=1e-3, max_steps=4, log_every=1, dtype="fp16"), tmp_path)
    assert summary["consumed"] > summary["step"] == 4
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3, 4]
    s = Settings(lr=1e-3)
    assert [r["lr"] for r in records(tmp_path)] == [learning_rate(k, 4, s) for k in range(4)]


def test_a_non_finite_loss_stops_the_run_and_names_step_and_batch(model, tmp_path):
    calls = []

    def broken(model, batch):
        calls.append(1)
        nll, parts = clm_loss(model, batch)
        return (nll * float("inf") if len(calls) == 8 else nll), parts

    s = Settings(lr=1e-4, epochs=5, save_every=1)
    with pytest.raises(UserError, match=r"loss is inf at update 3 \(window 3 of the data, micro-batch 2\)"):
        fit(model, Ragged(2, 3), broken, s, tmp_path)
    assert checkpoint.latest(tmp_path).name == "step-00000002.safetensors"
    assert all(p.isfinite().all() for p in model.parameters())


def test_out_of_memory_names_the_setting_and_keeps_the_checkpoint(model, tmp_path):
    calls = []

    def hungry(model, batch):
        calls.append(1)
        if len(calls) > 2:
            torch.empty(2**60)  # the CPU's allocator refuses
        return clm_loss(model, batch)

    with pytest.raises(
        UserError, match=r"out of memory at update 3: lower --batch-size.*checkpoint of update 2 stays"
    ):
        fit(model, Ragged(4, 1), hungry, Settings(lr=1e-4, epochs=3, save_every=1), tmp_path)


def test_early_stopping_puts_the_best_weights_back(model, tmp_path):
    losses, seen = iter([5.0, 4.0, 3.0, 3.5, 3.2, 1.0]), []

    def evaluate():
        seen.append(weights(model))
        loss = next(losses)
        return {"held out": {"loss": loss, "ppl": math.exp(loss)}}, None

    s = Settings(lr=1e-3, epochs=10, eval_every=2, patience=2, keep="best")
    summary = fit(model, Ragged(4, 1), clm_loss, s, tmp_path, evaluate)
    assert summary["stopped_early"] and summary["step"] == 8
    assert (summary["first_val"]["loss"], summary["best_val"]["loss"], summary["last_val"]["loss"]) == (
        5.0,
        3.0,
        3.2,
    )
    for name, p in model.named_parameters():
        assert torch.equal(p, seen[2][name]) and not torch.equal(p, seen[4][name])
    assert [r["val_loss"] for r in records(tmp_path) if "val_loss" in r] == [5.0, 4.0, 3.0, 3.5, 3.2]


@every_family
def test_resumed_equals_uninterrupted_bit_for_bit(model_dir, corpus, tmp_path, monkeypatch):
    """Dropout on, LoRA, fp16 whose scaler had to come down: every kind of state there is; stopped by an error
    between two checkpoints."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=enabled, init_scale=2.0**24)
    )

    def start(out, fail_at=None):
        torch.manual_seed(9)
        model = hub.load_model(hub.find(str(model_dir)), dropout=0.1)
        inject(model, LoRAConfig(4, 8.0, 0.2, model.family.LORA_TARGETS))
        out.mkdir(exist_ok=True)
        s = Settings(lr=1e-3, max_steps=9, save_every=2, log_every=2, dtype="fp16")
        calls = []

        def loss(model, batch):
            calls.append(fail_at is not None and fail_at == getattr(checkpoint.latest(out), "stem", None))
            assert sum(calls) < 4  # in the second update after that checkpoint
            return clm_loss(model, batch)

        data = Mixture([corpus.all()], [1.0], 32, 2, 2, 0)
        if fail_at:
            with pytest.raises(AssertionError):
                fit(model, data, loss, s, out)
            return
        fit(model, data, loss, s, out)
        progress = json.loads(safe_open(checkpoint.latest(out), "pt").metadata()["progress"])
        assert progress["consumed"] > progress["step"]  # overflows were skipped
        return weights(model), [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records(out)]

    whole, log = start(tmp_path / "whole")
    start(tmp_path / "broken", fail_at="step-00000004")
    assert checkpoint.latest(tmp_path / "broken").name == "step-00000004.safetensors"
    torch.rand(100)
    again, again_log = start(tmp_path / "broken")
    assert again.keys() == whole.keys()
    for name in whole:
        assert torch.equal(again[name], whole[name]), name
    assert again_log == log


def test_a_state_of_another_model_is_refused(model, model_dir, tmp_path):
    fit(model, Ragged(4, 1), clm_loss, Settings(lr=1e-3), tmp_path)
    other = hub.load_model(hub.find(str(model_dir)))
    inject(other, LoRAConfig(2, 2.0, 0.0, ("c_attn",)))
    with pytest.raises(UserError, match="of another model, or of other LoRA settings"):
        fit(other, Ragged(4, 1), clm_loss, Settings(lr=1e-3), tmp_path)


def test_auto_dtype_follows_the_hardware(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for amx, avx, expected in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda a=amx: a)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda a=avx: a)
        assert resolve_dtype("auto", cpu) == expected
    for capability, expected in (((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: c)
        assert resolve_dtype("auto", cuda) == expected
    assert resolve_dtype("fp16", cpu) == "fp16"


def test_gradients_that_are_never_finite_in_fp16_end_the_run(model, tmp_path):
    def broken(model, batch):
        nll, parts = clm_loss(model, batch)
        return nll + (0 * model.transformer.ln_f.weight.sum()).sqrt(), parts  # finite, its gradient is 0 / 0

    with pytest.raises(UserError, match="no gradient is finite in fp16 at update 1"):
        fit(model, Ragged(4, 1), broken, Settings(lr=1e-3, dtype="fp16"), tmp_path)


def test_without_matplotlib_the_rest_works_and_one_line_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 5, "loss": 2.0}\n')
    assert plot_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot_curves(tmp_path) is None
    assert capsys.readouterr().err.splitlines() == [
        "no loss.png: matplotlib is not installed (pip install 'nanomed[report]')"
    ]
