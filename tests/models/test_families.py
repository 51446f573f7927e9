"""Each family against transformers: logits, loss and every gradient, for every flag that is supported."""

import json
from dataclasses import fields

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanomed import hub
from nanomed.errors import UserError
from nanomed.models import gpt2
from nanomed.models.attention import Mask
from nanomed.models.gpt2 import ACTIVATIONS, Config
from nanomed.models.language_model import LanguageModel
from nanomed.models.loss import linear_cross_entropy
from tests.conftest import assert_near, every_family, every_family_compiled, make_hf_model

GPT2 = {
    "gpt2": {},
    "distilgpt2-shape": {"n_layer": 2, "n_head": 2},
    "biomedlm-shape": {
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "vocab_size": 289,
    },
    "inverse-layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "unscaled": {"scale_attn_weights": False},
    "n_inner": {"n_inner": 48},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "untied": {"tie_word_embeddings": False},
    **{f"act-{name}": {"activation_function": name} for name in ACTIVATIONS},
}
GPT_NEO = {
    "gpt_neo": {},
    "all-global": {"attention_types": [[["global"], 3]]},
    "all-local": {"attention_types": [[["local"], 3]]},
    "window": {"window_size": 3},
    "intermediate": {"intermediate_size": 48},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "untied": {"tie_word_embeddings": False},
    "act": {"activation_function": "gelu"},
}


def rope(**keys):
    return {"rope_parameters": {"rope_theta": 1e4} | keys}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA = {
    "llama": {},
    "theta": rope(rope_theta=300.0),
    "linear": rope(rope_type="linear", factor=4.0),
    "llama3": rope(**LLAMA3, original_max_position_embeddings=16),
    "yarn": rope(**YARN),
    "yarn-tuned": rope(**YARN, beta_fast=4, beta_slow=2, attention_factor=1.3, truncate=False),
    "head_dim": {"head_dim": 16},
    "one-kv-head": {"num_key_value_heads": 1},
    "no-sharing": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "epsilon": {"rms_norm_eps": 1e-2},
    "act": {"hidden_act": "gelu_pytorch_tanh"},
}


def ropes(glob, local):
    return {"rope_parameters": {"full_attention": glob, "sliding_attention": local}}


LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
GEMMA = {
    "gemma3": {},
    "1b-shape": {"hidden_size": 36, "head_dim": 16, "query_pre_attn_scalar": 16},
    "27b-shape": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 6,
        "query_pre_attn_scalar": 4,
    }
    | ropes(LINEAR, {"rope_type": "default", "rope_theta": 1e4}),
    "scalar": {"query_pre_attn_scalar": 7},
    "window": {"sliding_window": 3},
    "all-global": {"layer_types": ["full_attention"] * 3},
    "all-local": {"layer_types": ["sliding_attention"] * 3},
    "global-first": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "bases": ropes(
        {"rope_type": "default", "rope_theta": 300.0}, {"rope_type": "default", "rope_theta": 20.0}
    ),
    "linear": ropes(LINEAR, {"rope_type": "default"}),
    "linear-and-local-yarn": ropes(LINEAR, YARN | {"rope_theta": 1e4}),
    "biases": {"attention_bias": True},
    "untied": {"tie_word_embeddings": False},
    "epsilon": {"rms_norm_eps": 1e-2},
    "act": {"hidden_activation": "silu"},
}
# The members beside Llama, with what each does otherwise.
SHAPES = {
    **{("gpt2", name): flags for name, flags in GPT2.items()},
    **{("gpt_neo", name): flags for name, flags in GPT_NEO.items()},
    **{("llama", name): flags for name, flags in LLAMA.items()},
    **{("gemma3_text", name): flags for name, flags in GEMMA.items()},
    ("mistral", "window"): {"sliding_window": 7},
    ("mistral", "no-window"): {"sliding_window": None},
    ("qwen2", "biases"): {},
    ("qwen2", "window-from-layer-1"): {
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    ("qwen3", "head-norms"): {"head_dim": 12},
    ("qwen3", "biases-tied"): {"attention_bias": True, "tie_word_embeddings": True},
}


def ids(model, B=3, T=21):
    return torch.randint(0, model.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "family, flags", [(f, flags) for (f, _), flags in SHAPES.items()], ids=map("-".join, SHAPES)
)
def test_logits_loss_and_gradients_are_those_of_transformers(tmp_path, family, flags):
    theirs = make_hf_model(tmp_path, family=family, **flags)
    ours = hub.load_model(hub.find(str(tmp_path))).eval()
    x = ids(theirs)
    assert_near(ours(x), theirs(x).logits)
    loss = theirs(x, labels=x).loss
    nll, count = linear_cross_entropy(ours.backbone(x)[:, :-1], ours.lm_head.weight, x[:, 1:])
    assert_near(nll / count, loss)
    loss.backward()
    (nll / count).backward()
    their_grads = {k: p.grad for k, p in theirs.named_parameters()}
    our_grads = {
        k: p.grad.t() if k.endswith(ours.family.CONV1D) else p.grad for k, p in ours.named_parameters()
    }
    assert our_grads.keys() == their_grads.keys()
    for name, grad in our_grads.items():
        assert_near(grad, their_grads[name], 1e-4, name)
    hub.save_model(ours, tmp_path / "saved", tmp_path)  # and back
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", attn_implementation="eager"
    ).eval()
    assert type(again) is type(theirs)
    assert_near(again(x).logits, theirs(x).logits)


