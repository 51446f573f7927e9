"""What is written: whole or not at all, never over what is not ours, never with what JSON does not know, one
run a directory."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from nanomed import cli, files, outputs, tensors
from nanomed.errors import UserError
from nanomed.threads import of_torchrun
from nanomed.training import distributed
from tests.conftest import PATIENCE, ROOT, assert_refused, make_texts, run_script, write_jsonl

TINY = ("--batch-size", 2, "--max-steps", 2, "--dtype", "fp32")


@pytest.fixture
def docs(tmp_path):
    return write_jsonl(tmp_path / "docs.jsonl", make_texts(20, 41))


@pytest.fixture
def model(tmp_path, model_dir):
    """A copy of the model, which a test may hurt."""
    out = tmp_path / "model"
    out.mkdir()
    for file in model_dir.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def tree(directory):
    """Every file below, with its content, and every directory and link."""
    return {
        str(p.relative_to(directory)): (
            os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        )
        for p in directory.rglob("*")
    }


def python(code, **kwargs):
    """A Python of its own, in the project."""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **kwargs)


# --- one file -----------------------------------------------------------------------------------------------


def test_json_has_no_nan_and_no_infinity(tmp_path):
    value = {
        "a": [float("nan"), 1.5, (float("inf"), -float("inf"))],
        "b": {"c": float("nan"), "d": None},
        "e": "NaN",
    }
    files.write_json(value, tmp_path / "x.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert read == {"a": [None, 1.5, [None, None]], "b": {"c": None, "d": None}, "e": "NaN"}


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """The second begins and ends while the first has written, but not yet renamed."""
    path, fsync, inner = tmp_path / "x.json", os.fsync, []

    def second(fd):
        monkeypatch.setattr(os, "fsync", fsync)
        files.write_json({"by": "second"}, path)
        inner.append(files.read_json(path))

    monkeypatch.setattr(os, "fsync", second)
    files.write_json({"by": "first"}, path)
    assert inner == [{"by": "second"}] and files.read_json(path) == {"by": "first"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from nanomed import files, tensors
files.os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
tensors.write_safetensors({"a": torch.ones(1000)}, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_weights_are_for_whom_any_new_file_is_for(tmp_path, umask):
    before = os.umask(umask)
    try:
        tensors.write_safetensors({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
        files.write_json({}, tmp_path / "config.json")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "config.json", "plain"), 0o666 & ~umask)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    weights = tmp_path / "w.safetensors"
    tensors.write_safetensors({"a": torch.zeros(1)}, weights)
    (tmp_path / "mine.json.tmp").write_text("the user's own")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(weights)], cwd=ROOT, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(tmp_path.iterdir())) == 3  # else the test says nothing
    alive = files.make_temporary(tmp_path)  # of another writer that is still at work
    files.write_json({}, tmp_path / "x.json")
    assert {p.name for p in tmp_path.iterdir()} == {"w.safetensors", "mine.json.tmp", "x.json", alive.name}
    assert load_file(weights)["a"].tolist() == [0]


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target.json").write_text("old")
    (tmp_path / "link.json").symlink_to("far/target.json")
    (tmp_path / "new.json").symlink_to("far/made.json")
    for name in ("link.json", "new.json"):
        files.check_output(tmp_path / name)
        files.write_json({"a": 1}, tmp_path / name)
        assert (tmp_path / name).is_symlink()
    assert (
        files.read_json(tmp_path / "far" / "target.json")
        == files.read_json(tmp_path / "far" / "made.json")
        == {"a": 1}
    )
    assert {p.name for p in (tmp_path / "far").iterdir()} == {"target.json", "made.json"}


def test_a_named_pipe_is_written_in_place(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UserError, match="a named pipe that no program reads"):
        files.check_output(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.check_output(path)
    files.write_json({"a": 1}, path)
    assert path.is_fifo()
    assert json.loads(os.read(reader, 1000)) == {"a": 1}
    assert os.read(reader, 1000) == b""  # the end: nobody holds it open any more
    os.close(reader)


def test_standard_output_may_be_the_result_file(tmp_path):
    code = """if True:
        from pathlib import Path
        from nanomed import files
        print("before")
        files.check_output("/dev/stdout")
        files.write_json({"a": 1}, Path("/dev/stdout"))
        print("after")"""
    with open(tmp_path / "log", "w") as log:
        assert python(code, stdout=log).wait(60) == 0
    assert (tmp_path / "log").read_text() == 'before\n{\n  "a": 1\n}\nafter\n'


# --- eval.py --json and compare --out: said before any work -------------------------------------------------


def run_of(model):
    (model / "run.json").write_text('{"settings": {}}')
    return "model/run.json"


def adapter_on(model):
    """An adapter on `model`; the file is its base's."""
    adapter = model.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    return "model/config.json"


