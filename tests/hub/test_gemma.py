"""Gemma 3 as it is published: inside a model that sees pictures, in either spelling of its tensors, adapters
on it; old and new config.json; the token that has no embedding. (The network: tests/models/test_families.py.)
"""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from nanomed import hub
from nanomed.errors import UserError
from nanomed.models import gemma
from nanomed.models.classifier import Classifier
from nanomed.models.language_model import LanguageModel
from nanomed.models.lora import LoRAConfig, inject, lora_layers
from nanomed.text import chat
from nanomed.text.conversations import Conversation, Turn
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import FAMILIES, assert_near, make_texts, randomise, write_jsonl
from tests.text.test_other_tokenizers import gemma as gemma_tokenizer

X = torch.arange(60).reshape(2, 30)
LINEAR = {"rope_type": "linear", "factor": 8.0}
TEXT = FAMILIES["gemma3_text"][1] | {"vocab_size": 400, "rope_scaling": LINEAR}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
MODEL, CLASSIFIER = gemma.ARCHITECTURES["gemma3"]
TINY = ("--batch-size", 2, "--dtype", "fp32", "--device", "cpu", "--no-compile", "--max-steps", 2)


def make(directory, bpe_dir, cls=MODEL, text=None, **config):
    """A model with eyes, as transformers saves it."""
    config = transformers.Gemma3Config(text_config=TEXT | (text or {}), vision_config=VISION, **config)
    torch.manual_seed(0)
    model = getattr(transformers, cls)._from_config(config, attn_implementation="eager")
    randomise(model)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((bpe_dir / name).read_bytes())
    return model.eval()


@pytest.fixture(scope="module")
def both(tmp_path_factory, bpe_dir):
    """(transformers' model, its directory)."""
    directory = tmp_path_factory.mktemp("gemma3")
    return make(directory, bpe_dir), directory


def load(directory):
    return hub.load_model(hub.find(str(directory))).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("in_memory", [False, True])
