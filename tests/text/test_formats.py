"""Files of rows against the tools that write them: pandas, datasets, csv."""

import argparse
import codecs
import gzip
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nanomed import flags
from nanomed.errors import UserError
from nanomed.evaluation.benchmarks import reader
from nanomed.evaluation.questions import official_ids, read_questions
from nanomed.text import lines, reading
from nanomed.text.corpus import encode_corpus
from nanomed.text.formats import rows_of
from nanomed.text.instructions import Fields, read_instructions
from nanomed.text.names import find, is_plain
from nanomed.text.rows import get_text, get_value, read_rows, read_texts
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import ROOT, write_jsonl

TEXTS = ["First patient, 3 µg; “quoted”.", "Second\twith a tab", 'Third | a "bar"', "fourth"]
ROWS = [{"text": t, "n": n} for n, t in enumerate(TEXTS)]
FRAME = pd.DataFrame(ROWS)
DATA = datasets.Dataset.from_list(ROWS)


def texts_of(name):
    return list(read_texts(str(name), "text", None, False))


def rows(name):
    return list(read_rows(str(name), lambda row: row, None, False))


def with_flags(*names, flag="data", **given):
    """The names after the command line's parsing."""
    args = dict.fromkeys(("rows", "separator", "document_per")) | given | {flag: [str(n) for n in names]}
    return getattr(reading.read_as(argparse.Namespace(**args), [flag]), flag)


def loaded(kind, file, tmp_path, **options):
    """What datasets reads."""
    found = datasets.load_dataset(
        kind, data_files=str(file), cache_dir=str(tmp_path / "hf"), split="train", **options
    )
    return found.to_list()


@pytest.fixture(autouse=True)
def anew():
    lines.note_once.cache_clear()
    datasets.disable_progress_bars()


# --- the table of docs/files.md -----------------------------------------------------------------------------


def compressed(path, codec):
    with pa.output_stream(str(path), compression=codec) as f:
        f.write(write_jsonl(path.with_name("plain.jsonl"), TEXTS).read_bytes())


def folder(path):
    path.mkdir()
    for k, text in enumerate(TEXTS):
        (path / f"{k}.txt").write_text(text + "\n")
    (path / "README.md").write_text("no document")
    (path / "merges.txt").write_text("no document")


def article(pmid, title="", abstract=""):
    return (
        "<PubmedArticle><MedlineCitation><PMID"
        f" Version='1'>{pmid}</PMID><Article><ArticleTitle>{title}</ArticleTitle>"
        f"{abstract and f'<Abstract>{abstract}</Abstract>'}</Article>"
        "<OtherAbstract><AbstractText>Non</AbstractText></OtherAbstract>"
        "</MedlineCitation><PubmedData><ReferenceList><Reference><ArticleIdList/></Reference></ReferenceList></PubmedData></PubmedArticle>"
    )


