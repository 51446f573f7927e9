"""Files of tokenizers and rows as the tools that wrote them mean them: what changes nothing in transformers
changes nothing here, and every type that a column can have is a text or is refused by name."""

import csv
import datetime
import decimal
import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import transformers
from datasets import Dataset, Features, Sequence, Value

from nanomed.errors import UserError
from nanomed.evaluation.benchmarks import PROMPTS
from nanomed.evaluation.questions import from_pubmedqa
from nanomed.text.rows import BadRow, read_texts
from nanomed.text.tokenizer import load_tokenizer

TEXTS = [
    "the acute patient",
    " leading",
    "The dose , was 12 mg . It 's naïve",
    "two  blanks\n\nlines ",
    "<|endoftext|> is text",
]


# --- tokenizers ---------------------------------------------------------------------------------------------


def begin(single=("<|endoftext|>",)):
    token = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    first = [{"SpecialToken": {"id": name, "type_id": 0}} for name in single]
    return {
        "type": "TemplateProcessing",
        "single": [*first, a],
        "pair": [a, b],
        "special_tokens": {"<|endoftext|>": token},
    }


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 30},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 5,
    "pad_type_id": 0,
    "pad_token": "!",
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
HARMLESS = {
    "truncation": ({"truncation": TRUNCATION}, {}),
    "padding": ({"padding": PADDING}, {}),
    "trim_offsets": ({"pre_tokenizer": BYTE_LEVEL}, {}),
    "a beginning": ({"post_processor": begin()}, {}),
    "a beginning after others": (
        {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, begin()]}},
        {},
    ),
    "a beginning that add_bos_token denies": ({"post_processor": begin()}, {"add_bos_token": False}),
    "add_bos_token and add_eos_token": ({}, {"add_bos_token": True, "add_eos_token": True}),
    "clean_up_tokenization_spaces": ({}, {"clean_up_tokenization_spaces": True}),
    "lengths and sides": ({}, {"model_max_length": 4, "padding_side": "left", "truncation_side": "left"}),
    "split_special_tokens": ({}, {"split_special_tokens": True}),
    "unk_token and errors": ({}, {"unk_token": "<|endoftext|>", "errors": "ignore"}),
}


@pytest.fixture(params=HARMLESS.values(), ids=HARMLESS)
def changed(request, bpe_dir, tmp_path):
    """A tokenizer's directory with a change in tokenizer.json and one in tokenizer_config.json."""
    shutil.copytree(bpe_dir, tmp_path, dirs_exist_ok=True)
    spec, config = request.param
    for name, change in (
        ("tokenizer.json", spec),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | config),
    ):
        file = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(file | change))
    return tmp_path


def test_settings_of_a_tokenizer_mean_what_they_mean_in_transformers(changed):
    ours, theirs = load_tokenizer(changed), transformers.AutoTokenizer.from_pretrained(changed)
    for text in TEXTS:
        ids = theirs(text, split_special_tokens=True)["input_ids"]
        assert ours.prompt(text).tolist() == ids
        assert (
            ours.encode(text).tolist()
            == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize(
    "pre",
    [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Whitespace"},
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, BYTE_LEVEL]},
        {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False},
    ],
    ids=lambda pre: pre["type"],
)
def test_a_pre_tokenizer_that_gives_other_ids_is_refused(bpe_dir, tmp_path, pre):
    shutil.copytree(bpe_dir, tmp_path, dirs_exist_ok=True)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    before = tokenizers.Tokenizer.from_str(json.dumps(spec))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"pre_tokenizer": pre}))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert any(theirs.encode(text).ids != before.encode(text).ids for text in [*TEXTS, "12 345", "mg/day 37"])
    with pytest.raises(UserError, match="tokenizer.json: not the pre-tokenisation"):
        load_tokenizer(tmp_path)


# --- rows ---------------------------------------------------------------------------------------------------


def documents(path, field="text"):
    return list(read_texts(str(path), field, None, False))


