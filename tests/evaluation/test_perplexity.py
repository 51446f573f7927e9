"""Perplexity against transformers and lm-eval, and what must not change it."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import transformers

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation.perplexity import perplexity, ppl_interval, windows_of
from nanomed.models.attention import Mask
from nanomed.models.lora import LoRAConfig, inject
from nanomed.precision import evaluating
from nanomed.text.corpus import Selection, encode_corpus
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import every_family, linears, lm_eval, make_texts, write_jsonl

CPU = torch.device("cpu")
TEXTS = [
    *make_texts(7, 11, 3, 15),
    *make_texts(3, 12, 80, 160),
    "x",
    "é🙂 β-cell",
    *make_texts(2, 13, 40, 70),
]


@pytest.fixture(scope="module")
def model(model_dir):
    return hub.load_model(hub.find(str(model_dir)))


@pytest.fixture(scope="module")
def corpus(bpe_dir, tmp_path_factory):
    return encode_corpus(
        str(write_jsonl(tmp_path_factory.mktemp("d") / "t.jsonl", TEXTS)), load_tokenizer(bpe_dir)
    )


def score(model, corpus, context=64, stride=32, batch_size=4, **kwargs):
    return perplexity(model, [corpus.all()], context, stride, batch_size, CPU, "fp32", **kwargs)


def reference(model_dir, texts, context, stride):
    """The same definition, window by window, with transformers alone; (nll, tokens) of each document."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    results = []
    for text in texts:
        ids = torch.tensor([[0, *tokenizer.encode(text, split_special_tokens=True)]])
        nll, count, scored = 0.0, 0, 1
        for start in range(0, ids.size(1), stride):
            end = min(start + context, ids.size(1))
            labels = ids[:, start:end].clone()
            labels[:, : scored - start] = -100
            if (n := int((labels[:, 1:] != -100).sum())) > 0:
                with torch.no_grad():
                    nll += theirs(ids[:, start:end], labels=labels).loss.item() * n
            count, scored = count + n, end
            if end == ids.size(1):
                break
        assert count == ids.size(1) - 1
        results.append((nll, count))
    return np.array(results)


@pytest.mark.parametrize(
    ("model_dir", "context", "stride"),
    [
        *(("gpt2", *windows) for windows in ((64, 32), (64, 63), (17, 5), (64, 1), (2, 1))),
        ("gpt_neo", 17, 5),
        ("llama", 17, 5),
    ],
    indirect=["model_dir"],
)
def test_against_transformers(model, model_dir, corpus, context, stride):
    if stride == 1:  # one window a token: a few documents will do
        corpus = encode_subset(corpus, 4)
        texts = TEXTS[:4]
    else:
        texts = TEXTS
    expected = reference(model_dir, texts, context, stride)
    result = score(model, corpus, context, stride)
    assert result["nll"] == pytest.approx(expected[:, 0].sum(), rel=1e-5)
    assert result["tokens_scored"] == expected[:, 1].sum()


def encode_subset(corpus, n):
    class Part:  # what score() needs of a corpus
        all = staticmethod(lambda: Selection(corpus, np.arange(n)))

    return Part


@every_family
def test_against_lm_eval(model_dir, model, bpe_dir, tmp_path):
    texts = [
        t for t in TEXTS if len(load_tokenizer(bpe_dir).encode(t)) <= 63
    ]  # longer ones it cuts otherwise
    assert len(texts) >= 5
    theirs = -sum(lm_eval(model_dir, "loglikelihood_rolling", [(t,) for t in texts]))
    corpus = encode_corpus(str(write_jsonl(tmp_path / "t.jsonl", texts)), load_tokenizer(bpe_dir))
    assert score(model, corpus)["nll"] == pytest.approx(theirs, rel=1e-5)


