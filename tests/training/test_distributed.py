"""Two processes under torchrun are one: the same losses, the same weights, one voice; and what is left when
one of them fails."""

import importlib.util
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanomed.errors import UserError
from nanomed.text.batch import IGNORE, Batch
from nanomed.training import distributed
from nanomed.training.estimate import kept_for_backward
from nanomed.training.run import check_processes
from nanomed.training.settings import Adapt, Classify
from tests.conftest import PATIENCE, ROOT, assert_near, make_hf_model, make_texts, run_script, write_jsonl
from tests.training.test_train_clm import records, summary

STEPS = 12
TRAINING = (
    "--batch-size",
    3,
    "--grad-accum",
    2,
    "--max-steps",
    STEPS,
    "--lr",
    1e-3,
    "--log-every",
    1,
    "--dtype",
    "fp32",
)
# A training script, but its second process cannot go on in the ninth micro-batch, which is of the fifth update
FAILING = """
import importlib, os, runpy, signal, sys
sys.path.insert(0, {root!r})
from nanomed.errors import UserError
from nanomed.training import distributed
module = importlib.import_module({module!r})
real, calls = module.{loss}, []

def failing(*args, **kwargs):
    calls.append(1)
    if distributed.rank() == 1 and len(calls) == 9:
        if "--out=killed" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("no room\\nin here")
    return real(*args, **kwargs)

module.{loss} = failing
runpy.run_path({script!r}, run_name="__main__")
"""


def failing(script: str, module: str, loss: str) -> str:
    return FAILING.format(root=str(ROOT), module=module, loss=loss, script=str(ROOT / script))


SFT = failing("train_sft.py", "nanomed.models.loss", "clm_loss")
CLS = failing("train_cls.py", "nanomed.models.classifier", "classification_loss")


