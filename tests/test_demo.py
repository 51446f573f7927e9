"""The demo's small world: its facts, its texts, and its table."""

import io
import json
import os
import random
import re
import runpy
import signal
import string
import subprocess
import sys
import time
import typing
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from nanomed import hub
from nanomed import scripts as program
from nanomed.demo import __main__ as demo
from nanomed.demo import render, table, texts
from nanomed.errors import Interrupted, UserError
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import ROOT, make_hf_model

ALL = list(render.facts())


def test_the_fact_base_has_the_size_and_the_form_that_its_sentences_need():
    assert len(ALL) >= 160
    allowed = set(string.ascii_letters + string.digits + " '-")
    for fact in render.facts_of(ALL):
        assert set(fact.value) <= allowed and 1 <= len(fact.value.split()) <= 5, fact
        assert fact.value[-1] != "." and fact.value == fact.value.strip()
    for name in ALL:
        assert re.match(r"an? ", next(f.value for f in render.facts()[name] if f.relation == "class")), name
        assert len(render.facts()[name]) == 8
    assert {len(ways) for ways in render.TOLD.values()} == {6}
    for ways in render.TOLD.values():
        assert all(("{x}" in w or "{X}" in w) and ("{v}" in w or "{V}" in w) for w in ways)


def test_texts_are_a_function_of_the_seed():
    names = ALL[:5]
    assert (
        render.corpus(names, 3, seed=1) == render.corpus(names, 3, seed=1) != render.corpus(names, 3, seed=2)
    )
    assert render.questions(names, [0, 1], 1) == render.questions(names, [0, 1], 1)
    assert render.groups(0) == render.groups(0) != render.groups(1)
    again = subprocess.run(
        [sys.executable, "-c", "from nanomed.demo import render; print(render.corpus(['gout'], 2, 7))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "99"},
    )
    assert again.stdout.strip() == str(render.corpus(["gout"], 2, 7))


def test_every_fact_is_told_in_five_ways_and_measured_in_a_sixth():
    corpus = "\n".join(render.corpus(ALL, texts.PER_CONDITION, seed=0))
    retold = "\n".join(render.retold(ALL, seed=0))
    for fact in random.Random(0).sample(render.facts_of(ALL), 150):
        told = {way for way in range(6) if fact.told(way) in corpus}
        out = render.kept_out(fact.condition, 0)[fact.relation]
        assert told == set(range(6)) - {out} and 0 in told, fact
        assert fact.told(out) in retold, fact


def test_the_groups_keep_their_promises():
    files = {name.removesuffix(".jsonl"): text for name, text in texts.make_texts(3).items()}
    groups = render.groups(3)
    assert sum(map(len, groups.values())) == len(ALL) and set(groups["read"]).isdisjoint(groups["taught"])

    lower = {file: text.lower() for file, text in files.items()}

    def told(group, file):
        """Which of a group's conditions some fact is told, or asked for, of."""
        found = set()
        for name in groups[group]:
            text = "".join(line for line in lower[file].splitlines() if name.lower() in line)
            sentences = [f.told(way) for f in render.facts()[name] for way in range(6)]
            sentences += [f.asked(way) for f in render.facts()[name] for way in range(4)]
            if any(sentence.lower() in text for sentence in sentences):
                found.add(name)
        return found

    assert not told("unknown", "corpus") and not told("unknown", "questions.train")
    trained = "".join(files[name] for name in (*demo.MIXTURE, "questions.train", "probe.train")).lower()
    for name in groups["unknown"]:  # nor does another's fact, or a real text, name it
        assert not re.search(rf"\b{re.escape(name.lower())}\b", trained), name
    assert told("read", "corpus") == set(groups["read"]) and not told("read", "questions.train")
    assert told("taught", "corpus") == told("taught", "questions.train") == set(groups["taught"])
    sentences = {f.told(way) for f in render.facts_of(ALL) for way in range(6)}
    retold = [s for s in sentences if s in files["biomedical"]]
    assert retold and not [s for s in retold if s in files["corpus"]]
    assert told("unknown", "unknown") == set(groups["unknown"])
    assert not set(files["general"].splitlines()) & set(files["general.mix"].splitlines())


READ = ("prose.jsonl", "abstracts.jsonl", "passages.jsonl", "selfwritten.jsonl")
MEASURED = [f"{kind}.{part}.jsonl" for kind in ("abstracts", "general") for part in ("dev", "test")]


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}


