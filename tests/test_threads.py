"""How many threads a run takes, and that the user's own settings stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanomed import threads

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_quota(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.quota(tmp_path) == expected


def environment(monkeypatch, cores, limit, writes=False, **given):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "cores", lambda: cores)
    monkeypatch.setattr(threads, "quota", lambda: limit)
    threads.share_cores(writes)
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("GOMP_SPINCOUNT")


def test_a_container_of_few_cores_gets_few_threads(monkeypatch):
    spin = str(threads.SPIN)
    assert environment(monkeypatch, 64, 2) == ("2", spin)
    assert environment(monkeypatch, 2, 4) == (None, spin)  # PyTorch's own choice
    assert environment(monkeypatch, 64, None) == (None, spin)
    assert environment(monkeypatch, 64, 2, OMP_NUM_THREADS="8", GOMP_SPINCOUNT="7") == ("8", "7")
    assert environment(monkeypatch, 64, 2, writes=True) == ("2", str(threads.WRITING_SPIN))
    assert environment(monkeypatch, 64, 2, OMP_WAIT_POLICY="active") == ("2", None)


def test_the_scripts_say_it_before_pytorch_is_loaded():
    code = """
import os, sys
from nanomed import cli
def main():
    assert "torch" not in sys.modules
    print(os.environ["GOMP_SPINCOUNT"])
cli.execute(main)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.stdout.split() == [str(threads.SPIN)], done.stderr