def test_a_csv_that_python_wrote_comes_back_letter_by_letter(tmp_path):
    texts = [
        "a, b",
        'say "no"',
        "two\nlines",
        " blanks ",
        "NA",
        "null",
        "None",
        "nan",
        "12",
        "1e5",
        "007",
        "TRUE",
        "2019-03-12",
        "\\n",
    ]
    for dialect in ("excel", "unix"):
        with open(tmp_path / "t.csv", "w", newline="") as f:
            csv.writer(f, dialect).writerows([["text"], *([text] for text in texts)])
        assert documents(tmp_path / "t.csv") == texts


def test_datasets_and_pyarrow_write_what_is_read(tmp_path):
    texts = ["naïve β-cell", "two\nlines", "2019-03-12"]
    made = Dataset.from_dict({"text": texts, "n": [1, 2, 3]})
    made.to_json(tmp_path / "t.jsonl")
    made.to_csv(tmp_path / "t.csv")
    made.to_parquet(tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.csv", "t.parquet"):
        assert documents(tmp_path / name) == texts
    for column in (
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.array(texts).dictionary_encode(),
    ):
        pq.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
        assert documents(tmp_path / "t.parquet") == texts


OTHER_TYPES = {
    "int": pa.array([1]),
    "float": pa.array([1.5]),
    "bool": pa.array([True]),
    "bytes": pa.array([b"a"]),
    "timestamp": pa.array([datetime.datetime(2019, 3, 12)]),
    "date": pa.array([datetime.date(2019, 3, 12)]),
    "decimal": pa.array([decimal.Decimal("1.5")]),
    "struct": pa.array([{"a": "b"}]),
    "map": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
    "list of numbers": pa.array([[1, 2]]),
}


@pytest.mark.parametrize("column", OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_a_column_that_is_no_text_is_refused_with_its_type(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
    with pytest.raises(
        UserError, match="row 1: field 'text' is not text but (int|float|bool|bytes|date|Decimal|dict|list)"
    ):
        documents(tmp_path / "t.parquet")


def test_other_columns_may_be_of_any_type(tmp_path):
    pq.write_table(
        pa.table(OTHER_TYPES | {"text": ["a"], "when": pa.array([1], pa.timestamp("ns"))}),
        tmp_path / "t.parquet",
    )
    assert documents(tmp_path / "t.parquet") == ["a"]


def test_a_field_of_structs_and_a_list_of_texts(tmp_path):
    """PubMedQA's `context.contexts`, as datasets stores it."""
    features = Features(
        {"context": {"contexts": Sequence(Value("string")), "labels": Sequence(Value("string"))}}
    )
    rows = {
        "context": [
            {"contexts": ["a", "b"], "labels": ["AIM", "END"]},
            {"contexts": ["c"], "labels": ["AIM"]},
        ]
    }
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "t.parquet")
    assert documents(tmp_path / "t.parquet", "context.contexts") == ["a\nb", "c"]


def test_a_line_of_a_text_file_ends_at_a_line_feed_alone(tmp_path):
    """As Python and grep count them: a form feed and Unicode's separators stand inside PDFs' texts."""
    text = "a\x0cb\u2028c\x85d\n\ne\r\n"
    (tmp_path / "t.txt").write_bytes(text.encode())
    lines = [line.rstrip("\r\n") for line in io.StringIO(text, newline="\n")]
    assert documents(tmp_path / "t.txt") == [line for line in lines if line] == ["a\x0cb\u2028c\x85d", "e"]


ROW = {
    "pubid": 1,
    "question": "Q?",
    "context": {"contexts": ["a", "b"], "labels": ["AIM", "END"]},
    "final_decision": "yes",
}


@pytest.mark.parametrize("answer", ["Yes", "yes ", 0, True, None, ["yes"], "unknown"])
def test_an_answer_of_pubmedqa_is_one_of_three_words(answer):
    item = from_pubmedqa(ROW, PROMPTS["pubmedqa"], None)
    assert item.prompt == "Abstract: a\nb\nQuestion: Q?\nAnswer:" and item.answer == 0
    with pytest.raises(BadRow, match="must be yes, no or maybe"):
        from_pubmedqa(ROW | {"final_decision": answer}, PROMPTS["pubmedqa"], None)
