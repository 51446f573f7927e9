"""Retrieval against transformers, a hand-written BM25 and a full sort; the cache of embeddings; and
recall."""

import math
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from bm25s.stopwords import STOPWORDS_EN

from nanomed.errors import UserError
from nanomed.evaluation.measure import open_model
from nanomed.systems import retrieve as module
from nanomed.systems.retrieve import (
    bm25,
    embed,
    nearest,
    passage_embeddings,
    recall,
    retrieve,
    right_passages,
)
from tests.conftest import assert_near, every_family, make_hf_model, make_texts

TEXTS = [*make_texts(9, 21, 2, 12), "", "x", *make_texts(3, 22, 70, 90), "é🙂 β-cell"]
CONTEXT = 40  # longer than GPT-Neo's window, shorter than some texts


@pytest.fixture(scope="module")
def opened(model_dir):
    return open_model(str(model_dir), "cpu", "fp32")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_model(monkeypatch):
    """Call it, and from then on nothing may be computed."""

    def fail(*args, **kwargs):
        raise AssertionError("the model was asked")

    return lambda: monkeypatch.setattr(module, "embed", fail)


def near(ours, theirs):
    assert_near(torch.from_numpy(np.array(ours)), torch.from_numpy(np.array(theirs)))


# --- embeddings ---------------------------------------------------------------------------------------------


@every_family
def test_embed_against_transformers(opened, model_dir):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode(text, split_special_tokens=True)[:CONTEXT] or [0]
        with torch.no_grad():
            mean = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0)
        expected.append((mean / mean.norm()).numpy())
    ours = embed(opened, TEXTS, CONTEXT, 4)
    assert ours.dtype == np.float32 and len(expected[-4]) == opened.model.config.n_embd
    near(ours, expected)


@every_family
def test_embed_is_invariant_to_batch_size_and_order(opened):
    plain = embed(opened, TEXTS, CONTEXT, 1)
    near(embed(opened, TEXTS, CONTEXT, 3), plain)
    near(embed(opened, TEXTS, CONTEXT, 100), plain)
    near(embed(opened, TEXTS[::-1], CONTEXT, 4)[::-1], plain)
    near(np.linalg.norm(plain, axis=1), np.ones(len(TEXTS), np.float32))


def test_equal_texts_have_equal_bits_and_no_texts_no_rows(opened):
    twice = embed(opened, TEXTS + TEXTS, CONTEXT, 5)
    assert (twice[: len(TEXTS)] == twice[len(TEXTS) :]).all()
    assert embed(opened, [], CONTEXT, 5).shape == (0, 32)


def test_embed_dropout_is_off_and_the_mode_is_put_back(opened):
    opened.model.train()
    try:
        assert (embed(opened, TEXTS, CONTEXT, 4) == embed(opened, TEXTS, CONTEXT, 4)).all()
        assert opened.model.training
    finally:
        opened.model.eval()


def test_embed_refuses_what_is_not_finite(model_dir):
    o = open_model(str(model_dir), "cpu", "fp32")
    with torch.no_grad():
        o.model.transformer.wte.weight[o.tokenizer.prompt("x")[0]] = math.nan
    with pytest.raises(UserError, match="text 2 has a non-finite embedding in fp32.*'x'"):
        embed(o, ["of", "x", "of"], CONTEXT, 4)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_embed_in_half_precision_is_near_fp32(opened, model_dir, dtype):
    half = embed(open_model(str(model_dir), "cpu", dtype), TEXTS, CONTEXT, 4)
    exact = embed(opened, TEXTS, CONTEXT, 4)
    assert half.dtype == np.float32 and (half != exact).any()
    assert ((half * exact).sum(1) > 0.999).all()


# --- the cache ----------------------------------------------------------------------------------------------


def test_embeddings_are_computed_once(opened, cache, no_model):
    made = passage_embeddings(opened, TEXTS, CONTEXT, 4)
    assert isinstance(made, np.memmap) and made.dtype == np.float32
    near(made, embed(opened, TEXTS, CONTEXT, 4))
    assert sorted(p.name for p in next(cache.iterdir()).iterdir()) == ["meta.json", "rows.npy"]
    no_model()
    assert (passage_embeddings(opened, TEXTS, CONTEXT, 2) == made).all()
    assert len(list(cache.iterdir())) == 1  # nothing unfinished beside it


