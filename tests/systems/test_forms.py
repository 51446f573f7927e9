"""Every form: what is written for a case is read back as that case, and what is in another form is
refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomed.errors import UserError
from nanomed.systems.tasks.cases import Case, Malformed
from nanomed.systems.tasks.entities import begun, read_entities, read_tags, write_entities
from nanomed.systems.tasks.forms import FIELDS, FORMS, lost
from nanomed.text.rows import BadRow, NoField

WORDS = st.lists(st.sampled_from("fever the of Fever ( ) , : a-b none 5'".split()), min_size=1, max_size=12)


@st.composite
def tagged(draw, kinds=("Disease", "Gene")):
    words = draw(WORDS)
    tags = [draw(st.sampled_from(["O", *(f"{b}-{k}" for b in "BI" for k in kinds)])) for _ in words]
    return Case(" ".join(words), tuple(begun(tags)))


@given(tagged())
@settings(max_examples=300, deadline=None)
def test_word_and_tag_lines_come_back_as_they_were(case):
    labels = ["Disease", "Gene"]
    form = FORMS["tags"]
    assert form.read(form.write(case, labels), case.input, labels) == list(case.gold)


@given(tagged(), st.sampled_from([["Disease", "Gene"], ["Gene", "Disease", "CD4-"]]))
@settings(max_examples=200, deadline=None)
def test_a_list_of_mentions_comes_back_as_it_was(case, labels):
    assert lost(FORMS["entities"], case, labels) is None


@given(tagged(kinds=("Disease",)))
@settings(max_examples=200, deadline=None)
def test_a_list_of_mentions_of_one_type_comes_back_as_it_was(case):
    assert lost(FORMS["entities"], case, ["Disease"]) is None


def test_which_of_several_places_is_meant_stands_behind_a_mention_where_it_is_needed():
    case = Case("APC and the APC alleles", ("O", "O", "O", "B-D", "O"))
    assert write_entities(case, ["D"]) == "APC #2"
    assert write_entities(Case("APC and APC", ("B-D", "O", "B-D")), ["D"]) == "APC\nAPC"
    assert write_entities(Case("none", ("B-D",)), ["D"]) == "none #1"  # `none` alone: no entity
    assert read_entities("APC #3", case.input, ["D"]) == ["O"] * 5 + ["B-D"]  # there is no third
    assert read_entities("lot #2", "lot #2 lot", ["D"]) == ["B-D", "I-D", "O"]  # a text may say it itself


def test_repeated_words_are_kept_apart():
    """The published evaluation keyed tags by word, so that one `fever` decided about all of them."""
    text = "fever after fever and cough"
    assert read_entities("fever\ncough", text, ["D"]) == ["B-D", "O", "O", "O", "B-D"]
    assert read_entities("fever\nfever", text, ["D"]) == ["B-D", "O", "B-D", "O", "O"]
    lines = "fever : O\nafter : O\nfever : B-D\nand : O\ncough : O"
    assert read_tags(lines, text, ["D"]) == ["O", "O", "B-D", "O", "O"]


def test_a_mention_is_looked_for_behind_the_one_before_it():
    assert read_entities("b\na", "a b a", ["D"]) == ["O", "B-D", "B-D"]
    assert read_entities("b\na\na", "a b a", ["D"]) == ["B-D", "B-D", "B-D"]  # and then anywhere


def test_blanks_and_capitals_do_not_decide():
    text = "Ataxia - telangiectasia ( A - T )"
    assert read_entities("ataxia-telangiectasia\nA-T", text, ["D"]) == [
        "B-D",
        "I-D",
        "I-D",
        "O",
        "B-D",
        "I-D",
        "I-D",
        "O",
    ]
    assert read_entities("DM", "dm and DM", ["D"]) == [
        "O",
        "O",
        "B-D",
    ]  # as it is written, where it stands so


def test_what_is_not_in_the_text_is_wrong_and_not_forgotten():
    assert read_entities("cough\ngout", "a cough", ["D"]) == ["O", "B-D", "B-D"]
    assert read_entities("ough", "a cough", ["D"]) == ["O", "O", "B-D"]  # no part of a word is an entity
    assert read_tags("a : O\ncough : B-D\ngout : B-D", "a cough", ["D"]) == ["O", "B-D", "B-D"]


def test_a_line_too_few_or_too_many_shifts_nothing():
    assert read_tags("a : O\ncough : B-D", "a bad cough", ["D"]) == ["O", "O", "B-D"]
    assert read_tags("a : O\na : O\ncough : B-D", "a cough", ["D"]) == ["O", "B-D"]
    assert read_tags("a : I-D", "a cough", ["D"]) == [
        "I-D",
        "O",
    ]  # what an entity without a beginning is, score.py decides


def test_several_types_stand_behind_their_mentions():
    case = Case("BRCA1 and cancer", ("B-Gene", "O", "B-Disease"))
    assert write_entities(case, ["Disease", "Gene"]) == "BRCA1 : Gene\ncancer : Disease"
    assert read_entities("BRCA1 : Gene", case.input, ["Disease", "Gene"]) == ["B-Gene", "O", "O"]


@pytest.mark.parametrize(
    ("form", "answer", "input", "labels"),
    [
        ("entities", "", "a cough", ["D"]),
        ("entities", " \n ", "a cough", ["D"]),
        ("entities", "cough", "a cough", ["D", "E"]),
        ("entities", "cough : F", "a cough", ["D", "E"]),
        ("tags", "a O\ncough : B-D", "a cough", ["D"]),
        ("tags", "a : X", "a cough", ["D"]),
        ("tags", "", "a cough", ["D"]),
        ("relation", "it is positive", "", ["positive", "negative"]),
        ("relation", "", "", ["positive", "negative"]),
        ("relation", "positive, negative", "", ["positive", "negative"]),
        ("classes", "growth, wings", "", ["growth", "death"]),
        ("classes", "", "", ["growth", "death"]),
        ("options", "C", "Which?\nA. one\nB. two", ["A", "B"]),
        ("options", "three", "Which?\nA. one\nB. two", ["A", "B"]),
    ],
)
def test_another_form_than_the_one_asked_for_is_malformed(form, answer, input, labels):
    with pytest.raises(Malformed):
        FORMS[form].read(answer, input, labels)


@pytest.mark.parametrize(
    ("form", "row", "case", "answer"),
    [
        (
            "entities",
            {"tokens": ["a", "cough"], "tags": ["O", "I-D"]},
            Case("a cough", ("O", "B-D"), counts={"orphans": 1}),
            "cough",
        ),
        ("entities", {"tokens": ["well"], "tags": ["O"]}, Case("well", ("O",)), "none"),
        (
            "tags",
            {"tokens": ["a", "cough"], "tags": ["O", "B-D"]},
            Case("a cough", ("O", "B-D")),
            "a : O\ncough : B-D",
        ),
        ("relation", {"text": "x", "label": 1}, Case("x", ("yes",)), "yes"),
        ("class", {"text": "x", "label": "no"}, Case("x", ("no",)), "no"),
        ("classes", {"text": "x", "labels": ["no", "1"]}, Case("x", ("no", "yes")), "no, yes"),
        ("classes", {"text": "x", "labels": []}, Case("x", ()), "none"),
        (
            "inference",
            {"premise": "p", "hypothesis": "h", "label": "no"},
            Case("Premise: p\nHypothesis: h", ("no",)),
            "no",
        ),
        (
            "decision",
            {"question": "q?", "context": "c", "final_decision": "no"},
            Case("c\nQuestion: q?", ("no",)),
            "no",
        ),
        (
            "options",
            {"question": "q?", "options": ["x", "y"], "answer": 1},
            Case("q?\nA. x\nB. y", ("B",)),
            "B",
        ),
        (
            "options",
            {"question": "q?", "choices": {"B": "y", "A": "x"}, "label": "A"},
            Case("q?\nA. x\nB. y", ("A",)),
            "A",
        ),
        (
            "options",
            {"question": "q?", "options": ["x", "y"], "answer": "y"},
            Case("q?\nA. x\nB. y", ("B",)),
            "B",
        ),
    ],
)
def test_rows_as_corpora_publish_them(form, row, case, answer):
    if form == "options":
        row = {k: v for k, v in row.items() if k != "answer"} | {"label": row.get("answer", row.get("label"))}
    rename = {"1": "yes"} if form != "options" else {}
    made = FORMS[form].take(row, FIELDS, rename, None)
    if FORMS[form].settle:
        (made,) = FORMS[form].settle([("row 1", made)], rename=rename).cases
    assert made == case
    labels = ["D"] if FORMS[form].tagged else ["yes", "no"] if form != "options" else ["A", "B"]
    assert FORMS[form].write(made, labels) == answer
    assert FORMS[form].read(answer, made.input, labels) == list(case.gold)


@pytest.mark.parametrize("answer", ["B", "b", " B. ", "two", "B. two", "(B)", "Two."])
def test_an_option_by_its_letter_its_text_or_both(answer):
    assert FORMS["options"].read(answer, "Which of A. and B. is it?\nA. one\nB. two", ["A", "B"]) == ["B"]


@given(
    st.lists(
        st.sampled_from(["a", "A", "c", "bc", "ad", "B", "none", "A. x", "1", "x. "]), min_size=2, max_size=5
    )
)
@settings(max_examples=200, deadline=None)
def test_every_option_is_read_back_by_its_letter_and_by_both(options):
    row = {"question": "A. baumannii?\nA. fumigatus?", "options": options, "answer": 0}
    (case,) = FORMS["options"].settle([("row 1", FORMS["options"].take(row, FIELDS, {}, None))]).cases
    for k, text in enumerate(options):
        for answer in ("ABCDE"[k], f"({'ABCDE'[k]})", f"{'ABCDE'[k]}. {text}"):
            assert FORMS["options"].read(answer, case.input, []) == ["ABCDE"[k]]


def test_an_options_text_is_read_where_it_is_nearer_than_a_letter():
    asked = "Which?\nA. a\nB. c\nC. bc\nD. ad"
    read = {
        answer: FORMS["options"].read(answer, asked, [])
        for answer in ("C", "c", "BC", "bc", "D", "d", "AD.", "a")
    }
    assert read == {
        "C": ["C"],
        "c": ["B"],
        "BC": ["C"],
        "bc": ["C"],
        "D": ["D"],
        "d": ["D"],
        "AD.": ["D"],
        "a": ["A"],
    }
    with pytest.raises(Malformed):
        FORMS["options"].read("x", "Which?\nA. x\nB. x", [])


def settled_options(*rows):
    taken = [FORMS["options"].take(row, FIELDS, {}, None) for row in rows]
    return [
        c.gold if isinstance(c, Case) else c
        for c in FORMS["options"].settle([("row", c) for c in taken]).cases
    ]


def asked(options, answer, **more):
    return {"question": "q?", "options": options, "answer": answer} | more


def test_what_an_answer_is_all_rows_together_show():
    numbers, words, blood = list("1234"), ["one", "two"], ["O", "A", "B", "AB"]
    assert settled_options(asked(numbers, "2")) == [("B",)]  # an option's text
    assert settled_options(asked(numbers, 2)) == [("C",)]  # a number is no text
    assert settled_options(asked(numbers, "2"), asked(words, "two")) == [("B",), ("B",)]
    assert settled_options(asked(numbers, "2"), asked(words, "1")) == [
        ("C",),
        ("B",),
    ]  # all of them are numbers, not all texts
    assert settled_options(asked(blood, "A"), asked(words, "B")) == [("A",), ("B",)]  # letters
    assert settled_options(asked(blood, "A"), asked(words, "two")) == [("B",), ("B",)]  # texts
    mixed = settled_options(asked(blood, "A"), asked(words, "two"), asked(words, "A"))
    assert "can be A or B" in mixed[0] and mixed[1:] == [("B",), ("A",)]
    assert "can be A or B" in settled_options(asked(["x", "x"], "x"))[0]


def test_what_cop_counts_from_is_the_rows_to_show():
    def row(cop):
        return {"question": "q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": cop}

    assert settled_options(row(0), row(3), row(1)) == [("A",), ("D",), ("B",)]
    assert settled_options(row(4), row(3), row(1)) == [("D",), ("C",), ("A",)]
    with pytest.raises(UserError, match="row: `cop`.*labels = "):
        settled_options(row(1), row(3))
    renamed = {str(k): "ABCD"[k - 1] for k in range(1, 5)}
    taken = [FORMS["options"].take(row(k), FIELDS, renamed, None) for k in (1, 3)]
    assert [c.gold for c in FORMS["options"].settle([("row", c) for c in taken]).cases] == [("A",), ("C",)]


def test_options_as_sets_publish_them():
    assert settled_options(asked({"A": "x", "B": "y", "C": None}, "B")) == [("B",)]
    assert settled_options(asked({"1": "x", "2": "y"}, "1")) == [
        ("A",)
    ]  # a key, not the option with the number 1 from 0
    assert settled_options(asked({"A": "x", "B": "y"}, "y", answer_idx="B")) == [("B",)]  # MedQA
    medmcqa = {"question": "q?", "opa": "x", "opb": "y", "opc": "z", "opd": "1", "cop": 3}
    for cop in (3, 3.0):
        assert settled_options(medmcqa | {"cop": cop}, medmcqa | {"cop": 0}) == [("D",), ("A",)]
    with pytest.raises(NoField, match="fields: question, choice"):
        settled_options({"question": "q?", "choice": ["x", "y"]})


LABELS = st.text(alphabet="aA,;|\n. ", min_size=1, max_size=6).map(lambda t: " ".join(t.split())).filter(
    bool
) | st.sampled_from(["none", "None", "nothing", "no label", "Aged, 80 and over", "Aged", "ALL", "all"])


@given(st.lists(LABELS, min_size=1, max_size=5, unique=True), st.randoms())
@settings(max_examples=300, deadline=None)
def test_labels_come_back_whatever_they_are_called(labels, rng):
    gold = tuple(sorted(label for label in labels if rng.random() < 0.5))
    assert lost(FORMS["classes"], Case("x", gold), labels) is None
    assert lost(FORMS["class"], Case("x", (rng.choice(labels),)), labels) is None


def test_what_parts_labels_and_what_says_that_there_is_none():
    assert (
        FORMS["classes"].write(Case("x", ("Aged, 80 and over", "Female")), ["Female", "Aged, 80 and over"])
        == "Aged, 80 and over; Female"
    )
    assert FORMS["classes"].write(Case("x", ()), ["None", "some"]) == "nothing"
    assert FORMS["classes"].read("none", "", ["None", "some"]) == ["None"]
    assert FORMS["class"].read("ALL", "", ["all", "ALL"]) == ["ALL"]
    with pytest.raises(Malformed, match="could be 'all' or 'ALL'"):
        FORMS["class"].read("All", "", ["all", "ALL"])
    assert "'a' or 'a '" in lost(
        FORMS["class"], Case("x", ("a",)), ["a", "a "]
    )  # nothing that a reader could tell apart


@pytest.mark.parametrize("answer", ["positive", "Positive", " positive.\n"])
def test_capitals_and_a_full_stop_do_not_make_another_label(answer):
    assert FORMS["relation"].read(answer, "", ["negative", "positive"]) == ["positive"]


def test_what_is_too_long_is_cut_where_it_is_shown_and_its_question_stays():
    row = {"question": "is it?", "context": "one two three", "label": "yes"}
    assert FORMS["decision"].take(row, FIELDS, {}, 2).input == "one two\nQuestion: is it?"
    assert FORMS["entities"].take({"tokens": ["a", "b"], "tags": ["O", "B-D"]}, FIELDS, {}, 1) == Case(
        "a", ("O",), cut=True
    )
    assert (
        FORMS["inference"]
        .take({"premise": "a b", "hypothesis": "c d", "label": 1}, FIELDS, {}, 1)
        .input.endswith("a\nHypothesis: c d")
    )


@pytest.mark.parametrize(
    ("form", "row", "error"),
    [
        ("entities", {"tokens": ["a"]}, NoField),
        ("entities", {"tokens": ["a", "b"], "tags": ["O"]}, BadRow),
        ("entities", {"tokens": ["a b"], "tags": ["O"]}, BadRow),
        ("entities", {"tokens": ["a"], "tags": ["Disease"]}, BadRow),
        ("entities", {"tokens": ["a"], "tags": ["B-"]}, BadRow),
        ("relation", {"text": "x"}, NoField),
        ("relation", {"text": "x", "label": {"a": 1}}, BadRow),
        ("classes", {"text": "x", "labels": [""]}, BadRow),
        ("options", {"question": "q", "options": ["x"], "label": 0}, BadRow),
        ("options", {"question": "q", "options": ["x", "y"], "label": 2}, BadRow),
    ],
)
def test_bad_rows_are_named(form, row, error):
    with pytest.raises(error):
        FORMS[form].take(row, FIELDS, {}, None)