def linked(kind):
    def make(model):
        getattr(model.parent / f"{kind}.json", kind)(model.parent / "docs.jsonl")
        return f"{kind}.json"

    return make


OUTPUTS = {
    "directory": (lambda model: "model", ("it is a directory",)),
    "no such directory": (lambda model: "gone/x.json", ("no such directory",)),
    "below a file": (lambda model: "docs.jsonl/x.json", ("no such directory",)),
    "empty": (lambda model: "", ("name a file",)),
    "data": (lambda model: "docs.jsonl", ("reads",)),
    "data by another way": (lambda model: "model/../docs.jsonl", ("reads",)),
    "data through a symlink": (linked("symlink_to"), ("reads",)),
    "data through a hard link": (linked("hardlink_to"), ("reads",)),
    "config": (lambda model: "model/config.json", ("reads",)),
    "weights": (lambda model: "model/model.safetensors", ("reads",)),
    "tokenizer": (lambda model: "model/tokenizer.json", ("reads",)),
    "a file that would become part of the model": (lambda model: "model/added_tokens.json", ("reads",)),
    "run.json": (run_of, ("reads",)),
    "base of an adapter": (adapter_on, ("reads",)),
}


@pytest.mark.parametrize(("make", "words"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_result_that_could_not_be_written_or_would_destroy_an_input(
    script, docs, model, tmp_path, make, words
):
    name = make(model)
    before = tree(tmp_path)
    used = "adapter" if (tmp_path / "adapter").exists() else "model"
    out = script("eval.py", "ppl", "--model", used, "--data", docs, "--json", name, "--dtype", "fp32")
    assert_refused(out, "--json", name, *words)
    assert out.stdout == "" and tree(tmp_path) == before


def test_every_file_that_a_command_reads_is_safe_from_its_result(script, docs, model, tmp_path):
    for name in ("p.jsonl", "n.jsonl", "q.jsonl", "t.toml"):
        (tmp_path / name).write_text("precious")
    m, before = ("--model", model), tree(tmp_path)
    for command in (
        ("generate", *m, "--prompts", "p.jsonl", "--json", "p.jsonl"),
        ("generate", *m, "--prompt", "a", "--template", "t.toml", "--json", "t.toml"),
        ("qa", *m, "--data", "q.jsonl", "--json", "q.jsonl"),
        ("cls", *m, "--positives", "p.jsonl", "--negatives", "n.jsonl", "--json", "n.jsonl"),
    ):
        assert_refused(script("eval.py", *command), f"--json {command[-1]}", "reads")
    assert tree(tmp_path) == before
    free = script("eval.py", "ppl", *m, "--data", docs, "--json", model / "results.json", "--dtype", "fp32")
    assert free.returncode == 0, free.stderr  # beside the model, under a name that is no part of it
    again = script("eval.py", "ppl", *m, "--data", docs, "--json", model / "results.json", "--dtype", "fp32")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("name", ["", "docs.jsonl", "docs.jsonl/sub", "dangling", "theirs"])
def test_a_page_that_could_not_be_written_is_said_before_anything_is_measured(
    script, docs, model, tmp_path, name
):
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "report.html").write_text("precious")
    before = tree(tmp_path)
    out = script("eval.py", "compare", "--models", model, "--data", docs, "--out", name)
    assert_refused(out, f"--out {name}")
    assert out.stdout == "" and tree(tmp_path) == before


# --- a training's --out -------------------------------------------------------------------------------------


OURS = {"program": "nanomed.training", "format": 1, "command": "train_clm.py", "settings": {"lr": 1}}


def put(directory, **contents):
    for name, content in contents.items():
        path = directory / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


FOREIGN = {
    "base": {"base__notes.txt": "precious"},
    "state": {"state__step-00000001.safetensors": "precious"},
    "metrics": {"metrics.jsonl": '{"step": 7}\n'},
    "run.json of another program": {"run_json": {"settings": {"a": 1}}},
    "run.json that is a list": {"run_json": [1]},
    "run.json that is no JSON": {"run_json": "{"},
    "run.json that says another program": {"run_json": OURS | {"program": "other"}},
    "a model without summary.json": {"run_json": OURS, "model.safetensors": "precious"},
    "an adapter without summary.json": {"run_json": OURS, "adapter_model.safetensors": "precious"},
    "a tokenizer": {"run_json": OURS, "tokenizer_json": {}},
    "a summary.json without weights": {"run_json": OURS, "summary_json": {}},
}


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
@pytest.mark.parametrize("contents", FOREIGN.values(), ids=FOREIGN)
def test_a_run_overwrites_only_what_a_run_left(script, docs, model_dir, tmp_path, contents, resume):
    put(tmp_path / "out", **contents)
    before = tree(tmp_path)
    out = script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", *TINY, *resume)
    assert_refused(out, "--out out")
    assert out.stdout == "" and tree(tmp_path) == before


@pytest.mark.parametrize("name", ["", ".", "docs.jsonl", "docs.jsonl/sub", "dangling", "dangling/sub"])
def test_an_out_that_is_no_place_for_a_run(script, docs, model_dir, tmp_path, name):
    (tmp_path / "dangling").symlink_to("nowhere")
    before = tree(tmp_path)
    assert_refused(
        script("train_clm.py", "--model", model_dir, "--data", docs, "--out", name, *TINY), f"--out {name}"
    )
    assert tree(tmp_path) == before


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
@pytest.mark.parametrize("below", ["", "base", "deep/er"])
def test_a_model_is_not_trained_into_its_own_place(script, docs, model, tmp_path, below, resume):
    """Whatever vouches for `out`: what the new run reads is no leftover."""
    put(tmp_path / "out", run_json=OURS)
    source = tmp_path / "out" / below
    source.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        file.rename(source / file.name)
    before = tree(tmp_path)
    out = script("train_clm.py", "--model", source, "--data", docs, "--out", "out", *TINY, *resume)
    assert_refused(out, "--out out")
    assert tree(tmp_path) == before


def test_what_a_run_left_that_ended_early_is_no_hindrance(script, docs, model_dir, tmp_path):
    put(
        tmp_path / "out",
        run_json=OURS,
        base__config_json="{",
        **{"metrics.jsonl": "", "state__best-00000001.safetensors": ""},
    )
    files.make_temporary(tmp_path / "out" / "state")
    out = script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", *TINY)
    assert out.returncode == 0, out.stderr
    assert not [p for p in (tmp_path / "out").rglob(".*")]  # no lock, nothing half written


# --- one run at a time --------------------------------------------------------------------------------------


HOLDER = """if True:
    import sys
    from pathlib import Path
    from nanomed import outputs
    outputs.lock(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()"""


def test_a_directory_is_held_by_one_process_as_long_as_it_lives(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"--out .*out: .*\({process.pid}\)"):
        outputs.lock(tmp_path / "out")
    process.kill()
    process.communicate()
    outputs.lock(tmp_path / "out")  # the other was killed
    outputs.lock(tmp_path / "out")  # held already
    outputs.release()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_second_run_leaves_the_first_alone(script, docs, model_dir, tmp_path, resume):
    put(tmp_path / "out", run_json=OURS, **{"metrics.jsonl": '{"step": 0}\n'})
    with open(tmp_path / "out" / outputs.LOCK, "w") as first:
        first.write("4711")
        first.flush()
        fcntl.flock(first, fcntl.LOCK_EX)
        before = tree(tmp_path)
        out = script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", *TINY, *resume)
        assert_refused(out, "--out out", "(4711)")
        assert tree(tmp_path) == before


def test_a_directory_is_looked_at_again_once_it_is_held(script, docs, model_dir, tmp_path, monkeypatch):
    """The first run ends between the second's look and its turn."""
    lock = outputs.lock

    def wait(directory):
        lock(directory)
        put(directory, run_json=OURS, **{"model.safetensors": "precious"})

    monkeypatch.setattr("nanomed.outputs.lock", wait)
    monkeypatch.setattr("nanomed.training.run.lock", wait)
    out = script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", *TINY)
    assert_refused(out, "--out out")
    assert (tmp_path / "out" / "model.safetensors").read_text() == "precious"


# --- nanomed.text.bpe ---------------------------------------------------------------------------------------


def bpe(monkeypatch, capsys, *args):
    """Run `python -m nanomed.text.bpe` in this process."""
    from nanomed import cli
    from nanomed.text import bpe

    monkeypatch.setattr(sys, "argv", ["bpe", *map(str, args)])
    terminate = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        cli.execute(bpe.main)
    signal.signal(signal.SIGTERM, terminate)
    out, err = capsys.readouterr()
    return subprocess.CompletedProcess(args, end.value.code, out, err)


def test_a_vocabulary_is_written_where_no_other_tokenizer_is(docs, model, tmp_path, monkeypatch, capsys):
    args = ("--data", docs, "--vocab-size", 300, "--out")
    put(tmp_path / "theirs", **{"vocab.json": {"a": 0}, "merges.txt": "a b\n"})
    before = tree(tmp_path)
    for name in ("model", "theirs", "docs.jsonl"):
        assert_refused(bpe(monkeypatch, capsys, *args, tmp_path / name), "--out", name)
    assert_refused(bpe(monkeypatch, capsys, *args, ""), "--out")
    assert tree(tmp_path) == before
    for _ in range(2):  # its own may be made again
        assert bpe(monkeypatch, capsys, *args, tmp_path / "new").returncode == 0
        (tmp_path / "new" / "config.json").write_text("{}")  # a shape to train from scratch
    (tmp_path / "new" / "model.safetensors").write_text("precious")
    assert_refused(bpe(monkeypatch, capsys, *args, tmp_path / "new"), "--out")


# --- pipes and memory ---------------------------------------------------------------------------------------


def command(name, *args):
    return [sys.executable, str(ROOT / name), *map(str, args)]


def test_a_reader_that_goes_away_does_not_cost_the_training(docs, model_dir, tmp_path, python):
    reader, writer = os.pipe()
    os.close(reader)  # `2>&1 | head -0`
    args = ("--model", model_dir, "--data", docs, "--out", "out", *TINY)
    words = [*python, *command("train_clm.py", *args)[1:]]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=writer, stderr=writer)
    os.close(writer)
    noise = process.communicate(timeout=PATIENCE)[1] or ""
    assert process.returncode == 0, noise
    assert (tmp_path / "out" / "summary.json").exists()