@every_family
def test_invariant_to_batch_size_and_order(model, corpus):
    plain = score(model, corpus, batch_size=1)
    n = len(corpus.documents)
    for other in (
        score(model, corpus, batch_size=3),
        score(model, corpus, batch_size=100),
        perplexity(model, [Selection(corpus, np.arange(n)[::-1])], 64, 32, 4, CPU, "fp32"),
        perplexity(
            model,
            [Selection(corpus, np.arange(5)), Selection(corpus, np.arange(5, n))],
            64,
            32,
            4,
            CPU,
            "fp32",
        ),
    ):
        assert other["nll"] == pytest.approx(plain["nll"], rel=1e-6)
        assert other["tokens_scored"] == plain["tokens_scored"]


@every_family
def test_padding_on_the_left_would_give_the_same(model, corpus):
    """The evaluator pads on the right, where causal attention does not look; under a mask, with positions
    that count real tokens, so does the other side."""
    selection = corpus.all()
    documents = [
        torch.from_numpy(selection.ids(k)[:40].astype(np.int64)) for k in range(len(selection.indices))
    ]
    T = max(map(len, documents)) - 1
    idx, real = (
        torch.zeros(len(documents), T, dtype=torch.long),
        torch.zeros(len(documents), T, dtype=torch.bool),
    )
    for row, ids in enumerate(documents):
        idx[row, T + 1 - len(ids) :], real[row, T + 1 - len(ids) :] = ids[:-1], True
    mask = torch.ones(T, T, dtype=torch.bool).tril() & real[:, None, :] | torch.eye(T, dtype=torch.bool)
    with evaluating(model):
        left = model(idx, (real.long().cumsum(1) - 1).clamp(min=0), Mask(mask[:, None])).log_softmax(-1)
        nll = -sum(
            left[row, T + 1 - len(ids) :].gather(1, ids[1:, None]).sum() for row, ids in enumerate(documents)
        )
        right = -sum(
            model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None]).sum() for ids in documents
        )
    assert nll.item() == pytest.approx(right.item(), rel=1e-5)


def test_every_token_is_scored_once_and_has_a_predecessor():
    for length in (1, 2, 3, 7, 8, 9, 40):
        for context in (2, 3, 8):
            for stride in range(1, context):
                seen = []
                for _, start, end, scored in windows_of(np.array([length]), context, stride):
                    assert start % stride == 0 and end - start <= context and start < scored < end
                    seen += range(scored, end)
                assert sorted(seen) == list(range(1, length)), (length, context, stride)


@every_family
def test_documents_do_not_leak_into_each_other(model, corpus, bpe_dir, tmp_path):
    alone = []
    for i, text in enumerate(TEXTS):
        part = encode_corpus(str(write_jsonl(tmp_path / f"{i}.jsonl", [text])), load_tokenizer(bpe_dir))
        alone.append(score(model, part)["nll"])
    assert score(model, corpus)["nll"] == pytest.approx(sum(alone), rel=1e-6)


def test_the_figures_belong_together(model, corpus):
    r = score(model, corpus)
    assert r["loss"] == r["nll"] / r["tokens_scored"] and r["ppl"] == math.exp(r["loss"])
    text = "\n".join(TEXTS)
    n_bytes, n_words = len(text.encode()) - len(TEXTS) + 1, len(text.split())
    assert r["bits_per_byte"] == pytest.approx(r["nll"] / math.log(2) / n_bytes)
    assert r["word_ppl"] == pytest.approx(math.exp(r["nll"] / n_words))
    assert r["documents"] == len(TEXTS)
    assert r["ppl_ci95"][0] < r["ppl"] < r["ppl_ci95"][1]


