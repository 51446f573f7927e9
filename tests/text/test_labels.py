"""What a label field means, against datasets' ClassLabel, scikit-learn's MultiLabelBinarizer and the names of
transformers; and the split by label, against scikit-learn's stratified ones."""

import json
import sys
from collections import Counter
from itertools import compress

import datasets
import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import MultiLabelBinarizer

from nanomed.errors import UserError
from nanomed.flags import name_list
from nanomed.text.arrow import class_names
from nanomed.text.divide import draw_by_label
from nanomed.text.labelled import Labelled, read_labelled, targets_of
from nanomed.text.labels import PLAIN, Spelling, named, to_model, value_of
from nanomed.text.rows import BadRow, NoField

NAMES = ["asthma", "fever", "tumor", "renal"]


def write(path, values, field="labels", **more):
    rows = [
        {"text": f"text {k}", field: value} | {key: column[k] for key, column in more.items()}
        for k, value in enumerate(values)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path, how=PLAIN, field="label,labels", say=print):
    return read_labelled([(str(path), None)], "text", field, None, False, how, say)


def meaning(values, how=PLAIN, order=()):
    """What named() makes of rows that hold these values."""
    return named(
        [(f"f, row {k}", value_of({"labels": v}, "labels", how)) for k, v in enumerate(values, 1)], how, order
    )


@pytest.mark.parametrize("kind", [int, float, bool])
def test_vectors_are_what_multilabelbinarizer_wrote(tmp_path, kind):
    rng = np.random.default_rng(0)
    sets = [[n for n in NAMES if rng.random() < 0.4] for _ in range(40)]
    binarizer = MultiLabelBinarizer(classes=NAMES)
    vectors = [[kind(x) for x in row] for row in binarizer.fit_transform(sets)]
    found = read(write(tmp_path / "v.jsonl", vectors), Spelling(names=tuple(NAMES)))
    assert (
        found.multi_label and found.names() == NAMES and [list(item.labels) for item in found.items] == sets
    )
    assert targets_of(found.items, NAMES, True).tolist() == np.array(vectors, float).tolist()
    # without names: by their places, as transformers names them
    plain = read(write(tmp_path / "v.jsonl", vectors))
    assert plain.names() == list(transformers.GPT2Config(num_labels=4).id2label.values())
    assert targets_of(plain.items, plain.names(), True).tolist() == np.array(vectors, float).tolist()
    with pytest.raises(UserError, match="vectors over 4 labels, and 3 --label-names"):
        read(tmp_path / "v.jsonl", Spelling(names=("a", "b", "c")))


def test_what_could_be_either_is_asked_for():
    for values in ([[0, 1], [1, 0]], [[1], [0]], [[True], [False]]):
        with pytest.raises(
            UserError,
            match=r"f, row 1: \[.*could be labels so called, or a vector; --label-lists says whether",
        ):
            meaning(values)
        assert meaning(values, Spelling(lists="vectors")).order == ("LABEL_0", "LABEL_1")[: len(values[0])]
        assert set(meaning(values, Spelling(lists="names")).labels[0]) == {str(v).lower() for v in values[0]}
    with pytest.raises(UserError, match=r"f, row 2: a list of 3, where f, row 1 has one of 4; --label-lists"):
        meaning([[1, 0, 0, 1], [1, 0, 0]])
    with pytest.raises(UserError, match=r"f, row 2: a list of 3, where f, row 1 has one of 4$"):
        meaning([[1, 0, 0, 1], [1, 0, 0]], Spelling(lists="vectors"))
    with pytest.raises(
        UserError, match=r"f, row 1: a list of 2.*--label-lists|f, row 2: a list of 2.*--label-lists"
    ):
        meaning([[1], [0, 1], []])
    with pytest.raises(UserError, match=r"f, row 2: -1 in what is else a vector of 0 and 1; --label-lists"):
        meaning([[1, 0, 0], [1, -1, 0]])
    with pytest.raises(UserError, match="f, row 2: -1 in what is else a vector of 0 and 1$"):
        meaning([[1, 0, 0], [1, -1, 0]], Spelling(lists="vectors"))
    with pytest.raises(UserError, match="f, row 2: a list in some rows and one label in others"):
        meaning([[1, 0], 1])


