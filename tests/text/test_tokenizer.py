"""Ids identical to transformers' GPT-2 tokenizer on any valid Unicode, whatever the files' form and order."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomed.errors import Unencodable, UserError
from nanomed.text.byte_level import BYTE_OF
from nanomed.text.tokenizer import EOT, load_tokenizer
from tests.conftest import WORDS

EDGES = [
    "",
    " ",
    "  ",
    "\n\n x",
    " \t\n",
    "a  b",
    "x ",
    "it's IT'S don't've",
    EOT,
    f"a{EOT}b {EOT}",
    "naïve café 北京 🙂👨‍👩‍👧",
    "\u00a0\u2003x",
    "\x00\x1f\x85",
    "١٢٣ ½ Ⅷ",
    "e\u0301",
    "a\u200db",
    "''s 's",
    "\ufeffx",
    "\U0010ffff",
    "１２３",
]
# Blanks, quotes and words of the vocabulary make the pre-tokenisation's corner cases likely; the rest is all
# of Unicode.
TEXTS = st.lists(st.text() | st.sampled_from([" ", "  ", "\n", "'s", "'", EOT, *WORDS]), max_size=12).map(
    "".join
)


def oracle(directory):
    return transformers.GPT2Tokenizer.from_pretrained(directory)


def as_strings(directory, out):
    """The same tokenizer.json with merges as strings, as transformers 4 wrote them."""
    spec = json.loads((directory / "tokenizer.json").read_text())
    spec["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    (out / "tokenizer.json").write_text(json.dumps(spec))
    return out


def as_pairs(directory, out):
    spec = json.loads((directory / "tokenizer.json").read_text())
    spec["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in spec["model"]["merges"]]
    (out / "tokenizer.json").write_text(json.dumps(spec))
    return out


def as_two_files(directory, out):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(directory / name, out)
    return out


def shuffled(directory, out):
    """Ids in another order than merges: tiktoken's ranks are not the ids any more."""
    vocab = json.loads((directory / "vocab.json").read_text())
    n = len(vocab)
    (out / "vocab.json").write_text(json.dumps({token: (i * 7 + 3) % n for token, i in vocab.items()}))
    shutil.copy(directory / "merges.txt", out)
    return out


def eot_last(directory, out):
    """GPT-2's own order: <|endoftext|> behind all others."""
    vocab = json.loads((directory / "vocab.json").read_text())
    (out / "vocab.json").write_text(
        json.dumps({t: i - 1 if t != EOT else len(vocab) - 1 for t, i in vocab.items()})
    )
    shutil.copy(directory / "merges.txt", out)
    return out


@pytest.fixture(scope="module", params=[as_pairs, as_strings, as_two_files, shuffled, eot_last])
def pair(request, bpe_dir, tmp_path_factory):
    directory = request.param(bpe_dir, tmp_path_factory.mktemp(request.param.__name__))
    return load_tokenizer(directory), oracle(directory)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_ids_are_those_of_transformers(pair, text):
    ours, theirs = pair
    assert ours.encode(text).tolist() == theirs.encode(text, split_special_tokens=True)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("text", EDGES, ids=repr)
def test_edges(pair, text):
    ours, theirs = pair
    ids = ours.encode(text).tolist()
    assert ids == theirs.encode(text, split_special_tokens=True)
    assert ours.eos not in ids
    assert ours.eos == theirs.eos_token_id
    assert ours.decode([*ids, ours.eos]) == text + EOT


def test_every_code_point_between_letters_digits_and_blanks(bpe_dir):
    """Where a piece ends depends on Unicode's classes; two libraries may know different versions of
    Unicode."""
    ours, theirs = load_tokenizer(bpe_dir), oracle(bpe_dir)
    step = 1 if os.environ.get("NANOMED_ALL_CODE_POINTS") else 97
    points = [c for c in (*range(0x2100), *range(0x2100, 0x110000, step)) if not 0xD800 <= c < 0xE000]
    texts = [f"ab{chr(c)}cd 1{chr(c)}2  {chr(c)} b!{chr(c)}!  {chr(c)}" for c in points]
    for text, expected in zip(texts, theirs(texts, split_special_tokens=True)["input_ids"], strict=True):
        assert ours.encode(text).tolist() == expected, text