WRITE = {
    "rows.jsonl": lambda p: write_jsonl(p, TEXTS),
    "rows.ndjson": lambda p: write_jsonl(p, TEXTS),
    "list.json": lambda p: FRAME.to_json(p, orient="records"),
    "lines.json": lambda p: DATA.to_json(p),
    "mark.json": lambda p: p.write_bytes(
        codecs.BOM_UTF8 + json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode()
    ),
    "data.json": lambda p: p.write_text(json.dumps({"version": 1, "data": ROWS})),
    "several.json": lambda p: p.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]})),
    "by-id.json": lambda p: p.write_text(json.dumps({f"1{k}": row for k, row in enumerate(ROWS)}, indent=2)),
    "exams.json": lambda p: p.write_text(
        json.dumps(
            {"version": "1.0", "exams": {"a": {"data": ROWS[:1]}, "b": {"name": "b", "data": ROWS[1:]}}}
        )
    ),
    "columns.json": lambda p: FRAME.to_json(p),
    "split.json": lambda p: FRAME.to_json(p, orient="split"),
    "lists.json": lambda p: p.write_text(json.dumps(DATA.to_dict())),
    "rows.csv": lambda p: FRAME.to_csv(p),  # with its index, a column without a name
    "semicolons.csv": lambda p: FRAME.to_csv(p, sep=";", index=False),
    "bars.csv": lambda p: FRAME.rename(columns={"n": "n,m"}).to_csv(p, sep="|", index=False),
    "rows.tsv": lambda p: FRAME.to_csv(p, sep="\t", index=False),
    "rows.parquet": lambda p: FRAME.to_parquet(p),
    "texts.txt": lambda p: p.write_text("\n\n".join(TEXTS)),
    "paragraphs.txt": lambda p: p.write_text("\n \n\n".join(TEXTS) + "\n"),
    "whole.txt": lambda p: p.write_text("\n".join(TEXTS) + "\n"),
    "texts": folder,
    "rows.jsonl.gz": lambda p: DATA.to_json(p, compression="gzip"),
    "rows.csv.gz": lambda p: FRAME.to_csv(p, index=False),
    "rows.jsonl.zst": lambda p: compressed(p, "zstd"),
    "saved": lambda p: DATA.save_to_disk(p),
    "splits": lambda p: datasets.DatasetDict(train=DATA.select([3]), test=DATA).save_to_disk(p),
}
WRITE["pubmed.xml"] = lambda p: p.write_text(
    f"<PubmedArticleSet>{''.join(map(article, range(9), TEXTS))}</PubmedArticleSet>"
)
WRITE |= {
    name: lambda p: p.write_text(
        "\n" + "\n".join(f"PMID- {k}\nOWN - NLM\nTI  - {t}\n" for k, t in enumerate(TEXTS))
    )
    for name in ("pubmed.nbib", "pubmed-set.txt")
}
TABLE = re.findall(
    r"^\| `([\w.-]+)` \| .*\| (?:`--([\w-]+) ([\w-]+)` )?\|$", (ROOT / "docs/files.md").read_text(), re.M
)


def test_the_table_names_what_is_tested():
    assert [name for name, _, _ in TABLE] == list(WRITE)


@pytest.mark.parametrize(("name", "flag", "value"), TABLE)
def test_files_load(tmp_path, name, flag, value, bpe_dir, monkeypatch):
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "cache"))
    WRITE[name](tmp_path / name)
    (named,) = with_flags(tmp_path / name, **({flag.replace("-", "_"): value} if flag else {}))
    expected = ["\n".join(TEXTS)] if name == "whole.txt" else TEXTS
    if name == "pubmed.xml":  # where white space is one blank
        expected = [" ".join(t.split()) for t in TEXTS]
    assert texts_of(named) == expected
    corpus, tokenizer = encode_corpus(named, load_tokenizer(bpe_dir)), load_tokenizer(bpe_dir)
    assert [tokenizer.decode(corpus.all().ids(k)[1:]) for k in range(len(expected))] == expected


def test_a_field_of_medline_is_one_whatever_the_file_is_called(tmp_path):
    for name in ("p.nbib", "p.txt"):
        (tmp_path / name).write_text("PMID- 1\nTI  - Fever\nAB  - A child had it.\n")
        assert [row["title"] for row in rows(tmp_path / name)] == ["Fever"]
        assert not is_plain(str(tmp_path / name))
    assert is_plain(f"{tmp_path / 'p.txt'}#line")


# --- what the tools themselves read -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "lines.json", "rows.jsonl.gz"])
def test_json_against_datasets(tmp_path, name):
    WRITE[name](tmp_path / name)
    assert rows(tmp_path / name) == loaded("json", tmp_path / name, tmp_path)


@pytest.mark.parametrize("orient", ["columns", "index", "records", "split", "table"])
def test_json_against_pandas(tmp_path, orient):
    frame = FRAME.assign(empty=[None, 1.5, None, 2], list=[["a"], [], ["b", "c"], ["d"]])[
        ::2
    ]  # an index with gaps
    frame.to_json(tmp_path / "d.json", orient=orient)
    expected = json.loads(frame.to_json(orient="records"))
    found = rows(tmp_path / "d.json")
    extra = {"table": "index", "index": "id"}.get(orient)
    assert [{k: v for k, v in row.items() if k != extra} for row in found] == expected


@pytest.mark.parametrize("index", [["a", "b", "2020-01-01", "d"], [-1, 0, 1, 2], [0.5, 1.0, 2.5, 3.0]])
def test_columns_of_pandas_whatever_the_index(tmp_path, index):
    frame = FRAME.assign(flag=[True, None, False, True], tags=[["a"], [], ["b"], ["c"]])
    frame.index = index
    frame.to_json(tmp_path / "d.json", orient="columns")
    assert rows(tmp_path / "d.json") == json.loads(frame.to_json(orient="records"))
    frame.to_json(tmp_path / "i.json", orient="index")
    expected = [{"id": str(i)} | row for i, row in zip(index, rows(tmp_path / "d.json"), strict=True)]
    assert rows(tmp_path / "i.json") == expected


