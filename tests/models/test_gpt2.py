"""The model against transformers: logits, loss and every gradient, for every flag that is supported."""

import pytest
import torch

from nanomed import hub
from nanomed.loss import linear_cross_entropy
from nanomed.models import gpt2
from nanomed.models.gpt2 import ACTIVATIONS, Config
from nanomed.models.language_model import LanguageModel
from tests.conftest import assert_near, make_hf_model

FLAGS = {
    "gpt2": {},
    "distilgpt2-shape": {"n_layer": 2, "n_head": 2},
    "biomedlm-shape": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "vocab_size": 289},
    "inverse-layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "unscaled": {"scale_attn_weights": False},
    "n_inner": {"n_inner": 48},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "untied": {"tie_word_embeddings": False},
    **{f"act-{name}": {"activation_function": name} for name in ACTIVATIONS},
}


def ids(model, B=3, T=21):
    return torch.randint(0, model.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_logits_loss_and_gradients_are_those_of_transformers(tmp_path, flags):
    theirs = make_hf_model(tmp_path, **flags)
    ours = hub.load_model(hub.find(str(tmp_path))).eval()
    x = ids(theirs)
    assert_near(ours(x), theirs(x).logits)
    loss = theirs(x, labels=x).loss
    nll, count = linear_cross_entropy(ours.backbone(x)[:, :-1], ours.lm_head.weight, x[:, 1:])
    assert_near(nll / count, loss)
    loss.backward()
    (nll / count).backward()
    their_grads = {k: p.grad for k, p in theirs.named_parameters()}
    our_grads = {k: p.grad.t() if k.endswith(ours.family.CONV1D) else p.grad for k, p in ours.named_parameters()}
    assert our_grads.keys() == their_grads.keys()
    for name, grad in our_grads.items():
        assert_near(grad, their_grads[name], 1e-4, name)


def test_the_flags_matter(tmp_path):
    """Each flag changes the logits of the same weights, so the comparison above could fail."""
    base = make_hf_model(tmp_path)
    x = ids(base)
    for flags in FLAGS.values():
        if flags.keys() & {"n_layer", "n_inner", "vocab_size", "tie_word_embeddings"} or not flags:
            continue
        sizes = {f: getattr(base.config, f) for f in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
        other = LanguageModel(gpt2, Config(**sizes | flags)).eval()
        ours = hub.load_model(hub.find(str(tmp_path)))
        other.load_state_dict(ours.state_dict())
        same = torch.allclose(other(x), base(x).logits, rtol=0, atol=1e-5 * base(x).logits.abs().max().item())
        harmless = flags.get("activation_function") in ("gelu_new", "gelu_pytorch_tanh")
        assert same == (harmless or flags == FLAGS["upcast"]), flags


def test_upcast_attention_is_fp32_under_autocast(tmp_path):
    """With large scores bf16 attention goes wrong; upcast, it stays as near to fp32 as transformers' eager attention."""
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
        ours.transformer.h[0].attn.upcast = ours.transformer.h[1].attn.upcast = ours.transformer.h[2].attn.upcast = False
        without = (ours(x) - exact).abs().mean()
    assert error <= 1.1 * reference
    assert error < without


def test_left_padding_with_positions_and_mask_changes_nothing(model_dir):
    model = hub.load_model(hub.find(str(model_dir))).eval()
    x = ids(model, B=1, T=9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), x], 1)
    real = torch.tensor([[False] * 4 + [True] * 9])
    mask = torch.ones(13, 13, dtype=torch.bool).tril() & real[:, None] | torch.eye(13, dtype=torch.bool)
    pos = (real.long().cumsum(1) - 1).clamp(min=0)
    assert_near(model(padded, pos, mask[:, None])[:, 4:], model(x))


def test_checkpointed_and_compiled_gradients_equal_plain_ones(model_dir):
    def gradients(change):
        model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
        change(model.transformer)
        x = ids(model)
        nll, count = linear_cross_entropy(model.backbone(x)[:, :-1], model.lm_head.weight, x[:, 1:])
        (nll / count).backward()
        return {k: p.grad for k, p in model.named_parameters()}

    plain = gradients(lambda body: None)
    checkpointed = gradients(lambda body: setattr(body, "grad_checkpoint", True))
    compiled = gradients(lambda body: body.compile(backend="aot_eager"))  # C++ is written by the slow test of --compile
    for name, grad in plain.items():
        assert_near(checkpointed[name], grad, 1e-5, name)
        assert_near(compiled[name], grad, 1e-4, name)


def test_checkpointing_keeps_less(model_dir):
    """The point of it: fewer bytes wait for backward."""

    def kept(flag):
        model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
        model.transformer.grad_checkpoint = flag
        total = [0]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: total.__setitem__(0, total[0] + t.numel()) or t, lambda t: t):
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


def test_longer_than_the_model_is_an_error(model_dir):
    model = hub.load_model(hub.find(str(model_dir)))
    with pytest.raises(ValueError, match="65 tokens, but the model has 64 positions"):
        model(torch.zeros(1, 65, dtype=torch.long))