def test_gpt2s_own_vocabulary_where_there_is_one():
    """NANOMED_GPT2_BPE names a directory with GPT-2's vocab.json and merges.txt; ids as in OpenAI's
    encoder."""
    if "NANOMED_GPT2_BPE" not in os.environ:
        pytest.skip("GPT-2's own files are not part of the project; NANOMED_GPT2_BPE=DIR names them")
    tokenizer = load_tokenizer(os.environ["NANOMED_GPT2_BPE"])
    assert tokenizer.lead == 50256 and tokenizer.vocab_size == 50257
    assert tokenizer.encode("Hello world").tolist() == [
        15496,
        995,
    ]  # transformers' documentation of GPT2Tokenizer
    theirs = oracle(os.environ["NANOMED_GPT2_BPE"])
    for text in [*EDGES, " ".join(WORDS), Path(__file__).read_text()]:
        assert tokenizer.encode(text).tolist() == theirs.encode(text, split_special_tokens=True)


def test_a_long_run_of_blanks_or_letters_is_no_problem(pair):
    ours, theirs = pair
    for text in (" " * 200_000, "\n" * 200_000 + "x", "a" * 200_000):
        assert ours.decode(ours.encode(text)) == text
    text = "\n" * 5000 + "x" + " " * 5001 + "y"
    assert ours.encode(text).tolist() == theirs.encode(text, split_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["a", "fever ", "7", "\n", "\t\n", "'", "模", "e\u0301", "\x00"])
def test_a_line_of_5_mb(pair, piece):
    text = piece * (5_000_000 // len(piece.encode()))
    assert pair[0].decode(pair[0].encode(text)) == text


@pytest.mark.slow
def test_5_mb_of_blanks_before_a_word_are_refused_or_encoded(pair):
    """tiktoken's regular expressions give up there, after a moment: the row is named, and can be left out."""
    text = " " * 5_000_000 + "x"
    try:
        assert pair[0].decode(pair[0].encode(text)) == text
    except Unencodable as e:
        assert len(str(e)) < 300


def test_half_a_character_decodes_as_in_transformers(pair):
    ours, theirs = pair
    ids = ours.encode("é🙂").tolist()[:-1]
    assert ours.decode(ids) == theirs.decode(ids)


def test_a_lone_surrogate_is_an_error(pair):
    with pytest.raises(UserError, match="surrogate"):
        pair[0].encode("a\ud800b")


def test_a_byte_without_a_token_refuses_the_text_and_not_the_vocabulary(bpe_dir, tmp_path):
    vocab = json.loads((bpe_dir / "vocab.json").read_text())
    del vocab[next(c for c, b in BYTE_OF.items() if b == 0x07)]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    shutil.copy(bpe_dir / "merges.txt", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("fine")) == "fine"
    with pytest.raises(UserError, match="its byte 0x07 has no token"):
        tokenizer.encode("a bell: \x07")


def test_a_token_that_its_merges_cannot_reach_is_refused(tmp_path):
    """bc merges before ab, so "abc" becomes a + bc, and the listed ab + c never applies; tiktoken would join
    a + bc."""
    tokens = [*BYTE_OF, "bc", "ab", "abc", EOT]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nb c\na b\nab c\n")
    assert oracle(tmp_path).encode("abc") == [tokens.index("a"), tokens.index("bc")]
    with pytest.raises(UserError, match="cannot be reached"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["model"].update(type="WordPiece"), "a WordPiece tokenizer; only BPE"),
        (lambda s: s["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer"),
        (lambda s: s.update(pre_tokenizer=None), "pre_tokenizer"),
        (lambda s: s.update(normalizer={"type": "NFC"}), "normalizer"),
        (lambda s: s["model"].update(dropout=0.1), "model.dropout"),
        (lambda s: s["model"]["merges"].append(["zz", "qq"]), "comes before its parts"),
    ],
)
def test_what_is_not_gpt2s_kind_is_refused(bpe_dir, tmp_path, change, message):
    spec = json.loads((bpe_dir / "tokenizer.json").read_text())
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