def test_what_could_be_columns_or_rows_by_id_is_said(tmp_path, capsys):
    frame = pd.DataFrame({"text": TEXTS, "title": TEXTS}, index=list("abcd"))
    frame.to_json(tmp_path / "d.json", orient="columns")
    assert [row["id"] for row in rows(tmp_path / "d.json")] == ["text", "title"]
    assert 'if these are columns, orient="records" writes rows' in capsys.readouterr().err


@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_against_pandas(tmp_path, sep, suffix):
    frame = FRAME.assign(note=["a;b", 'x "y"\nz', "", "1,5"])
    frame.to_csv(tmp_path / f"d{suffix}", sep=sep)
    expected = pd.read_csv(tmp_path / f"d{suffix}", sep=sep, dtype=str, keep_default_na=False)
    assert rows(tmp_path / f"d{suffix}") == expected.to_dict("records")


def test_columns_without_a_name(tmp_path, capsys):
    (tmp_path / "d.csv").write_text("v1,v2,,,\nham,fever,,,\nspam,cough,and more,,\n")
    expected = pd.read_csv(tmp_path / "d.csv", dtype=str, keep_default_na=False)
    assert rows(tmp_path / "d.csv") == expected.to_dict("records")
    assert (
        "1 rows go on in columns without a name, which are the fields Unnamed: 2, Unnamed: 3"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("per", "by"), [("line", "line"), ("blank-line", "paragraph"), ("file", "document")])
def test_plain_text_against_datasets(tmp_path, per, by):
    (tmp_path / "d.txt").write_bytes(b"a fever\r\nand a cough\n\n\xce\xbc\n\nthe end")
    expected = [row["text"] for row in loaded("text", tmp_path / "d.txt", tmp_path, sample_by=by)]
    assert texts_of(f"{tmp_path / 'd.txt'}#{per}") == [text for text in expected if text.strip()]


@pytest.mark.parametrize(
    "how", [{"type": "torch"}, {"type": "pandas"}, {"type": "arrow"}, {"columns": ["n"]}]
)
def test_what_a_data_set_was_saved_in_is_not_asked(tmp_path, how):
    """Of tensors and frames, which datasets gives back in the form that the set had, the rows are the same."""
    DATA.with_format(**how).save_to_disk(tmp_path / "saved")
    assert rows(tmp_path / "saved") == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_in_parts(tmp_path, suffix):
    parts = [
        (
            gzip.compress(b'{"text": "a"}\n')
            if suffix == ".gz"
            else pa.compress(b'{"text": "a"}\n', "zstd", asbytes=True)
        )
    ] * 3
    (tmp_path / f"d.jsonl{suffix}").write_bytes(b"".join(parts))
    assert texts_of(tmp_path / f"d.jsonl{suffix}") == ["a"] * 3


# --- what is recognised, and what is not --------------------------------------------------------------------