def test_a_reader_that_goes_away_does_not_cost_the_result(docs, model_dir, tmp_path, python):
    reader, writer = os.pipe()
    os.close(reader)
    args = ("ppl", "--model", model_dir, "--data", docs, "--json", "r.json", "--dtype", "fp32")
    words = [*python, *command("eval.py", *args)[1:]]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    noise = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0 and "Exception" not in noise, noise
    assert json.loads((tmp_path / "r.json").read_text())["ppl"] > 1


def test_without_any_stream_it_works_all_the_same(docs, model_dir, tmp_path):
    args = ("--model", model_dir, "--data", docs, "--out", "out", *TINY)
    line = '"$0" "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, *command("train_clm.py", *args)], cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == 0 and (tmp_path / "out" / "summary.json").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here, a disk that is always full")
def test_a_full_disk_under_the_result_is_said_in_one_line(docs, model_dir, tmp_path, request):
    warm = request.getfixturevalue("python")
    ppl = ("ppl", "--model", model_dir, "--data", docs, "--dtype", "fp32")
    for name, *args in (("eval.py", *ppl), ("eval.py", "--help"), ("train_clm.py", "--help")):
        words = [*warm, str(ROOT / name), *map(str, args)]
        with open("/dev/full", "w") as full:
            done = subprocess.run(words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
        assert_refused(done, f"{name}: standard output: No space left")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here, a disk that is always full")
def test_a_full_disk_under_the_log_does_not_cost_the_training(docs, model_dir, tmp_path):
    args = ("--model", model_dir, "--data", docs, "--out", "out", *TINY)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("train_clm.py", *args),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=full,
            timeout=PATIENCE,
        )
    assert done.returncode == 0 and (tmp_path / "out" / "summary.json").exists()


