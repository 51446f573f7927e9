"""Instruction sets: built the same from the same seed, no test text on the training side, every row whole."""

import json

import pytest

from nanomed.tasks import sources
from nanomed.tasks.forms import FORMS
from nanomed.text.instructions import Fields, read_instructions
from tests.conftest import ROOT, assert_refused, make_texts, run_script, write_jsonl

TOML = """
[diseases]
form = "entities"
train = ["ner.train.jsonl"]
test = ["ner.test.jsonl"]
rows = 20
instructions = ["List the diseases.", "Which diseases are named?"]

[topics]
form = "class"
train = ["topics.jsonl"]
test = ["topics.jsonl"]
split_field = "side"
labels = { 0 = "general", 1 = "medical" }
instructions = ["Medical? One of: {labels}."]
published = "accuracy 0.9 (someone)"
"""


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tagged(texts):
    return [{"tokens": t.split(), "tags": ["B-Disease" if w in ("heart", "renal") else "O" for w in t.split()]} for t in texts]


@pytest.fixture
def home(tmp_path):
    """Annotated files of two corpora, and the TOML file that names them. One test sentence of the first is a training text of the
    second."""
    train, test = make_texts(60, 1, 8, 20), make_texts(20, 2, 8, 20)
    write_rows(tmp_path / "ner.train.jsonl", tagged([*train, test[3]]))
    write_rows(tmp_path / "ner.test.jsonl", tagged(test))
    rows = [{"text": t, "label": k % 2, "side": "train"} for k, t in enumerate(make_texts(30, 3, 8, 20))]
    rows += [{"text": test[0] + " ", "label": 1, "side": "train"}]
    rows += [{"text": t, "label": k % 2, "side": "test"} for k, t in enumerate(make_texts(10, 4, 8, 20))]
    write_rows(tmp_path / "topics.jsonl", rows)
    (tmp_path / "sources.toml").write_text(TOML, encoding="utf-8")
    return tmp_path