def test_lists_of_names_and_of_numbers_stay_lists_of_names():
    assert meaning([[3, 5], [5], []]).labels == [("3", "5"), ("5",), ()]
    assert meaning([["a", "b", "a"], []]).labels == [("a", "b"), ()]
    assert meaning([[1, 2], [0, 2]]).lists == "names"
    assert meaning([[2, 0], [1]], Spelling(names=("a", "b", "c"))).labels == [("c", "a"), ("b",)]
    assert meaning([[], []]).labels == [(), ()]


def test_numbers_truth_values_and_texts_of_one_label_are_one():
    assert meaning([1, 1.0, "1", 0, "0"]).labels == [("1",), ("1",), ("1",), ("0",), ("0",)]
    assert meaning(["1.0", "0.0", "1"]).labels == [
        ("1",),
        ("0",),
        ("1",),
    ]  # as pandas writes a column with a gap
    assert meaning([True, "True", "true", False]).labels == [("true",), ("true",), ("true",), ("false",)]
    # codes are none: each is a label of its own
    assert meaning(["250.0", "250.00", "250"]).labels == [("250.0",), ("250.00",), ("250",)]
    assert meaning(["True", "False", "Mixture"]).labels == [("True",), ("False",), ("Mixture",)]
    for odd in (1.5, float("nan"), float("inf"), "", " ", {"a": 1}):
        with pytest.raises(BadRow, match="no label in the field 'labels': .*; fields: "):
            value_of({"labels": odd}, "labels", PLAIN)
    with pytest.raises(NoField):
        value_of({"text": ""}, "labels", PLAIN)


def test_names_of_numbers():
    how = Spelling(names=("no", "yes", "maybe"))
    found = meaning([0, "1", 2.0, "LABEL_1"], how)
    assert found.labels == [("no",), ("yes",), ("maybe",), ("yes",)] and found.order == how.names
    assert meaning(["yes", "no"], how).order == how.names  # names themselves: their order
    assert meaning([True, False], Spelling(names=("no", "yes"))).labels == [("yes",), ("no",)]
    for values in ([0, 3], ["yes", "perhaps"], [-1]):
        with pytest.raises(
            UserError,
            match=r"f: the label '.*' is none of --label-names \(no, yes, maybe\), nor one's number",
        ):
            meaning(values, how)
    assert name_list('asthma, "Aged, 80 and over"') == ["asthma", "Aged, 80 and over"]


def test_several_labels_in_one_text():
    pipes = ["asthma|renal", "No Finding", "renal | fever"]
    assert meaning(pipes, Spelling(separator="|")).labels == [
        ("asthma", "renal"),
        ("No Finding",),
        ("renal", "fever"),
    ]
    assert meaning(["1|0|0|1", "0|0|0|0"], Spelling(separator="|")).labels == [("LABEL_0", "LABEL_3"), ()]
    lists = ["['asthma', 'renal']", '["fever"]', "[]", "('tumor',)"]
    assert meaning(lists, Spelling(separator="list")).labels == [
        ("asthma", "renal"),
        ("fever",),
        (),
        ("tumor",),
    ]
    assert meaning(["[1, 0, 0]", "[1.0, 0.0, 1.0]"], Spelling(separator="list")).labels == [
        ("LABEL_0",),
        ("LABEL_0", "LABEL_2"),
    ]
    for odd in (
        str(np.array(["asthma", "renal"])),
        str(np.array([1, 0, 1])),
        "asthma",
        "[asthma]",
        "['a'",
        "__import__('os')",
        "",
    ):
        with pytest.raises(BadRow, match="not a list, as JSON or Python writes it"):
            value_of({"labels": odd}, "labels", Spelling(separator="list"))


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), unique=True
        ),
        min_size=1,
    )
)
def test_lists_as_text_are_what_was_written(labels):
    how = Spelling(separator="list", lists="names")
    for written in (map(str, labels), map(json.dumps, labels)):
        assert [value_of({"l": text}, "l", how) for text in written] == [tuple(row) for row in labels]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["asthma|renal", "fever"], "--label-separator '|'"),
        (["a;b", "a", "b", "b;a"], "--label-separator ';'"),
        (["a#b", "a", "b"], "--label-separator '#'"),  # doccano's CSV export
        (["a, b", "a", "b", "b, a"], "--label-separator ,"),
        (["['a', 'b']", "[]"], "--label-separator list"),
    ],
)
def test_one_line_says_where_a_label_looks_like_several(values, wanted):
    (note,) = meaning(values).notes
    assert "is taken as one label; if it is several" in note and wanted in note
    assert meaning(values, Spelling(separator=wanted.split()[1].strip("'"))).notes == ()