SHAPES = {
    "the only key": ('{"questions": [{"text": "a"}]}', [{"text": "a"}]),
    "a known key": ('{"about": "x", "rows": [{"text": "a"}, {"text": "b"}]}', [{"text": "a"}, {"text": "b"}]),
    "one conversation": (
        '{"messages": [{"role": "user", "content": "a"}]}',
        [{"messages": [{"role": "user", "content": "a"}]}],
    ),
    "one row": ('{"text": "a"}', [{"text": "a"}]),
    "one row, printed": ('{\n"text": "a",\n"tags": ["x"]\n}', [{"text": "a", "tags": ["x"]}]),
    "by id, a text and a list": (
        '{"n1": {"text": "a"}, "n2": {"text": ["a", "b"]}}',
        [{"id": "n1", "text": "a"}, {"id": "n2", "text": ["a", "b"]}],
    ),
    "by id, texts and lists": (
        '{"p1": {"text": "a", "note": "b"}, "p2": {"text": ["a"], "note": ["b"]}}',
        [{"id": "p1", "text": "a", "note": "b"}, {"id": "p2", "text": ["a"], "note": ["b"]}],
    ),
    "by id, numbers": (
        '{"p1": {"n": 1, "m": 2}, "p2": {"n": 1.5, "m": 2.5}}',
        [{"id": "p1", "n": 1, "m": 2}, {"id": "p2", "n": 1.5, "m": 2.5}],
    ),
    "by id, keys of its own": ('{"7": {"id": 1, "text": "a"}}', [{"id": 1, "text": "a"}]),
    "nothing": ("{}", []),
    "an empty list": ("[]", []),
    "a line": ('{"text": "a"}\n\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
}


@pytest.mark.parametrize(("content", "expected"), SHAPES.values(), ids=SHAPES)
def test_shapes_of_json(tmp_path, content, expected):
    (tmp_path / "d.json").write_text(content)
    assert rows(tmp_path / "d.json") == expected


REFUSED = {
    "d.json": ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "d.json#train reads these"),
    "e.json": ('{"text": "a", "entities": [{"text": "b"}]}', "e.json#entities"),
    "f.json#a.b": ('{"a": {"c": [1]}}', "a.b: no such key there"),
    "g.json": ('"text"', "must hold a list of objects"),
    "h.json": (b'[{"text": "f\xe8vre"}]', "iconv -f WINDOWS-1252 -t UTF-8"),
    "i.csv": (b"id,text\n1,f\xe8vre\n", "iconv -f WINDOWS-1252 -t UTF-8"),
    "j.csv": ("text\xe8\n1\n".encode("utf-16"), "iconv -f UTF-16"),
    "k.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 9)[:-9], "truncated"),
    "l.jsonl.zst": (b"no", "truncated, corrupt or not zst"),
    "m.jsonl.gz": (b'{"text": "a"}\n', "truncated, corrupt or not gz"),
    "n.parquet.gz": (b"", "not a data file"),
    "o.txt#page": ("a", "one of file, line, blank-line"),
    "p.jsonl#data": ('{"text": "a"}', "what stands behind the #"),
    "q.csv": ('text\n"a" fever\n', "is doubled"),
    "s.txt": ("1|t|Fever\n1|a|It fell.\n1\t0\t5\tFever\tDisease\tD005334\n", "s.txt#line takes"),
    "w.txt": ("fever\ncough\n".encode("utf-16-le"), "looks like UTF-16: iconv -f UTF-16"),
    "x.jsonl": ('{"text": "a"}\n'.encode("utf-16-be"), "byte 0x00 at position 0; it looks like UTF-16"),
    "t.txt": ("\r\n###24293578\r\nOBJECTIVE\tTo see .\r\n", "t.txt: annotations, no plain text"),
    "u.txt": ("Fever\tB-Disease\nfell\tO\n.\tO\n", "u.txt: annotations, no plain text"),
    "v.txt": ("-DOCSTART- -X- O\n\nFever NN B-Disease\n", "v.txt: annotations, no plain text"),
    "r.tsv": ('id\ttext\n1\t"Yes\n2\tno\n3\tor no"\n', "lines 2 to 4 have all columns"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_the_mend(tmp_path, name):
    content, words = REFUSED[name]
    (tmp_path / name.partition("#")[0]).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(UserError, match=re.escape(words)) as e:
        texts_of(tmp_path / name)
    assert name.partition("#")[0] in str(e.value)


def test_who_asks_for_lines_of_annotations_gets_them(tmp_path):
    (tmp_path / "a.txt").write_text("Fever\tB-Disease\nfell\tO\n")
    args = argparse.Namespace(**dict.fromkeys(reading.ABOUT), data=[str(tmp_path / "a.txt")])
    args.document_per = "line"
    assert texts_of(reading.read_as(args).data[0]) == ["Fever\tB-Disease", "fell\tO"]


def test_a_text_that_is_filled_up_with_zero_bytes_is_no_utf_16(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"A fever." + bytes(8))
    assert texts_of(tmp_path / "a.txt") == ["A fever." + "\0" * 8]


def test_a_field_that_is_called_as_a_path_or_as_several():
    assert get_value({"a.b": None, "a": {"b": "x"}}, "a.b") == "x"
    assert get_value({"a.b": "y", "a": {"b": "x"}}, "a.b") == "y"
    assert get_text({"Age, sex": "37, f"}, "Age, sex") == "37, f"
    assert get_text({"abstract": " \n", "title": "Fever"}, "abstract,title") == "Fever"


@pytest.mark.parametrize(
    "text", ["B\tO\n", "1|t\n", "### 1\nA\tb\n", "Group B\nGroup O\n", "a\tB cells\nb\tO\n"]
)
def test_texts_that_are_nearly_annotations_are_texts(tmp_path, text):
    (tmp_path / "d.txt").write_text(text)
    assert texts_of(tmp_path / "d.txt") == text.splitlines() == texts_of(f"{tmp_path / 'd.txt'}#line")


def test_directories_that_are_no_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "merges.txt").write_text("a b")
    for name in ("empty", "model"):
        with pytest.raises(UserError, match=f"without .txt files.*; hub:{tmp_path / name} reads it"):
            texts_of(tmp_path / name)
    (tmp_path / "clone" / "data").mkdir(parents=True)
    FRAME.to_parquet(tmp_path / "clone" / "data" / "train-00000-of-00001.parquet")
    assert texts_of(f"hub:{tmp_path / 'clone'}") == TEXTS
    WRITE["splits"](tmp_path / "splits")
    assert texts_of(tmp_path / "splits") == TEXTS[3:]
    with pytest.raises(UserError, match="#dev: no such split; there is: train, test"):
        texts_of(f"{tmp_path / 'splits'}#dev")


def test_a_bad_file_of_a_folder_is_named(tmp_path):
    folder(tmp_path / "d")
    (tmp_path / "d" / "1.txt").write_bytes(b"f\xe8vre")
    with pytest.raises(UserError, match="row 2, 1.txt: not UTF-8"):
        texts_of(tmp_path / "d")
    assert list(read_texts(str(tmp_path / "d"), "text", None, True)) == [TEXTS[0], None, *TEXTS[2:]]
    assert next(rows_of(f"{tmp_path / 'd'}#blank-line"))[0] == "0.txt, line 1"
    assert is_plain(str(tmp_path / "d")) and is_plain("x.TXT.gz#file") and not is_plain("x.json")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lines.json", "one object a line"),
        ("data.json", "under the key 'data'"),
        ("by-id.json", "the id is the field `id`"),
        ("columns.json", "columns, as pandas writes them, of 4 rows"),
        ("semicolons.csv", "separated by semicolons"),
        ("texts", "4 .txt files, a document per file; 2 others are not read"),
        ("rows.csv", ""),
        ("list.json", ""),
    ],
)
def test_what_was_recognised_is_said_once(tmp_path, capsys, name, said):
    WRITE[name](tmp_path / name)
    for _ in range(2):
        texts_of(tmp_path / name)
    assert capsys.readouterr().err.count("\n") == bool(said)
    lines.note_once.cache_clear()
    texts_of(tmp_path / name)
    assert said in capsys.readouterr().err


