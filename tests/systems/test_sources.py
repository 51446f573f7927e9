"""Instruction sets: built the same from the same seed, no test text on the training side, every row whole."""

import json

import pytest

from nanomed.errors import UserError
from nanomed.files import write_json
from nanomed.systems.tasks import baselines, mixture, sets, sources
from nanomed.systems.tasks.forms import FORMS
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
    return [
        {"tokens": t.split(), "tags": ["B-Disease" if w in ("heart", "renal") else "O" for w in t.split()]}
        for t in texts
    ]


@pytest.fixture
def home(tmp_path):
    return annotated(tmp_path)


def annotated(tmp_path):
    """Annotated files of two corpora, and the TOML file that names them. One test sentence of the first is a
    training text of the second."""
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
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / out, *flags)
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
    assert {r["instruction"] for r in rows if r["source"] == "topics"} == {
        "Medical? One of: general, medical."
    }
    assert len({r["instruction"] for r in rows if r["source"] == "diseases"}) == 2
    items, bad, _ = read_instructions(
        [str(home / "set" / "train.jsonl")], Fields(), None, False
    )  # as train_sft.py reads it
    assert (len(items), bad) == (len(rows), 0)
    made = json.loads((home / "set" / "tasks.json").read_text())["tasks"]
    assert (
        made["topics"]["labels"] == ["general", "medical"]
        and made["topics"]["published"] == "accuracy 0.9 (someone)"
    )


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


