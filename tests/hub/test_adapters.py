"""Adapters as peft writes them, against peft: whatever it is that one changes, the logits are the same
here."""

import ast
import functools
import json
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanomed import hub
from nanomed.errors import UserError
from nanomed.hub import adapters
from nanomed.models.lora import lora_layers
from nanomed.models.quant import dequantise
from tests.conftest import (
    FAMILIES,
    ROOT,
    assert_near,
    assert_refused,
    every_family,
    make_hf_model,
    make_texts,
    write_jsonl,
)

X = torch.arange(40).reshape(2, 20)
TINY = ("--batch-size", 2, "--dtype", "fp32", "--device", "cpu", "--no-compile")
# What the families call the same things.
NAMES = {
    "gpt2": {
        "q": "c_attn",
        "up": "c_fc",
        "embedding": "wte",
        "norm": "ln_f",
        "layers": "h",
        "mlp": "mlp",
        "square": "attn.c_proj",
    },
    "gpt_neo": {
        "q": "q_proj",
        "up": "c_fc",
        "embedding": "wte",
        "norm": "ln_f",
        "layers": "h",
        "mlp": "mlp",
        "square": "k_proj",
    },
    "llama": (
        {
            "q": "q_proj",
            "up": "up_proj",
            "embedding": "embed_tokens",
            "norm": "norm",
            "layers": "layers",
            "mlp": "mlp",
        }
        | {"square": "o_proj"}
    ),
}
NAMES["gemma3_text"] = NAMES["llama"] | {"square": "down_proj"}
PLAIN = {  # loaded beside the layers, and trained on
    "plain": {},
    "rslora": {"use_rslora": True},
    "one-layer": {"layers_to_transform": 1},
    "first-layer": {"layers_to_transform": 0},
    "some-layers": {"layers_to_transform": [0, 2], "layers_pattern": "{layers}"},
    "layers-patterns": {"layers_to_transform": [2], "layers_pattern": ["nothing", "{layers}"]},
    "excluded": {"exclude_modules": ["{layers}.0.{up}", "mlp.{up}"]},
    "excluded-by-expression": {"exclude_modules": r".*\.1\..*"},
    "expression": {"target_modules": r".*\.[12]\..*({q}|{up})"},
    "a-target-too-many": {"target_modules": ["{q}", "{up}", "query_key_value"]},
    "all-linear": {"target_modules": "all-linear"},
    "no-start": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva"},
    "mica": {"init_lora_weights": "mica"},
}
MERGED = {
    "ranks": {"rank_pattern": {"{layers}.0.*{q}": 2, "{up}": 3}},
    "scales": {"alpha_pattern": {"^.*{layers}.1.*{q}": 2}},
    "ranks-and-scales-of-rslora": {
        "use_rslora": True,
        "rank_pattern": {"{q}": 2},
        "alpha_pattern": {"{q}": 3, "{up}": 5},
    },
    "bias-all": {"bias": "all"},
    "bias-of-adapted": {"bias": "lora_only"},
    "dora": {"use_dora": True},
    "dora-rslora-ranks": {"use_dora": True, "use_rslora": True, "rank_pattern": {"{q}": 2}},
    "dora-on-the-embedding": {"use_dora": True, "target_modules": ["{q}", "{embedding}"]},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-rslora": {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"{q}": 2}},
    "olora": {"init_lora_weights": "olora", "target_modules": ["{square}"]},
    "head-saved": {"modules_to_save": ["lm_head"]},
    "embedding-saved": {"modules_to_save": ["{embedding}"]},
    "both-saved": {"modules_to_save": ["{embedding}", "lm_head"]},
    "both-saved-and-tied": {"modules_to_save": ["{embedding}"], "ensure_weight_tying": True},
    "norms-saved": {"modules_to_save": ["{norm}"]},
    "mlp-saved": {"modules_to_save": ["{mlp}"]},
    "bias-and-mlp-saved": {"modules_to_save": ["{mlp}"], "bias": "all"},
    "head-adapted": {"target_modules": ["{q}", "lm_head"]},
    "embedding-adapted": {"target_modules": ["{q}", "{embedding}"]},
    "embedding-adapted-and-head-saved": {
        "target_modules": ["{q}", "{embedding}"],
        "modules_to_save": ["lm_head"],
    },
    "tokens": {"trainable_token_indices": [5, 3]},
    "tokens-of-both": {"trainable_token_indices": {"{embedding}": [5, 3], "lm_head": [5, 3]}},
    "tokens-apart": {"trainable_token_indices": {"{embedding}": [5, 3], "lm_head": [7]}},
    "tokens-of-the-head": {"trainable_token_indices": {"lm_head": [7]}},
    "tokens-tied": {"trainable_token_indices": [5, 3], "ensure_weight_tying": True},
    "resized": {"resized": 403},
    "made-smaller": {"resized": 390},
    "resized-head-saved": {"resized": 403, "modules_to_save": ["lm_head"]},
    "resized-embedding-saved": {"resized": 403, "modules_to_save": ["{embedding}"]},
    "resized-both-saved": {"resized": 403, "modules_to_save": ["{embedding}", "lm_head"]},
    "resized-tokens": {"resized": 403, "trainable_token_indices": [401, 402]},
    "resized-dora": {"resized": 403, "use_dora": True},
}


