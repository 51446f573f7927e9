"""A disk that is full from some moment on, or read-only, or that allows no larger file, costs the training
nothing but time."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import PATIENCE, ROOT, make_texts, run_script, write_jsonl
from tests.training.test_killed import assert_same

TINY = (
    "--batch-size 2 --lr 1e-3 --log-every 1 --save-every 2 --eval-every 3 --max-steps 6 --dtype fp32"
    " --val-fraction 0.2".split()
)
# A script, which fills the disk under --out at the n-th call of some function of the project's.
FILLING = """
import importlib, runpy, sys
module, name, n, filler, script = sys.argv[1:6]
sys.argv = sys.argv[5:]
holder, calls = importlib.import_module(module), []
real = getattr(holder, name)
def filling(*args, **kwargs):
    calls.append(1)
    if len(calls) == int(n):
        try:
            with open(filler, "wb", buffering=0) as f:
                while True:
                    f.write(bytes(65536) if f.tell() < 2**26 else sys.exit("no small disk"))
        except OSError:
            pass
    return real(*args, **kwargs)
setattr(holder, name, filling)
runpy.run_path(script, run_name="__main__")
"""
# What is being written then: (module, function, which of its calls)
MOMENTS = {
    "a line of metrics.jsonl": ("nanomed.training.progress", "finite", 1),
    "the second checkpoint": ("nanomed.tensors", "save_file", 2),
    "the model at the end": ("nanomed.tensors", "save_file", 4),
    "the picture": ("nanomed.training.curves", "draw_curves", 1),
}


def on_small_disk(command: list, disk, size="24m") -> subprocess.CompletedProcess:
    """The command, in a name space of its own where a small disk is mounted at `disk`; what it leaves there
    is there afterwards."""
    shell = (
        f'mount -t tmpfs -o size={size} none "$0" || exit 77; "$@"; status=$?; cp -r "$0" "$0.left"; exit'
        " $status"
    )
    disk.mkdir()
    try:
        words = ["unshare", "-rm", "sh", "-c", shell, str(disk), *map(str, command)]
        done = subprocess.run(words, cwd=disk.parent, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        pytest.skip("no unshare here, by which a user mounts a small disk")
    if done.returncode == 77 or "unshare: " in done.stderr:
        pytest.skip(f"this machine mounts nothing for a user: {done.stderr.strip()}")
    disk.rmdir()
    shutil.move(f"{disk}.left", disk)
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_dir):
    """(directory, the script and its flags but --out, a run that nothing befell)"""
    d = tmp_path_factory.mktemp("disk")
    write_jsonl(d / "docs.jsonl", make_texts(40, 31))
    script = [
        str(ROOT / "train_clm.py"),
        "--model",
        str(model_dir),
        "--data",
        "docs.jsonl",
        *TINY,
        "--resume",
    ]
    assert run_script(d, *script, "--out", "whole").returncode == 0
    return d, script, d / "whole"


def assert_one_line(done, *parts):
    """One line of ours, besides the bar."""
    lines = [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("train_clm.py: "), done.stderr
    for part in parts:
        assert part in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_is_full(whole, moment):
    d, script, expected = whole
    disk = d / f"disk of {moment}"
    filling = [
        sys.executable,
        "-c",
        FILLING,
        *map(str, MOMENTS[moment]),
        disk / "filler",
        *script,
        "--out",
        disk / "out",
    ]
    done = on_small_disk(filling, disk)
    assert_one_line(done, f"{disk}/out/", "No space left on device")
    complete = moment == "the picture"  # all that matters is there, and its state is gone
    assert (disk / "filler").stat().st_size > 0 and (disk / "out" / "summary.json").exists() == complete
    states = {
        "the second checkpoint": ["step-00000002.safetensors"],
        "a line of metrics.jsonl": [],
        "the picture": [],
    }
    assert [p.name for p in (disk / "out").glob("state/*")] == states.get(
        moment, ["step-00000006.safetensors"]
    )
    (disk / "filler").unlink()
    command = list(map(str, [sys.executable, *script, "--out", disk / "out"]))
    again = subprocess.run(command, cwd=d, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0 and (disk / "out" / "loss.png").stat().st_size > 1000, again.stderr
    assert_same(disk / "out", expected)


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_seen_before_the_training(whole):
    d, script, _ = whole
    disk = d / "too small"
    done = on_small_disk([sys.executable, *script, "--out", disk / "out"], disk, size="1m")
    assert_one_line(done, f"--out {disk}/out: ", "are free there, and this run takes up to", "make room")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["the directory of the run", "a result"])
def test_a_disk_that_is_read_only(whole, what):
    d, script, _ = whole
    disk = d / f"read-only for {what}"
    remount = 'mount -o remount,ro "$0" && exec "$@"'
    command = [*script, "--out", disk / "out"]
    if what == "a result":
        command = [
            ROOT / "eval.py",
            "ppl",
            "--model",
            script[2],
            "--data",
            "docs.jsonl",
            "--json",
            disk / "r.json",
        ]
    done = on_small_disk(["sh", "-c", remount, disk, sys.executable, *command], disk)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert str(disk) in done.stderr and (
        "Read-only file system" in done.stderr or "no permission to write" in done.stderr
    )


def test_files_that_may_not_grow_beyond_a_limit(whole, limited):
    """As with a quota that is used up: the first checkpoint does not fit. It needs no disk of its own, so it
    runs everywhere."""
    d, script, expected = whole
    limit = (expected / "model.safetensors").stat().st_size * 2
    done = limited(d, "FSIZE", limit, *script, "--out", "limited")
    assert_one_line(done, "limited/state/step-00000002.safetensors: could not be written")
    again = run_script(d, *script, "--out", "limited")
    assert again.returncode == 0, again.stderr
    assert_same(d / "limited", expected)