@pytest.fixture(scope="session")
def torchrun(python, tmp_path_factory):
    """torchrun(directory, script, *args) runs a script in two processes, which start as those of `python` do."""
    own = tmp_path_factory.mktemp("bin") / "python"
    own.write_text(f'#!/bin/sh\nshift\nexec {shlex.join(python)} "$@"\n')  # torchrun says -u first
    own.chmod(0o755)
    start = [*python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    how = {"env": os.environ | {"PYTHON_EXEC": str(own)}, "timeout": PATIENCE, "capture_output": True}

    def run(directory: Path, script, *args) -> subprocess.CompletedProcess:
        return subprocess.run([*start, str(script), *map(str, args)], cwd=directory, text=True, **how)

    return run


def assert_same_run(ours: Path, theirs: Path, exactly=False, ours_without=()) -> None:
    """The same figures in metrics.jsonl and the same weights, up to fp32's rounding in another order of
    summation."""
    a, b = records(ours), records(theirs)
    assert [r.keys() for r in a] == [r.keys() for r in b]
    for mine, one in zip(a, b, strict=True):
        assert mine == (one if exactly else pytest.approx(one, rel=1e-4)), one["step"]
    mine, one = (load_file(d / "model.safetensors") for d in (ours, theirs))
    assert mine.keys() == one.keys()
    for name in mine.keys() - set(ours_without):
        assert_near(mine[name], one[name], 0 if exactly else 1e-4, name)
    assert json.loads((ours / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())


@pytest.fixture(scope="module")
def instructed(tmp_path_factory, bpe_dir, torchrun):
    """Instruction tuning of a small Llama, with replay, on ragged rows of which the last micro-batch of an
    epoch has one only; by one process (one/) and by two (two/). Gives (their directory, the arguments, what
    two said)."""
    d = tmp_path_factory.mktemp("together")
    make_hf_model(d / "llama", bpe_dir, family="llama")
    topics = [(c, k) for k in range(9) for c in ("renal", "tumor")]
    rows = [{"question": f"{c} {k}?", "answer": " ".join([f"{c} disease"] * (1 + k % 4))} for c, k in topics]
    (d / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (d / "val.jsonl").write_text(json.dumps({"question": "liver 3?", "answer": "liver disease"}) + "\n")
    replay = write_jsonl(d / "docs.jsonl", make_texts(8, 31, 5, 30))
    args = (
        "--model",
        "llama",
        "--data",
        "pairs.jsonl",
        "--val-data",
        "val.jsonl",
        "--replay",
        replay,
        "--no-packing",
        *TRAINING,
    )
    args += ("--save-every", 4, "--keep", "best")
    one = run_script(d, "train_sft.py", *args, "--out", "one")
    assert one.returncode == 0, one.stderr
    assert summary(d / "one")["rows"] % 3 == 1 and summary(d / "one")["rows"] < 6 * STEPS
    two = torchrun(d, ROOT / "train_sft.py", *args, "--out", "two")
    assert two.returncode == 0, two.stderr
    return d, args, one, two


def test_two_processes_are_one(instructed):
    d, _, one, two = instructed
    assert_same_run(d / "two", d / "one")
    assert any("replay_loss" in r for r in records(d / "two")) and summary(d / "two")["processes"] == 2
    assert not (d / "two" / "state").exists()
    said = [line.replace("cpu x 2", "cpu").replace("two", "one") for line in two.stdout.splitlines()]
    assert said == one.stdout.splitlines()  # once, although both had it to say
    assert two.stderr.count("training:   0%") == one.stderr.count("training:   0%")


def test_one_that_fails_ends_all_and_another_number_goes_on(instructed, torchrun):
    d, args, _, _ = instructed
    (d / "failing.py").write_text(SFT)
    failed = torchrun(d, "failing.py", *args, "--out", "again")
    assert failed.returncode != 0
    assert (
        failed.stderr.count("train_sft.py: no room in here; the checkpoint of update 4 stays, ") == 1
        and "exitcode  : 2" in failed.stderr
    )
    assert "cli.py" not in failed.stderr  # no traceback of ours
    assert [p.name for p in (d / "again" / "state").glob("step-*")] == ["step-00000004.safetensors"]
    alone = run_script(d, "train_sft.py", *args, "--out", "again", "--resume")
    assert alone.returncode == 0, alone.stderr
    assert_same_run(d / "again", d / "one")


@pytest.mark.slow
def test_one_that_is_killed_ends_all_and_as_many_go_on(instructed, torchrun):
    """What it cannot say any more, another process says for it."""
    d, args, _, _ = instructed
    (d / "failing.py").write_text(SFT)
    killed = torchrun(d, "failing.py", *args, "--out=killed")
    assert killed.returncode == 1
    (line,) = (line for line in killed.stderr.splitlines() if line.startswith("train_sft.py: "))
    assert line.startswith("train_sft.py: another of the 2 processes is gone") and "--resume" in line
    assert "exitcode  : -9" in killed.stderr and "cli.py" not in killed.stderr
    again = torchrun(d, ROOT / "train_sft.py", *args, "--out=killed", "--resume")
    assert again.returncode == 0, again.stderr
    assert_same_run(d / "killed", d / "two", exactly=True)


@pytest.mark.slow
def test_a_classifiers_that_is_killed_ends_all_and_as_many_go_on(tmp_path, bpe_dir, torchrun):
    make_hf_model(tmp_path / "gpt2", bpe_dir)
    rows = [{"text": t, "label": "ab"[k % 2]} for k, t in enumerate(make_texts(20, 17))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "failing.py").write_text(CLS)
    args = ("--model", "gpt2", "--data", "rows.jsonl", "--val-fraction", 0.3, "--context", 48, *TRAINING)
    args += ("--save-every", 4)
    two = torchrun(tmp_path, ROOT / "train_cls.py", *args, "--out=two")
    assert two.returncode == 0, two.stderr
    killed = torchrun(tmp_path, "failing.py", *args, "--out=killed")
    assert killed.returncode == 1 and "exitcode  : -9" in killed.stderr, killed.stderr
    (line,) = (line for line in killed.stderr.splitlines() if line.startswith("train_cls.py: "))
    assert line.startswith("train_cls.py: another of the 2 processes is gone") and "--resume" in line
    again = torchrun(tmp_path, ROOT / "train_cls.py", *args, "--out=killed", "--resume")
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "two", exactly=True)


@pytest.mark.slow
def test_several_machines_type_the_same_command(instructed):
    """Two agents of torchrun that meet by an address and a name, as on two machines with a common file
    system."""
    d, args, _, _ = instructed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = (
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            "7",
            "--rdzv-endpoint",
            f"127.0.0.1:{free.getsockname()[1]}",
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meet]
    command += [str(ROOT / "train_sft.py"), *map(str, args), "--out", "machines"]
    machines = [
        subprocess.Popen(command, cwd=d, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [machine.communicate(timeout=PATIENCE) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert_same_run(d / "machines", d / "two", exactly=True)


@pytest.mark.slow
def test_gpt2_whose_head_is_its_embedding(tmp_path, bpe_dir, torchrun):
    """And activations that are recomputed, so that a layer's weights are gathered a third time."""
    make_hf_model(tmp_path / "gpt2", bpe_dir)
    docs = write_jsonl(tmp_path / "docs.jsonl", make_texts(9, 31))
    args = (
        "--model",
        "gpt2",
        "--data",
        docs,
        "--context",
        48,
        "--grad-checkpoint",
        "--val-fraction",
        0.2,
        *TRAINING,
    )
    assert run_script(tmp_path, "train_clm.py", *args, "--out", "one").returncode == 0
    two = torchrun(tmp_path, ROOT / "train_clm.py", *args, "--out", "two", "--sample-prompt", "the")
    assert two.returncode == 0, two.stderr
    for directory in (tmp_path / "one", tmp_path / "two"):
        lines = [{k: v for k, v in r.items() if k != "sample"} for r in records(directory)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # A bias of the keys changes no attention: its gradient is nothing but rounding, which AdamW makes a step
    # of.
    assert_same_run(
        tmp_path / "two",
        tmp_path / "one",
        ours_without={f"transformer.h.{i}.attn.c_attn.bias" for i in range(3)},
    )


@pytest.mark.slow
def test_an_adapter_of_two_processes_is_that_of_one(tmp_path, bpe_dir, torchrun):
    """Its frozen base is sharded too; and is merged from what is gathered."""
    make_hf_model(tmp_path / "gpt2", bpe_dir)
    docs = write_jsonl(tmp_path / "docs.jsonl", make_texts(9, 31))
    args = (
        "--model",
        "gpt2",
        "--data",
        docs,
        "--context",
        48,
        "--val-fraction",
        0.2,
        "--lora-r",
        4,
        "--merge",
        *TRAINING,
    )
    assert run_script(tmp_path, "train_clm.py", *args, "--out", "one").returncode == 0
    two = torchrun(tmp_path, ROOT / "train_clm.py", *args, "--out", "two")
    assert two.returncode == 0, two.stderr
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--lora-r", 4)])
@pytest.mark.parametrize("labels", ["one of two", "several"])
def test_a_classifier_of_two_processes_is_that_of_one(tmp_path, bpe_dir, torchrun, labels, flags):
    """Its last micro-batch has one row, so that the second process has one that counts for nothing."""
    make_hf_model(tmp_path / "gpt2", bpe_dir)
    texts = make_texts(19, 17)
    names = [["a"], ["b"]] if labels == "one of two" else [["a"], ["a", "b"], ["b"]]
    rows = [
        {"text": t, "labels": names[k % len(names)] if labels == "several" else names[k % 2][0]}
        for k, t in enumerate(texts)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = (
        "--model",
        "gpt2",
        "--data",
        "rows.jsonl",
        "--val-fraction",
        0.3,
        "--context",
        48,
        *flags,
        *TRAINING,
    )
    assert (one := run_script(tmp_path, "train_cls.py", *args, "--out", "one")).returncode == 0, one.stderr
    two = torchrun(tmp_path, ROOT / "train_cls.py", *args, "--out", "two")
    assert two.returncode == 0, two.stderr
    a, b = records(tmp_path / "two"), records(tmp_path / "one")
    for mine, theirs in zip(a, b, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4), theirs["step"]
    name = "adapter_model.safetensors" if flags else "model.safetensors"
    mine, theirs = (load_file(tmp_path / d / name) for d in ("two", "one"))
    for key in theirs:
        if not key.endswith("attn.c_attn.bias"):  # its part for the keys has no gradient but rounding
            assert_near(mine[key], theirs[key], 1e-4, key)
    assert "classification" in summary(tmp_path / "two")


@pytest.mark.parametrize("rows, processes", [(4, 2), (5, 2), (1, 2), (2, 3), (3, 3)])
def test_shares_are_the_batch(monkeypatch, rows, processes):
    idx = torch.arange(rows * 4).view(rows, 4)
    monkeypatch.setattr(distributed, "world", lambda: processes)
    dealt = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        dealt.append(distributed.own_rows(Batch(idx, idx + 1)))
    assert all(len(rows.idx) == len(rows.targets) > 0 for rows in dealt)
    supervised = torch.cat([rows.targets for rows in dealt])
    supervised = supervised[supervised != IGNORE]
    assert sorted(supervised.tolist()) == (idx + 1).flatten().tolist()
    dealt = torch.cat([rows.idx[(rows.targets != IGNORE).any(1)] for rows in dealt])
    assert sorted(dealt.flatten().tolist()) == idx.flatten().tolist()


@pytest.mark.parametrize(
    "flags, kind, said",
    [
        ({"ewc": 1.0}, Adapt, "--ewc is for one process"),
        ({"compile": True}, Adapt, "--compile is for one process"),
        ({"batch_size": 1}, Adapt, "--batch-size 1: its rows are dealt to 2 processes"),
        ({"l2_sp": 1.0}, Classify, "--l2-sp is for one process"),
    ],
)
def test_what_several_do_not_do_is_refused(monkeypatch, flags, kind, said):
    s = kind(**{"batch_size": 2} | flags)
    check_processes(s)  # nothing of the kind with one
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(UserError, match=said):
        check_processes(s)


@pytest.mark.parametrize("r", [0, 4])
def test_bytes_of_a_model_that_is_never_made_are_those_of_a_real_one(r):
    """bench/fits.py counts on fake tensors what --dry-run counts on real ones."""
    spec = importlib.util.spec_from_file_location("bench_fits", ROOT / "bench" / "fits.py")
    fits = importlib.util.module_from_spec(spec)
    sys.modules["bench_fits"] = fits  # where its dataclass looks for its module
    spec.loader.exec_module(fits)
    shape = fits._llama(256, 704, 4, 8, 4)
    model, idx = fits.model_of(*shape, r).train(), torch.zeros(2, 128, dtype=torch.long)
    real = kept_for_backward(model, Batch(idx, idx), lambda model, batch: model.backbone(batch.idx), "bf16")
    copies = (
        0
        if r
        else 2 * sum(p.numel() for linear in fits.linears_of(model).values() for p in linear.parameters())
    )
    assert fits.kept(*shape, 2, 128, r) + copies == pytest.approx(real, rel=1e-2)
    counted = fits.count_up(*shape, 2, 128, False, r or 4)
    assert counted.parameters == sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