def test_whatever_changes_the_values_changes_the_key(opened, cache, bpe_dir, tmp_path, no_model):
    passage_embeddings(opened, TEXTS, CONTEXT, 4)
    other = tmp_path / "other"
    make_hf_model(other, bpe_dir, n_layer=1)
    tokenizer = type("Other", (), {"hash": "another"})
    no_model()
    for o, texts, context in (
        (open_model(str(other), "cpu", "fp32"), TEXTS, CONTEXT),
        (replace(opened, tokenizer=tokenizer), TEXTS, CONTEXT),
        (replace(opened, dtype="bf16"), TEXTS, CONTEXT),
        (replace(opened, quantize="nf4"), TEXTS, CONTEXT),
        (replace(opened, device=torch.device("meta")), TEXTS, CONTEXT),
        (opened, TEXTS, CONTEXT - 1),
        (opened, TEXTS[::-1], CONTEXT),
        (opened, TEXTS[:-1], CONTEXT),
        (opened, [TEXTS[0] + TEXTS[1], "", *TEXTS[2:]], CONTEXT),
    ):
        with pytest.raises(AssertionError, match="the model was asked"):
            passage_embeddings(o, texts, context, 4)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "no meta", "meta is no object", "a file in its place"]
)
def test_a_damaged_file_is_made_anew(opened, cache, no_model, damage):
    made = np.array(passage_embeddings(opened, TEXTS, CONTEXT, 4))
    directory = next(cache.iterdir())
    rows, meta = directory / "rows.npy", directory / "meta.json"
    raw = rows.read_bytes()
    if damage == "truncated":
        rows.write_bytes(raw[:-100])
    elif damage == "flipped":
        rows.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "no meta":
        meta.unlink()
    elif damage == "meta is no object":
        meta.write_text("[]")
    else:
        rows.unlink(), meta.unlink(), directory.rmdir()
        directory.write_text("")
    assert (passage_embeddings(opened, TEXTS, CONTEXT, 4) == made).all()
    assert rows.read_bytes() == raw and meta.exists()
    no_model()
    passage_embeddings(opened, TEXTS, CONTEXT, 4)


def test_what_a_killed_process_left_is_no_hindrance(opened, cache, monkeypatch):
    def die(*args, out, **kwargs):
        out[:] = 7
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(module, "embed", die)
        passage_embeddings(opened, TEXTS, CONTEXT, 4)
    assert not list(cache.iterdir())
    near(passage_embeddings(opened, TEXTS, CONTEXT, 4), embed(opened, TEXTS, CONTEXT, 4))


def test_one_computes_and_the_others_wait(opened, cache, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "embed", lambda *args, **kwargs: calls.append(args) or embed(*args, **kwargs))
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: passage_embeddings(opened, TEXTS, CONTEXT, 4), range(3))
    assert len(calls) == 1 and all((o == first).all() for o in others)


def test_a_cache_that_cannot_be_written(opened, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="NANOMED_CACHE"):
        passage_embeddings(opened, TEXTS, CONTEXT, 4)


# --- the best -----------------------------------------------------------------------------------------------


def unit_rows(n, seed):
    rows = np.random.default_rng(seed).normal(size=(n, 100))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 50, 113, 8192])
def test_nearest_against_a_full_sort(chunk):
    distinct = unit_rows(60, 0)
    which = np.random.default_rng(1).integers(60, size=113)  # many rows are there twice or more
    matrix, queries = distinct[which], unit_rows(9, 2)
    cosines = (queries.astype(np.float64) @ distinct.T.astype(np.float64))[:, which]
    expected = np.argsort(-cosines, axis=1, kind="stable")
    for k in (1, 5, 40, 113):
        found = nearest(matrix, queries, k, chunk)
        assert found.dtype == np.int64 and (found == expected[:, :k]).all()
    assert (
        nearest(matrix, queries[:1], 113, chunk) == expected[:1]
    ).all()  # one query is another kind of product
    assert nearest(matrix, queries[:0], 5, chunk).shape == (0, 5)


def naive_bm25(passages, queries, k1=1.5, b=0.75):
    """Scores (Q, N) in float64, word by word."""

    def words(text):
        return [w for w in re.findall(r"\b\w+\b", text.lower()) if w not in STOPWORDS_EN]

    counts = [Counter(words(p)) for p in passages]
    lengths = [sum(c.values()) for c in counts]
    mean, n = sum(lengths) / len(passages), len(passages)
    scores = np.zeros((len(queries), n))
    for q, query in enumerate(queries):
        for word in words(query):
            df = sum(word in c for c in counts)
            for i, c in enumerate(counts):
                if c[word]:
                    idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
                    scores[q, i] += idf * c[word] / (c[word] + k1 * (1 - b + b * lengths[i] / mean))
    return scores


