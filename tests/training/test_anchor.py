"""The pull towards the weights that a training starts from: its gradient, its Fisher information, its flags,
its resume."""

import json

import pytest
import torch
import torch.nn.functional as F

from nanomed import hub
from nanomed.text.batch import Batch
from nanomed.training import loop
from nanomed.training.anchor import Anchor, fisher
from nanomed.training.loop import Settings, fit
from tests.conftest import assert_near, assert_refused, every_family, make_texts, write_jsonl


def blocks(n, T=12):
    g = torch.Generator().manual_seed(3)
    return [Batch(*(torch.randint(0, 400, (1, T), generator=g) for _ in range(2))) for _ in range(n)]


class Data:
    windows_per_epoch, unit = 3, "tokens"

    def window(self, k):
        two = blocks(6)[2 * (k % 3) : 2 * (k % 3) + 2]
        return [Batch(torch.cat([b.idx for b in two]), torch.cat([b.targets for b in two]))]


def naive_loss(model, batch):
    """Summed next-token loss, the plain way."""
    logits = F.linear(model.backbone(batch.idx), model.lm_head.weight)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"), {}


@every_family
def test_fisher_is_the_mean_of_squared_gradients_over_tokens(model_dir):
    model = hub.load_model(hub.find(str(model_dir)), dropout=0.3).train()
    found = fisher(model, blocks(3), torch.device("cpu"))
    assert model.training and all(p.grad is None for p in model.parameters())
    plain, expected = hub.load_model(hub.find(str(model_dir))).eval(), {}
    for block in blocks(3):
        plain.zero_grad()
        naive_loss(plain, block)[0].backward()
        for name, p in plain.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, 0) + p.grad**2 / 12 / 3
    assert expected.keys() <= found.keys()
    for name in found:
        assert_near(
            found[name], torch.as_tensor(expected.get(name, torch.zeros_like(found[name]))), 1e-4, name
        )


@pytest.mark.parametrize("l2_sp, ewc", [(0.5, 0.0), (0.0, 2.0), (0.1, 3.0)])
def test_an_update_is_that_of_the_loss_with_the_penalty(model_dir, tmp_path, plain_steps, l2_sp, ewc):
    model = hub.load_model(hub.find(str(model_dir)), dropout=0.0).double()
    information = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    anchor = Anchor(model, l2_sp, ewc, information if ewc else None)
    s = Settings(lr=0.1, max_steps=3, log_every=1, warmup_ratio=0, grad_clip=0.5)
    fit(model, Data(), naive_loss, s, tmp_path, anchor=anchor)

    plain = hub.load_model(hub.find(str(model_dir)), dropout=0.0).double()
    penalties = []
    for step in range(3):
        plain.zero_grad()
        (batch,) = Data().window(step)
        nll, _ = naive_loss(plain, batch)
        penalty = sum(
            ((l2_sp + (ewc * information[n] if ewc else 0)) * (p - start[n]) ** 2).sum() / 2
            for n, p in plain.named_parameters()
        )
        (nll / batch.targets.numel() + penalty).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        lr = 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 3, dtype=torch.float64)))
        with torch.no_grad():
            for p in plain.parameters():
                p -= lr * p.grad
        penalties.append(penalty.item())
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert_near(ours - start[name], theirs.detach() - start[name], 1e-7, name)
    logged = [json.loads(line)["penalty"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx(penalties, rel=1e-5) and logged[0] == 0 < logged[2]


FLAGS = [
    "--context",
    16,
    "--batch-size",
    4,
    "--val-fraction",
    0,
    "--max-steps",
    6,
    "--save-every",
    2,
    "--lr",
    "1e-2",
]


def train(script, model_dir, data, out, *more):
    return script("train_clm.py", "--model", model_dir, "--data", data, "--out", out, *FLAGS, *more)


def distance(a, b):
    a, b = (hub.load_model(hub.find(str(d))).state_dict() for d in (a, b))
    return sum(((a[k] - b[k]) ** 2).sum() for k in a).sqrt().item()


def test_only_the_weights_that_are_named_are_pulled(model_dir):
    model = hub.load_model(hub.find(str(model_dir)))
    named = {id(p): name for name, p in model.named_parameters()}
    anchor = Anchor(model, 0.5, on=("wte", "ln_1"))
    pulled = {named[id(p)] for p, *_ in anchor.pulls}
    assert (
        pulled == {name for name in named.values() if "wte" in name or "ln_1" in name} != set(named.values())
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
            p.grad = torch.zeros_like(p)
    anchor.pull()
    for p in model.parameters():
        assert_near(p.grad, torch.full_like(p, 0.5 if named[id(p)] in pulled else 0.0), 1e-5, named[id(p)])


@pytest.mark.parametrize("pull", ["--l2-sp", "--ewc"])
def test_it_holds_the_weights_back_and_resumes_exactly(script, model_dir, tmp_path, monkeypatch, pull):
    data = write_jsonl(tmp_path / "d.jsonl", make_texts(30, 1))
    general = write_jsonl(tmp_path / "g.jsonl", make_texts(30, 2))
    more = ["--l2-sp", 1] if pull == "--l2-sp" else ["--ewc", 1000, "--ewc-data", general, "--ewc-blocks", 5]
    assert train(script, model_dir, data, "free").returncode == 0
    held = train(script, model_dir, data, "held", *more)
    assert held.returncode == 0, held.stderr
    assert distance(model_dir, tmp_path / "held") < 0.9 * distance(model_dir, tmp_path / "free")
    # As a run that was killed after update 4: its checkpoint is there, and nothing of the end.
    dead = train(script, model_dir, data, "dead", *more, "--dry-run")
    assert dead.returncode == 0 and "where they started" in dead.stdout
    rate = loop.learning_rate

    def dies(step, *rest):
        if step == 5:
            raise SystemExit(9)
        return rate(step, *rest)

    with monkeypatch.context() as m:
        m.setattr(loop, "learning_rate", dies)
        died = train(script, model_dir, data, "dead", *more)
    assert died.returncode == 9, died.stderr
    resumed = train(script, model_dir, data, "dead", *more, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    name = "model.safetensors"
    assert (tmp_path / "dead" / name).read_bytes() == (tmp_path / "held" / name).read_bytes()


def test_flags_that_make_no_sense_together(script, model_dir, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_texts(30, 1))
    assert_refused(train(script, model_dir, data, "a", "--l2-sp", 1, "--lora-r", 2), "--l2-sp", "--lora-r")
    assert_refused(
        train(script, model_dir, data, "a", "--l2-sp", 1, "--from-scratch"), "--l2-sp", "--from-scratch"
    )
    assert_refused(train(script, model_dir, data, "a", "--ewc", 1), "--ewc-data")
    assert_refused(train(script, model_dir, data, "a", "--ewc-data", data), "--ewc")
    assert_refused(train(script, model_dir, data, "a", "--pull-on", "wte"), "--pull-on", "--l2-sp")
    assert_refused(
        train(script, model_dir, data, "b", "--l2-sp", 1, "--pull-on", "wtx"), "--pull-on wtx", "weight"
    )
    held = train(script, model_dir, data, "a", "--ewc", 1, "--ewc-data", data, "--exclude", data)
    assert_refused(held, "d.jsonl", "left")
    assert not (tmp_path / "a").exists()
