"""Directories of results: one process at a time, nothing of anybody else's touched, and whole however a
program ends."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from nanomed import outputs
from nanomed.errors import UserError
from nanomed.files import write_json, write_text
from nanomed.outputs import names_in, release
from nanomed.text import bpe
from tests.conftest import PATIENCE, ROOT, assert_refused, make_texts, run_script, write_jsonl
from tests.training.test_killed import KILLED

FIRST = {"a.txt": "1", "b.txt": "1", "gone.txt": "1"}
SECOND = {"a.txt": "2", "b.txt": "2", "new.txt": "2"}


@pytest.fixture(autouse=True)
def let_go():
    yield
    release()


def build(out, files):
    held = outputs.take(out, "us", writes=files)
    with outputs.built(out, "us", held) as made:
        for name, text in files.items():
            write_text(text, made / name)
        write_json({"of": files}, made / outputs.RECORD)


def holds(out):
    return {
        p.name: json.loads(p.read_text()) if p.suffix == ".json" else p.read_text()
        for p in out.iterdir()
        if p.is_file()
    }


@pytest.mark.parametrize("before", [None, FIRST])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_stopped_at_any_step_it_says_so_and_ends_the_same_the_next_time(tmp_path, monkeypatch, before, call):
    build(tmp_path / "whole", SECOND)
    release()
    real, step, states = getattr(os, call), 0, set()
    while "second" not in states:
        step, count, out = step + 1, 0, tmp_path / f"{step}"

        def stop(*args, step=step):
            nonlocal count
            count += 1
            if count == step:
                raise KeyboardInterrupt
            return real(*args)

        if before:
            build(out, before)
        monkeypatch.setattr(os, call, stop)
        try:
            build(out, SECOND)
        except KeyboardInterrupt:
            pass
        else:
            states.add("second")
        monkeypatch.setattr(os, call, real)
        found = outputs.read_record(out / outputs.RECORD, "us")
        if found is None:
            assert before is None and not names_in(out)
        elif outputs.unfinished(found):
            states.add("unfinished")
        else:  # one or the other, and nothing of both
            states.add("first" if found["of"] == FIRST else "second")
            assert {n: (out / n).read_text() for n in found["of"]} == found["of"] and names_in(out) == {
                outputs.RECORD,
                *found["of"],
            }
        build(out, SECOND)
        release()
        assert holds(out) == holds(tmp_path / "whole")
    assert states >= {"unfinished"} | ({"first"} if before else set())


@pytest.mark.parametrize(
    "record", [None, "[", '{"mine": 1}', '{"program": "them", "format": 1, "files": ["a.txt"]}']
)
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_not_ours_is_named_and_left(tmp_path, record, beside):
    (tmp_path / "a.txt").write_text("mine")
    if record:
        (tmp_path / outputs.RECORD).write_text(record)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="a.txt is none of us's files|nanomed.json is none"):
        outputs.take(tmp_path, "us", writes=["a.txt"], beside=beside)
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_file_of_the_users_beside_ours_is_left(tmp_path):
    build(tmp_path / "o", FIRST)
    (tmp_path / "o" / "new.txt").write_text("mine")
    with pytest.raises(UserError, match="new.txt"):
        build(tmp_path / "o", SECOND)
    assert (tmp_path / "o" / "new.txt").read_text() == "mine" and (
        tmp_path / "o" / "a.txt"
    ).read_text() == "1"


@pytest.mark.parametrize("files", ['["../x"]', '["/x"]', "[1]", "5"])
def test_a_record_names_files_of_its_directory_alone(tmp_path, files):
    (tmp_path / outputs.RECORD).write_text(f'{{"program": "us", "format": 1, "files": {files}}}')
    with pytest.raises(UserError, match="damaged"):
        outputs.take(tmp_path, "us")


def test_of_two_processes_one_works_and_the_other_is_refused(tmp_path):
    code = (
        "import time; from pathlib import Path; from nanomed import outputs; outputs.take(Path('o'), 'us');"
        " print(1, flush=True)"
    )
    command = [sys.executable, "-c", code + "; time.sleep(600)"]
    shell = [
        "sh",
        "-c",
        '"$@" & read x; kill $!',
        "-",
        *command,
    ]  # a process between, since a child may use what its parent holds
    with subprocess.Popen(
        shell, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(UserError, match="another process"):
            build(tmp_path / "o", FIRST)
        other.communicate("\n")
    build(tmp_path / "o", FIRST)


# A program that holds a directory and runs a command, which does nothing for a long time but say that it began.
PARENT = """
from pathlib import Path
from nanomed import cli, outputs
from nanomed.scripts import run
def main():
    outputs.take(Path("o"), "us")
    run(["-c", "from nanomed import cli; import time; cli.execute(lambda: [print(1, flush=True), time.sleep(600)])"])
