"""SmolLM2's, Llama 3's, Llama 2's and Qwen's kinds of tokenizer: ids identical to the `tokenizers` library's
on any valid Unicode, and which tokens stand for beginning, end and padding."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nanomed.errors import Unencodable, UserError
from nanomed.evaluation import measure
from nanomed.text.byte_level import BYTE_OF, LLAMA3_REGEX
from nanomed.text.corpus import encode_corpus
from nanomed.text.library import Library
from nanomed.text.tokenizer import EOT, load_tokenizer
from tests.conftest import WORDS, assert_refused, lm_eval, make_hf_model, make_texts, write_jsonl
from tests.text.test_tokenizer import EDGES

PARTS = [
    "qjjq",
    "zqxwv",
    "qjjqq",
    " ",
    "  ",
    "\n",
    "\r\n",
    " \n ",
    "'s",
    "'S",
    "'LL",
    "'ſ",
    "1",
    "12",
    "1234",
    " 5",
    "  6",
    "aaaa",
    "ababab",
    EOT,
    "<s>",
    *WORDS,
]
TEXTS = st.lists(st.text() | st.sampled_from([*PARTS, *WORDS]), max_size=12).map("".join)
ABSENT = [0x04, 0x06, 0x13, 0xF1]  # of the bytes that SmolLM2 has no token for
QWEN_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")


def texts():
    return make_texts(300, seed=1) + ["aaaa aaaaaaaa ababababab 1234567 12 éé é"] * 30


def trained(pre, special: list[str], normalizer=None, alphabet=None) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre, decoders.ByteLevel()
    if normalizer:
        bpe.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts(), trainer)
    return bpe


def write(bpe: Tokenizer, out, change=lambda spec: None, **config):
    bpe.save(str(out / "tokenizer.json"))
    spec = json.loads((out / "tokenizer.json").read_text())
    change(spec)
    (out / "tokenizer.json").write_text(json.dumps(spec))
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    return out


def smollm2(out):
    alphabet = sorted(c for c, b in BYTE_OF.items() if b not in ABSENT)
    pre = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe = trained(pre, [EOT, "<|im_start|>", "<|im_end|>"], alphabet=alphabet)
    return write(bpe, out, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")


def llama3(out):
    """Merges as the conversion from tiktoken's file writes them: every split of every token whose parts are
    tokens."""
    split = pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated")
    bpe = trained(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        [],
    )
    spec, merges = json.loads(bpe.to_str()), []
    vocab = spec["model"]["vocab"]
    # As in the real one: a token that no merging leads to ("jj" would be merged first), and one that no pair
    # makes.
    for token in ("jj", "qj", "jq", "qjjq", "zqxwv"):
        vocab[token] = len(vocab)
    for token in sorted(vocab, key=vocab.get):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [p for p in pairs if p[0] in vocab and p[1] in vocab]
        merges += sorted(pairs, key=lambda p: (vocab[p[0]], vocab[p[1]]))
    assert len(merges) > len(spec["model"]["merges"])
    spec["model"].update(merges=merges, ignore_merges=True)
    bpe = Tokenizer.from_str(json.dumps(spec))
    bpe.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    begin = ("<|begin_of_text|>", bpe.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[begin])
    bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return write(bpe, out, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def llama2(out):
    """SentencePiece's kind: blanks are a letter, bytes that have no token are spelled <0x..>."""
    special = ["<unk>", "<s>", "</s>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special + pieces, show_progress=False)
    bpe.train_from_iterator(texts(), trainer)
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(strip)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])

    def plain_bytes(spec):
        spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in special]

    return write(bpe, out, plain_bytes, bos_token="<s>", eos_token={"content": "</s>"}, add_bos_token=True)


def metaspace(out, scheme: str):
    """The same vocabulary, its blank put in front by the pre-tokenizer: of a text alone, or of each part
    between special tokens."""
    llama2(out)
    spec = json.loads((out / "tokenizer.json").read_text())
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme,
        "split": scheme == "always",
    }
    (out / "tokenizer.json").write_text(json.dumps(spec))
    return out


def mistral(out):
    return metaspace(out, "first")