# --- the flags ----------------------------------------------------------------------------------------------


def test_flags_become_part_of_the_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("several.json", "bars.csv", "texts.txt", "rows.jsonl"):
        WRITE[name](tmp_path / name)
    names = ["several.json", "bars.csv", "texts.txt", "rows.jsonl", "hub:a/b", "several.json#test"]
    found = with_flags(*names, rows="train", separator="bar", document_per="file")
    assert found == [
        "several.json#train",
        "bars.csv#bar",
        "texts.txt#file",
        "rows.jsonl",
        "hub:a/b",
        "several.json#test",
    ]
    assert with_flags("several.json:0.5", rows="test") == ["several.json#test:0.5"]
    assert with_flags("side=several.json", rows="test", flag="val_data") == ["side=several.json#test"]
    assert with_flags("several.json") == ["several.json"]
    for given in ({"rows": "data"}, {"separator": "tab"}, {"document_per": "line"}):
        with pytest.raises(
            UserError, match=f"--{next(iter(given)).replace('_', '-')} .*: no .* file is read"
        ):
            with_flags("rows.jsonl", **given)
    (tmp_path / "odd#name.jsonl").write_text('{"text": "a"}')
    assert texts_of("odd#name.jsonl") == ["a"] and find("odd#name.jsonl").how is None


def test_separators_have_names():
    assert [flags.separator(s) for s in (";", "\t", r"\t", "tab", ",", "|")] == [
        "semicolon",
        "tab",
        "tab",
        "tab",
        "comma",
        "bar",
    ]
    with pytest.raises(argparse.ArgumentTypeError, match="comma, semicolon, tab, bar"):
        flags.separator("::")