def test_the_flags_matter(tmp_path):
    """Each flag changes the logits of the same weights, so the comparison above could fail."""
    shapes = set(
        """n_layer n_inner vocab_size tie_word_embeddings intermediate_size head_dim num_key_value_heads attention_bias
        mlp_bias""".split()
    )
    for family, all_flags in (
        ("gpt2", GPT2),
        ("gpt_neo", GPT_NEO),
        ("llama", LLAMA),
        ("gemma3_text", GEMMA),
        ("mistral", {"": {"sliding_window": 7}}),
    ):
        base = make_hf_model(tmp_path / family, family=family)
        x, ours = ids(base), hub.load_model(hub.find(str(tmp_path / family))).eval()
        for flags in all_flags.values():
            if flags.keys() & shapes or not flags:
                continue
            known = {
                f.name: getattr(base.config, f.name)
                for f in fields(ours.family.Config)
                if hasattr(base.config, f.name)
            }
            for derived in ("attention_layers", "rope_scaling"):
                known.pop(derived, None)
            other = LanguageModel(
                ours.family, ours.family.Config(**ours.family.DEFAULTS[family] | known | flags)
            ).eval()
            other.load_state_dict(ours.state_dict())
            same = torch.allclose(other(x), ours(x), rtol=0, atol=1e-5 * ours(x).abs().max().item())
            harmless = flags.get("activation_function") in ("gelu_new", "gelu_pytorch_tanh")
            assert same == (harmless or flags == GPT2["upcast"]), (family, flags)