def build(home, *flags, out="set"):
    done = run_script(home, "nanomed/tasks/__main__.py", "sources.toml", "--from", home, "--out", home / out, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_says_what_is_asked_on_what_and_where_it_is_from(home):
    build(home)
    rows = rows_of(home / "set" / "train.jsonl")
    assert all(list(row) == ["instruction", "input", "output", "source"] for row in rows)
    assert {row["source"] for row in rows} == {"diseases", "topics"}
    assert sum(row["source"] == "diseases" for row in rows) == 20  # `rows`
    assert {r["instruction"] for r in rows if r["source"] == "topics"} == {"Medical? One of: general, medical."}
    assert len({r["instruction"] for r in rows if r["source"] == "diseases"}) == 2
    items, bad, _ = read_instructions([str(home / "set" / "train.jsonl")], Fields(), None, False)  # as train_sft.py reads it
    assert (len(items), bad) == (len(rows), 0)
    made = json.loads((home / "set" / "tasks.json").read_text())["tasks"]
    assert made["topics"]["labels"] == ["general", "medical"] and made["topics"]["published"] == "accuracy 0.9 (someone)"


def test_gold_is_what_the_output_says(home):
    build(home)
    made = json.loads((home / "set" / "tasks.json").read_text())["tasks"]
    for name, task in made.items():
        for row in rows_of(home / "set" / f"{name}.test.jsonl"):
            assert FORMS[task["form"]].read(row["output"], row["input"], task["labels"]) == row["gold"]


def test_the_same_seed_makes_the_same_files_and_another_one_others(home):
    build(home, out="a")
    build(home, out="b")
    build(home, "--seed", 1, out="c")
    for name in ("train.jsonl", "diseases.test.jsonl", "topics.baselines.json", "tasks.json"):
        assert (home / "a" / name).read_bytes() == (home / "b" / name).read_bytes()
    assert (home / "a" / "train.jsonl").read_bytes() != (home / "c" / "train.jsonl").read_bytes()


def test_no_test_text_of_any_source_is_trained_on(home):
    said = build(home)
    held = {" ".join(r["input"].split()) for n in ("diseases", "topics") for r in rows_of(home / "set" / f"{n}.test.jsonl")}
    for name in ("train", "diseases.train", "topics.train"):
        assert held.isdisjoint({" ".join(r["input"].split()) for r in rows_of(home / "set" / f"{name}.jsonl")})
    assert said.count("1 repeat a test text and were taken out") == 2
    assert len(rows_of(home / "set" / "diseases.test.jsonl")) == 20  # test sides stay as they are


def test_nearly_the_same_counts_too(home):
    near = rows_of(home / "ner.test.jsonl")[5]["tokens"]
    long = [*near, *near, *near]
    write_rows(home / "ner.test.jsonl", tagged([" ".join(long)]))
    write_rows(home / "ner.train.jsonl", tagged([*make_texts(10, 9, 8, 20), " ".join([*long, "indeed"])]))
    assert "1 repeat a test text" in build(home).splitlines()[0]
    assert "repeat" not in build(home, "--near-duplicates", 0).splitlines()[0]


def test_a_mixture_without_a_form_still_measures_it(home):
    build(home, "--without", "entities")
    assert {row["source"] for row in rows_of(home / "set" / "train.jsonl")} == {"topics"}
    assert (home / "set" / "diseases.test.jsonl").exists()


def test_the_linear_baselines_learn_what_is_plain(home):
    """`heart` and `renal` are always tagged: a linear model finds them; one that learns from the mixture has fewer rows of it."""
    build(home)
    found = json.loads((home / "set" / "diseases.baselines.json").read_text())
    gold = [row["gold"] for row in rows_of(home / "set" / "diseases.test.jsonl")]
    assert found["linear"] == gold and set(found) == {"majority", "linear", "linear, same rows"}
    assert all(tag == "O" for tags in found["majority"] for tag in tags)
    assert set(json.loads((home / "set" / "topics.baselines.json").read_text())) == {"majority", "linear"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('form = "class"', 'form = "essay"', ["[topics]", "form", "essay"]),
        ('form = "class"', "form = 3", ["[topics]", "form must be"]),
        ('test = ["ner.test.jsonl"]', "test = []", ["[diseases]", "test is missing"]),
        ("rows = 20", "rows = '20'", ["[diseases]", "rows must be int"]),
        ("rows = 20", "rows = true", ["[diseases]", "rows must be int"]),
        ("rows = 20", "row = 20", ["[diseases]", "unknown key 'row'"]),
        ("rows = 20", "measure = 'bleu'", ["[diseases]", "measure", "entity_f1"]),
        ("rows = 20", "measure = 'accuracy'", ["[diseases]", "measure must be one of entity_f1 for entities"]),
        ("published =", "measure = 'entity_f1'\npublished =", ["[topics]", "measure must be one of micro_f1, macro_f1, accuracy"]),
        ("rows = 20", "fields = { word = 'x' }", ["[diseases]", "no 'word'", "tokens"]),
        ("rows = 20", "fields = { tags = 'ner_tags' }", ["ner.train.jsonl", "row 1", "ner_tags"]),
        ("[topics]", '["../topics"]', ["../topics", "a name becomes a file's"]),
        ('"ner.train.jsonl"', '"nothing.jsonl"', ["nothing.jsonl", "no such file"]),
        ('split_field = "side"', 'split_field = "sides"', ["topics.jsonl", "no rows there for the train side of topics"]),
        ('split_field = "side"', "split_field =", ["not valid TOML"]),
    ],
)
def test_bad_sources_are_named(home, old, new, words):
    assert old in TOML
    (home / "sources.toml").write_text(TOML.replace(old, new), encoding="utf-8")
    done = run_script(home, "nanomed/tasks/__main__.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, *words)
    assert not (home / "set").exists()


def test_the_programs_own_sources_can_be_read():
    found = sources.read_sources(ROOT / "recipes" / "medtuned-tasks.toml")
    assert len(found) == 11 and all(len(s.instructions) == 3 for s in found)
    assert {s.form for s in found} == {"entities", "relation", "inference", "classes", "class", "decision"}


def test_a_corpus_without_an_entity_is_refused(home):
    for side in ("train", "test"):
        write_rows(home / f"ner.{side}.jsonl", [{"tokens": [f"{side}{k}"], "tags": ["O"]} for k in range(5)])
    done = run_script(home, "nanomed/tasks/__main__.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, "diseases: not a single entity")


def test_unknown_names_are_refused(home):
    done = run_script(home, "nanomed/tasks/__main__.py", "sources.toml", "--out", home / "set", "--only", "genes")
    assert_refused(done, "--only genes", "diseases, topics")


def test_what_is_no_instruction_set_is_not_written_over(home):
    build(home)
    build(home, "--seed", 1)  # a set may be made again
    (home / "mine").mkdir()
    (home / "mine" / "train.jsonl").write_text("precious")
    done = run_script(home, "nanomed/tasks/__main__.py", "sources.toml", "--from", home, "--out", home / "mine")
    assert_refused(done, "not empty, and no instruction set")
    assert (home / "mine" / "train.jsonl").read_text() == "precious"


def test_bad_rows_can_be_left_out(home):
    with open(home / "ner.train.jsonl", "a") as f:
        f.write('{"tokens": ["a b"], "tags": ["O"]}\n')
    done = run_script(home, "nanomed/tasks/__main__.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, "ner.train.jsonl, row 62", "without blanks", "--skip-bad-rows")
    assert "1 bad rows left out" in build(home, "--skip-bad-rows")


def test_a_text_file_of_sentences_is_no_annotated_corpus(home):
    write_jsonl(home / "ner.train.jsonl", ["a text"])
    done = run_script(home, "nanomed/tasks/__main__.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, "ner.train.jsonl, row 1", "no words in 'tokens'")