def test_how_a_file_is_read_is_part_of_the_caches_key(tmp_path, bpe_dir, monkeypatch):
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "cache"))
    tokenizer = load_tokenizer(bpe_dir)
    (tmp_path / "d.txt").write_text("a\n\nb\nc\n")
    count = {
        per: len(encode_corpus(f"{tmp_path / 'd.txt'}#{per}", tokenizer).documents)
        for per in ("line", "file", "blank-line")
    }
    assert count == {"line": 3, "file": 1, "blank-line": 2}
    (tmp_path / "several.json").write_text(json.dumps({"a": ROWS, "b": ROWS[:1]}))
    assert [
        len(encode_corpus(f"{tmp_path / 'several.json'}#{key}", tokenizer).documents) for key in "ab"
    ] == [4, 1]
    folder(tmp_path / "texts")
    before = encode_corpus(str(tmp_path / "texts"), tokenizer).sha256
    (tmp_path / "texts" / "2.txt").write_text("changed")
    assert encode_corpus(str(tmp_path / "texts"), tokenizer).sha256 != before


# --- fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.jsonl"])
def test_a_field_may_have_dots_in_its_name(tmp_path, name):
    """As pandas.json_normalize, Argilla's exports and any flattened table call them."""
    frame = pd.json_normalize([{"data": {"text": t, "meta": {"n": k}}} for k, t in enumerate(TEXTS)])
    assert list(frame) == ["data.text", "data.meta.n"]
    how = {"lines": True, "orient": "records"} if name == "d.jsonl" else {"index": False}
    getattr(frame, f"to_{name[2:].replace('jsonl', 'json')}")(tmp_path / name, **how)
    assert list(read_texts(str(tmp_path / name), "data.text", None, False)) == TEXTS
    row = {"a.b": "flat", "a": {"b": "nested"}, "c": {"d.e": "inner"}, "f.g": None}
    assert [get_value(row, path) for path in ("a.b", "c.d.e", "f.g", "f.g,a.b")] == [
        "flat",
        None,
        None,
        "flat",
    ]
    with pytest.raises(UserError, match="null there"):
        (tmp_path / "n.jsonl").write_text(json.dumps(row))
        list(read_texts(str(tmp_path / "n.jsonl"), "f.g", None, False))


def test_paths_reach_into_lists():
    row = {"messages": [{"content": "a"}, {"content": "b"}], "0": "c", "m": [[1, "d"]]}
    assert get_text(row, "messages.1.content") == get_text(row, "messages.-1.content") == "b"
    assert (get_text(row, "0"), get_text(row, "m.0.1")) == ("c", "d")
    for path in (
        "messages.2.content",
        "messages.-3.content",
        "messages.x",
        "messages.1.0",
        "m.0.1.0",
        "messages.٣",
    ):
        assert get_value(row, path) is None


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet", "all.parquet"])
def test_nan_is_an_empty_field_and_a_number_an_answer(tmp_path, name):
    frame = pd.DataFrame(
        {
            "question": ["a", "b"],
            "input": [np.nan, np.nan if name == "all.parquet" else "x"],
            "answer": [4, 5],
        }
    )
    path = tmp_path / name
    records = frame.to_dict("records")
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(records))
        case ".jsonl":
            path.write_text("".join(json.dumps(r) + "\n" for r in records))
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
    items, bad, _ = read_instructions([str(path)], Fields(), None, False)
    assert [(i.input, i.response) for i in items] == [
        ("", "4"),
        ("" if name == "all.parquet" else "x", "5"),
    ] and bad == 0


def test_a_missing_text_is_no_number(tmp_path):
    path = Path(tmp_path / "d.jsonl")
    path.write_text('{"text": NaN}\n')
    with pytest.raises(UserError, match="null there"):
        texts_of(path)
    path.write_text('{"question": "a", "answer": true}\n')
    with pytest.raises(UserError, match="not text but bool"):
        read_instructions([str(path)], Fields(), None, False)


# --- PubMed -------------------------------------------------------------------------------------------------