def test_the_language_model_in_it_is_read_and_the_rest_left_out(tmp_path, bpe_dir, capsys, tied, in_memory):
    """From `language_model.model.layers`, as files have it, and from `model.language_model.layers`, as
    transformers 5 has it in memory. Whether the head is tied is said outside; what is said inside is
    nothing."""
    theirs = make(tmp_path, bpe_dir, text={"tie_word_embeddings": not tied}, tie_word_embeddings=tied)
    if in_memory:
        save_file({k: v.clone() for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    keys = load_file(tmp_path / "model.safetensors").keys()
    assert any(k.startswith("model.language_model." if in_memory else "language_model.model.") for k in keys)
    ours = load(tmp_path)
    assert_near(ours(X), theirs(X).logits)
    assert (
        "multi_modal_projector, vision_tower: beside the language model, left out" in capsys.readouterr().err
    )
    hub.save_model(ours, tmp_path / "saved", tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is transformers.Gemma3ForCausalLM and again.config.tie_word_embeddings == tied
    assert_near(again(X).logits, theirs(X).logits)
    assert (
        not {"vision_config", "text_config"}
        & json.loads((tmp_path / "saved" / "config.json").read_text()).keys()
    )


INSIDE = r"model\.language_model\.layers\.1\.self_attn\.q_proj"
ADAPTERS = {
    "eyes-too": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "expression": {"target_modules": r".*language_model.*\.(q_proj|gate_proj)"},
    "full-names": {"target_modules": [INSIDE.replace("\\", "")]},
    "excluded": {
        "target_modules": ["q_proj"],
        "exclude_modules": r".*vision_tower.*|.*language_model\.layers\.0.*",
    },
    "scales": {"target_modules": ["q_proj"], "alpha_pattern": {INSIDE: 3.0}},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head-saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_pefts_adapters_on_it(both, tmp_path, settings):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(both[1], attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, lora_alpha=6, task_type="CAUSAL_LM", **settings)
        theirs = peft.get_peft_model(theirs, config).eval()
        torch.manual_seed(4)
        for p in (p for p in theirs.parameters() if p.requires_grad):
            torch.nn.init.normal_(p, std=0.2)
        theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert_near(ours(X), theirs(X).logits)
    assert (ours(X) - load(both[1])(X)).abs().max() > 1e-3


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear", r".*\.1\..*_proj"])
def test_our_adapters_on_it_leave_its_eyes_alone(both, tmp_path, targets):
    ours = load(both[1])
    inject(ours, LoRAConfig(4, 8.0, 0.0, targets))
    for layer in lora_layers(ours).values():
        torch.nn.init.normal_(layer.lora_B.weight)
    hub.save_adapter(ours, tmp_path, str(both[1]), both[1])
    base = transformers.AutoModelForCausalLM.from_pretrained(both[1], attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert_near(theirs(X).logits, ours(X))
    adapted = {n.rpartition(".lora_A")[0] for n, _ in theirs.named_parameters() if ".lora_A" in n}
    assert len(adapted) == len(lora_layers(ours)) and not any("vision" in n for n in adapted)
    assert torch.equal(load(tmp_path)(X), ours(X))


def test_it_is_trained_and_an_adapter_of_other_settings_gets_a_base_of_its_own(script, both, tmp_path):
    docs = write_jsonl(tmp_path / "d.jsonl", make_texts(12, 31))

    def train(model, out, *flags):
        done = script("train_clm.py", "--model", model, "--data", docs, "--out", out, *flags, *TINY)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def peft_logits(out):
        path = json.loads((tmp_path / out / "adapter_config.json").read_text())["base_model_name_or_path"]
        base = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
        return peft.PeftModel.from_pretrained(base, tmp_path / out).eval()(X).logits

    train(both[1], "a", "--lora-r", 4)
    assert_near(load(tmp_path / "a")(X), peft_logits("a"))
    assert "the adapter goes on" in train("a", "b", "--lora-r", 4)
    train("a", "c", "--lora-r", 2)
    assert (tmp_path / "c" / "base" / "config.json").exists()
    assert_near(load(tmp_path / "c")(X), peft_logits("c"))


def test_a_classifier_with_eyes_is_read_and_its_language_model_written(tmp_path, bpe_dir):
    names = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
    theirs = make(tmp_path, bpe_dir, CLASSIFIER, {"pad_token_id": 399}, **names)
    ours = hub.load_classifier(hub.find(str(tmp_path))).eval()
    assert ours.labels == ["no", "maybe", "yes"] and ours.hf_config["pad_token_id"] == 399
    assert_near(ours(X, torch.tensor([30, 30])), theirs(X).logits)
    hub.save_model(ours, tmp_path / "saved", tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is transformers.Gemma3TextForSequenceClassification
    assert_near(again(X).logits, theirs(X).logits)


@pytest.mark.parametrize("written_here", [True, False])
def test_classifiers_adapters_on_it(both, tmp_path, written_here):
    make = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs, lengths = make(both[1], num_labels=3, attn_implementation="eager"), torch.tensor([30, 30])
    torch.manual_seed(4)
    if written_here:
        lm = load(both[1])
        inject(lm, LoRAConfig(4, 8.0, 0.0, ("q_proj", "up_proj")))
        ours = Classifier(lm, ["no", "maybe", "yes"], False, 399).eval()
        for layer in lora_layers(ours).values():
            torch.nn.init.normal_(layer.lora_B.weight)
        hub.save_adapter(ours, tmp_path, str(both[1]), both[1])
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path)
    else:
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
        theirs = peft.get_peft_model(theirs, config)
        for p in (p for p in theirs.parameters() if p.requires_grad):
            torch.nn.init.normal_(p, std=0.2)
        theirs.save_pretrained(tmp_path)
    theirs.config.get_text_config().pad_token_id = 399
    ours = hub.load_classifier(hub.find(str(tmp_path))).eval()
    assert ours.labels == (["no", "maybe", "yes"] if written_here else ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert_near(ours(X, lengths), theirs.eval()(X).logits)


# --- config.json --------------------------------------------------------------------------------------------


OLD = {
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "sliding_window_pattern": 6,
    "cache_implementation": "hybrid",
}
OLD |= {"attn_logit_softcapping": None, "final_logit_softcapping": None, "torch_dtype": "bfloat16"}
SMALL = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144}
SMALL |= {"sliding_window": 512, "max_position_embeddings": 32768, "query_pre_attn_scalar": 256}
PUBLISHED = {
    "270m": SMALL
    | {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "_sliding_window_pattern": 6}
    | {
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "use_bidirectional_attention": False,
    }
    | {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None},
    "1b": OLD | SMALL | {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26},
    "4b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    | {"rope_scaling": LINEAR},
    "27b": OLD
    | {"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "sliding_window": 1024}
    | {"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168}
    | {"rope_scaling": LINEAR},
}
OUTSIDE = {"boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144}
OUTSIDE |= {
    "mm_tokens_per_image": 256,
    "eos_token_id": [1, 106],
    "initializer_range": 0.02,
    "vision_config": VISION,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_mean_what_transformers_makes_of_them(tmp_path, name, monkeypatch):
    monkeypatch.setattr(hub.config, "physical", lambda: 2**50)
    raw = {"model_type": "gemma3_text"} | PUBLISHED[name]
    if name in ("4b", "27b"):
        raw = OUTSIDE | {"model_type": "gemma3", "text_config": raw}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).get_text_config()
    written, ours = hub.read_config(tmp_path)
    same = ("vocab_size", "head_dim", "num_attention_heads", "num_key_value_heads", "query_pre_attn_scalar")
    same += ("max_position_embeddings", "sliding_window", "hidden_activation", "tie_word_embeddings")
    assert [getattr(ours, key) for key in same] == [getattr(theirs, key) for key in same]
    assert ours.kinds() == theirs.layer_types and written["model_type"] == "gemma3_text"
    rotary = Gemma3RotaryEmbedding(theirs)
    for kind in gemma.BASES:
        assert torch.equal(ours.rope(kind)[0], getattr(rotary, f"{kind}_inv_freq"))


def test_what_stands_in_the_place_of_the_text_is_an_error(tmp_path):
    for text, message in (
        ("gemma", "text_config: expected object"),
        ({"head_dim": "x"}, "head_dim: expected int"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
        with pytest.raises(UserError, match=message):
            hub.read_config(tmp_path)


# --- numbers ------------------------------------------------------------------------------------------------


def test_in_bf16_the_embedding_is_scaled_by_a_rounded_number(tmp_path, bpe_dir):
    """sqrt(40) is 6.3125 there and not 6.3246: with weights in bf16, what goes into the first block is
    transformers', to the bit."""
    make(tmp_path, bpe_dir, text={"hidden_size": 40})
    theirs, ours = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16"),
        load(tmp_path),
    )
    for p in ours.parameters():  # and no buffers, as there
        p.data = p.data.bfloat16()
    seen = []
    for layers in (theirs.eval().model.language_model.layers, ours.model.layers):
        layers[0].register_forward_pre_hook(lambda block, given: seen.append(given[0]))
    with torch.no_grad():
        theirs(X), ours(X)
        assert torch.equal(*seen)
        ours.model.scale += 2**-5
        ours(X)
        assert not torch.equal(seen[0], seen[2])


def test_random_weights_begin_with_norms_of_one():
    model = LanguageModel(gemma, gemma.Config(**{k: v for k, v in TEXT.items() if k != "pad_token_id"}))
    model.init_weights()
    norms = [p for n, p in model.named_parameters() if "norm" in n]
    assert len(norms) == 3 * 6 + 1 and not any(p.any() for p in norms)
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)


# --- tokens -------------------------------------------------------------------------------------------------


def test_a_pictures_token_without_an_embedding_is_never_fed(script, tmp_path, bpe_dir):
    """Gemma 3 of 270 M and 1 B have 262,144 rows, and the tokenizer of the larger ones, whose
    <image_soft_token> is 262,144."""
    model = tmp_path / "m"
    make(model, bpe_dir)
    theirs = transformers.AutoTokenizer.from_pretrained(model)
    theirs.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    theirs.save_pretrained(model)
    docs = write_jsonl(tmp_path / "d.jsonl", ["the acute patient", "an <image_soft_token> in a text"])
    ppl = ("eval.py", "ppl", "--model", model, "--data", docs, "--dtype", "fp32")
    done = script(*ppl, "--json", "r.json")
    assert done.returncode == 0, done.stderr
    assert "without an embedding (vocab_size 400): <image_soft_token> (400)" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["documents"] == 2
    done = script(*ppl, "--special-tokens", "read")
    needs = "d.jsonl, row 2: a text needs the token '<image_soft_token>' (400)"
    assert done.returncode == 2 and needs in done.stderr, done.stderr


def test_a_conversation_is_written_and_ends_as_its_makers_had_it(tmp_path):
    """Roles user and model, one <bos>, the system's text before the first question; an answer ends with
    <end_of_turn>, which generation_config.json names beside <eos>."""
    trl = pytest.importorskip("trl")
    template = Path(trl.__file__).parent / "chat_templates" / "gemma3.jinja"
    (gemma_tokenizer(tmp_path) / "chat_template.jinja").write_bytes(template.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "GemmaTokenizer"})
    )
    theirs, tok = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    turns = [("system", "Be  brief.\n\nNow"), ("user", "who é?"), ("assistant", " the  patients\n\n漢 ")]
    turns += [("user", "and a dose?"), ("assistant", "dose 12")]
    messages = [{"role": role, "content": text} for role, text in turns]
    turns = tuple(Turn(*turn) for turn in turns)
    ((ids, spans),) = chat.load(tmp_path).encode(Conversation(turns), tok)
    assert ids.tolist() == theirs.apply_chat_template(messages)["input_ids"]
    said = [tok.decode(ids[start:end]) for start, end in spans]
    assert said == ["the  patients\n\n漢<end_of_turn>", "dose 12<end_of_turn>"]
    asked = theirs.apply_chat_template(messages[:4], add_generation_prompt=True)["input_ids"]
    assert chat.load(tmp_path).prompt_ids(turns[:4], tok).tolist() == asked
    assert tok.decode(asked).endswith("<start_of_turn>model\n") and asked.count(tok.bos) == 1
    assert sorted(map(tok.name, tok.ends)) == ["<end_of_turn>", "<eos>"]