def test_a_training_text_of_a_test_texts_group_is_taken_out_and_rows_keep_their_groups(home):
    rows = [row | {"pmid": k // 4} for k, row in enumerate(rows_of(home / "topics.jsonl"))]
    test = {row["pmid"] for row in rows if row["side"] == "test"}
    both = [row for row in rows if row["side"] == "train" and row["pmid"] in test]
    assert both
    write_rows(home / "topics.jsonl", rows)
    (home / "sources.toml").write_text(TOML.replace("split_field", 'group_field = "pmid"\nsplit_field'))
    said = build(home)
    repeats = 1 - any(row["text"].endswith(" ") for row in both)
    assert f"{len(both)} are of a test text's group" in said
    assert json.loads((home / "set" / "tasks.json").read_text())["tasks"]["topics"]["of_groups"] == len(both)
    train = rows_of(home / "set" / "topics.train.jsonl")
    assert len(train) == 31 - len(both) - repeats
    assert {row["group"] for row in train}.isdisjoint(f"topics: {k}" for k in test)
    fields = Fields(group="group,input")  # as train_sft.py --group-field reads them: of others their text
    items, _, _ = read_instructions([str(home / "set" / "train.jsonl")], fields, None, False)
    diseases = [item for item in items if not item.group.startswith("topics: ")]
    assert 0 < len(diseases) < len(items) and all(item.group == item.input for item in diseases)
    (home / "sources.toml").write_text(TOML.replace("split_field", 'group_field = "pmed"\nsplit_field'))
    out = home / "other"
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", out)
    assert_refused(done, "topics.jsonl, row 1", "no 'pmed' in it", "pmid", "group_field")


def test_rows_without_a_group_are_no_group(home):
    rows = rows_of(home / "topics.jsonl")
    write_rows(home / "topics.jsonl", [row | {"patient": " " if k % 3 else k} for k, row in enumerate(rows)])
    (home / "sources.toml").write_text(TOML + 'group_field = "patient"\n')
    task = sources.read_task(sources.read_sources(home / "sources.toml")[1], home, None, False)
    assert [case.group for case in task.train[:4]] == ["topics: 0", "", "", "topics: 3"]


def test_words_in_braces_are_put_in_or_said(home):
    (home / "sources.toml").write_text(TOML.replace("Medical?", "{{Medical}}? {a b}"))
    source = sources.read_sources(home / "sources.toml")[1]
    task = sources.read_task(source, home, None, False)
    assert mixture.row(task, task.test[0], 0)["instruction"] == "{Medical}? {a b} One of: general, medical."


def test_no_test_text_of_any_source_is_trained_on(home):
    said = build(home)
    held = {
        " ".join(r["input"].split())
        for n in ("diseases", "topics")
        for r in rows_of(home / "set" / f"{n}.test.jsonl")
    }
    for name in ("train", "diseases.train", "topics.train"):
        assert held.isdisjoint(
            {" ".join(r["input"].split()) for r in rows_of(home / "set" / f"{name}.jsonl")}
        )
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
    """`heart` and `renal` are always tagged: a linear model finds them; one that learns from the mixture has
    fewer rows of it."""
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
        ('form = "class"', "form = 3", ["[topics]", "form: expected"]),
        ('test = ["ner.test.jsonl"]', "test = []", ["[diseases]", "test: expected"]),
        ("rows = 20", "rows = '20'", ["[diseases]", "rows: expected int"]),
        ("rows = 20", "rows = true", ["[diseases]", "rows: expected int"]),
        ("rows = 20", "words = 0", ["[diseases]", "words: expected int >= 1"]),
        ("rows = 20", "label_names = ['a']", ["[diseases]", "label_names goes with", "not with entities"]),
        (
            "published =",
            "label_columns = ['a']\nlabel_names = ['a', 'b']\npublished =",
            ["1 label_columns and 2 label_names"],
        ),
        (
            "published =",
            "label_lists = 'hot'\npublished =",
            ["[topics]", "label_lists must be names or vectors"],
        ),
        ("rows = 20", "row = 20", ["[diseases]", "unknown key 'row'"]),
        ("{labels}", "{label}", ["[topics]", "instructions: {label} is not known; {labels}", "{{label}}"]),
        ("rows = 20", "labels = { a = ' ' }", ["[diseases]", "labels[...]"]),
        ("rows = 20", "measure = 'bleu'", ["[diseases]", "measure", "entity_f1"]),
        (
            "rows = 20",
            "measure = 'accuracy'",
            ["[diseases]", "measure must be one of entity_f1 for entities"],
        ),
        (
            "published =",
            "measure = 'entity_f1'\npublished =",
            ["[topics]", "measure must be one of micro_f1, macro_f1, accuracy"],
        ),
        ("rows = 20", "fields = { word = 'x' }", ["[diseases]", "no 'word'", "tokens"]),
        ("rows = 20", "fields = { tags = 'ner_tags' }", ["ner.train.jsonl", "row 1", "ner_tags"]),
        ("[topics]", '["a\\u0000b"]', ["a name becomes a file's"]),
        ("[topics]", f"[{'a' * 300}]", ["a name becomes a file's"]),
        ("[topics]", '["../topics"]', ["../topics", "a name becomes a file's"]),
        ('"ner.train.jsonl"', '"nothing.jsonl"', ["nothing.jsonl", "no such file"]),
        (
            'split_field = "side"',
            'split_field = "sides"',
            ["topics.jsonl, row 1", "no 'sides' in it", "text, label, side", "split_field"],
        ),
        (
            'split_field = "side"',
            'split_field = "text"',
            ["topics.jsonl", "no rows there for the train side of topics"],
        ),
        ('split_field = "side"', "split_field =", ["not valid TOML"]),
    ],
)
def test_bad_sources_are_named(home, old, new, words):
    assert old in TOML
    (home / "sources.toml").write_text(TOML.replace(old, new), encoding="utf-8")
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, *words)
    assert not (home / "set").exists()


def test_the_programs_own_sources_can_be_read():
    found = sources.read_sources(ROOT / "recipes" / "medtuned-tasks.toml")
    assert len(found) == 11 and all(len(s.instructions) == 3 for s in found)
    assert {s.form for s in found} == {"entities", "relation", "inference", "classes", "class", "decision"}


def test_a_corpus_without_an_entity_is_refused(home):
    for side in ("train", "test"):
        write_rows(home / f"ner.{side}.jsonl", [{"tokens": [f"{side}{k}"], "tags": ["O"]} for k in range(5)])
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, "diseases: not a single entity")