def named(value, names):
    """A setting with what a family calls things."""
    if isinstance(value, dict):
        return {named(k, names): named(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [named(v, names) for v in value]
    for key, name in names.items() if isinstance(value, str) else ():
        value = value.replace("{" + key + "}", name)
    return value


def stir(theirs):
    """Adapters that do something, in everything that is trained."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if p.requires_grad:
                assert (
                    "bias" in name
                    or "lora_" in name
                    or "modules_to_save" in name
                    or "trainable_tokens" in name
                ), name
                p.add_(torch.randn(p.shape, generator=g) * 0.1)


def write(base, out, resized=None, cls="AutoModelForCausalLM", family="gpt2", **settings):
    """peft's model with an adapter, that has been saved in `out`, in eval mode."""
    torch.manual_seed(0)
    theirs = getattr(transformers, cls).from_pretrained(base)
    if resized:
        theirs.resize_token_embeddings(resized)
    names = NAMES[family]
    defaults = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "target_modules": ["{q}", "{up}"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(**named(defaults | settings, names)))
        stir(theirs)
        theirs.save_pretrained(out)
    return theirs.eval()


def load(directory):
    return hub.load_model(hub.find(str(directory)), dropout=0.0).eval()


@pytest.fixture
def docs(tmp_path):
    return write_jsonl(tmp_path / "docs.jsonl", make_texts(12, 31))


@every_family
@pytest.mark.parametrize("settings", (PLAIN | MERGED).values(), ids=PLAIN | MERGED)
def test_the_logits_are_pefts(model_dir, tmp_path, settings, request):
    theirs = write(model_dir, tmp_path, family=request.node.callspec.params["model_dir"], **settings)
    ours, x = load(tmp_path), X.clone()
    x[:, 5:7] = torch.tensor([settings.get("resized", 400) - 2, 3])
    assert_near(ours(x), theirs(x).logits)
    assert bool(ours.lora) == (settings in PLAIN.values()) == bool(lora_layers(ours))


# What touches the embedding or the head, which Llama's has of its own, unless its config ties them.
ENDS = [
    s
    for s in MERGED.values()
    if any("embedding" in str(v) or "lm_head" in str(v) for v in s.values()) or "resized" in s
]


@pytest.mark.parametrize(
    "settings", [*ENDS, *(s for s in MERGED.values() if "trainable_token_indices" in s)], ids=str
)
def test_a_tied_head_is_untied_as_peft_does(tmp_path, settings):
    make_hf_model(tmp_path / "base", family="llama", tie_word_embeddings=True)
    theirs = write(tmp_path / "base", tmp_path / "a", family="llama", **settings)
    assert_near(load(tmp_path / "a")(X), theirs(X).logits)


def test_a_bias_of_the_adapter_is_added_where_the_layer_has_one(model_dir, tmp_path):
    theirs = write(model_dir, tmp_path, lora_bias=True, use_rslora=True)
    assert_near(load(tmp_path)(X), theirs(X).logits)


def test_over_quantised_weights_it_is_merged_into_what_the_codes_stand_for(script, model_dir, docs, tmp_path):
    plain = hub.load_model(hub.find(str(model_dir)), quantize="nf4")
    dequantise(plain)
    hub.save_model(plain, tmp_path / "base", model_dir)
    theirs = write(tmp_path / "base", tmp_path / "a", use_dora=True)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(model_dir)})
    )
    ours = hub.load_model(hub.find(str(tmp_path / "a")), quantize="nf4").eval()
    assert_near(ours(X), theirs(X).logits)
    flags = ("--quantize", "nf4", "--lora-r", 4, "--max-steps", 1, *TINY)
    assert_refused(
        script("train_clm.py", "--model", "a", "--data", docs, "--out", "b", *flags),
        "more than plain LoRA",
        "none",
    )


