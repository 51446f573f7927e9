"""bench/sides.py: two sides that take turns, ratios of rounds, and no result where they do not compute the
same."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

BENCH = """
import sys
sys.path.insert(0, {bench!r})
import sides

def measure(side, args):
    what = side.split()[0]
    assert args.dtype == "fp32" and args.model == "m"
    per_s, loss = ([10.0, 30.0, 20.0], {loss}) if what == "nanomed" else ([5.0, 4.0, 6.0], 2.0)
    return {{"per_s": per_s, "warm_up_s": 1.5, "loss": loss}}

sides.ceiling = lambda device, dtype: {{"flops_per_s": 100.0, "bytes_per_s": 1.0}}
args = sides.parser("Something.", ["nanomed a", "peer a"]).parse_args()
pairs = {{"a": ("nanomed a", "peer a")}}
sides.execute("something", "tokens", args, measure, pairs, 0.01, cost=lambda side, args, result: {{"flops": 2}})
"""


def run(tmp_path, loss, *flags):
    script = tmp_path / "b.py"
    script.write_text(BENCH.format(bench=str(ROOT / "bench"), loss=loss))
    command = [
        sys.executable,
        str(script),
        "--model",
        "m",
        "--dtype",
        "fp32",
        "--device",
        "cpu",
        "--rounds",
        "2",
        *flags,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.slow
def test_both_sides_on_one_line(tmp_path):
    done = run(tmp_path, 2.01, "--json", "line.json")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line == json.loads((tmp_path / "line.json").read_text())
    assert (
        line["bench"] == "something"
        and list(line["ours"]) == ["nanomed a"]
        and list(line["theirs"]) == ["peer a"]
    )
    assert line["ours"]["nanomed a"]["per_s"] == 20 and line["ours"]["nanomed a"]["per_s_range"] == [10, 30]
    assert line["ratio"]["a"]["speed"] == pytest.approx(4)
    assert line["ratio"]["a"]["memory"] == pytest.approx(1, abs=0.3)  # of two processes that do nothing
    assert line["share_of_ceiling"] == {"nanomed a": pytest.approx(0.4)}
    assert line["asked"]["rounds"] == 2 and "torch" in line["versions"] and line["machine"]["threads"] >= 1
    order = [
        text.split(":")[0] for text in done.stderr.splitlines() if text.startswith(("nanomed a:", "peer a:"))
    ]
    assert order == ["nanomed a", "peer a", "peer a", "nanomed a"]


@pytest.mark.slow
def test_sides_that_compute_something_else_give_no_result(tmp_path):
    done = run(tmp_path, 2.1)
    assert done.returncode == 1 and "nanomed a has a loss of 2.100000, peer a of 2.000000" in done.stderr
    assert not done.stdout.splitlines()[-1].startswith("{")


@pytest.mark.slow
def test_an_earlier_checkout_runs_its_own_script(tmp_path):
    (tmp_path / "before" / "bench").mkdir(parents=True)
    before = BENCH.format(bench=str(ROOT / "bench"), loss=2.0).replace("30.0, 20.0", "8.0, 8.0")
    (tmp_path / "before" / "bench" / "b.py").write_text(before)
    done = run(tmp_path, 2.0, "--earlier", "before")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["theirs"]["earlier a"]["per_s"] == 8 and line["ours"]["nanomed a"]["per_s"] == 20
    assert line["ratio"]["nanomed a against earlier a"]["speed"] == pytest.approx(20 / 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, sides",
    [
        (
            ["train.py", "--batch-size", "2", "--context", "32"],
            ["nanomed full", "trainer-nodropout full", "nanomed lora", "trainer lora"],
        ),
        (
            ["decode.py", "--prompt-tokens", "8", "--new-tokens", "4"],
            ["nanomed 8", "generate 8", "generate-fp32 8", "generate-static 8"],
        ),
        (["score.py", "--limit", "3", "--context", "128"], ["nanomed", "lm-eval", "strided-loop"]),
        (
            ["sft.py", "--limit", "16", "--context", "128", "--batch-size", "4"],
            ["nanomed full", "trl full", "trl-packing full", "trl lora"],
        ),
    ],
)
def test_the_peers_compute_what_we_compute(command, sides, tmp_path):
    data = tmp_path / "d.jsonl"
    texts = [f"The dose of drug {k} was low. " * (k + 2) for k in range(20)]
    rows = [
        {"text": text, "question": f"What is drug {k}?", "answer": "A drug. " * (k + 1)}
        for k, text in enumerate(texts)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = ["--data", str(data)] if command[0] in ("score.py", "sft.py") else []
    flags = [
        "--model",
        "nanomed/demo/nano",
        "--dtype",
        "fp32",
        "--rounds",
        "1",
        "--repeats",
        "1",
        "--sides",
        *sides,
    ]
    done = subprocess.run(
        [sys.executable, f"bench/{command[0]}", *command[1:], *wanted, *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ratio"]
