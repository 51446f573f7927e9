"""LoRA against peft, both ways, and the equivalences: identity at the start, merged = adapter, and back by
subtraction."""

import peft
import pytest
import torch
import transformers

from nanomed import hub
from nanomed.errors import UserError
from nanomed.models import gpt2
from nanomed.models.language_model import LanguageModel
from nanomed.models.lora import LoRAConfig, LoRALinear, fits, inject, lora_layers, merge_and_unwrap
from tests.conftest import assert_near, every_family, linears

# Adapters go on all linear layers of a block: some are square, where a wrong orientation would not show in
# shapes.
X = torch.arange(40).reshape(2, 20)


def load(directory):
    return hub.load_model(hub.find(str(directory)), dropout=0.0).eval()


def stir(model):
    """Adapters that do something: B is zero at the start."""
    torch.manual_seed(3)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


@pytest.fixture
def adapted(model_dir):
    model = load(model_dir)
    inject(model, LoRAConfig(4, 12.0, 0.0, linears(model)))
    return stir(model)


@every_family
def test_starts_as_identity_and_trains_only_the_adapter(model_dir):
    model = load(model_dir)
    before = model(X)
    inject(model, LoRAConfig(4, 8.0, 0.0, model.family.LORA_TARGETS))
    assert torch.equal(model(X), before)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    llama = ["model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.v_proj"]
    layers = {
        "gpt2": ["transformer.h.{}.attn.c_attn"],
        "gpt_neo": ["transformer.h.{}.attn.attention.q_proj", "transformer.h.{}.attn.attention.v_proj"],
        "llama": llama,
        "gemma3_text": llama,
    }[model.config.model_type]
    assert names == {
        f"{layer.format(i)}.lora_{ab}.weight" for layer in layers for i in range(3) for ab in "AB"
    }


@every_family
def test_the_default_targets_are_pefts(model_dir):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=bool(load(model_dir).family.CONV1D))
    targets = peft.get_peft_model(theirs, config).peft_config["default"].target_modules
    assert set(targets) == set(load(model_dir).family.LORA_TARGETS)


def test_initial_a_is_kaiming_uniform():
    layer = LoRALinear(torch.nn.Linear(256, 64), LoRAConfig(64, 64.0, 0.0, ("x",)))
    a = layer.lora_A.weight
    assert a.abs().max() <= 1 / 16 and a.std().item() == pytest.approx(
        1 / 16 / 3**0.5, rel=0.05
    )  # bound 1/sqrt(in)
    assert not layer.lora_B.weight.any()


@every_family
def test_an_adapter_written_here_gives_the_same_logits_in_peft(adapted, model_dir, tmp_path):
    hub.save_adapter(adapted, tmp_path, str(model_dir), model_dir)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    plain = theirs(X).logits
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert_near(adapted(X), theirs(X).logits)
    assert (plain - theirs(X).logits).abs().max() > 0.1


@every_family
def test_an_adapter_written_by_peft_gives_the_same_logits_and_gradients_here(model_dir, tmp_path):
    conv1d, targets = bool(load(model_dir).family.CONV1D), list(linears(load(model_dir)))
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=targets, fan_in_fan_out=conv1d, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(model_dir), config)
    torch.manual_seed(4)
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    theirs.eval()
    assert_near(ours(X), theirs(X).logits)
    ours(X).pow(2).mean().backward()
    theirs(X).logits.pow(2).mean().backward()
    grads = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            key = name.removeprefix("base_model.model.").replace(".default", "")
            assert_near(grads.pop(key), p.grad, 1e-4)
    assert not grads


@every_family
def test_peft_merges_to_the_same_weights(adapted, model_dir, tmp_path):
    hub.save_adapter(adapted, tmp_path / "adapter", str(model_dir), model_dir)
    merge_and_unwrap(adapted)
    hub.save_model(adapted, tmp_path / "merged", model_dir)
    base = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_near(a, b, 1e-6, name)


@every_family
def test_merged_equals_adapter_and_the_change_is_what_was_added(adapted):
    with_adapter = adapted(X)
    weights = {n: m.base_layer.weight.clone() for n, m in lora_layers(adapted).items()}
    for layer in lora_layers(adapted).values():
        assert layer.merged() is layer.base_layer
    for name, layer in lora_layers(adapted).items():
        assert not torch.allclose(layer.base_layer.weight, weights[name], atol=1e-3)
        change = layer.scale * layer.lora_B.weight @ layer.lora_A.weight
        assert_near(layer.base_layer.weight - change, weights[name], 1e-6)
        layer.base_layer.weight.data.copy_(weights[name])
    assert torch.equal(adapted(X), with_adapter)
    merge_and_unwrap(adapted)
    assert not lora_layers(adapted) and all(p.requires_grad for p in adapted.parameters())
    assert_near(adapted(X), with_adapter)


def test_merging_into_bf16_computes_in_fp32():
    torch.manual_seed(0)
    base = torch.nn.Linear(32, 32, bias=False)
    layer = LoRALinear(base, LoRAConfig(4, 4.0, 0.0, ("x",)))
    torch.nn.init.normal_(layer.lora_B.weight)
    base.weight.data = base.weight.data.bfloat16()
    expected = (base.weight.float() + layer.lora_B.weight @ layer.lora_A.weight).bfloat16()
    assert layer.merged() is base and torch.equal(base.weight, expected)


@every_family
def test_dropout_falls_on_the_adapter_alone_and_only_in_training(model_dir):
    model = load(model_dir)
    plain = model(X)
    inject(model, LoRAConfig(4, 8.0, 0.5, linears(model)))
    model.train()
    assert torch.equal(model(X), plain)  # B is zero: what dropout does cannot show
    stir(model)
    assert not torch.equal(model(X), model(X))
    model.eval()
    assert torch.equal(model(X), model(X))


def test_targets_match_names_as_peft_does():
    model = LanguageModel(gpt2, gpt2.Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2))
    for targets in (("c_proj",), ("attn.c_proj",), ("c_attn", "c_fc"), r".*h\.1\.mlp\.c_(fc|proj)"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)
        )
        config = peft.LoraConfig(
            target_modules=targets if isinstance(targets, str) else list(targets), fan_in_fan_out=True
        )
        wrapped = {
            n.removeprefix("base_model.model.")
            for n, m in peft.get_peft_model(theirs, config).named_modules()
            if isinstance(m, peft.tuners.lora.Linear)
        }
        assert {n for n, _ in model.named_modules() if fits(targets, n)} == wrapped


@pytest.mark.parametrize("targets", [("c_attm",), ("c_attn", "nothing"), ("wte",), "no_such.*", ()])
def test_a_target_that_is_no_linear_layer_is_refused(model_dir, targets):
    with pytest.raises(UserError, match="linear layers here: c_attn, c_fc, c_proj"):
        inject(load(model_dir), LoRAConfig(2, 2.0, 0.0, targets))