def test_nothing_real_that_is_measured_is_in_what_is_read():
    """Neither an article nor eight words in a row."""
    rows = {
        name: [json.loads(line) for line in (render.HERE / name).read_text(encoding="utf-8").splitlines()]
        for name in (*MEASURED, *READ)
    }
    read = {row.get("publisher", "PLOS") for name in ("abstracts.jsonl", "prose.jsonl") for row in rows[name]}
    for kind in ("abstracts", "general"):
        dev, test = (rows[f"{kind}.{part}.jsonl"] for part in ("dev", "test"))
        assert len({row["title"] for row in dev + test}) == len(dev + test)
        assert read.isdisjoint(row.get("publisher") for row in dev + test)
    assert len({row["publisher"] for row in rows["abstracts.test.jsonl"]}) >= 5
    assert {row["title"] for row in rows["passages.jsonl"]}.isdisjoint(
        row["title"] for part in ("dev", "test") for row in rows[f"general.{part}.jsonl"]
    )
    trained = [text for name in READ for text in render.real_texts(name)] + render.general_paragraphs()
    for n, part in (
        (8, "test"),
        (13, "dev"),
    ):  # of dev a stock phrase: "the aim of this study was to evaluate"
        held_out = set()
        for kind in ("abstracts", "general"):
            held_out |= set().union(*(grams(text, n) for text in render.real_texts(f"{kind}.{part}.jsonl")))
        assert len(held_out) > 10_000
        for text in trained:
            assert not grams(text, n) & held_out, text


LICENCES = ("CC BY", "CC BY 2.0", "CC BY 3.0", "CC BY 4.0", "public domain", "this project's own")