def test_bootstrap_covers_the_truth_about_95_times_in_100():
    """Documents of unequal length from a known distribution: the interval must hold its corpus perplexity."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        tokens = rng.integers(20, 200, 80)
        nll = tokens * rng.normal(3.0, 0.4, 80)
        low, high = ppl_interval(nll, tokens, seed=trial)
        hits += low <= math.exp(3.0) <= high
    assert 0.88 <= hits / 100 <= 0.99
    assert ppl_interval(np.array([3.0]), np.array([1])) is None


@every_family
def test_eval_mode_is_entered_and_restored_adapter_dropout_included(model_dir, corpus):
    model = hub.load_model(hub.find(str(model_dir)))
    inject(model, LoRAConfig(2, 4.0, 0.5, linears(model)))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    assert model.training
    assert score(model, corpus)["nll"] == score(model, corpus)["nll"]
    assert all(m.training for m in model.modules())
    model.eval()
    score(model, corpus)
    assert not any(m.training for m in model.modules())


def test_badwindows_of_and_empty_documents(model, corpus, bpe_dir, tmp_path):
    for context, stride in ((64, 64), (64, 0), (1, 1), (65, 32)):
        with pytest.raises(UserError):
            score(model, corpus, context, stride)
    with pytest.raises(UserError, match="no documents there; 2 are without text"):
        encode_corpus(str(write_jsonl(tmp_path / "e.jsonl", ["", ""])), load_tokenizer(bpe_dir))
    some = encode_corpus(
        str(write_jsonl(tmp_path / "s.jsonl", ["", *TEXTS[:2], " "])), load_tokenizer(bpe_dir)
    )
    two = encode_corpus(str(write_jsonl(tmp_path / "o.jsonl", TEXTS[:2])), load_tokenizer(bpe_dir))
    timed = ("seconds", "tokens_per_s")
    found = [{k: v for k, v in score(model, c).items() if k not in timed} for c in (some, two)]
    assert found[0] == found[1] and some.sha256 == two.sha256


def test_a_non_finite_loss_names_the_document(model_dir, corpus):
    model = hub.load_model(hub.find(str(model_dir)))
    with torch.no_grad():
        model.transformer.wte.weight[corpus.all().ids(2)[1].item()] = float("nan")
    with pytest.raises(UserError, match="document 1 has a non-finite loss in fp32; .* or a training's rate"):
        score(model, corpus)


@every_family
def test_bf16_is_near_fp32(model, corpus):
    exact = score(model, corpus)
    rounded = perplexity(model, [corpus.all()], 64, 32, 4, CPU, "bf16")
    assert rounded["dtype"] == "bf16" and rounded["loss"] != exact["loss"]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=5e-3)


def test_eval_ppl_writes_the_whole_block(script, model_dir, tmp_path):
    data = write_jsonl(tmp_path / "t.jsonl", TEXTS)
    out = script(
        "eval.py",
        "ppl",
        "--model",
        model_dir,
        "--data",
        data,
        "--context",
        32,
        "--stride",
        8,
        "--dtype",
        "fp32",
        "--json",
        "r.json",
    )
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    assert r.keys() >= {
        "loss",
        "ppl",
        "nll",
        "tokens_scored",
        "bits_per_byte",
        "word_ppl",
        "documents",
        "ppl_ci95",
        "context",
        "stride",
        "dtype",
        "data_sha256",
        "model",
    }
    assert (r["context"], r["stride"], r["dtype"], r["model"]) == (32, 8, "fp32", str(model_dir))
    assert r["data_sha256"] == hashlib.sha256(b"".join(t.encode() + b"\0" for t in TEXTS)).hexdigest()
    expected = reference(model_dir, TEXTS, 32, 8)
    assert r["loss"] == pytest.approx(expected[:, 0].sum() / expected[:, 1].sum(), rel=1e-5)
    limited = script("eval.py", "ppl", "--model", model_dir, "--data", data, "--limit", 2, "--json", "r.json")
    assert limited.returncode == 0 and json.loads((tmp_path / "r.json").read_text())["documents"] == 2


def test_a_perplexity_beyond_floats_is_infinite_and_no_crash(model_dir, corpus):
    model = hub.load_model(hub.find(str(model_dir)))
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(1e6)
    found = score(model, corpus)
    assert found["ppl"] == math.inf and found["ppl_ci95"] == [math.inf] * 2