ADDED = {
    "content": "patient",
    "special": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "single_word": False,
}
MARKER = {"patient": 400}
NAMED = {"pad_token": "patient"}
# Beside vocab.json and merges.txt, or beside tokenizer.json: transformers heeds these files in both cases.
SIDE_FILES = {
    "prefix space": (
        {"tokenizer_config.json": {"add_prefix_space": True}},
        "tokenizer_config.json: add_prefix_space: true",
    ),
    "added": ({"added_tokens.json": MARKER}, None),
    "decoder": ({"tokenizer_config.json": {"added_tokens_decoder": {"400": ADDED}}}, None),
    "decoder hides the names": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"400": ADDED}}, "special_tokens_map.json": NAMED},
        None,
    ),
    "another id": ({"added_tokens.json": {"patient": 401}}, "has the id 401"),
    "no prefix space": ({"tokenizer_config.json": {"add_prefix_space": False}}, None),
    "special by decoder": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"400": ADDED | {"special": True}}}},
        None,
    ),
    "decoder and name": ({"tokenizer_config.json": NAMED | {"added_tokens_decoder": {"400": ADDED}}}, None),
    "decoder before added": (
        {"tokenizer_config.json": {"added_tokens_decoder": {}}, "added_tokens.json": MARKER},
        None,
    ),
    "special by config": ({"tokenizer_config.json": NAMED, "added_tokens.json": MARKER}, None),
    "special by config, in full": (
        {
            "tokenizer_config.json": {"pad_token": ADDED | {"__type": "AddedToken"}},
            "added_tokens.json": MARKER,
        },
        None,
    ),
    "special by map": ({"special_tokens_map.json": NAMED, "added_tokens.json": MARKER}, None),
    "special by list": (
        {"tokenizer_config.json": {"additional_special_tokens": ["patient"]}, "added_tokens.json": MARKER},
        None,
    ),
    "the end of a text": ({"added_tokens.json": {EOT: 0}}, None),
}


@pytest.mark.parametrize("form", [as_pairs, as_two_files])
@pytest.mark.parametrize(("files", "message"), SIDE_FILES.values(), ids=SIDE_FILES)
def test_side_files_that_change_the_ids_are_refused_and_no_others(bpe_dir, tmp_path, form, files, message):
    """What is not refused gives the ids of transformers."""
    form(bpe_dir, tmp_path)
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    text = f"the patient, {EOT} patients"
    theirs = oracle(tmp_path).encode(text, split_special_tokens=True)
    if message is None:
        ours = load_tokenizer(tmp_path)
        assert ours.encode(text).tolist() == theirs and ours.decode(theirs) == text
        return
    assert load_tokenizer(bpe_dir).encode(text).tolist() != theirs
    with pytest.raises(UserError, match=re.escape(message)) as e:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("content", ["[1]", '{"added_tokens_decoder": [3]}', "{"])
def test_side_files_of_another_shape_are_named(bpe_dir, tmp_path, name, content):
    if name != "tokenizer_config.json" and "decoder" in content:
        content = "3"
    as_two_files(bpe_dir, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(name)):
        load_tokenizer(tmp_path)


def test_no_tokenizer_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_tokenizer(tmp_path)


def test_special_tokens_that_are_not_there_are_not_believed(bpe_dir, tmp_path):
    """A padding or beginning that config.json gives an id for which no token has would be an id without an
    embedding."""
    shutil.copytree(bpe_dir, tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text(
        json.dumps({"pad_token_id": 400, "bos_token_id": 4000, "eos_token_id": True})
    )
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    t = load_tokenizer(tmp_path / "t")
    assert (t.bos, t.eos, t.pad, t.ends, t.adds_bos, t.vocab_size) == (None, 0, 0, {0}, False, 400)


@pytest.mark.parametrize("bad", [-1, 2**40, "7", 1.5, None])
def test_an_id_that_is_none_is_refused(bpe_dir, tmp_path, bad):
    vocab = json.loads((bpe_dir / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"the": bad}))
    shutil.copy(bpe_dir / "merges.txt", tmp_path)
    with pytest.raises(UserError, match="the token 'the' has no whole number"):
        load_tokenizer(tmp_path)
