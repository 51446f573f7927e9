"""The demo's small world: its facts, its texts, and its table."""

import json
import os
import random
import re
import signal
import string
import subprocess
import sys
import time

import pytest

from nanomed import hub
from nanomed.demo import __main__ as demo
from nanomed.demo import render
from nanomed.tokenizer import load_tokenizer
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
    assert render.corpus(names, 3, seed=1) == render.corpus(names, 3, seed=1) != render.corpus(names, 3, seed=2)
    assert render.questions(names, [0, 1], 1) == render.questions(names, [0, 1], 1)
    assert render.groups(0) == render.groups(0) != render.groups(1)
    again = subprocess.run([sys.executable, "-c", "from nanomed.demo import render; print(render.corpus(['gout'], 2, 7))"],
                           cwd=ROOT, capture_output=True, text=True, env={"PYTHONHASHSEED": "99"})  # fmt: skip
    assert again.stdout.strip() == str(render.corpus(["gout"], 2, 7))


def test_every_fact_is_told_in_five_ways_and_measured_in_a_sixth():
    corpus = "\n".join(render.corpus(ALL, demo.PER_CONDITION, seed=0))
    retold = "\n".join(render.retold(ALL, seed=0))
    for fact in random.Random(0).sample(render.facts_of(ALL), 150):
        told = {way for way in range(6) if fact.told(way) in corpus}
        out = render.kept_out(fact.condition, 0)[fact.relation]
        assert told == set(range(6)) - {out} and 0 in told, fact
        assert fact.told(out) in retold, fact


def test_the_groups_keep_their_promises():
    files = {name.removesuffix(".jsonl"): text for name, text in demo.make_texts(3).items()}
    groups = render.groups(3)
    assert sum(map(len, groups.values())) == len(ALL) and set(groups["read"]).isdisjoint(groups["taught"])

    def told(group, file):
        """Which of a group's conditions some fact is told, or asked for, of."""
        return {f.condition for f in render.facts_of(groups[group]) for way in range(6)
                if f.told(way) in files[file] or (way < 4 and f.asked(way) in files[file])}  # fmt: skip

    assert (
        not told("unknown", "corpus")
        and not told("unknown", "questions.train")
        and not told("unknown", "classes.train")
    )
    for name in groups["unknown"]:  # nor does another's fact name it
        assert not re.search(rf"\b{re.escape(name)}\b", files["corpus"] + files["questions.train"], re.IGNORECASE), name
    assert told("read", "corpus") == set(groups["read"]) and not told("read", "questions.train")
    assert told("taught", "corpus") == told("taught", "questions.train") == set(groups["taught"])
    sentences = {f.told(way) for f in render.facts_of(ALL) for way in range(6)}
    assert not [
        s for s in sentences if s in files["corpus"] and (s in files["biomedical"] or s in files["classes.test"])
    ]
    assert not told("taught", "classes.test") and not told("read", "classes.train")
    assert not set(files["general"].splitlines()) & set(files["general.mix"].splitlines())
    assert not set(files["classes.train"].splitlines()) & set(files["classes.test"].splitlines())


def test_general_texts_name_no_condition():
    general = " ".join(
        (render.HERE / name).read_text() for name in ("general.txt", "easy.txt", "hard.txt", "framed.txt")
    ).lower()
    for name in ALL:
        assert not re.search(rf"\b{re.escape(name.lower())}\b", general), name
    assert sum(map(len, render.general_paragraphs())) >= 100


def test_a_match_is_the_value_in_the_answers_sentence():
    fact = render.Fact("lung cancer", "organ", "the lungs")
    assert fact.cloze() == "The part of the body most affected by lung cancer is"
    assert fact.matches("The part of the body most affected by lung cancer is the lungs.")
    assert not fact.matches("The part of the body most affected by lung cancer is the skin. The lungs are well.")
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
            fact.condition in fact.asked() and fact.condition in fact.told() and fact.told().endswith(fact.value + ".")
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


def test_the_demo_runs_from_the_texts_to_the_page(tmp_path, bpe_dir):
    """On a tiny model, two updates of everything: the road, not the figures."""
    make_hf_model(tmp_path / "tiny", bpe_dir, n_positions=256)
    command = [sys.executable, "-m", "nanomed.demo", "--out", str(tmp_path / "demo"), "--model", str(tmp_path / "tiny"),
               "--quick", "--dtype", "fp32"]  # fmt: skip

    def call(*flags):
        return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)

    # Ctrl-C in the first training
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("$ cd"):
                break
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        err = process.communicate()[1]
    assert process.returncode == 130 and "nanomed.demo: the same command goes on from there" in err, err
    assert not (tmp_path / "demo" / "demo.json").exists()

    before = {p: p.read_bytes() for p in (tmp_path / "demo").glob("*.json*")}
    other = call("--seed", "1")
    assert other.returncode == 2 and "holds a demo with other settings (seed, texts)" in other.stderr
    assert before == {p: p.read_bytes() for p in (tmp_path / "demo").glob("*.json*")}

    out = call()
    assert out.returncode == 0, out.stderr[-2000:]
    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [r["name"] for r in result["rows"]] == ["base", "adapted", "instructed_only", "adapted_instructed"]
    for row in result["rows"]:
        assert row.keys() == {"name", *demo.COLUMNS}
        assert all(0 <= row[k] <= 1 for k in demo.COLUMNS if not k.endswith("ppl")) and row["biomedical_ppl"] > 1
    assert result["seconds"] > 0 and result["quick"]
    html = (tmp_path / "demo" / "report.html").read_text()
    assert "exact match" in html and "Expected:" in html and "Cox proportional hazards" in html and "confusion" in html
    assert "these figures mean nothing" in html
    assert "| adapted, then instructed |" in out.stdout and "minutes" in out.stdout


def test_the_table_over_seeds_gives_mean_and_range():
    rows = [{"name": "base", **dict.fromkeys(demo.COLUMNS, v)} for v in (0.2, 0.4, 0.9)]
    table = demo.over_seeds([{"rows": [r]} for r in rows])
    assert "50% [20%, 90%]" in table
