"""Two ranks are one process: the same losses, the same weights, the same files, on rows that do not divide."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from nanomed.loss import IGNORE
from nanomed.training import distributed
from tests.conftest import PATIENCE, ROOT, make_hf_model, make_texts, run_script, write_jsonl

COMMON = ["--context", 64, "--batch-size", 3, "--grad-accum", 2, "--dtype", "fp32", "--lr", "1e-3", "--val-fraction", 0.2]
COMMON += ["--log-every", 1]


def torchrun(directory, script, *flags, ranks=2):
    """A process that runs a script as so many ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, ROOT / script, *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [str(word) for word in command], cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one, two, atol=2e-4):
    """Sums in another order differ in their last bits, which AdamW makes a visible part of a step where a gradient nearly
    vanishes: a step is 1e-3 here."""
    a, b = metrics(one), metrics(two)
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for x, y in zip(a, b, strict=True):
        assert x["tokens"] == y["tokens"]
        for key in ("loss", "grad_norm", "val_loss"):
            assert x.get(key) == pytest.approx(y.get(key), rel=1e-4) if key in x else key not in y
    a, b = (load_file(d / "model.safetensors") for d in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def pairs(tmp_path):
    """Questions and answers of unequal length: packed rows that are filled unequally."""
    rows = zip(make_texts(23, 3, 2, 8), make_texts(23, 4, 2, 30), strict=True)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return tmp_path / "pairs.jsonl"


def test_two_ranks_instruct_as_one_process_does(tmp_path, bpe_dir, pairs):
    """16 rows in windows of 6: the last micro-batch of an epoch has one row, so that a rank has none."""
    make_hf_model(tmp_path / "llama", bpe_dir, family="llama")
    flags = ["--model", "llama", "--data", pairs, *COMMON, "--template", "none", "--max-steps", 7, "--eval-every", 3]
    done = run_script(tmp_path, "train_sft.py", *flags, "--out", "one")
    assert done.returncode == 0, done.stderr
    code, out, err = finish(torchrun(tmp_path, "train_sft.py", *flags, "--out", "two"))
    assert code == 0, err
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert out.count("results in two") == 1  # one of them speaks
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}
    ours, theirs = (json.loads((tmp_path / d / "summary.json").read_text()) for d in ("one", "two"))
    assert all(ours[k] == theirs[k] for k in ("parameters", "trainable", "step", "tokens"))


def test_what_needs_one_process_is_refused_by_all(tmp_path, bpe_dir, pairs):
    make_hf_model(tmp_path / "llama", bpe_dir, family="llama")
    flags = ["--model", "llama", "--data", pairs, "--out", "out", *COMMON, "--max-steps", 2]
    code, _, err = finish(torchrun(tmp_path, "train_sft.py", *flags, "--lora-r", 2))
    assert code != 0 and ": --lora-r: for one process" in err and "exitcode  : 2" in err  # the rest of it is torchrun's
    assert "nanomed/cli.py" not in err  # no traceback of ours
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama"])
def test_two_ranks_adapt_as_one_process_does(tmp_path, bpe_dir, family):
    """Also where the head is the embedding, as in GPT-2 and GPT-Neo."""
    make_hf_model(tmp_path / "m", bpe_dir, family=family)
    write_jsonl(tmp_path / "docs.jsonl", make_texts(30, 1))
    flags = ["--model", "m", "--data", "docs.jsonl", *COMMON, "--max-steps", 7, "--eval-every", 3, "--grad-checkpoint"]
    assert run_script(tmp_path, "train_clm.py", *flags, "--out", "one").returncode == 0
    code, _, err = finish(torchrun(tmp_path, "train_clm.py", *flags, "--out", "two", "--keep", "last"))
    assert code == 0, err
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_stopped_run_goes_on_with_any_number_of_ranks(tmp_path, bpe_dir, ranks):
    make_hf_model(tmp_path / "m", bpe_dir, family="llama")
    write_jsonl(tmp_path / "docs.jsonl", make_texts(30, 1))
    flags = [
        "--model",
        "m",
        "--data",
        "docs.jsonl",
        *COMMON,
        "--max-steps",
        60,
        "--eval-every",
        20,
        "--save-every",
        5,
        "--keep",
        "best",
    ]
    code, _, err = finish(torchrun(tmp_path, "train_clm.py", *flags, "--out", "whole"))
    assert code == 0, err
    process, until = torchrun(tmp_path, "train_clm.py", *flags, "--out", "out"), time.monotonic() + PATIENCE
    log = tmp_path / "out" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 12:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, _, err = finish(process)
    assert "stopped after update" in err and "--resume goes on from there" in err
    if ranks == 1:
        assert run_script(tmp_path, "train_clm.py", *flags, "--out", "out", "--resume").returncode == 0
    else:
        code, _, err = finish(torchrun(tmp_path, "train_clm.py", *flags, "--out", "out", "--resume", ranks=ranks))
        assert code == 0, err
    assert_same_run(tmp_path / "whole", tmp_path / "out", atol=0 if ranks == 2 else 2e-4)


def test_one_process_is_left_alone():
    assert (distributed.world(), distributed.is_first()) == (1, True)
    batch = (torch.arange(6).view(3, 2), torch.arange(6).view(3, 2))
    assert distributed.own_rows(batch) is batch
    assert distributed.from_first(lambda: 5) == distributed.in_turn(lambda: 5) == 5
    assert distributed.any_rank(True, "cpu") and not distributed.any_rank(False, "cpu")
    assert distributed.whole(batch[0]) is distributed.part_like(batch[0], batch[1]) is batch[0]


@pytest.mark.parametrize(("rows", "world"), [(5, 2), (4, 4), (1, 3)])
def test_every_row_is_some_ranks_own(rows, world, monkeypatch):
    """And a rank without a row takes part with one in which nothing is supervised."""
    batch, seen = (torch.arange(rows * 2).view(rows, 2), torch.arange(rows * 2).view(rows, 2) + 100), []
    monkeypatch.setattr(distributed, "world", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(distributed.dist, "get_rank", lambda rank=rank: rank)
        idx, targets = distributed.own_rows(batch)
        assert len(idx) == len(targets) >= 1
        seen += targets[targets != IGNORE].tolist()
    assert sorted(seen) == batch[1].flatten().tolist()