def test_what_prodigys_annotators_rejected_is_no_label(tmp_path):
    """`prodigy db-out` keeps what was offered in `label`, and in `answer` whether it is right."""
    path = tmp_path / "p.jsonl"
    answers = ("accept", "reject", "ignore", "accept")
    offered = [{"text": f"t{k}", "label": "ab"[k % 2], "_task_hash": k} for k in range(4)]
    said = [row | {"answer": answer} for row, answer in zip(offered, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    with pytest.raises(UserError, match="row 2: Prodigy's answer 'reject'"):
        read(path)
    found = read_labelled([(str(path), None)], "text", "label", None, True)
    assert [i.labels for i in found.items] == [("a",), ("b",)] and found.bad_rows == 2
    assert [i.labels[0] for i in read(path, field="answer").items] == list(answers)


@pytest.mark.parametrize(
    ("rows", "field", "said"),
    [
        ([["a"], ["b"], ["a"]], "label,labels", "--label-field label.0,labels.0"),  # doccano's
        ([["a"], ["b", "a"], []], "label,labels", ""),
        (["a", "b", "a"], "label,labels", ""),
        ([[0, 1, 0], [1, 0, 0], [0, 1, 0]], "label,labels", ""),  # a place a label
    ],
)
def test_lists_of_one_label_each_are_said_to_be_lists(tmp_path, rows, field, said):
    notes = []
    found = read(write(tmp_path / "d.jsonl", rows, "label"), PLAIN, field, notes.append)
    assert found.multi_label == isinstance(rows[0], list) and bool(notes) == bool(said)
    if said:
        assert "each text has exactly one label" in notes[0] and said in notes[0]
        found = read(tmp_path / "d.jsonl", PLAIN, said.split()[1], notes.append)
        assert [i.labels for i in found.items] == [("a",), ("b",), ("a",)] and not found.multi_label


def test_a_text_with_two_labels_is_said(tmp_path):
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": l}) + "\n" for t, l in ("sa", "sb", "ta", "ta", "ub"))
    )
    notes = []
    read(tmp_path / "d.jsonl", say=notes.append)
    assert notes == [f"{tmp_path / 'd.jsonl'}: 1 texts are there more than once, with different labels"]
    sources = [(str(tmp_path / "d.jsonl"), label) for label in ("negative", "positive")]
    read_labelled(sources, "text", "label", None, False, PLAIN, notes.append)
    assert "d.jsonl: 3 texts are there more than once, with different labels" in notes[1]


def test_an_object_written_as_a_text_is_no_label():
    """What label-studio-sdk 2.1.2 (converter/exports/csv2.py) writes where two choices were made, and one."""
    for cell in ('{"choices":["asthma","renal"]}', ' {"choices": ["a"], "x": 1}'):
        with pytest.raises(BadRow, match="no label but an object"):
            meaning(["asthma", cell])
    assert meaning(["{a}", "{}", '"{a}"']).labels == [("{a}",), ("{}",), ('"{a}"',)]


def test_labels_that_differ_in_blanks_or_case_are_said():
    said = "differ in blanks or case alone, and are different labels"
    assert meaning(["Yes", "yes ", "no"]).notes == (f"f: 'Yes' and 'yes ' {said}",)
    assert meaning([["No ", "a"], ["No"]]).notes == (f"f: 'No' and 'No ' {said}",)
    assert meaning(["yes", "no", "nope"]).notes == ()


def test_what_was_skipped_in_label_studio_is_no_label(tmp_path):
    """Its JSON export keeps in `was_cancelled` that a task was skipped, and what was chosen before;
    label-studio-converter leaves such annotations out."""
    rows = [
        {
            "data": {"text": t},
            "annotations": [{"was_cancelled": off, "result": [{"value": {"choices": [c]}}]}],
        }
        for t, c, off in (("t", "a", False), ("u", "b", True), ("v", "b", False))
    ]
    (tmp_path / "ls.json").write_text(json.dumps(rows))
    how = ("data.text", "annotations.0.result.0.value.choices.0", None)
    with pytest.raises(UserError, match="row 2: skipped in Label Studio"):
        read_labelled([(str(tmp_path / "ls.json"), None)], *how, False)
    row = {"text": "t", "diagnosis": "asthma", "lab": {"result": "x", "was_cancelled": True}}
    assert value_of(row, "diagnosis,lab.result", PLAIN) == "asthma"
    assert value_of(row, "lab.result", PLAIN) == "x"
    found = read_labelled([(str(tmp_path / "ls.json"), None)], *how, True)
    assert [i.labels for i in found.items] == [("a",), ("b",)] and found.bad_rows == 1


def test_names_with_commas_are_no_lists():
    assert meaning(["Aged, 80 and over", "Aged", "Infant, Newborn"]).notes == ()


def test_a_column_a_label(tmp_path):
    columns = {
        "asthma": [1, 0, 1.0],
        "Aged, 80 and over": [True, False, "True"],
        "st.elev": ["0", "1", "1.0"],
    }
    file = write(tmp_path / "c.jsonl", [None] * 3, **columns)
    found = read(file, Spelling(columns=tuple(columns)))
    assert found.multi_label and found.names() == list(columns)
    assert targets_of(found.items, found.names(), True).tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 1]]
    assert read(file, Spelling(columns=tuple(columns), names=("a", "b", "c"))).items[0].labels == ("a", "b")
    with pytest.raises(UserError, match="row 1: no label in the column 'x': null, or no such column"):
        read(file, Spelling(columns=("asthma", "x")))
    with pytest.raises(
        UserError, match=r"row 2: the column 'asthma' must hold 0 or 1 \(or true or false\), not ''"
    ):
        read(write(tmp_path / "c.jsonl", [None] * 2, asthma=[1, ""]), Spelling(columns=("asthma",)))
    csv = tmp_path / "c.csv"  # as pandas writes it
    csv.write_text("text,asthma,fever\na,1.0,False\nb,0.0,True\n")
    assert [i.labels for i in read(csv, Spelling(columns=("asthma", "fever"))).items] == [
        ("asthma",),
        ("fever",),
    ]