# --- classifiers --------------------------------------------------------------------------------------------


SEQ_CLS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "norm": {"modules_to_save": ["{norm}"]},
    "all-linear": {"target_modules": "all-linear"},
    "resized": {"resized": 403},
}


@every_family
@pytest.mark.parametrize("settings", SEQ_CLS.values(), ids=SEQ_CLS)
def test_a_classifier_over_a_language_model(model_dir, tmp_path, settings, request, monkeypatch):
    family = request.node.callspec.params["model_dir"]
    theirs = write(model_dir, tmp_path, **as_classifier(monkeypatch, 3), family=family, **settings)
    ours = hub.load_classifier(hub.find(str(tmp_path))).eval()
    assert ours.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert_near(ours(X, torch.tensor([20, 20])), theirs(X).logits)


@every_family
@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_a_classifier_over_a_classifier(tmp_path, bpe_dir, request, task, monkeypatch, model_dir):
    """With the base's labels; and without a head of its own, where peft was not told that it is a
    classifier."""
    family = request.node.callspec.params["model_dir"]
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "pad_token_id": 0}
    make_hf_model(tmp_path / "base", bpe_dir, FAMILIES[family][0][2], family=family, **names)
    settings = as_classifier(monkeypatch, None) | {"task_type": task}
    theirs = write(tmp_path / "base", tmp_path / "a", family=family, **settings)
    ours = hub.load_classifier(hub.find(str(tmp_path / "a"))).eval()
    assert ours.labels == ["no", "yes"]
    assert_near(ours(X, torch.tensor([20, 20])), theirs(X).logits)
    if task:  # the base has a head too, but that is not the one
        file = tmp_path / "a" / "adapter_model.safetensors"
        save_file(changed(load_file(file), **{"score.weight": None}), file)
        with pytest.raises(UserError, match="tensor score.weight is missing"):
            hub.load_classifier(hub.find(str(tmp_path / "a")))


def as_classifier(monkeypatch, labels: int | None) -> dict:
    cls, more = transformers.AutoModelForSequenceClassification, {"num_labels": labels} if labels else {}
    made = functools.partial(cls.from_pretrained, pad_token_id=399, **more)
    monkeypatch.setattr(cls, "from_pretrained", made)
    return {"cls": "AutoModelForSequenceClassification", "task_type": "SEQ_CLS"}


def test_a_classifiers_adapter_is_no_language_models_and_the_other_way_round(
    model_dir, tmp_path, monkeypatch
):
    write(model_dir, tmp_path / "lm")
    write(model_dir, tmp_path / "cls", **as_classifier(monkeypatch, 3))
    with pytest.raises(UserError, match="unexpected tensor score.weight"):
        load(tmp_path / "cls")
    with pytest.raises(UserError, match="not a classifier"):
        hub.load_classifier(hub.find(str(tmp_path / "lm")))


# --- training goes on ---------------------------------------------------------------------------------------


GOES_ON = ["plain", "rslora", "one-layer", "all-linear"]
IS_MERGED = ["dora", "ranks", "bias-all", "pissa", "both-saved", "tokens", "resized"]