def test_pubmed_xml(tmp_path, capsys):
    formula = "<math><mi>x</mi><mo>=</mo><mn>2</mn></math>"
    records = [
        article(1, "The <i>CYP<sub>2</sub>D6</i> gene<!-- no -->.", "<AbstractText>Old.</AbstractText>"),
        article(2, "Deleted", "<AbstractText>Gone.</AbstractText>"),
        article(3, "", ""),
        article(
            1,
            "The <i>CYP<sub>2</sub>D6</i> gene<!-- no -->\n &amp; more.",
            f"""<AbstractText Label="AIM">To see <b>all</b>
            of {formula}; 10<sup>9</sup>.</AbstractText><AbstractText Label="RESULTS">p &lt; 0.05</AbstractText>
            <CopyrightInformation>(c)</CopyrightInformation>""",
        ),
        article(4, "Alone", '<AbstractText Label="CONCLUSION">One.</AbstractText>'),
        article(5, "A title"),
    ]
    deleted = "<DeleteCitation><PMID>2</PMID><PMID>99</PMID></DeleteCitation>"
    doctype = (
        '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD'
        ' PubMedArticle//EN" "pubmed.dtd">'
    )
    content = f"{doctype}<PubmedArticleSet>{''.join(records)}{deleted}</PubmedArticleSet>"
    (tmp_path / "p.xml").write_text(content)
    (tmp_path / "p.xml.gz").write_bytes(gzip.compress(content.encode()))
    found = rows(tmp_path / "p.xml")
    assert found == rows(tmp_path / "p.xml.gz")
    assert {row["pmid"]: row["text"] for row in found} == {
        "1": "The CYP2D6 gene & more.\nAIM: To see all of x=2; 10⁹.\nRESULTS: p < 0.05",
        "4": "Alone\nCONCLUSION: One.",
        "5": "A title",
    }
    said = "6 PubMed records, 1 repeated (the last counts), 1 deleted, 1 without a text, 1 with a title alone"
    assert said in capsys.readouterr().err
    for bad, words in (
        ("<article/>", "no PubmedArticle"),
        (content[:-30], "truncated"),
        (content.replace("PMID", "ID"), "not PubMed"),
    ):
        (tmp_path / "bad.xml").write_text(bad)
        with pytest.raises(UserError, match=words):
            rows(tmp_path / "bad.xml")


def test_medline(tmp_path, capsys):
    (tmp_path / "p.nbib").write_text(
        "\nPMID- 7\nOWN - NLM\nTI  - A long\n      title.\nAB  - AIM: to see. RESULTS:\n      seen.\nFAU -"
        " Doe, J\nAU  - Doe J\n\nPMID- 8\nBTI - A book\n\nPMID- 7\nTI  - Newer\n"
    )
    found = {row["pmid"]: row["text"] for row in rows(tmp_path / "p.nbib")}
    assert found == {"8": "A book", "7": "Newer"}
    assert "3 PubMed records, 1 repeated (the last counts), 2 with a title alone" in capsys.readouterr().err
    (tmp_path / "p.nbib").write_text(
        "PMID- 7\nTI  - A long\n      title.\nAB  - AIM: to see. RESULTS:\n      seen.\n"
    )
    assert texts_of(tmp_path / "p.nbib") == ["A long title.\nAIM: to see. RESULTS: seen."]
    (tmp_path / "q.nbib").write_text("TY  - JOUR\nhello\n")
    with pytest.raises(UserError, match="q.nbib, line 2: not MEDLINE"):
        rows(tmp_path / "q.nbib")


def test_pubmedqas_release_is_asked_as_the_hubs_rows(tmp_path):
    ids = sorted(official_ids())[:3]
    hub = [
        {
            "pubid": int(i),
            "question": f"Is {i}?",
            "context": {"contexts": ["a", "b"]},
            "final_decision": "yes",
        }
        for i in ids
    ]
    theirs = {
        i: {"QUESTION": f"Is {i}?", "CONTEXTS": ["a", "b"], "MESHES": ["x"], "final_decision": "yes"}
        for i in [*ids, "1"]
    }
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hub))
    (tmp_path / "ori_pqal.json").write_text(json.dumps(theirs, indent=2))

    def reader_of(name):
        return reader(name, "pubmedqa", official_ids())

    items, other = (
        read_questions([str(tmp_path / n)], reader_of, None, False).items
        for n in ("ori_pqal.json", "hub.jsonl")
    )
    assert items == other and len(items) == 3 and items[0].gold == "a\nb"