def test_a_data_sets_own_names_are_datasets_int2str(tmp_path, monkeypatch):
    label = datasets.ClassLabel(names=["yes", "no", "maybe"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": label,
            "codes": datasets.List(label),
            "a": {"b": label},
            "n": datasets.Value("int64"),
        }
    )
    rows = {
        "text": ["t", "u", "v"],
        "label": [2, 0, 2],
        "codes": [[0], [1, 0], []],
        "a": [{"b": 1}] * 3,
        "n": [1, 0, 1],
    }
    data = datasets.Dataset.from_dict(rows, features)
    data.to_parquet(tmp_path / "d.parquet")
    monkeypatch.setattr("nanomed.text.arrow.hub_rows", lambda name: data)
    for file in (str(tmp_path / "d.parquet"), "hub:owner/name"):
        found = read(file)
        assert [i.labels for i in found.items] == [(label.int2str(k),) for k in rows["label"]]
        assert (
            found.names() == label.names
        )  # in their order, those without a row too: their numbers are the data set's
        assert [i.labels for i in read(file, field="codes").items] == [("yes",), ("no", "yes"), ()]
        assert class_names(file, "x,a.b") == label.names and class_names(file, "n") is None
        assert [i.labels for i in read(file, Spelling(names=("J", "N", "V"))).items] == [
            ("V",),
            ("J",),
            ("V",),
        ]
    missing = datasets.Dataset.from_dict(
        {"text": ["t"], "label": [-1]}, datasets.Features({k: features[k] for k in ("text", "label")})
    )
    missing.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(UserError, match="row 1: no label in the field 'label,labels': -1"):
        read(tmp_path / "m.parquet")


def test_labelled_json_is_read_without_loading_datasets(tmp_path, monkeypatch):
    write(tmp_path / "d.jsonl", ["yes", "no"], "label")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert read(tmp_path / "d.jsonl").names() == ["no", "yes"]


def test_truth_values_of_a_parquet_file_are_labels(tmp_path):
    datasets.Dataset.from_dict({"text": ["t", "u"], "label": [True, False]}).to_parquet(
        tmp_path / "d.parquet"
    )
    assert [i.labels for i in read(tmp_path / "d.parquet").items] == [("true",), ("false",)]