def test_names_that_are_not_utf8(docs, model_dir, tmp_path):
    """Data of such a name is read, and named in every record, JSON's way; weights would not be found
    again."""
    name = os.fsdecode(b"d\xff.jsonl")
    shutil.copy(docs, tmp_path / name)
    words = ("--model", model_dir, "--data", name, *TINY)
    for flags in (("--out", "out"), ("--out", "out", "--resume")):
        done = run_script(tmp_path, "train_clm.py", *words, *flags)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["data"] == [name]
    done = run_script(
        tmp_path,
        "eval.py",
        "compare",
        "--models",
        "out",
        model_dir,
        "--data",
        name,
        "--out",
        "page",
        "--max-new-tokens",
        3,
    )
    assert done.returncode == 0 and "d\\udcff" in (tmp_path / "page" / "report.html").read_text(
        encoding="utf-8"
    ), done.stderr
    assert_refused(
        run_script(tmp_path, "train_clm.py", *words, "--out", os.fsdecode(b"o\xff")),
        "under a name that is not UTF-8",
    )
    assert not os.path.exists(tmp_path / os.fsdecode(b"o\xff"))


def test_what_torchrun_left_in_a_shell_makes_no_several_processes(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert not of_torchrun() and distributed.world() == 1
    for name in ("RANK", "MASTER_PORT", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert of_torchrun() and distributed.world() == 3


def test_a_user_without_a_home_has_a_cache_for_the_hub(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setattr(cli.Path, "home", nobody)
    cli._find_home()
    assert os.environ["HF_HOME"].endswith(f"nanomed-{os.getuid()}/huggingface")
    monkeypatch.delenv("HF_HOME")


def test_a_line_is_seen_at_once_in_whatever_encoding():
    code = (
        "import sys; from nanomed.streams import open_streams; open_streams(); print('caf\\xe9');"
        " sys.stdin.read()"
    )
    process = python(
        code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert process.stdout.readline() == "caf\\xe9\n"
    process.communicate()


@pytest.mark.slow
def test_peak_memory_is_the_process_own(docs, model_dir, tmp_path):
    """Linux gives a process its launcher's peak as ru_maxrss, where that was the larger."""
    launcher = """if True:
        import subprocess, sys
        held = bytearray(1_500_000_000)
        held[::4096] = b"x" * len(held[::4096])
        sys.exit(subprocess.call(sys.argv[1:]))"""
    args = command("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", *TINY)
    done = subprocess.run(
        [sys.executable, "-c", launcher, *args], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads((tmp_path / "out" / "summary.json").read_text())["peak_rss_bytes"]
    assert 50e6 < peak < 1.4e9


def test_control_characters_do_not_reach_a_terminal(docs, model_dir, tmp_path):
    """But for colours; into a file they go as they are."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from nanomed.streams import open_streams
open_streams()
print("a\\x1b]0;title\\x07b\\x1b[2Jc\\x1b[32md\\x1b[0m\\tpr\\u00fcfung\\x9b5n\\r")
"""
    reads, writes = os.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=writes, check=True)
    os.close(writes)
    shown = os.read(reads, 1000).decode()
    assert shown.rstrip("\r\n") == "a\ufffd]0;title\ufffdb\ufffd[2Jc\x1b[32md\x1b[0m\tprüfung\ufffd5n\ufffd"
    piped = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert piped == "a\x1b]0;title\x07b\x1b[2Jc\x1b[32md\x1b[0m\tprüfung\x9b5n\r\n"


def test_a_terminal_that_is_gone_does_not_cost_the_work():
    """As after a hang-up: what is printed goes nowhere, on standard error too."""
    code = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from nanomed.streams import open_streams
open_streams()
print("ready")
sys.stdin.readline()
for k in range(3):
    print("on")
    print("on", file=sys.stderr)
os._exit(7)
"""
    reads, writes = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=writes,
        stderr=writes,
        start_new_session=True,
    )
    os.close(writes)
    assert b"ready" in os.read(reads, 100)
    os.close(reads)
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(PATIENCE) == 7