@pytest.mark.parametrize("kind", GOES_ON + IS_MERGED)
def test_training_goes_on_from_it(script, model_dir, docs, tmp_path, kind):
    """What is merged is the base of a new adapter; both compute what peft's did, as long as nothing is
    learnt."""
    settings = (PLAIN | MERGED)[kind]
    theirs = write(model_dir, tmp_path / "a", **settings)
    own = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    flags = [
        "--lora-r",
        4,
        "--lora-alpha",
        6,
        "--lora-targets",
        "c_attn,c_fc",
        "--max-steps",
        1,
        "--lr",
        1e-30,
    ]
    flags += ["--lora-scale", "rslora"] if own["use_rslora"] else []
    if kind == "all-linear":
        flags[5] = "all-linear"
    if kind == "one-layer":
        flags[5] = "h.1.attn.c_attn,h.1.mlp.c_fc"
    done = script("train_clm.py", "--model", "a", "--data", docs, "--out", "b", *flags, *TINY)
    assert done.returncode == 0, done.stderr
    assert ("the adapter goes on" in done.stdout) == (kind in GOES_ON), done.stdout
    assert ("more than a plain LoRA adapter" in done.stdout) == (kind in IS_MERGED)
    assert (tmp_path / "b" / "base").exists() == (kind in IS_MERGED)
    assert_near(load(tmp_path / "b")(X), theirs(X).logits)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "b" / "base" if kind in IS_MERGED else model_dir
    )
    assert_near(peft.PeftModel.from_pretrained(base, tmp_path / "b").eval()(X).logits, theirs(X).logits)
    if kind in ("both-saved", "resized"):  # merged at the end, and trained whole
        for name, more in {"c": [*flags, "--merge"], "d": ["--max-steps", 1, "--lr", 1e-30]}.items():
            done = script("train_clm.py", "--model", "a", "--data", docs, "--out", name, *more, *TINY)
            assert done.returncode == 0, done.stderr
            assert_near(
                transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)(X).logits, theirs(X).logits
            )


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["plain", "dora"])
@pytest.mark.parametrize(
    "flags", [(), ("--lora-r", 4, "--lora-alpha", 6, "--lora-targets", "c_attn,c_fc")], ids=["whole", "lora"]
)
def test_a_classifiers_training_goes_on_with_its_head(
    script, model_dir, tmp_path, settings, flags, monkeypatch
):
    theirs = write(model_dir, tmp_path / "a", **as_classifier(monkeypatch, 3), **settings)
    rows = [{"text": text, "label": f"LABEL_{k % 2 + 1}"} for k, text in enumerate(make_texts(20, 5))]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    still = ("--max-steps", 1, "--lr", 1e-30, *TINY)
    done = script("train_cls.py", "--model", "a", "--data", "d.jsonl", "--out", "b", *still, *flags)
    assert done.returncode == 0, done.stderr
    assert "a: its head goes on, for the labels that there are here" in done.stdout
    ours = hub.load_classifier(hub.find(str(tmp_path / "b"))).eval()
    assert ours.labels == ["LABEL_1", "LABEL_2"]
    assert_near(ours(X, torch.tensor([20, 20])), theirs(X).logits[:, 1:])
    if not settings and not flags:
        both = ("--positives", "d.jsonl", "--negatives", "d.jsonl")
        done = script("train_cls.py", "--model", "b", *both, "--out", "c", *still)
        assert "a new head, since its own is of other labels (LABEL_1, LABEL_2)" in done.stdout, done.stderr


@every_family
def test_our_own_of_all_linear_layers_and_rslora(script, model_dir, docs, tmp_path, request):
    flags = ("--lora-r", 4, "--lora-scale", "rslora", "--lora-targets", "all-linear", "--max-steps", 2)
    done = script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "a", *flags, *TINY)
    assert done.returncode == 0, done.stderr
    base = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    theirs, ours = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval(), load(tmp_path / "a")
    assert_near(ours(X), theirs(X).logits)
    adapted = {n.rpartition(".")[2] for n in lora_layers(ours)}
    assert adapted == set(FAMILIES[request.node.callspec.params["model_dir"]][2])
    assert {layer.scale for layer in lora_layers(ours).values()} == {8 / 2}  # alpha = 2 r, divided by sqrt(r)
    again = script("train_clm.py", "--model", "a", "--data", docs, "--out", "b", *flags, *TINY)
    assert "the adapter goes on" in again.stdout, again.stderr


# --- what is refused ----------------------------------------------------------------------------------------