def test_what_a_model_calls_the_rows_labels():
    unnamed, own = ["LABEL_0", "LABEL_1", "LABEL_2"], ["no", "yes", "maybe"]
    assert to_model({"0", "2"}, unnamed) == ({"0": "LABEL_0", "2": "LABEL_2"}, None)
    assert to_model({"LABEL_2"}, unnamed) == ({}, None)
    assert to_model({"false", "true"}, unnamed[:2])[0] == {"false": "LABEL_0", "true": "LABEL_1"}
    calls, note = to_model({"0", "1"}, own)  # as transformers reads them; said
    assert (
        calls == {"0": "no", "1": "yes"}
        and note == "labels are the model's by their numbers: 0 is no, 1 is yes"
    )
    assert to_model({"3"}, unnamed) == ({}, None) and to_model({"1", "yes"}, own) == ({}, None)
    assert to_model({"1", "2"}, ["1", "2", "3"]) == ({}, None) and to_model({"0"}, ["1", "2", "3"]) == (
        {},
        None,
    )
    assert to_model({"true", "false"}, ["False", "True"])[0] == {"true": "True", "false": "False"}


# --- the split by label -------------------------------------------------------------------------------------


def labelled(values):
    return [Labelled(f"text {k}", (v,) if isinstance(v, str) else tuple(v)) for k, v in enumerate(values)]


def split_by_label(items, fraction, seed):
    """(training, validation)"""
    drawn = draw_by_label(items, fraction, seed, "x.jsonl")
    return list(compress(items, ~drawn)), list(compress(items, drawn))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5])
def test_sizes_are_those_of_stratifiedshufflesplit(fraction):
    y = ["a"] * 151 + ["b"] * 73 + ["c"] * 44 + ["d"] * 32
    n = round(fraction * len(y))
    (_, theirs), *_ = StratifiedShuffleSplit(1, test_size=n, random_state=0).split(y, y)
    kept, drawn = split_by_label(labelled(y), fraction, 0)
    assert len(drawn) == n and len(kept) + len(drawn) == len(y)
    ours, wanted = Counter(i.labels[0] for i in drawn), Counter(y[k] for k in theirs)
    assert all(
        abs(ours[label] - wanted[label]) <= 1 for label in wanted
    )  # where remainders are equal, chance decides
    assert all(abs(ours[label] - fraction * count) < 1 for label, count in Counter(y).items())


@pytest.mark.parametrize("seed", range(20))
def test_every_class_keeps_a_text_to_train_on(seed):
    y = ["common" if k % 2 else "other" if k < 280 else f"rare{k}" for k in range(300)]
    kept, drawn = split_by_label(labelled(y), 0.05, seed)
    assert len(drawn) == 15 and {i.labels[0] for i in kept} == set(y)
    rng = np.random.default_rng(seed)
    codes = [f"C{k}" for k in range(200)]
    weights = np.array([1 / (k + 1) for k in range(200)])
    items = labelled(
        [set(rng.choice(codes, 3, p=weights / weights.sum())) if k % 7 else () for k in range(300)]
    )
    counts = Counter(label for item in items for label in item.labels)
    kept, drawn = split_by_label(items, 0.2, seed)
    assert len(drawn) == 60 and {label for i in kept for label in i.labels} == counts.keys()
    found = Counter(label for item in drawn for label in item.labels)
    assert all(abs(found[label] - 0.2 * n) < 3 for label, n in counts.items())  # of 110 texts at most
    assert 3 <= sum(not item.labels for item in drawn) <= 15  # of 43 texts without a label


def test_the_split_is_the_seeds_and_keeps_equal_texts_together():
    items = labelled(["a"] * 20 + ["b"] * 20)
    assert split_by_label(items, 0.2, 3) == split_by_label(items, 0.2, 3) != split_by_label(items, 0.2, 4)
    assert split_by_label(items, 0, 0) == (items, [])
    again = [*items, *items[:15]]  # a text that is there twice
    for seed in range(10):
        kept, drawn = split_by_label(again, 0.2, seed)
        assert not {i.text for i in kept} & {i.text for i in drawn} and len({i.text for i in drawn}) == 8
    same = [Labelled("equal", ("rare",))] * 3 + items
    for seed in range(10):  # all of a class is one text: to train on
        assert all(i.labels != ("rare",) for i in split_by_label(same, 0.3, seed)[1])
    with pytest.raises(UserError, match="cannot be split so that each label keeps one to train on"):
        split_by_label(labelled(["a", "b", "c"]), 0.3, 0)
