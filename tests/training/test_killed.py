"""A training that is killed at any moment, again and again, and resumed each time, ends as if nothing had
been: the same weights, metrics and summary, bit for bit, and nothing lies about."""

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import PATIENCE, ROOT, make_texts, write_jsonl

# The process does it itself, some time after its imports: so that the moment may be anywhere in the run, and
# nowhere else.
KILLED = """
import os, runpy, sys, threading, time
after, sig, script = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[3:]
sys.executable = os.environ.get("PYTHON_OF_COMMANDS", sys.executable)
from nanomed.training import run
def kill():
    time.sleep(after)
    os.kill(os.getpid(), sig)
threading.Thread(target=kill, daemon=True).start()
began = time.perf_counter()
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print("LASTED", time.perf_counter() - began)
"""
TINY = (
    "--batch-size 2 --lr 1e-3 --log-every 1 --save-every 2 --max-steps 16 --dtype fp32 --dropout 0.1".split()
)
MOVES = {
    "tokens_per_s",
    "seconds",
    "peak_rss_bytes",
}  # of summary.json and metrics.jsonl, what no two runs share
PHASES = {
    "all weights": (
        "train_clm.py",
        "--data",
        "docs.jsonl",
        "--val-fraction",
        0.2,
        "--eval-every",
        5,
        "--keep",
        "best",
    ),
    "lora": ("train_clm.py", "--data", "docs.jsonl", "--val-fraction", 0, "--lora-r", 2),
    "answers": ("train_sft.py", "--data", "pairs.jsonl", "--val-fraction", 0.3, "--eval-every", 7),
    "classifier": (
        "train_cls.py",
        "--positives",
        "docs.jsonl",
        "--negatives",
        "others.jsonl",
        *"--val-fraction 0.3".split(),
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir):
    d = tmp_path_factory.mktemp("killed")
    write_jsonl(d / "docs.jsonl", make_texts(40, 31))
    write_jsonl(d / "others.jsonl", make_texts(40, 17))
    rows = [
        json.dumps({"question": f"What is {k}?", "answer": f"It is {k}. " * (k % 4 + 1)}) for k in range(40)
    ]
    (d / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    return d


def start(python, place, model_dir, phase, out, after, sig):
    name, *flags = PHASES[phase]
    words = [after, int(sig), ROOT / name, "--model", model_dir, "--out", out, *TINY, *flags, "--resume"]
    return subprocess.run(
        [*python, "-c", KILLED, *map(str, words)], cwd=place, capture_output=True, text=True, timeout=PATIENCE
    )


def left(directory):
    """What a run left: {file: content}, without what no two runs share."""
    found = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "loss.png"):
        name = str(file.relative_to(directory))
        if file.name == "metrics.jsonl":
            found[name] = [
                {k: v for k, v in json.loads(line).items() if k not in MOVES}
                for line in file.read_text().splitlines()
            ]
        elif file.name in ("summary.json", "run.json"):
            moves = MOVES | {"command", "started"}
            found[name] = {k: v for k, v in json.loads(file.read_text()).items() if k not in moves}
        else:
            found[name] = file.read_bytes()
    return found


def without_seconds(value):
    """Measures that a summary repeats, at whatever depth."""
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k not in MOVES}
    return value


def killed_and_resumed(python, place, model_dir, phase, kills, sig=signal.SIGKILL):
    whole = place / f"{phase} whole"
    if not whole.exists():
        done = start(python, place, model_dir, phase, whole, PATIENCE, sig)
        assert done.returncode == 0, done.stderr
        (place / f"{phase} lasts").write_text(done.stdout.split("LASTED")[1])
    lasts = float((place / f"{phase} lasts").read_text())
    out, moments, n = place / f"{phase} {sig}", random.Random(0), 0
    for _ in range(20 * kills):
        if n == kills:
            break
        done = start(python, place, model_dir, phase, out, moments.uniform(0, lasts), sig)
        if done.returncode == 0:  # it was faster than that: from the start again
            assert_same(out, whole)
            shutil.rmtree(out)
            continue
        assert done.returncode in (-sig, 128 + sig), done.stderr
        n += 1
        if sig != signal.SIGKILL:
            said = [
                line
                for line in done.stderr.splitlines()
                if line.strip() and "%|" not in line and not line.startswith("stopping after")
            ]
            assert len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    done = start(python, place, model_dir, phase, out, PATIENCE, sig)
    assert done.returncode == 0, done.stderr
    assert_same(out, whole)
    assert n == kills


def assert_same(out, whole):
    ours, theirs = left(out), left(whole)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert without_seconds(ours[name]) == without_seconds(theirs[name]), name


@pytest.mark.parametrize("phase", PHASES)
def test_killed(python, place, model_dir, phase):
    killed_and_resumed(python, place, model_dir, phase, 2 if phase == "all weights" else 1)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop(python, place, model_dir, sig):
    killed_and_resumed(python, place, model_dir, "all weights", 1, sig)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_killed_again_and_again(python, place, model_dir, phase):
    killed_and_resumed(python, place, model_dir, phase, 13)


@pytest.mark.slow
def test_ctrl_c_at_any_moment_and_many_times(place, model_dir):
    """Also while modules are imported; once, twice, ten times: one line, and no traceback."""
    name, *flags = PHASES["lora"]
    for delay in (0.3, 0.6, 1.0, 2.0, 4.0):
        for times in (1, 2, 10):
            words = [
                ROOT / name,
                "--model",
                model_dir,
                "--out",
                f"c {delay} {times}",
                *TINY,
                *flags,
                "--max-steps",
                100_000,
            ]
            command = [sys.executable, *map(str, words)]
            process = subprocess.Popen(
                command, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
            )
            time.sleep(delay)
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.01)
            timer = threading.Timer(PATIENCE, process.kill)
            timer.start()
            _, err = process.communicate()
            timer.cancel()
            said = [
                line
                for line in err.splitlines()
                if line.strip() and "%|" not in line and not line.startswith("stopping after")
            ]
            assert (
                process.returncode in (130, -signal.SIGINT) and len(said) <= 1 and "Traceback" not in err
            ), (delay, times, err)