def test_unknown_names_are_refused(home):
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--out", home / "set", "--only", "genes")
    assert_refused(done, "--only genes", "diseases, topics")
    (home / "empty.toml").write_text("")
    assert_refused(
        run_script(home, "nanomed/tasks.py", "empty.toml", "--out", "o"), "empty.toml", "no section"
    )


def test_what_is_no_instruction_set_is_not_written_over(home):
    build(home)
    build(home, "--seed", 1)  # a set may be made again
    (home / "mine").mkdir()
    (home / "mine" / "train.jsonl").write_text("precious")
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / "mine")
    assert_refused(done, "not empty: train.jsonl is none of")
    assert (home / "mine" / "train.jsonl").read_text() == "precious"


def test_anothers_tasks_json_is_not_written_over(home):
    (home / "mine").mkdir()
    for theirs in ('{"version": "2.0.0", "tasks": [{"label": "build"}]}', '{"tasks": {"a": {}}}', "[]"):
        (home / "mine" / "tasks.json").write_text(theirs)
        done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / "mine")
        assert_refused(done, "not empty: tasks.json is none of")
        assert (home / "mine" / "tasks.json").read_text() == theirs


def test_a_set_is_whole_until_another_is_made_and_what_a_stop_leaves_is_made_whole(home, monkeypatch):
    build(home)
    done = run_script(
        home, "nanomed/tasks.py", "sources.toml", "--out", home / "set", "--without", "entities", "class"
    )
    assert_refused(done, "no task is left")
    whole = (home / "set" / "tasks.json").read_bytes()
    monkeypatch.setattr(baselines, "predict", lambda *_: (_ for _ in ()).throw(UserError("stopped")))
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--out", home / "set")
    assert_refused(done, "stopped")
    assert (home / "set" / "tasks.json").read_bytes() == whole
    monkeypatch.undo()
    write_json(
        json.loads(whole) | {"unfinished": "so"}, home / "set" / "tasks.json"
    )  # tests/test_outputs.py stops it there
    with pytest.raises(UserError, match="not finished"):
        sets.read_set(home / "set")
    build(home)
    assert (home / "set" / "tasks.json").read_bytes() == whole


def test_bad_rows_can_be_left_out(home):
    with open(home / "ner.train.jsonl", "a") as f:
        f.write('{"tokens": ["a b"], "tags": ["O"]}\n')
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, "ner.train.jsonl, row 62", "without blanks", "--skip-bad-rows")
    assert "1 bad rows left out" in build(home, "--skip-bad-rows")


def test_a_text_file_of_sentences_is_no_annotated_corpus(home):
    write_jsonl(home / "ner.train.jsonl", ["a text"])
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / "set")
    assert_refused(done, "ner.train.jsonl, row 1", "no words in 'tokens,words'")


# --- what is counted, and what does not read back -----------------------------------------------------------


def one(home, form, train, test=None, lines="", flags=()):
    """Build a set of one corpus; (the process, its tasks.json's entry, its test rows)."""
    test = train[-3:] if test is None else test
    for side, rows in (("train", train), ("test", test)):
        write_rows(home / f"one.{side}.jsonl", rows)
    files = 'train = ["one.train.jsonl"]\ntest = ["one.test.jsonl"]\ninstructions = ["One of: {labels}"]'
    (home / "one.toml").write_text(f'[one]\nform = "{form}"\n{files}\n{lines}\n', encoding="utf-8")
    done = run_script(home, "nanomed/tasks.py", "one.toml", "--from", home, "--out", home / "one", *flags)
    if done.returncode:
        return done, None, None
    made = json.loads((home / "one" / "tasks.json").read_text(encoding="utf-8"))["tasks"]["one"]
    return done, made, rows_of(home / "one" / "one.test.jsonl")


def labelled(labels, field="labels", seed=5):
    return [
        {"text": text, field: label}
        for text, label in zip(make_texts(len(labels), seed, 8, 20), labels, strict=True)
    ]