cli.execute(main)
"""


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_with_the_program_that_runs_it(tmp_path, sig):
    """The signal goes to that program alone, as `kill` sends it."""
    words = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.stdout.readline() not in ("1\n", ""):
            pass
        process.send_signal(sig)
        process.communicate(timeout=60)  # whoever still holds the streams would keep it waiting
    assert process.returncode == (-sig if sig == signal.SIGKILL else 128 + sig)
    build(tmp_path / "o", FIRST)


def test_a_child_that_outlives_its_parent_holds_what_the_parent_held(tmp_path):
    """Where the kernel cannot end it with its parent."""
    code = "import subprocess, sys; from pathlib import Path; from nanomed import outputs; outputs.take(Path('o'), 'us');"
    code += "child = [sys.executable, '-c', 'print(1, flush=True); input()'];"
    code += "subprocess.Popen(child, pass_fds=outputs.locked_files())"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as p:
        assert p.stdout.readline() == b"1\n" and p.wait(60) == 0
        with pytest.raises(UserError, match="another process"):
            build(tmp_path / "o", FIRST)
        p.communicate(b"\n")
    build(tmp_path / "o", FIRST)


# --- the programs -------------------------------------------------------------------------------------------

SET = """[a]
form = "class"
train = ["train.jsonl"]
test = ["test.jsonl"]
instructions = ["Good or bad? {labels}"]
"""
RECIPE = """[system]
title = "T"
model = "%s"
measured = "corpus"
context = 32
prompts = ["the patient"]
[data.corpus]
source = ["%s"]
test = 10
[adapt]
max-steps = 2
batch-size = 2
[[published]]
figure = "ppl"
value = 3.0
ours = "adapted.corpus.ppl"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir):
    d = tmp_path_factory.mktemp("outputs")
    write_jsonl(d / "docs.jsonl", make_texts(60, 31))
    for name, n in (("train", 40), ("test", 20)):
        rows = [json.dumps({"text": t, "label": ["good", "bad"][len(t) % 2]}) for t in make_texts(n, n)]
        (d / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (d / "set.toml").write_text(SET)
    (d / "recipe.toml").write_text(RECIPE % (model_dir, d / "docs.jsonl"))
    return d


SMALL = ["--max-new-tokens", 4, "--dtype", "fp32", "--device", "cpu"]


def commands(model_dir):
    ppl = ["--model", model_dir, "--dtype", "fp32", "--device", "cpu", "--context", 32]
    return {
        "tasks": ["nanomed/tasks.py", "set.toml", "--out", "o"],
        "quantise": ["nanomed/quantise.py", "--model", model_dir, "--quantize", "nf4", "--out", "o"],
        "compare": [
            "eval.py",
            "compare",
            "--models",
            *ppl[1:],
            "--data",
            "docs.jsonl",
            "--max-new-tokens",
            4,
            "--out",
            "o",
        ],
        "reproduce": ["nanomed/reproduce.py", "--recipe", "recipe.toml", *SMALL, "--out", "o"],
        "cache": ["eval.py", "ppl", *ppl, "--data", "docs.jsonl", "--json", "o/ppl.json"],
    }


# Of JSON, what no two runs share.
MOVES = {"tokens_per_s", "seconds", "made", "measured", "started", "command", "peak_rss_bytes"}


def without_moves(value):
    if isinstance(value, dict):
        return {k: without_moves(v) for k, v in value.items() if k not in MOVES}
    return [without_moves(v) for v in value] if isinstance(value, list) else value


def left(directory):
    """{file: content}, without what no two runs share."""
    found = {}
    for file in (p for p in directory.rglob("*") if p.is_file()):
        name, content = str(file.relative_to(directory)), file.read_bytes()
        if file.suffix == ".json":
            content = without_moves(json.loads(content))
        elif file.name == "metrics.jsonl":
            content = [without_moves(json.loads(line)) for line in content.splitlines()]
        found[name] = content if file.suffix not in (".html", ".png") else None
    return found


def killed_and_run_again(python, place, model_dir, name, kills):
    script, *flags = map(str, commands(model_dir)[name])
    (place / "python").write_text(f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n')
    (place / "python").chmod(0o755)
    where, whole = place / name, place / f"{name} whole"

    def start(after):
        (where / "o").mkdir(parents=True, exist_ok=True)
        for file in place.iterdir():
            if file.is_file() and not (where / file.name).exists():
                (where / file.name).symlink_to(file)
        cache = where / "o" / "cache" if name == "cache" else place / "cache"
        environment = os.environ | {"NANOMED_CACHE": str(cache), "PYTHON_OF_COMMANDS": str(place / "python")}
        words = [str(after), str(int(signal.SIGKILL)), str(ROOT / script), *flags]
        command = [*python, "-c", KILLED, *words]
        return subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )

    done = start(PATIENCE)
    assert done.returncode == 0, done.stderr
    lasts = float(done.stdout.split("LASTED")[1])
    shutil.rmtree(whole, ignore_errors=True)
    where.rename(whole)
    moments, killed = random.Random(0), 0
    for _ in range(20 * kills):
        if killed == kills:
            break
        done = start(moments.uniform(0, lasts))
        if done.returncode == 0:  # it was faster than that: from the start again
            assert left(where / "o") == left(whole / "o")
            shutil.rmtree(where)
        else:
            assert done.returncode == -signal.SIGKILL, done.stderr
            killed += 1
    done = start(PATIENCE)
    assert done.returncode == 0, done.stderr
    assert left(where / "o") == left(whole / "o") and killed == kills
    shutil.rmtree(where)


PROGRAMS = ["tasks", "quantise", "compare", "cache", "reproduce"]


@pytest.mark.parametrize("name", PROGRAMS[:-1])  # reproduce, which trains, among the slow ones
def test_killed(python, place, model_dir, name):
    killed_and_run_again(python, place, model_dir, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_killed_again_and_again(python, place, model_dir, name):
    killed_and_run_again(python, place, model_dir, name, 30)


def test_a_quantised_model_is_written_where_nothing_of_others_lies(place, model_dir, tmp_path):
    command = ["nanomed/quantise.py", "--model", model_dir, "--quantize", "nf4", "--out", "o"]
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "tokenizer.json").write_text("mine")
    assert_refused(run_script(tmp_path, *command), "tokenizer.json is none of")
    assert [p.read_text() for p in (tmp_path / "o").iterdir()] == ["mine"]
    (tmp_path / "o" / "tokenizer.json").unlink()
    assert run_script(tmp_path, *command).returncode == 0
    assert "there already" in run_script(tmp_path, *command).stdout
    assert_refused(run_script(tmp_path, *command[:4], "int8", *command[5:]), "quantised otherwise")
    shutil.copytree(model_dir, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    assert_refused(
        run_script(tmp_path, command[0], "--model", "m", "--quantize", "nf4", "--out", "p"), "tokenizer.json"
    )
    assert not (tmp_path / "p").exists()
    (tmp_path / "o" / "model.safetensors").rename(tmp_path / "moved")
    assert run_script(tmp_path, *command).returncode == 0
    assert (tmp_path / "o" / "model.safetensors").read_bytes() == (tmp_path / "moved").read_bytes()
    again = run_script(tmp_path, command[0], "--model", "o", "--quantize", "nf4", "--out", "p")
    assert_refused(again, "quantised already")


def test_a_tokenizer_is_whole_or_not_there(place, tmp_path):
    (tmp_path / "bad.jsonl").write_text((place / "docs.jsonl").read_text() + '{"text": 5}\n')
    command = ["nanomed/text/bpe.py", "--vocab-size", 300, "--out", "o", "--data"]
    assert_refused(run_script(tmp_path, *command, "bad.jsonl"), "bad.jsonl, row 61")
    assert not (tmp_path / "o").exists()
    assert run_script(tmp_path, *command, place / "docs.jsonl").returncode == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    assert_refused(run_script(tmp_path, *command, "bad.jsonl"), "bad.jsonl, row 61")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    assert before.keys() == {*bpe.WRITTEN, "nanomed.json"}
    (tmp_path / "o" / "model.safetensors").write_text("mine")
    assert_refused(run_script(tmp_path, *command, place / "docs.jsonl"), "did not write")


def test_a_set_made_of_less_leaves_nothing_of_more(place, tmp_path):
    (tmp_path / "s.toml").write_text(SET + SET.replace("[a]", "[b]"))
    for name in ("train", "test"):
        shutil.copy(place / f"{name}.jsonl", tmp_path)
    make = ["nanomed/tasks.py", "s.toml", "--out", "o", "--near-duplicates", 0]
    assert run_script(tmp_path, *make).returncode == 0
    assert (tmp_path / "o" / "b.test.jsonl").exists()
    before = {p: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    assert_refused(run_script(tmp_path, *make, "--without", "class"), "--without")
    assert before == {
        p: p.read_bytes() for p in (tmp_path / "o").iterdir()
    }  # a command that fails costs nothing
    assert run_script(tmp_path, *make, "--only", "a").returncode == 0
    assert names_in(tmp_path / "o") == {
        "tasks.json",
        "train.jsonl",
        "a.train.jsonl",
        "a.test.jsonl",
        "a.baselines.json",
    }
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tasks.json").write_text('{"version": "2.0.0", "tasks": [{"label": "build"}]}')
    assert_refused(run_script(tmp_path, *make[:3], "t"), "tasks.json is none of")