KIND = None  # of a value: the file and the key are named
REFUSED = {
    "init_lora_weights": [
        ("pissa_niter_4", "drawn anew, at random, at each load.*path_initial_model_for_weight_conversion"),
        ("corda", "a data set that the adapter does not hold.*path_initial_model_for_weight_conversion"),
        ("lora_ga", "gradients that the adapter does not hold.*path_initial_model_for_weight_conversion"),
        ("loftq", "merge it with peft first"),
        (7, KIND),
    ],
    "peft_type": [("IA3", "merge it with peft first"), ("PROMPT_TUNING", "if peft can merge it")],
    "layer_replication": [([[0, 2], [1, 3]], "merge it with peft first: PeftModel.from_pretrained")],
    "target_parameters": [(["c_attn.weight"], "merge it with peft first")],
    "use_qalora": [(True, "merge it with peft first")],
    "kasa_config": [({"beta": 0.1}, "merge it with peft first")],
    "alora_invocation_tokens": [([1, 2], "which no weights can say; measure it with peft")],
    "a_key_of_tomorrow": [(1, "merge it with peft first")],
    "bias": [("some", KIND), (True, KIND)],
    "use_dora": [("yes", KIND), (True, "lora_magnitude_vector is missing")],
    "rank_pattern": [
        ({"c_attn": 0}, KIND),
        ({"c_attn": "4"}, KIND),
        ({"c_attn": 10**9}, r"c_attn.lora_A.weight has shape \(4, 32\), not \(1000000000, 32\)"),
        ({"(": 2}, "is no regular expression"),
    ],
    "alpha_pattern": [({"c_attn": -1}, KIND), ([1], KIND)],
    "layers_to_transform": [(-1, KIND), ([7], "leave no layer"), (True, KIND)],
    "layers_pattern": [(["("], "c_fc.lora_A.weight is|no regular expression"), (5, KIND)],
    "exclude_modules": [(["c_attn", "c_fc"], "leave no layer"), (".*", "leave no layer"), ([5], KIND)],
    "modules_to_save": [
        (["lm_head"], "tensor lm_head.weight is missing"),
        (["(.*)*"], KIND),
        (["transformer"], "leave no layer"),
        ("lm_head", KIND),
    ],
    "trainable_token_indices": [
        ([400], r"not different rows of transformer.wte.weight, which has 400"),
        ([3, 3], "not different rows"),
        ([-1], KIND),
        ([3], "transformer.wte.token_adapter.trainable_tokens_delta is missing"),
        ({"wpe": [3]}, "embeddings and heads can be named"),
        ({"nothing": [3]}, "embeddings and heads can be named"),
    ],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model_dir):
    """An adapter of peft's, with layers to choose among: its config, and its directory."""
    d = tmp_path_factory.mktemp("plain")
    write(model_dir, d, layers_to_transform=[0, 1, 2])
    return json.loads((d / "adapter_config.json").read_text()), d


@pytest.mark.parametrize(
    ("key", "value", "message"), [(k, v, m) for k, cases in REFUSED.items() for v, m in cases]
)
def test_what_is_refused_says_why_and_what_to_do(plain, tmp_path, key, value, message):
    config, made = plain
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    (tmp_path / "adapter_model.safetensors").symlink_to(made / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message or rf"adapter_config.json: {key}\W.*(expected|invalid)"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "layers_pattern"])
def test_an_expression_that_would_be_tried_for_years_is_given_up(plain, tmp_path, key, monkeypatch):
    slow = r"(\w|[a-z._]|\d|.)*\d\d\d"
    value = {"rank_pattern": {slow: 2}, "layers_pattern": [slow]}.get(key, slow)
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain[0] | {key: value}))
    (tmp_path / "adapter_model.safetensors").symlink_to(plain[1] / "adapter_model.safetensors")
    monkeypatch.setattr(adapters, "LONGEST", 0.01)
    with pytest.raises(UserError, match="takes too long to be matched"):
        load(tmp_path)