def tinyllama(out):
    return metaspace(out, "always")


def qwen(out):
    split = pre_tokenizers.Split(Regex(QWEN_REGEX), "isolated")
    pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe = trained(pre, [EOT, "<|im_end|>"], normalizer=normalizers.NFC())
    return write(bpe, out, bos_token=None, eos_token="<|im_end|>", pad_token=EOT)


def gemma(out):
    """SentencePiece's kind without a blank before a text; line ends and blanks in a row are added tokens that
    are no special ones, and so is what was never used."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    plain = ["<unused0>", "\n\n", "▁▁"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    pieces = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special + plain + pieces, show_progress=False
    )
    bpe.train_from_iterator(texts(), trainer)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])

    added = [t for t in json.loads(bpe.to_str())["added_tokens"] if t["content"] in special + plain]
    added = [t | {"special": t["content"] in special} for t in added]
    decoder = {str(t["id"]): {key: value for key, value in t.items() if key != "id"} for t in added}
    names = {f"{part}_token": f"<{part}>" for part in ("bos", "eos", "pad", "unk")}
    names |= {"add_bos_token": True, "added_tokens_decoder": decoder}
    return write(bpe, out, lambda spec: spec.update(added_tokens=added), **names)


KINDS = {f.__name__: f for f in (smollm2, llama3, llama2, mistral, tinyllama, qwen, gemma)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in KINDS.items()}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, made):
    directory = made[request.param]
    theirs = Tokenizer.from_file(str(directory / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return load_tokenizer(directory), theirs


def check(ours, theirs, text):
    if not isinstance(ours.codec, Library) and (
        absent := set(text.encode()) & set(ours.codec._without_token)
    ):
        with pytest.raises(Unencodable, match=r"its byte 0x\w\w has no token"):
            ours.encode(text)
        text = "".join(c for c in text if not set(c.encode()) & absent)
    ids = ours.encode(text).tolist()
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_ids_are_those_of_the_library(pair, text):
    check(*pair, text)


@pytest.mark.parametrize("text", [*EDGES, *PARTS, "\x04", "a\U00040000"], ids=repr)
def test_edges(pair, text):
    check(*pair, text)


def test_the_three_tokens(made):
    def roles(name):
        t = load_tokenizer(made[name])
        named = [None if i is None else t.name(i) for i in (t.bos, t.eos, t.pad, t.lead)]
        return (*named, sorted(map(t.name, t.ends)), t.adds_bos)

    im = ("<|im_start|>", "<|im_end|>", "<|im_end|>", EOT, [EOT, "<|im_end|>"], False)
    assert roles("smollm2") == im
    ends = ["<|end_of_text|>"]
    assert roles("llama3") == (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|end_of_text|>",
        "<|begin_of_text|>",
        ends,
        True,
    )
    assert roles("llama2") == ("<s>", "</s>", "</s>", "<s>", ["</s>"], True)
    assert roles("gemma") == ("<bos>", "<eos>", "<pad>", "<bos>", ["<eos>"], True)
    assert roles("qwen") == (None, "<|im_end|>", EOT, EOT, [EOT, "<|im_end|>"], False)


def test_several_ends_of_config_json_are_all_ends(made):
    t = load_tokenizer(made["llama3"])
    eot_id = t.codec and next(i for i in range(t.vocab_size) if t.name(i) == "<|eot_id|>")
    (made["llama3"] / "config.json").write_text(json.dumps({"eos_token_id": [t.eos, eot_id]}))
    try:
        assert load_tokenizer(made["llama3"]).ends == {t.eos, eot_id}
    finally:
        (made["llama3"] / "config.json").unlink()


@pytest.mark.parametrize("name", KINDS)
def test_documents_begin_as_the_kind_does(made, name, tmp_path):
    t = load_tokenizer(made[name])
    corpus = encode_corpus(str(write_jsonl(tmp_path / "d.jsonl", ["acute renal disease"])), t)
    assert corpus.all().ids(0).tolist() == [t.lead, *t.encode("acute renal disease")]


@pytest.mark.parametrize("config", [None, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}])
def test_what_the_command_makes_of_tokenizer_model_gives_sentencepieces_ids(tmp_path, config):
    pytest.importorskip("google.protobuf", reason="the command needs protobuf")
    sentencepiece = pytest.importorskip("sentencepiece", reason="the command needs sentencepiece")
    (tmp_path / "t.txt").write_text("\n".join(texts()))
    how = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "character_coverage": 0.999}
    how |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    where = {"input": str(tmp_path / "t.txt"), "model_prefix": str(tmp_path / "tokenizer")}
    sentencepiece.SentencePieceTrainer.train(**where, **how)
    make_hf_model(tmp_path, family="llama")
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as e:
        load_tokenizer(tmp_path)
    command = str(e.value).partition(" && ")[2].replace("python", sys.executable)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    ours, theirs = (
        load_tokenizer(tmp_path),
        sentencepiece.SentencePieceProcessor(where["model_prefix"] + ".model"),
    )
    for text in [*texts()[:40], "a  b ", "5 mg\n\nx", "北京 é"]:
        assert ours.encode(text).tolist() == theirs.encode(text)
    assert ours.adds_bos and ours.bos == theirs.bos_id()


def test_a_text_without_ids_is_a_bad_row(script, made, tmp_path):
    model = tmp_path / "model"
    make_hf_model(model, family="llama", vocab_size=450)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((made["smollm2"] / name).read_bytes())
    data = write_jsonl(tmp_path / "d.jsonl", ["fine", "a\x04b"])
    out = script("eval.py", "ppl", "--model", model, "--data", data)
    assert_refused(out, "d.jsonl, row 2", "its byte 0x04 has no token", "--skip-bad-rows")
    out = script("eval.py", "ppl", "--model", model, "--data", data, "--skip-bad-rows", "--json", "r.json")
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    assert (r["documents"], r["bad_rows"], r["begins_with"]) == (1, 1, EOT)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "smollm2",
            lambda s: s["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False),
            "pre_tokenizer",
        ),
        ("smollm2", lambda s: s["pre_tokenizer"]["pretokenizers"].reverse(), "pre_tokenizer"),
        ("qwen", lambda s: s.update(normalizer={"type": "Lowercase"}), "normalizer"),
        ("llama2", lambda s: s["model"].update(type="Unigram"), "a Unigram tokenizer"),
    ],
)
def test_what_is_none_of_these_is_refused_by_name(made, tmp_path, name, change, message):
    spec = json.loads((made[name] / "tokenizer.json").read_text())
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_tokenizer_model_alone_and_a_missing_library_are_explained(made, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"tokenizer.model alone is not read; to convert it: .*save_pretrained"
    ):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match=r"import AutoTokenizer; AutoTokenizer.from_pretrained\('.'\).save"):
        load_tokenizer(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'nanomed\[sentencepiece\]'"):
        load_tokenizer(made["llama2"])
    load_tokenizer(made["llama3"])  # needs none


def test_a_document_begins_once_where_lm_eval_begins_twice(tmp_path):
    """Its add_bos_token=False leaves one beginning; the rest of what it says of the same model is ours."""
    model = make_hf_model(tmp_path / "m", family="llama", vocab_size=700)
    llama2(tmp_path / "m")
    file = tmp_path / "m" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "</s>"}))
    text = "a dose of the blood"
    o = measure.open_model(str(tmp_path / "m"), dtype="fp32")
    r = measure.measure_ppl(o, measure.encode(o, [str(write_jsonl(tmp_path / "t.jsonl", [text]))]))
    plain, once = (
        -lm_eval(tmp_path / "m", "loglikelihood_rolling", [(text,)], **how)[0]
        for how in ({}, {"add_bos_token": False})
    )
    assert r["nll"] == pytest.approx(once, rel=1e-5) and r["begins_with"] == "<s>"
    ids = torch.tensor([[1, 1, *o.tokenizer.encode(text).tolist()]])
    log = model(ids).logits[0, :-1].log_softmax(-1)
    assert plain == pytest.approx(-log[range(ids.shape[1] - 1), ids[0, 1:]].sum().item(), rel=1e-5)