def reads(made, rows):
    return all(
        FORMS[made["form"]].read(row["output"], row["input"], made["labels"]) == row["gold"] for row in rows
    )


def test_a_row_of_an_empty_text_is_a_bad_one(home):
    rows = labelled(["a", "b"] * 5, "label")
    rows[3]["text"] = " "
    done, _, _ = one(home, "class", rows)
    assert_refused(done, "one.train.jsonl, row 4", "an empty text in 'text'", "--skip-bad-rows")


def test_counts_of_cut_left_out_and_repeated_rows(home):
    texts = ["one two", "one  two", "one two\nthree four", "a b c d e"]
    train = [{"text": t, "label": "x"} for t in [*texts, "over there", "", "f g h i"]] + [
        {"text": "bad", "label": ""}
    ]
    test = [{"text": t, "label": "y"} for t in ["k l", "k l", "k\nl\nm", "over there"]]
    done, made, rows = one(home, "class", train, test, "words = 2", ["--skip-bad-rows"])
    assert rows[2]["input"] == "k\nl" and made["cut"] == {"train": 3, "test": 1} and made["words"] == 2
    assert (made["removed"], made["bad_rows"], made["repeated"]) == (1, 2, {"train": 2, "test": 2})
    assert (made["train"], made["in_mixture"], made["orphans"]) == (5, 5, {"train": 0, "test": 0})
    said = "1 repeat a test text and were taken out, 2 bad rows left out, "
    said += "3 of 5 training texts and 1 of 4 test texts cut at 2 words, "
    assert said + "2 of 5 training texts and 2 of 4 test texts repeat an earlier one" in done.stdout


def test_tags_that_begin_with_an_i_are_counted(home):
    rows = [{"tokens": [f"w{k}", "x"], "tags": ["I-D", "I-D"]} for k in range(6)]
    done, made, test = one(home, "tags", rows[:4], rows[4:])
    assert made["orphans"] == {"train": 4, "test": 2} and "6 I- tags without a B- made B-" in done.stdout
    assert test[0]["gold"] == ["B-D", "I-D"]


def test_a_cut_that_could_not_be_made_is_no_setting(home):
    rows = [{"question": f"q{k}?", "options": ["x", "y"], "answer": 0} for k in range(6)]
    assert_refused(
        one(home, "options", rows[:4], rows[4:], "words = 5")[0], "[one]", "words does not go with options"
    )


def test_labels_that_hold_commas_and_one_that_is_called_none_come_back(home):
    ages = ["Aged, 80 and over", "Aged", "Infant, Newborn", "none", "ALL", "all"]
    train = labelled([ages[k : k + n] for n in (1, 2, 3) for k in range(4)] + [[]] * 3)
    done, made, rows = one(home, "classes", train, labelled([ages[:2], [], ["none"], ["ALL", "all"]], seed=6))
    assert [row["output"] for row in rows] == [
        "Aged; Aged, 80 and over",
        "nothing",
        "none",
        "ALL; all",
    ] and reads(made, rows)
    assert rows[0]["instruction"] == "One of: " + "; ".join(sorted(ages))
    assert (
        "one: labels hold commas, so that in an answer `;` parts them" in done.stdout
        and "`nothing`" in done.stdout
    )


def test_what_does_not_read_back_is_refused_with_its_row(home):
    train = labelled(["a", "b", "a ", "a"], "label")
    done, _, _ = one(home, "class", train, labelled(["b", "b"], "label", 6))
    assert_refused(
        done, "one.train.jsonl, row 1: its answer 'a' cannot be read back", "'a' or 'a '", "--skip-bad-rows"
    )
    done, made, _ = one(home, "class", train, labelled(["b", "b"], "label", 6), flags=["--skip-bad-rows"])
    assert (made["train"], made["bad_rows"]) == (1, 3) and "3 bad rows left out" in done.stdout
    done, made, _ = one(home, "class", train, labelled(["b", "b"], "label", 6), 'labels = { "a " = "a" }')
    assert (made["train"], made["labels"]) == (4, ["a", "b"])
    rows = [
        {"question": f"q{k}?", "options": ["O", "A", "B"], "answer": a}
        for k, a in enumerate(["A", "C", "O", "B"])
    ]
    assert_refused(
        one(home, "options", rows[2:], rows[:2])[0],
        "row 2: its answer can be B or C",
        "names a field with the letter",
    )