def test_both_ways_of_writing_rope_down_are_read(tmp_path):
    """transformers 5 writes rope_parameters; what is on the Hub says rope_theta and rope_scaling, its kind
    under either name."""
    theirs = make_hf_model(
        tmp_path, family="llama", **rope(rope_theta=5e3, **LLAMA3, original_max_position_embeddings=16)
    )
    config = json.loads((tmp_path / "config.json").read_text())
    x, new = ids(theirs), hub.load_model(hub.find(str(tmp_path))).eval()
    scaling = config.pop("rope_parameters")
    theta, kind = scaling.pop("rope_theta"), scaling.pop("rope_type")
    for name in ("rope_type", "type"):
        old = config | {"rope_theta": theta, "rope_scaling": scaling | {name: kind}}
        (tmp_path / "config.json").write_text(json.dumps(old))
        assert torch.equal(hub.load_model(hub.find(str(tmp_path))).eval()(x), new(x))
    plain = hub.load_model(hub.find(str(tmp_path))).eval()
    plain.model.inv_freq = plain.model.inv_freq[0] / 5e3 ** (torch.arange(4) / 4)
    assert (plain(x) - new(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type 'dynamic' is not supported",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "longrope"}},
            "rope_type 'longrope' is not supported",
        ),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor must be a positive number, not None"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}},
            "mscale = 0.7 is not supported",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor = 0.5",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is not supported"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved = True is not supported"),
        ("llama", {"use_sliding_window": True}, "use_sliding_window of a llama is not supported"),
        ("llama", {"num_key_value_heads": 3}, "do not divide evenly"),
        ("qwen2", {"attention_bias": True}, "attention_bias of a qwen2 is not supported"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True is not supported"),
        ("mistral", {"use_sliding_window": True}, "use_sliding_window of a mistral is not supported"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types of a mistral is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported"),
        ("gemma3_text", {"hidden_activation": "mish"}, "hidden_activation = 'mish' is not supported"),
        ("gemma3_text", {"attn_temperature_tuning": True}, "'attn_temperature_tuning' is not supported"),
        ("gemma3_text", {"layer_types": ["full_attention", "chunked_attention"] * 2}, "of each layer, not"),
        ("gemma3_text", {"num_hidden_layers": 10**9, "layer_types": None}, "are no model for a machine"),
        ("gemma3_text", {"sliding_window": None}, "but sliding_window gives no window"),
        ("gemma3_text", {"num_key_value_heads": 3}, "do not divide evenly"),
        ("gemma3_text", rope(), "full_attention and sliding_attention, not rope_theta"),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "'dynamic' is not supported",
        ),
        (
            "gemma3_text",
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            "must be called rope_type, not type",
        ),
        ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor 4.0 must be less"),
        (
            "llama",
            {"rope_scaling": YARN | {"original_max_position_embeddings": -16}},
            "must be a positive number, not -16",
        ),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling: expected object . null, got str"),
        ("llama", {"hidden_size": "32"}, "hidden_size: expected int, got str"),
        ("llama", {"rope_theta": -1.0}, "rope_theta: expected float >= 0"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected bool"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads: expected int >= 1"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps: expected float, got null"),
        ("gpt2", {"n_positions": "256"}, "n_positions: expected int, got str"),
        ("gpt2", {"vocab_size": None}, "vocab_size: expected int, got null"),
        ("gpt2", {"n_layer": -4}, "n_layer: expected int >= 1"),
        ("gpt2", {"n_layer": True}, "n_layer: expected int, got bool"),
        ("gpt2", {"n_inner": 1.5}, "n_inner: expected int . null, got float"),
        ("gpt2", {"resid_pdrop": 1.5}, "resid_pdrop: expected float < 1"),
        ("gpt2", {"model_type": ["gpt2"]}, "unknown architecture"),
        ("gpt_neo", {"attention_types": "x"}, "attention_types: expected array . null, got str"),
        ("gpt_neo", {"attention_types": [[["global"]]]}, "config.json: not enough values"),
        ("gpt_neo", {"attention_types": [[["global", "sparse"], 1], [["local"], 1]]}, "global or local"),
        ("gpt_neo", {"attention_layers": ["global", "global", "local"]}, "are not what attention_types says"),
    ],
)
def test_what_would_be_computed_otherwise_is_an_error(tmp_path, family, keys, message):
    make_hf_model(tmp_path, family=family)
    config = json.loads((tmp_path / "config.json").read_text())
    if "rope_scaling" in keys:
        config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps(config | keys))
    with pytest.raises(UserError, match=message):
        hub.load_model(hub.find(str(tmp_path)))


# Keys of configs on the Hub that transformers 5 no longer writes, or that other programs left there.
PUBLISHED = [
    (
        "llama",
        {
            "pretraining_tp": 1,
            "rope_scaling": None,
            "rope_theta": 1e4,
            "torch_dtype": "float16",
            "max_sequence_length": 64,
        },
    ),
    (
        "llama",
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
    ),
    ("llama", {"unsloth_fixed": True, "mlp_bias": False, "attention_bias": False, "head_dim": 8}),
    ("mistral", {"sliding_window": 4096, "rope_theta": 1e4}),
    (
        "qwen2",
        {
            "use_mrope": False,
            "sliding_window": 64,
            "max_window_layers": 2,
            "use_sliding_window": False,
            "rope_theta": 1e4,
        },
    ),
    (
        "qwen3",
        {"max_window_layers": 3, "sliding_window": None, "use_sliding_window": False, "rope_scaling": None},
    ),
    (
        "gpt_neo",
        {
            "attention_layers": ["global", "local", "local"],
            "classifier_dropout": 0.1,
            "gradient_checkpointing": False,
        },
    ),
]


@pytest.mark.parametrize("family, keys", PUBLISHED)
def test_keys_of_published_configs_are_known(tmp_path, family, keys):
    theirs = make_hf_model(tmp_path, family=family)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | keys))
    x = ids(theirs)
    assert_near(hub.load_model(hub.find(str(tmp_path))).eval()(x), theirs(x).logits)


