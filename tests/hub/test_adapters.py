"""Adapters as peft writes them, against peft: whatever it is that one changes, the logits are the same here."""

import warnings

import peft
import pytest
import torch
import transformers

from nanomed import hub
from nanomed.models.lora import lora_layers
from tests.conftest import assert_near, every_family, make_hf_model

X = torch.arange(40).reshape(2, 20)
LAYER = {"gpt2": "transformer.h.{}", "gpt_neo": "transformer.h.{}", "llama": "model.layers.{}"}
# What the families call the same things.
NAMES = {
    "gpt2": {"q": "c_attn", "up": "c_fc", "embedding": "wte", "norm": "ln_f", "layers": "h", "mlp": "mlp", "square": "attn.c_proj"},
    "gpt_neo": {"q": "q_proj", "up": "c_fc", "embedding": "wte", "norm": "ln_f", "layers": "h", "mlp": "mlp", "square": "k_proj"},
    "llama": {"q": "q_proj", "up": "up_proj", "embedding": "embed_tokens", "norm": "norm", "layers": "layers", "mlp": "mlp"}
    | {"square": "o_proj"},
}
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
    "ranks-and-scales-of-rslora": {"use_rslora": True, "rank_pattern": {"{q}": 2}, "alpha_pattern": {"{q}": 3, "{up}": 5}},
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
    "embedding-adapted-and-head-saved": {"target_modules": ["{q}", "{embedding}"], "modules_to_save": ["lm_head"]},
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
                assert "bias" in name or "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name, name
                p.add_(torch.randn(p.shape, generator=g) * 0.1)


def write(base, out, resized=None, cls="AutoModelForCausalLM", family="gpt2", **settings):
    """peft's model with an adapter, that has been saved in `out`, in eval mode."""
    torch.manual_seed(0)
    theirs = getattr(transformers, cls).from_pretrained(base)
    if resized:
        theirs.resize_token_embeddings(resized)
    names = NAMES[family]
    defaults = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": ["{q}", "{up}"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(**named(defaults | settings, names)))
        stir(theirs)
        theirs.save_pretrained(out)
    return theirs.eval()


def load(directory):
    return hub.load_model(hub.find(str(directory)), dropout=0.0).eval()


@every_family
@pytest.mark.parametrize("settings", (PLAIN | MERGED).values(), ids=PLAIN | MERGED)
def test_the_logits_are_pefts(model_dir, tmp_path, settings, request):
    theirs = write(model_dir, tmp_path, family=request.node.callspec.params["model_dir"], **settings)
    ours, x = load(tmp_path), X.clone()
    x[:, 5:7] = torch.tensor([settings.get("resized", 400) - 2, 3])
    assert_near(ours(x), theirs(x).logits)
    assert bool(ours.lora) == (settings in PLAIN.values()) == bool(lora_layers(ours))


# What touches the embedding or the head, which Llama's has of its own, unless its config ties them.
ENDS = [s for s in MERGED.values() if any("embedding" in str(v) or "lm_head" in str(v) for v in s.values()) or "resized" in s]


@pytest.mark.parametrize("settings", [*ENDS, *(s for s in MERGED.values() if "trainable_token_indices" in s)], ids=str)
def test_a_tied_head_is_untied_as_peft_does(tmp_path, settings):
    make_hf_model(tmp_path / "base", family="llama", tie_word_embeddings=True)
    theirs = write(tmp_path / "base", tmp_path / "a", family="llama", **settings)
    assert_near(load(tmp_path / "a")(X), theirs(X).logits)


def test_a_bias_of_the_adapter_is_added_where_the_layer_has_one(model_dir, tmp_path):
    theirs = write(model_dir, tmp_path, lora_bias=True, use_rslora=True)
    assert_near(load(tmp_path)(X), theirs(X).logits)