def test_options_are_letters_of_all_that_there_are(home):
    rows = [{"question": f"q{k}?", "options": ["x", "y", "z"], "answer": 0} for k in range(6)]
    _, made, rows = one(home, "options", rows[:4], rows[4:])
    assert made["labels"] == ["A", "B", "C"] and rows[0]["gold"] == [
        "A"
    ]  # a model may say C, though it is never right


HOT = [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
NAMES = ["asthma", "fever", "tumor", "renal"]
GOLD = [sorted(name for name, x in zip(NAMES, hot, strict=True) if x) for hot in HOT]


@pytest.mark.parametrize(
    ("labels", "lines"),
    [
        (HOT, f"label_names = {NAMES}"),
        ([[float(x) for x in hot] for hot in HOT], f"label_names = {NAMES}"),
        ([[bool(x) for x in hot] for hot in HOT], f"label_names = {NAMES}"),
        (HOT, 'labels = { LABEL_0 = "asthma", LABEL_1 = "fever", LABEL_2 = "tumor", LABEL_3 = "renal" }'),
        (GOLD, ""),
        (["|".join(gold) for gold in GOLD], 'label_separator = "|"'),
        ([str(gold) for gold in GOLD], 'label_separator = "list"'),
        ([[NAMES.index(name) for name in gold] for gold in GOLD], f"label_names = {NAMES}"),
    ],
)
def test_several_labels_however_rows_say_them(home, labels, lines):
    _, made, rows = one(home, "classes", labelled(labels), labelled(labels, seed=6), lines)
    assert [row["gold"] for row in rows] == GOLD and reads(made, rows)
    assert made["labels"] == (
        NAMES if lines.startswith(("label_names", "labels")) else sorted(set(NAMES) - {"tumor"})
    )


def test_a_column_a_label(home):
    rows = [
        {"text": t} | dict(zip(NAMES, h, strict=True))
        for t, h in zip(make_texts(12, 5, 8, 20), HOT * 2, strict=True)
    ]
    _, made, test = one(home, "classes", rows[:6], rows[6:], f"label_columns = {NAMES}")
    assert [row["gold"] for row in test] == GOLD and made["labels"] == NAMES
    assert_refused(
        one(home, "classes", rows[:6], rows[6:], 'label_columns = ["cough"]')[0], "row 1", "'cough'"
    )


def test_one_label_however_rows_spell_it(home):
    for labels, lines in (
        ([True, "true", "False", False], 'labels = { true = "yes", false = "no" }'),
        ([1, 1.0, "0", 0.0], 'labels = { 1 = "yes", 0 = "no" }'),
        ([[0, 1], [0, 1], [1, 0], [1, 0]], 'label_names = ["no", "yes"]\nlabel_lists = "vectors"'),
        ([["yes"], ["yes"], ["no"], ["no"]], ""),
    ):
        _, made, rows = one(home, "class", labelled(labels, "label"), labelled(labels, "label", 6), lines)
        assert [row["gold"] for row in rows] == [["yes"], ["yes"], ["no"], ["no"]] and reads(made, rows)
    done, _, _ = one(
        home, "class", labelled([["a", "b"], ["a"], ["b"]], "label"), labelled([["a"]], "label", 6)
    )
    assert_refused(done, "row 1: it has 2 labels", 'form = "classes"')
    done, _, _ = one(home, "class", labelled(["a|b", "a", "b"], "label"), labelled(["b"], "label", 6))
    assert "'a|b' is taken as one label" in done.stdout and "label_separator '|'" in done.stdout
    assert_refused(
        one(home, "class", labelled(["", "a"], "label"), labelled(["a"], "label", 6))[0],
        "fields.label names another",
    )


def test_what_lists_of_0_and_1_could_be_is_asked_for(home):
    labels = [[1, 0], [0, 1], [1, 0]]
    assert_refused(
        one(home, "classes", labelled(labels), labelled(labels, seed=6))[0], "row 1", "label_lists"
    )
    _, made, rows = one(
        home, "classes", labelled(labels), labelled(labels, seed=6), 'label_lists = "vectors"'
    )
    assert made["labels"] == ["LABEL_0", "LABEL_1"] and rows[0]["gold"] == ["LABEL_0"]


def test_a_label_that_every_text_has_or_none(home):
    labels = [["a"], [], ["a"], ["a"]]
    _, made, rows = one(
        home, "classes", labelled(labels), labelled(labels, seed=6), 'label_names = ["a", "b"]'
    )
    assert made["labels"] == ["a", "b"] and reads(made, rows)
    assert len(json.loads((home / "one" / "one.baselines.json").read_text())["linear"]) == 4


def test_linear_models_where_there_is_nothing_to_learn(home):
    def linear():
        return json.loads((home / "one" / "one.baselines.json").read_text()).get("linear")

    one(home, "class", labelled(["a", "a", "a"], "label"), labelled(["b"], "label", 6))
    assert linear() == [["a"]]
    one(home, "classes", labelled([["a"], [], ["a"], []]), labelled([["a"]], seed=6))
    assert len(linear()) == 1
    done, _, _ = one(home, "class", [{"text": k, "label": k} for k in "ab"], [{"text": "c", "label": "a"}])
    assert linear() is None and "one: no linear model (empty vocabulary" in done.stdout


def test_that_linear_models_are_fitted_is_said(home):
    assert "fitting linear models: diseases, 60 texts" in build(home)


def test_a_mixture_of_even_labels_and_of_several_passes(home):
    """Rows of the rarer label are repeated, each time in wording drawn anew; so are all with `times`."""
    rows = [
        {"text": t, "label": "ab"[k < 6], "side": "train"} for k, t in enumerate(make_texts(20, 5, 8, 20))
    ]
    rows += [{"text": t, "label": "ab"[k % 2], "side": "test"} for k, t in enumerate(make_texts(4, 6, 8, 20))]
    write_rows(home / "topics.jsonl", rows)
    asked = [f"Way {k}?" for k in range(50)]
    toml = TOML[TOML.index("[topics]") :].replace("labels = { 0 = ", "# ")
    toml = toml.replace('["Medical? One of: {labels}."]', json.dumps(asked))
    (home / "sources.toml").write_text(toml + "rows = 16\nbalance = true\ntimes = 2\n", encoding="utf-8")
    assert "--group-field group,input" in build(home).partition("next:")[2]
    built = rows_of(home / "set" / "train.jsonl")
    by_label = {label: [r["input"] for r in built if r["output"] == label] for label in "ab"}
    assert {label: len(found) for label, found in by_label.items()} == {"a": 16, "b": 16}
    assert {by_label["a"].count(t) for t in by_label["a"]} == {2}  # eight of the fourteen, twice
    assert sorted(by_label["b"].count(t) for t in set(by_label["b"])) == [2, 2, 2, 2, 4, 4]
    assert len({(r["instruction"], r["input"]) for r in built}) > 24
    told = json.loads((home / "set" / "tasks.json").read_text())["tasks"]["topics"]
    assert (told["in_mixture"], told["balance"], told["times"]) == (32, True, 2)
    assert "linear, same rows" in json.loads((home / "set" / "topics.baselines.json").read_text())
    (home / "sources.toml").write_text(TOML.replace("rows = 20", "balance = true"), encoding="utf-8")
    done = run_script(home, "nanomed/tasks.py", "sources.toml", "--from", home, "--out", home / "other")
    assert_refused(done, "[diseases]: balance goes with relation", "not with entities")