def changed(tensors, **more):
    return {
        k: v
        for k, v in (tensors | {f"base_model.model.{n}": v for n, v in more.items()}).items()
        if v is not None
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"lm_head.weight": torch.zeros(403, 32)},
            "lm_head.weight differs from the embedding that the base's config.json ties",
        ),
        (
            {"lm_head.weight": None, "transformer.wte.weight": torch.zeros(403, 31)},
            r"shape \(403, 31\), not \(any, 32\)",
        ),
        ({"lm_head.weight": None, "transformer.wte.weight": torch.zeros(0, 32)}, r"shape \(0, 32\)"),
        (
            {"lm_head.weight": torch.zeros(403, 32, dtype=torch.int8)},
            "lm_head.weight holds no floating-point numbers",
        ),
        ({"transformer.ln_f.weight": torch.zeros(32)}, "transformer.ln_f.weight is unexpected"),
        (
            {"transformer.wte.modules_to_save.weight": torch.zeros(403, 32)},
            "modules_to_save.weight is unexpected",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(model_dir, tmp_path, more, message):
    write(model_dir, tmp_path, resized=403)
    file = tmp_path / "adapter_model.safetensors"
    save_file(changed(load_file(file), **more), file)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_head_without_rows_for_the_new_words_is_refused(tmp_path):
    """peft saves an untied head that was resized only where it is among the targets or modules_to_save."""
    make_hf_model(tmp_path / "base", family="llama")
    write(
        tmp_path / "base", tmp_path / "a", family="llama", resized=403, target_modules=["{q}", "{embedding}"]
    )
    with pytest.raises(UserError, match="403 rows of the embedding and 400 of the head: .* save it again"):
        load(tmp_path / "a")


def test_a_bias_where_llama_has_none_is_one_of_its_config(tmp_path):
    make_hf_model(tmp_path / "base", family="llama")
    theirs = write(tmp_path / "base", tmp_path / "a", family="llama", lora_bias=True)
    ours = load(tmp_path / "a")
    assert_near(ours(X), theirs(X).logits)
    hub.save_model(ours, tmp_path / "b", tmp_path / "base")
    assert_near(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")(X).logits, theirs(X).logits)
    make_hf_model(tmp_path / "neo", family="gpt_neo")
    write(tmp_path / "neo", tmp_path / "c", family="gpt_neo", lora_bias=True)
    with pytest.raises(
        UserError, match="lora_bias on .*q_proj, and no gpt_neo has a bias there; measure it with peft"
    ):
        load(tmp_path / "c")


def test_a_tokenizer_may_have_the_words_that_the_adapter_brings(script, model_dir, docs, tmp_path):
    """The usual tutorial: [PAD] is added, the embedding resized in memory, and LoRA trained."""
    docs = write_jsonl(docs, make_texts(6, 31, 3, 10))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    theirs = write(model_dir, tmp_path / "a", resized=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "a")
    done = script("eval.py", "ppl", "--model", "a", "--data", docs, *TINY[2:6], "--json", "r.json")
    assert done.returncode == 0, done.stderr
    ids = [
        torch.tensor([[0, *tokenizer(json.loads(line)["text"])["input_ids"]]])
        for line in docs.read_text().splitlines()
    ]
    nll = sum(theirs(input_ids=row, labels=row).loss.item() * (row.shape[1] - 1) for row in ids)
    ours = json.loads((tmp_path / "r.json").read_text())
    assert ours["nll"] == pytest.approx(nll, rel=1e-5)
    assert ours["vocab_size"] == len(tokenizer)
    done = script("train_clm.py", "--model", "a", "--data", docs, "--out", "b", "--max-steps", 1, *TINY)
    assert done.returncode == 0, done.stderr
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").config.vocab_size == len(
        tokenizer
    )


# --- docs/adapters.md ---------------------------------------------------------------------------------------


def rows_of(heading: str) -> list[tuple[dict, str]]:
    """(settings, last column) of the table under a heading of the page."""
    page = (
        (ROOT / "docs" / "adapters.md")
        .read_text(encoding="utf-8")
        .partition(f"## {heading}\n")[2]
        .partition("\n## ")[0]
    )
    lines = [line.replace(r"\|", "\0") for line in page.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip().replace("\0", "|") for cell in line.strip("|").split("|")] for line in lines]
    calls = [ast.parse(f"f({settings.strip('`')})", mode="eval").body for _, settings, _ in cells]
    return [
        ({k.arg: ast.literal_eval(k.value) for k in call.keywords}, c[2])
        for call, c in zip(calls, cells, strict=True)
    ]


@pytest.mark.parametrize(("settings", "loaded"), rows_of("Read"), ids=str)
def test_the_page_says_what_loads(model_dir, tmp_path, settings, loaded):
    theirs = write(model_dir, tmp_path, **settings)
    ours = load(tmp_path)
    assert_near(ours(X), theirs(X).logits)
    assert loaded == ("beside" if ours.lora else "merged")


@pytest.mark.parametrize(("settings", "why"), rows_of("Refused"), ids=str)
def test_the_page_says_what_is_refused(plain, tmp_path, settings, why):
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain[0] | settings))
    (tmp_path / "adapter_model.safetensors").symlink_to(plain[1] / "adapter_model.safetensors")
    with pytest.raises(UserError) as refused:
        load(tmp_path)
    assert next(iter(settings)) in str(refused.value)
    mends = {
        "path_initial_model": "with path_initial_model",
        "same mend": "with path_initial_model",
        "peft first": "peft first",
    }
    wanted = next((said for words, said in mends.items() if words in why), "measure it with peft")
    assert wanted in str(refused.value)
