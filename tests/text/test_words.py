"""Words that were added to a vocabulary (`add_tokens`), found in texts as transformers and its `tokenizers`
library find them, whatever their flags and the kind of vocabulary."""

import json
import unicodedata

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from nanomed.text.added import Added, Finder
from nanomed.text.special import Written
from nanomed.text.tokenizer import EOT, load_tokenizer
from tests.text.test_other_tokenizers import KINDS

WORDS = [
    "hepato",
    "hepatosplenomegaly",  # the longer of two
    "megalyx",
    "heart failure",
    AddedToken("sepsis", single_word=True),
    AddedToken("ward", rstrip=True),
    AddedToken("mg", lstrip=True, single_word=True),
    AddedToken("renal", normalized=False),
    AddedToken("nal failure", normalized=False, lstrip=True, rstrip=True),
    AddedToken("IL-2", normalized=False, single_word=True),
    "é",
    "(a|b)*",
]
SPECIAL = [AddedToken("<gap>", lstrip=True, rstrip=True), AddedToken("STOP", single_word=True), "<gapx"]


def plain(out):
    """GPT-2's kind, whose splitting is none of the others'."""
    out = KINDS["llama3"](out)
    spec = json.loads((out / "tokenizer.json").read_text())
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (out / "tokenizer.json").write_text(json.dumps(spec | {"pre_tokenizer": gpt2}))
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = {}
    for name, make in {**KINDS, "gpt2": plain}.items():
        out[name] = make(tmp_path_factory.mktemp(name))
        theirs = Tokenizer.from_file(str(out[name] / "tokenizer.json"))
        theirs.add_tokens(WORDS[:6])
        theirs.add_special_tokens(SPECIAL)
        theirs.add_tokens(WORDS[6:])
        theirs.save(str(out[name] / "tokenizer.json"))
    return out


@pytest.fixture(scope="module", params=[*KINDS, "gpt2"])
def three(request, made):
    """Ours with special tokens as letters and as tokens, and the library."""
    theirs = Tokenizer.from_file(str(made[request.param] / "tokenizer.json"))
    return *(load_tokenizer(made[request.param], reading=how) for how in ("text", "read")), theirs


PIECES = ["hepato", "splenomegaly", "hepatosplenomegaly", "megalyx", "heart", "heart failure", "sepsis", "a"]
PIECES += ["ward", "mg", "renal", "nal failure", " failure", "IL-2", "(a|b)*", "é", "e\u0301", "\u0301", "²"]
PIECES += [
    "<gap>",
    "STOP",
    "<gapx",
    EOT,
    " ",
    "  ",
    "\n",
    "\u00a0",
    "\x1f",
    "5",
    "_",
    "\U000f0000",
    "\U000f0003",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)


def ids_of(theirs: Tokenizer, text: str, letters: bool) -> list[int]:
    theirs.encode_special_tokens = letters
    return theirs.encode(text, add_special_tokens=False).ids


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_ids_are_those_of_the_library(three, text):
    letters, read, theirs = three
    assert letters.encode(text).tolist() == ids_of(theirs, text, True)
    assert read.encode(text).tolist() == ids_of(theirs, text, False)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_a_templates_special_tokens_are_read_and_words_beside_them_found(three, text):
    letters, read, theirs = three
    own = Written(text, ((0, len(text)),))
    assert letters.encode(own).tolist() == ids_of(theirs, text, False) == read.encode(text).tolist()
    ends = [end for _, end in theirs.encode(text, add_special_tokens=False).offsets]
    assert letters.encode_ends(own)[1].tolist() == ends


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_what_follows_a_text_has_the_ids_of_the_whole(three, before, text):
    letters, _, theirs = three
    theirs.encode_special_tokens = True
    whole = theirs.encode(before + text, add_special_tokens=False)
    if all(end <= len(before) or start >= len(before) for start, end in whole.offsets):
        behind = [i for i, (start, _) in zip(whole.ids, whole.offsets, strict=True) if start >= len(before)]
        assert letters.continuation(before, text).tolist() == behind


def test_what_is_a_letter_and_what_a_blank_is_as_in_the_library(made):
    """Beside a word that stands alone, and one that takes the blanks along: of all of Unicode that both know
    (the libraries come with different versions of it)."""
    ours, theirs = load_tokenizer(made["gpt2"]), Tokenizer.from_file(str(made["gpt2"] / "tokenizer.json"))
    theirs.encode_special_tokens = True
    points = [
        c
        for c in (*range(0x3100), *range(0x3100, 0x110000, 89))
        if unicodedata.category(chr(c)) not in ("Cn", "Cs")
    ]
    texts = [f"{chr(c)}sepsis sepsis{chr(c)} ward{chr(c)}{chr(c)}5 mg" for c in points]
    for text, expected in zip(texts, theirs.encode_batch(texts, add_special_tokens=False), strict=True):
        assert ours.encode(text).tolist() == expected.ids, ascii(text)


def test_add_tokens_in_transformers(tmp_path):
    """As tutorials do it: to a tokenizer's own vocabulary, and saved."""
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(plain(tmp_path) / "tokenizer.json"), eos_token="<|end_of_text|>"
    )
    assert theirs.add_tokens(["hepatosplenomegaly", "heart failure"]) == 2
    theirs.save_pretrained(tmp_path / "saved")
    ours, text = load_tokenizer(tmp_path / "saved"), "no hepatosplenomegaly, but heart failures"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text).tolist() == ids and ours.decode(ids) == text
    assert ours.vocab_size == len(theirs) and {len(theirs) - 2, len(theirs) - 1} < set(ids)
    assert ours.hash != load_tokenizer(tmp_path).hash


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab.|", min_size=1, max_size=4), unique=True, max_size=8), st.text("ab.|é\ue000"))
def test_a_finder_takes_the_first_and_of_several_there_the_longest(strings, text):
    at, expected = 0, []
    while at < len(text):
        longest = max((s for s in strings if text.startswith(s, at)), key=len, default="")
        expected += [(at, at + len(longest), strings.index(longest))] if longest else []
        at += len(longest) or 1
    assert Finder(Added(s, k) for k, s in enumerate(strings)).find(text) == expected


def test_thousands_of_words_are_found(tmp_path):
    theirs = Tokenizer.from_file(str(plain(tmp_path) / "tokenizer.json"))
    words = [f"w{k}x" for k in range(5000)]
    theirs.add_tokens(words)
    theirs.save(str(tmp_path / "tokenizer.json"))
    text = " ".join(np.random.default_rng(0).choice(words, 300).tolist())
    assert load_tokenizer(tmp_path).encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["smollm2", "llama3", "gpt2"])
def test_a_word_that_the_vocabulary_has_already_is_found_at_its_place(name, tmp_path):
    """In a list of words that somebody adds there may be such, and the library gives them the ids they have."""
    file = ({**KINDS, "gpt2": plain}[name](tmp_path)) / "tokenizer.json"
    theirs = Tokenizer.from_file(str(file))
    *_, short, long = sorted((t for t in theirs.get_vocab() if t.isascii() and t.isalpha()), key=len)
    n = theirs.get_vocab_size()
    theirs.add_tokens([short, long])
    theirs.save(str(file))
    assert theirs.get_vocab_size() == n
    text = f"{long} then{short}{long}é {short}"
    expected = theirs.encode(text, add_special_tokens=False)
    ids, ends = load_tokenizer(tmp_path).encode_ends(Written(text))
    assert ids.tolist() == expected.ids and ends.tolist() == [end for _, end in expected.offsets]
