"""The Makefile's variables: whatever they hold, each is one name, and nothing is removed that is not ours.
The environment's Python is played by a script that writes down what it was given."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

# blanks at both ends of words, quotes, all that shell or make would expand
ODD = """ it's "a" $HOME $(X) `id`; *  #%\\ é"""


@pytest.fixture
def project(tmp_path):
    """A copy of what the Makefile needs, in a directory with an odd name too."""
    out = tmp_path / f"project{ODD}"
    (out / "recipes").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "recipes/nano.config.json"):
        shutil.copyfile(ROOT / name, out / name)
    return out


def make_environment(directory, log):
    (directory / "bin").mkdir(parents=True)
    (directory / "pyvenv.cfg").touch()
    (directory / ".ready").touch()
    python = directory / "bin" / "python"
    python.write_text(f"""#!/usr/bin/env python3
import json, sys
with open({str(log)!r}, "a") as f:
    f.write(json.dumps(sys.argv[1:]) + "\\n")
""")
    python.chmod(0o755)


def make(project, *args, **env):
    env = {
        k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in ("VENV", "RUNS", "MODEL")
    } | env
    return subprocess.run(["make", *args], cwd=project, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def made(project, tmp_path):
    """made(target, variable=..., ...): the commands that the target gives to Python, as lists of words."""
    venv, log = tmp_path / f"venv{ODD}", tmp_path / "log"
    make_environment(venv, log)

    def run(target, **variables):
        log.unlink(missing_ok=True)
        out = make(project, target, f"VENV={venv}", *(f"{k}={v}" for k, v in variables.items()))
        assert out.returncode == 0, out.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def after(command, flag):
    """The values of a flag."""
    rest = command[command.index(flag) + 1 :]
    ends = [i for i, word in enumerate(rest) if word.startswith("--")]
    return rest[: ends[0]] if ends else rest


def test_adapt_takes_every_name_as_one_word(made, tmp_path, project):
    runs = str(tmp_path / f"runs{ODD}")
    names = {"MODEL": f"m{ODD}", "DATA": f"d{ODD}", "TEST": f"t{ODD}", "FIELD": f"f{ODD},g"}
    before, train, after_it, report = made("adapt", RUNS=runs, ARGS="--lora-r 8 --lr '1 2'", **names)
    m, d, t, f = names.values()
    assert before == [
        "eval.py",
        "ppl",
        "--model",
        m,
        "--data",
        t,
        "--text-field",
        f,
        "--json",
        f"{runs}/base.test.json",
    ]
    assert train == [
        "train_clm.py",
        "--model",
        m,
        "--data",
        d,
        "--text-field",
        f,
        "--exclude",
        t,
        "--near-duplicates",
        "0.8",
        "--out",
        f"{runs}/adapted",
        "--resume",
        "--lora-r",
        "8",
        "--lr",
        "1 2",
    ]
    assert after_it[2:6] == ["--model", f"{runs}/adapted", "--data", t]
    assert report == [
        "-m",
        "nanomed.evaluation.tables",
        f"{runs}/base.test.json",
        f"{runs}/adapted.test.json",
    ]
    assert Path(runs).is_dir() and {p.name for p in tmp_path.iterdir()} == {
        Path(runs).name,
        f"venv{ODD}",
        "log",
        project.name,
    }


def test_every_other_target_takes_every_name_as_one_word(made, tmp_path):
    runs = str(tmp_path / f"runs{ODD}")
    keys = "DATA TEST FIELD ADAPTED POSITIVES NEGATIVES PAIRS TEMPLATE GENERAL PUBMED GENERAL_TEST STEPS BATCH".split()
    names = {k: f"{k}{ODD}" for k in keys} | {"RUNS": runs, "MODEL": f"m{ODD}"}
    for name in (
        "study/shape",
        "nano-shape",
        "study-gpt2-small/adapted",
        "study-gpt2-small/adapted-lora",
        "instructed",
    ):
        (Path(runs) / name).mkdir(parents=True)
        (Path(runs) / name / "summary.json").write_text("peak_rss")
    (classify,) = made("classify", **names)
    assert after(classify, "--model") == [names["ADAPTED"]] and after(classify, "--text-field") == [
        names["FIELD"] + ",text"
    ]
    assert [after(classify, f"--{k}") for k in ("positives", "negatives")] == [
        [names["POSITIVES"]],
        [names["NEGATIVES"]],
    ]
    (sft,) = made("sft", **names)
    assert [after(sft, f"--{k}") for k in ("data", "template", "out")] == [
        [names["PAIRS"]],
        [names["TEMPLATE"]],
        [f"{runs}/instructed"],
    ]
    (page,) = made("report", **names)
    assert after(page, "--models") == [names["MODEL"], f"{runs}/instructed"]
    assert after(page, "--data") == [f"biomedical={names['TEST']}"]
    assert "--classifier" not in page and "--template" not in page  # each model is asked in its own template
    assert [made(t, **names)[0][-1] for t in ("demo", "demo-full")] == [f"{runs}/demo", f"{runs}/demo-full"]
    bpe, nano, bundle = made("nano", **names)
    assert (
        after(bpe, "--data") == after(nano, "--data") == [names["GENERAL"]] and bundle[-1] == f"{runs}/nano"
    )
    assert after(nano, "--val-data") == [names["GENERAL_TEST"]]
    commands = made("study", **names)
    assert len(commands) == 11 and after(commands[1], "--exclude") == [names["TEST"], names["GENERAL_TEST"]]
    assert after(commands[1], "--max-steps") == [names["STEPS"]] and after(commands[2], "--data") == [
        names["PUBMED"]
    ]
    assert commands[-1][2:] == [
        f"{runs}/study/{m}.{c}.json"
        for m in ("base", "adapted", "adapted-lora")
        for c in ("biomedical", "general")
    ]
    assert len(made("study-gpt2-small", **names)) == 7


def test_help_shows_names_as_they_are(project, tmp_path):
    out = make(project, "help", f"MODEL=m{ODD}", f"VENV=v{ODD}", f"RUNS=r{ODD}")
    assert out.returncode == 0 and out.stderr == ""
    for name in (f"m{ODD}", f"v{ODD}", f"r{ODD}/adapted"):
        assert name.replace("\\", "") in out.stdout.replace("\\", "")  # some shells' echo reads backslashes


def test_names_from_the_environment_and_from_home(project, tmp_path):
    make_environment(tmp_path / f"v{ODD}", tmp_path / "log")
    out = make(
        project, "baseline", "TEST=~/t  ~/u.jsonl", HOME=f"/h{ODD}", VENV=f"../v{ODD}", MODEL=f"m{ODD}"
    )
    assert out.returncode == 0, out.stderr
    (command,) = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert after(command, "--model") == [f"m{ODD}"] and after(command, "--data") == [f"/h{ODD}/t  ~/u.jsonl"]


def test_defaults_need_no_quotes(project):
    """`make -n` shows what one would type."""
    out = make(project, "-n", "adapt").stdout
    assert ".venv/bin/python train_clm.py --model gpt2 --data hub:qiaojin/PubMedQA:pqa_artificial" in out


def test_an_environment_that_is_missing_or_old_is_made_and_one_that_is_there_is_not(project, tmp_path):
    venv = project / "my env"
    assert "python3 -m venv 'my env'" in make(project, "-n", "demo", "VENV=my env").stdout
    make_environment(venv, tmp_path / "log")
    assert "python3 -m venv" not in make(project, "-n", "demo", "VENV=my env").stdout
    for name in ("requirements.lock", "pyproject.toml"):
        stamp = (venv / ".ready").stat().st_mtime
        os.utime(project / name, (stamp + 10, stamp + 10))
        assert "python3 -m venv 'my env'" in make(project, "-n", "demo", "VENV=my env").stdout
        os.utime(project / name, (stamp - 10, stamp - 10))


@pytest.mark.parametrize(
    "given", ["RUNS=", "RUNS= ", "RUNS=/", "VENV=", "VENV=/", "VENV=//", "VENV=.", "VENV=../", "DATA=a\nb"]
)
def test_a_name_that_is_none_is_refused_whatever_is_made(project, given):
    before = sorted(project.rglob("*"))
    for target in ("adapt", "demo", "clean"):
        out = make(project, target, given)
        assert out.returncode == 2 and given.split("=")[0] in out.stderr and out.stdout == ""
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("name", ["my env", f"v{ODD}", "linked", "deep/er env"])
def test_clean_removes_the_environment_and_nothing_else(project, tmp_path, name):
    for kept in ("my", "env", "v", "it's", "runs", "deep"):
        (project / kept).mkdir()
        (project / kept / "precious").touch()
    before = sorted(project.rglob("*"))
    if name == "linked":
        make_environment(tmp_path / "elsewhere", tmp_path / "log")
        (project / name).symlink_to(tmp_path / "elsewhere")
    else:
        make_environment(project / name, tmp_path / "log")
    (project / "nanomed.egg-info").mkdir()
    (project / "deep" / "__pycache__").mkdir()
    out = make(project, "clean", f"VENV={name}")
    assert out.returncode == 0, out.stderr
    assert sorted(project.rglob("*")) == before


def test_clean_leaves_what_is_no_environment(project, tmp_path):
    (project / "data").mkdir()
    (project / "data" / "precious").touch()
    make_environment(project / "around", tmp_path / "log")
    inner = project / "around" / "project"
    inner.mkdir()
    shutil.copyfile(project / "Makefile", inner / "Makefile")
    for where, name in (
        (project, "data"),
        (project, "data/precious"),
        (inner, str(project / "around")),
        (inner, "../../around"),
    ):
        before = sorted(project.rglob("*"))
        out = make(where, "clean", f"VENV={name}")
        assert out.returncode == 2 and name in out.stderr
        assert sorted(project.rglob("*")) == before
    assert make(project, "clean", "VENV=not there").returncode == 0


def test_reproduce_is_given_what_stands_in_and_nothing_else(made, project):
    (plain,) = made("reproduce", RECIPE="gpt-neo-flashcards")
    assert plain == [
        "-m",
        "nanomed.reproduce",
        "--recipe",
        "gpt-neo-flashcards",
        "--out",
        "runs/reproduce/gpt-neo-flashcards",
    ]
    names = {
        "MODEL": f"m{ODD}",
        "DATA": f"d{ODD}",
        "NEGATIVES": f"n{ODD}",
        "PAIRS": f"p{ODD}",
        "GENERAL": f"g{ODD}",
    }
    (full,) = made("reproduce", RECIPE=f"r{ODD}", RUNS=f"x{ODD}", ARGS="--limit 5", **names)
    given = [
        "--model",
        f"m{ODD}",
        "--data",
        f"d{ODD}",
        "--data",
        f"negatives=n{ODD}",
        "--data",
        f"pairs=p{ODD}",
    ]
    given += ["--data", f"general=g{ODD}", "--limit", "5"]
    assert full == [
        "-m",
        "nanomed.reproduce",
        "--recipe",
        f"r{ODD}",
        "--out",
        f"x{ODD}/reproduce/r{ODD}",
        *given,
    ]
    assert make(project, "reproduce").returncode == 2