def test_every_bundled_text_has_its_source_and_its_licence_beside_it():
    notice = (render.HERE / "README.md").read_text(encoding="utf-8")
    for name in (*READ, *MEASURED):
        assert name in notice
        for line in (render.HERE / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert row["title"] and row["authors"] and row["texts"] and row["licence"] in LICENCES, row[
                "title"
            ]
            if "doi" not in row:
                assert row["source"] and row["source"] in notice and row["title"] in notice
            else:
                own = (
                    r"10\.1371/journal\.p\w+\.\d{7}"
                    if name in READ
                    else r"10\.(1016|1155|1177|1186|3389|3390)/\S+"
                )
                assert re.fullmatch(own, row["doi"]) and row["journal"] and 2000 < row["year"] < 2020
                assert name in READ or (re.fullmatch(r"PMC\d+", row["pmcid"]) and row["publisher"] in notice)


def test_the_real_texts_are_installed_with_the_package():
    patterns = (ROOT / "pyproject.toml").read_text()
    for file in render.HERE.iterdir():
        if file.is_file() and file.suffix not in (".py", ".md"):
            assert f'"demo/*{file.suffix}"' in patterns, file


def test_every_condition_has_a_kind_and_every_kind_is_learnt_and_asked_for():
    assert render.kinds().keys() == set(ALL)
    assert (
        len((render.HERE / "kinds.toml").read_text().split('", "')) > 100
    )  # a name twice would have vanished in kinds()
    for seed in range(5):
        groups = render.groups(seed)
        kinds = {g: [render.kinds()[name] for name in names] for g, names in groups.items()}
        assert set(kinds["taught"]) == set(kinds["read"]) == set(render.kinds().values())
        assert min(kinds["taught"].count(kind) for kind in set(kinds["taught"])) >= 5
    rows = render.named(["gout", "anthrax"])
    assert len({row["text"] for row in rows}) == 2 * len(render.NAMED) and {row["label"] for row in rows} == {
        "other",
        "infection",
    }
    facts = {fact.value for fact in render.facts_of(ALL)}
    assert not [
        s for s in render.NAMED for value in facts if re.search(rf"\b{re.escape(value)}\b", s)
    ]  # they name, they tell nothing


def test_general_texts_name_no_condition():
    general = " ".join(
        (render.HERE / name).read_text() for name in ("general.txt", "easy.txt", "hard.txt")
    ).lower()
    for name in ALL:
        assert not re.search(rf"\b{re.escape(name.lower())}\b", general), name
    assert len(render.general_paragraphs()) >= 100


def test_a_match_is_the_value_in_the_answers_sentence():
    fact = render.Fact("lung cancer", "organ", "the lungs")
    assert fact.cloze() == "The part of the body most affected by lung cancer is"
    assert fact.matches("The part of the body most affected by lung cancer is the lungs.")
    assert not fact.matches(
        "The part of the body most affected by lung cancer is the skin. The lungs are well."
    )
    assert not fact.matches("The part of the body most affected by leprosy is the lungs.")
    some = render.Fact("some disease", "risk", "smokers")  # "older male smokers" is another one's value
    assert some.matches("The people most at risk of some disease are smokers.")
    assert not some.matches("The people most at risk of some disease are older male smokers.")
    assert not some.matches("The people most at risk of some disease are nonsmokers.")
    named = render.Fact("the skin disease", "organ", "the skin")
    assert not named.matches("The part of the body most affected by the skin disease is the heart.")


def test_what_is_asked_names_the_condition_as_its_answer_does():
    for fact in render.facts_of(ALL):
        assert (
            fact.condition in fact.asked()
            and fact.condition in fact.told()
            and fact.told().endswith(fact.value + ".")
        )


def test_nano_is_found_by_its_name_and_keeps_its_promises(script, tmp_path):
    if not hub.BUNDLED["nano"].exists():
        pytest.skip("nano is not trained yet")
    source = hub.find("nano")
    model, tok = hub.load_model(source), load_tokenizer(source.directory)
    assert 5e6 < sum(p.numel() for p in model.parameters()) < 1e7
    weights = source.directory / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000
    assert (source.directory / "README.md").exists()
    for text in ("Ünïcode 字 \x00\x7f", "plain"):
        assert tok.decode(tok.encode(text)) == text
    (tmp_path / "t.txt").write_text(
        "The house stood on a hill above the town, and from its windows one could see the sea.\n"
    )
    out = script("eval.py", "ppl", "--model", "nano", "--data", "t.txt", "--json", "r.json")
    assert out.returncode == 0, out.stderr
    assert json.loads((tmp_path / "r.json").read_text())["ppl"] < 300


class InProcess:
    """Popen's part that the demo uses, with the script run in this process: its start is most of what a tiny
    training costs."""

    commands: typing.ClassVar = []

    def __init__(self, command, cwd, **how):
        self.commands.append(command[1:])
        before, handler = sys.argv, signal.getsignal(signal.SIGTERM)
        sys.argv = command[1:]
        os.chdir(cwd)
        try:
            runpy.run_path(str(ROOT / command[1]), run_name="__main__")
        except SystemExit as e:
            self.returncode = e.code or 0
        finally:
            sys.argv = before
            signal.signal(signal.SIGTERM, handler)

    def wait(self):
        return self.returncode


def test_the_demo_runs_from_the_texts_to_the_page(tmp_path, bpe_dir, monkeypatch):
    """On a tiny model, one update of everything: the road, not the figures."""
    make_hf_model(tmp_path / "tiny", bpe_dir, n_positions=256, n_layer=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "subprocess", SimpleNamespace(Popen=InProcess))
    argv = ["nanomed.demo", "--out", "demo", "--model", "tiny", "--quick", "--dtype", "fp32"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(program, "ROOT", tmp_path)
    # Seconds, and tested elsewhere.
    monkeypatch.setattr("nanomed.evaluation.metrics.interval", lambda *args, **kwargs: None)
    monkeypatch.setattr(texts, "QUICK", 30)
    monkeypatch.setattr(InProcess, "commands", [])
    printed = io.StringIO()
    with redirect_stdout(printed):
        demo.main()
    out, commands = printed.getvalue(), InProcess.commands

    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [r["name"] for r in result["rows"]] == ["base", "adapted", "instructed_only", "adapted_instructed"]
    for row in result["rows"]:
        assert list(row) == [
            "name",
            "biomedical_ppl",
            "unknown_ppl",
            "abstracts_ppl",
            "general_ppl",
            "probe_read",
            "probe_unknown",
            "cloze_read",
            "em_taught",
            "em_read",
            "em_unknown",
        ]
        assert all(row[k] > 1 if k.endswith("ppl") else 0 <= row[k] <= 1 for k in table.COLUMNS)
    assert result["seconds"] > 0 and result["quick"] and result["vocabulary"] == 400
    assert (
        result["probe_baselines"]["read"].keys()
        == result["probe_baselines"]["unknown"].keys()
        == {"majority", "TF-IDF + logistic regression"}
    )
    assert "these figures mean nothing" in (tmp_path / "demo" / "report.html").read_text()
    assert "adapted, then instructed" in (tmp_path / "demo" / "table.md").read_text()
    assert "minutes" in out and "Phase 2, adapt" in out

    assert [c[0] for c in commands] == [
        "train_cls.py",
        "train_clm.py",
        "train_cls.py",
        "train_sft.py",
        "train_cls.py",
        "train_sft.py",
        "train_cls.py",
    ]
    for command in commands:  # each can be copied, and needs no path of this machine
        command = " ".join(command)
        assert f"$ python {command}" in out.replace(" \\\n    ", " ") and str(tmp_path) not in command
    adapt = " ".join(commands[1])
    assert (
        "demo/corpus.jsonl:" in adapt and "demo/prose.jsonl:" in adapt and "demo/general.mix.jsonl:" in adapt
    )
    assert all(
        len(line) <= 80 for line in out.splitlines() if line.startswith(("base ", "adapted", " " * 20))
    )

    monkeypatch.setattr(sys, "argv", [*argv, "--seed", "1"])
    before = {p: p.read_bytes() for p in (tmp_path / "demo").glob("*.json*")}
    with pytest.raises(UserError, match=r"holds a demo with other settings \(seed, texts\)"):
        demo.main()
    assert before == {p: p.read_bytes() for p in (tmp_path / "demo").glob("*.json*")}


SCRIPT = """
import signal, sys, time
if "--sleep" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("asleep", flush=True)
    time.sleep(60)
print(sys.argv[1:])
sys.exit(int(sys.argv[2]))
"""


def test_a_training_that_ends_otherwise_ends_the_demo_as_it_should(tmp_path, monkeypatch, capfd):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(program, "ROOT", tmp_path)

    def run(status, *more):
        demo.train(
            tmp_path / "demo", "x", "script.py", ["--status", status, "{corpus}:0.5", *more], 0, "fp32", False
        )

    run(0)
    printed = capfd.readouterr().out.replace(" \\\n    ", " ")
    assert "$ python script.py --status 0 demo/corpus.jsonl:0.5 --out demo/x --seed 0" in printed
    with pytest.raises(UserError, match="ended with status 2"):
        run(2)
    with pytest.raises(Interrupted) as e:
        run(130)
    assert e.value.signum == signal.SIGINT and "the same command goes on from there" in str(e.value)

    # SIGTERM to the demo alone: it ends the training too
    class Waiting(subprocess.Popen):
        waits = 0

        def wait(self, *args, **kwargs):
            self.waits += 1
            if self.waits == 1:
                while "asleep" not in capfd.readouterr().out:
                    time.sleep(0.05)
                raise Interrupted(signal.SIGTERM, "")
            return super().wait(*args, **kwargs)

    monkeypatch.setattr(program, "subprocess", SimpleNamespace(Popen=Waiting))
    with pytest.raises(Interrupted) as e:
        run(0, "--sleep")
    assert e.value.signum == signal.SIGTERM


@pytest.mark.parametrize(
    "name", ["corpus.jsonl", "demo.json", "table.md", "report.html", "adapted", "probe_base", "settings.json"]
)
def test_what_is_not_the_demos_is_never_written_over(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["nanomed.demo", "--out", str(tmp_path / "mine"), "--quick"])
    out = tmp_path / "mine"
    out.mkdir()
    if "." in name:
        (out / name).write_text('{"text": "my own"}\n')
    else:
        (out / name).mkdir()
        (out / name / "model.safetensors").write_text("my own")
    before = {p: p.is_file() and p.read_bytes() for p in out.rglob("*")}
    with pytest.raises(UserError, match=re.escape(name)):
        demo.main()
    assert before == {p: p.is_file() and p.read_bytes() for p in out.rglob("*")}
    (tmp_path / "file").write_text("my own")
    monkeypatch.setattr(sys, "argv", ["nanomed.demo", "--out", str(tmp_path / "file"), "--quick"])
    with pytest.raises(UserError, match="it is a file"):
        demo.main()


def test_a_text_that_was_changed_between_two_calls_is_not_written_over(tmp_path):
    args = SimpleNamespace(model="nano", dtype="fp32", quick=True, full=False)
    texts.start(args, tmp_path, 0, ["adapted"])
    (tmp_path / "adapted").mkdir()
    texts.start(args, tmp_path, 0, ["adapted"])  # its own, once more
    (tmp_path / "general.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(UserError, match=r"general\.jsonl"):
        texts.start(args, tmp_path, 0, ["adapted"])
    assert (tmp_path / "general.jsonl").read_text() == '{"text": "another"}\n'


def row(name="base", **figures):
    return {"name": name, **dict.fromkeys(table.COLUMNS, 0.25)} | figures


def test_a_perplexity_worse_than_guessing_is_marked():
    fair, worse = (
        row(general_ppl=8192.0),
        row("adapted_instructed_no_replay", general_ppl=8193.0, abstracts_ppl=123456.7),
    )
    for shown in (table.terminal([fair, worse], 8192), table.markdown([fair, worse], 8192)):
        assert shown.count("!") == 3 and "worse than guessing" in shown and "8,192 tokens" in shown
        assert max(map(len, table.terminal([fair, worse], 8192).splitlines())) <= 80
    assert "8,193!" in table.markdown([worse], 8192) and "8,192!" not in table.markdown([fair], 8192)
    assert "guessing" not in table.terminal([fair], 8192) + table.markdown([fair], 8192)


def test_the_table_over_seeds_gives_mean_and_range():
    rows = [row(em_read=v) for v in (0.2, 0.4, 0.9)]
    assert "50% [20%, 90%]" in table.over_seeds([[r] for r in rows], 8192)
    said = table.summary([[r] for r in rows], 8192)
    assert all(word in said for word in ("mean", "lowest", "highest", "50%", "20%", "90%"))
    assert max(map(len, said.splitlines())) <= 80