def test_bm25_against_the_formula():
    passages = [*make_texts(60, 31), "", "the of and"]
    passages += passages[10:20]  # ties
    queries = [*make_texts(12, 32, 1, 8), "The PATIENT, the patient; liver"]
    scores = naive_bm25(passages, queries)
    found = bm25(passages, queries, len(passages))
    assert found.dtype == np.int64 and (np.sort(found, 1) == np.arange(len(passages))).all()
    for row, order in zip(scores, found, strict=True):
        values = row[order]
        assert (
            np.diff(values) <= 1e-5 * row.max()
        ).all()  # best first; float32 may swap what is as good as equal
        assert (np.diff(order)[values[:-1] == values[1:]] > 0).all()
    assert (bm25(passages, queries, 7) == found[:, :7]).all()


def test_words_of_one_character_are_words():
    passages = [
        f"{name} is an infection of the liver"
        for name in ("Hepatitis A", "Hepatitis B", "Hepatitis C", "Type 2", "β")
    ]
    queries = [
        "What is hepatitis C?",
        "What is hepatitis B?",
        "What is hepatitis A?",
        "type 2 infection",
        "the β liver",
    ]
    assert bm25(passages, queries, 1)[:, 0].tolist() == [2, 1, 0, 3, 4]
    both = ["A liver with a fever", "vitamin A"]
    assert bm25(both, ["Vitamin", "is A fever", "a", "A"], 1)[:, 0].tolist() == [
        1,
        0,
        0,
        0,
    ]  # an article is no word


def test_bm25_of_queries_and_corpora_without_words(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    passages = make_texts(5, 33)
    assert bm25(passages, ["", "the of", "zebra"], 3).tolist() == [[0, 1, 2]] * 3
    assert bm25(["", "the", ""], ["liver", ""], 2).tolist() == [[0, 1]] * 2
    assert bm25(passages, [], 3).shape == (0, 3)
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_retrieve(opened, cache):
    passages = [t for t in TEXTS if t]
    assert (retrieve("bm25", None, passages, TEXTS[:3], 4, CONTEXT, 4) == bm25(passages, TEXTS[:3], 4)).all()
    found = retrieve("embeddings", opened, passages, passages[::-1], 4, CONTEXT, 4)
    assert found.shape == (len(passages), 4)
    assert found[:, 0].tolist() == list(range(len(passages)))[::-1]  # each is nearest to itself
    for way in ("bm25", "embeddings"):
        with pytest.raises(UserError, match=f"--retrieve 20: the corpus has {len(passages)} passages"):
            retrieve(way, opened, passages, TEXTS, 20, CONTEXT, 4)


# --- how well -----------------------------------------------------------------------------------------------


def test_recall_by_hand():
    found = np.array([[3, 1, 2, 0], [1, 0, 3, 2], [0, 1, 2, 3], [2, 0, 1, 3], [0, 1, 2, 3]])
    result = recall(found, [3, 3, None, 9, 3])
    assert result["questions"] == 4
    assert result["recall"] == {"1": 0.25, "2": 0.25, "3": 0.5, "4": 0.75}
    assert result["recall_ci95"].keys() == result["recall"].keys()
    for k, (low, high) in result["recall_ci95"].items():
        assert 0 <= low <= result["recall"][k] <= high <= 1
    assert recall(found, [None] * 5) is None
    one = recall(found[:, :1], [3, None, None, None, None])
    assert one == {"questions": 1, "recall": {"1": 1.0}, "recall_ci95": {"1": None}}


@pytest.mark.parametrize(
    ("K", "steps"),
    [(1, [1]), (10, [1, 2, 3, 5, 10]), (12, [1, 2, 3, 5, 10, 12]), (100, [1, 2, 3, 5, 10, 20, 50, 100])],
)
def test_recall_is_said_for_these_k(K, steps):
    result = recall(np.arange(2 * K).reshape(2, K), [K - 1, K])
    assert list(map(int, result["recall"])) == steps
    assert result["recall"][str(K)] == 1


def test_right_passages():
    passages = ["a b", "c", " a\n b ", "", "d"]
    assert right_passages(passages, ["a  b", None, "d\n", "e", "", "C"]) == [0, None, 4, None, 3, None]


def test_the_right_passage_is_found_by_a_copy_of_it(opened, cache):
    passages = make_texts(30, 41, 10, 30)
    right = right_passages(passages, [" ".join(["", *p.split(), ""]) for p in passages])
    assert right == list(range(30))
    for way in ("bm25", "embeddings"):
        assert recall(retrieve(way, opened, passages, passages, 5, CONTEXT, 8), right)["recall"]["1"] == 1