def test_rope_scaling_wins_over_rope_parameters_as_in_transformers(tmp_path):
    make_hf_model(tmp_path, family="llama")
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    x = ids(theirs)
    assert_near(hub.load_model(hub.find(str(tmp_path))).eval()(x), theirs(x).logits)


def test_old_files_of_gpt_neo_hold_buffers_and_no_prefix(tmp_path):
    theirs = make_hf_model(tmp_path, family="gpt_neo")
    x, before = ids(theirs), hub.load_model(hub.find(str(tmp_path))).eval()
    state = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    for layer in range(3):
        state[f"h.{layer}.attn.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        state[f"h.{layer}.attn.attention.masked_bias"] = torch.tensor(-1e9)
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(hub.load_model(hub.find(str(tmp_path))).eval()(x), before(x))


def test_upcast_attention_is_fp32_under_autocast(tmp_path):
    """With large scores bf16 attention goes wrong; upcast, it stays as near to fp32 as transformers' eager
    attention."""
    theirs = make_hf_model(tmp_path, reorder_and_upcast_attn=True)
    with torch.no_grad():
        for block in theirs.transformer.h:
            block.attn.c_attn.weight *= 6
    theirs.save_pretrained(tmp_path)
    ours = hub.load_model(hub.find(str(tmp_path))).eval()
    x = ids(theirs)
    exact = theirs(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        error, reference = (ours(x) - exact).abs().mean(), (theirs(x).logits - exact).abs().mean()
        ours.transformer.h[0].attn.upcast = ours.transformer.h[1].attn.upcast = ours.transformer.h[
            2
        ].attn.upcast = False
        without = (ours(x) - exact).abs().mean()
    assert error <= 1.1 * reference
    assert error < without


@every_family
def test_left_padding_with_positions_and_mask_changes_nothing(model_dir):
    model = hub.load_model(hub.find(str(model_dir))).eval()
    x = ids(model, B=1, T=9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), x], 1)
    real = torch.tensor([[False] * 4 + [True] * 9])
    mask = torch.ones(13, 13, dtype=torch.bool).tril() & real[:, None] | torch.eye(13, dtype=torch.bool)
    pos = (real.long().cumsum(1) - 1).clamp(min=0)
    assert_near(model(padded, pos, Mask(mask[:, None]))[:, 4:], model(x))


@every_family_compiled
def test_checkpointed_and_compiled_gradients_equal_plain_ones(model_dir):
    def gradients(change):
        model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
        change(model.backbone)
        x = ids(model)
        nll, count = linear_cross_entropy(model.backbone(x)[:, :-1], model.lm_head.weight, x[:, 1:])
        (nll / count).backward()
        return {k: p.grad for k, p in model.named_parameters()}

    plain = gradients(lambda body: None)
    checkpointed = gradients(lambda body: setattr(body, "grad_checkpoint", True))
    compiled = gradients(
        lambda body: body.compile(backend="aot_eager")
    )  # C++ is written by the slow test of --compile
    for name, grad in plain.items():
        assert_near(checkpointed[name], grad, 1e-5, name)
        assert_near(compiled[name], grad, 1e-4, name)


@every_family
def test_checkpointing_keeps_less(model_dir):
    """The point of it: fewer bytes wait for backward."""

    def kept(flag):
        model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
        model.backbone.grad_checkpoint = flag
        total = [0]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: total.__setitem__(0, total[0] + t.numel()) or t, lambda t: t
        ):
            model.backbone(ids(model))
        return total[0]

    assert kept(True) < kept(False) / 3


def test_dropout_of_the_config_is_honoured(model_dir):
    x = torch.arange(20)[None]
    torch.manual_seed(0)
    model = hub.load_model(hub.find(str(model_dir)))
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
    assert torch.equal(model(x), model(x))


def test_random_init_has_gpt2s_spread():
    model = LanguageModel(gpt2, Config(vocab_size=500, n_embd=128, n_layer=8, n_head=4))
    torch.manual_seed(0)
    model.init_weights()
    block = model.transformer.h[0]
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # sqrt(2 * 8 layers)
    assert (block.ln_1.weight == 1).all() and (block.attn.c_proj.bias == 0).all()
    assert model.lm_head.weight is model.transformer.wte.weight


@every_family
def test_longer_than_the_model_is_an_error(model_dir):
    model = hub.load_model(hub.find(str(model_dir)))
    with pytest.raises(ValueError, match="65 tokens, but the model has 64 positions"):
        model(torch.zeros(1, 65, dtype=torch.long))
