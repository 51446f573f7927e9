"""The comparison's spelling of characters against unicodedata's NFKC, over all of Unicode."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanomed.evaluation import metrics
from nanomed.systems.overlap import near_duplicates
from nanomed.systems.retrieve import bm25
from nanomed.text.nfkc import nfkc
from nanomed.text.ngrams import ngram_overlap, words

ONE = {
    "micro": "5 \u00b5g|5 \u03bcg",
    "ångström": "2 \u212b|2 \u00c5",
    "ohm": "1 \u2126|1 \u03a9",
    "fullwidth": "ＩＬ－６ １０％|IL-6 10%",
    "ligature": "ﬁbrosis|fibrosis",
    "square": "㎍|μg",
    "no-break": "5\u00a0mg|5 mg",
    "composed": "Sjo\u0308gren|Sjögren",
    "symbol": "ϕ|φ",
    "roman": "factor Ⅷ|factor VIII",
}
TWO = {
    "super": "10⁹|109",
    "sub": "log₂ 10|log2 10",
    "fraction": "2½|21/2",
    "circle": "5①|51",
    "squared": "㎡|m2",
    "mu": "μg|mg",
}


def kept(c):
    """Whether one of the characters that a character consists of is left as it is."""
    parts = unicodedata.decomposition(c).split()
    if parts and parts[0] in ("<super>", "<sub>", "<fraction>", "<circle>"):
        return True
    return any(kept(chr(int(p, 16))) for p in parts if not p.startswith("<"))


def test_every_character_is_nfkcs_or_stays():
    n_kept = 0
    for code in range(sys.maxunicode + 1):
        if unicodedata.decomposition(c := chr(code)):
            n_kept += kept(c)
            if not kept(c):
                assert nfkc(c) == unicodedata.normalize("NFKC", c)
            elif not unicodedata.decomposition(c).startswith("<square>"):
                assert nfkc(c) == c
    assert n_kept > 300


@given(st.text())
def test_it_is_stable_and_blind_to_what_is_canonically_equal(text):
    assert nfkc(nfkc(text)) == nfkc(text) == nfkc(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize("pair", ONE.values(), ids=ONE)
def test_one_in_exact_match_overlap_and_retrieval(pair):
    a, b = pair.split("|")
    assert a != b and nfkc(a) == nfkc(b)
    figures = metrics.answers([a], [b], [True])
    assert figures["exact_match"] == figures["rouge_1"] == 1
    a, b = (f"given {x} of the drug twice a day" for x in (a, b))
    assert near_duplicates([a], {"held": [b]}).removed.tolist() == [True]
    assert ngram_overlap([a], [b], 7)["share"] == 1
    assert bm25(["given of the drug", b], [pair.split("|")[0]], 1).tolist() == [[1]]


@pytest.mark.parametrize("pair", TWO.values(), ids=TWO)
def test_two_everywhere(pair):
    a, b = pair.split("|")
    assert nfkc(a) != nfkc(b)
    assert metrics.answers([a], [b], [True])["exact_match"] == 0
    a, b = (f"given {x} of the drug twice a day" for x in (a, b))
    assert ngram_overlap([a], [b], len(words(a)))["share"] == 0
