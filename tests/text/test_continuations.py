"""What follows a prompt: its ids are those of the whole text behind the prompt's, and never begin with a
blank that a vocabulary puts before a text of its own; in training, in `choices`, and as transformers renders
the chat."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from tokenizers import Tokenizer

from nanomed.evaluation import measure
from nanomed.evaluation.choices import encode, loglikelihoods
from nanomed.evaluation.questions import Item
from nanomed.text.conversations import Conversation
from nanomed.text.examples import encode_instructions
from nanomed.text.library import Library
from nanomed.text.special import Written
from nanomed.text.templates import TEMPLATES, Template, load_template, of_model
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import WORDS, lm_eval, make_hf_model
from tests.text.test_other_tokenizers import KINDS, PARTS, TEXTS

BLANKED = ("llama2", "mistral", "tinyllama")  # a blank is put before a text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory of each kind; transformers reads it as it stands, and builds no pipeline of its own for a
    Llama's."""
    out = {name: make(tmp_path_factory.mktemp(name)) for name, make in KINDS.items()}
    for directory in out.values():
        config = json.loads((directory / "tokenizer_config.json").read_text()) | {
            "tokenizer_class": "PreTrainedTokenizerFast"
        }
        plain = {k: v.get("content", v) if isinstance(v, dict) else v for k, v in config.items()}
        (directory / "tokenizer_config.json").write_text(json.dumps(plain))
    return out


@pytest.fixture(scope="module", params=KINDS)
def pair(request, made):
    theirs = Tokenizer.from_file(str(made[request.param] / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return load_tokenizer(made[request.param]), theirs


@settings(max_examples=80, deadline=None)
@given(TEXTS, TEXTS)
def test_ids_are_those_of_the_whole_text_where_no_token_crosses(pair, before, text):
    ours, theirs = pair
    absent = set() if isinstance(ours.codec, Library) else set(ours.codec._without_token)
    before, text = ("".join(c for c in part if not set(c.encode()) & absent) for part in (before, text))
    found = ours.continuation(before, text)
    whole = theirs.encode(before + text, add_special_tokens=False)
    if any(start < len(before) < end for start, end in whole.offsets):
        if before and not text.startswith("\u0301"):
            assert ours.decode(found, inside=True) == ours.decode(ours.codec.behind(" ", text), inside=True)
        return
    assert found.tolist() == [
        i for i, (start, _) in zip(whole.ids, whole.offsets, strict=True) if start >= len(before)
    ]


@pytest.mark.parametrize("name", BLANKED)
def test_no_blank_is_put_before_what_goes_on(made, name):
    t = load_tokenizer(made[name])
    alone, behind = t.encode("patient"), t.continuation("The renal\n", "patient")
    assert t.decode(alone) == "patient" == t.decode(behind, inside=True)
    assert t.name(int(alone[0])).startswith("▁") and not t.name(int(behind[0])).startswith("▁")
    assert t.continuation("The", " patient").tolist() == alone.tolist()  # here the text itself has it
    assert t.decode(t.continuation("The", " patient"), inside=True) == " patient"
    assert t.continuation("", "patient").tolist() == alone.tolist()  # the beginning of a text after all


@pytest.mark.parametrize("name", KINDS)
def test_a_token_across_the_border_is_not_cut(made, name):
    """The word is one token; behind its first letters the rest is encoded by itself, so that all of it is
    scored, and no more."""
    t = load_tokenizer(made[name])
    (token,) = t.continuation("x ", "patient")[:1] if name in BLANKED else t.encode("patient")[:1]
    word = t.decode([int(token)], inside=True)
    head, tail = f"x {word[:2]}", word[2:] + " 12"
    found = t.continuation(head, tail)
    assert t.decode(found, inside=True) == tail
    assert t.decode(t.continuation("dose 1", "00 mg"), inside=True) == "00 mg"


CHATML = Template(
    "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    "{instruction}{input}",
    "{response}<|im_end|>\n",
)
INST = Template(
    "<s>[INST] {instruction} [/INST]", "<s>[INST] {instruction}\n{input} [/INST]", " {response} </s>"
)
OWN = TEMPLATES | {"chatml": CHATML, "inst": INST}
MESSAGES = ["Why?", "What is acute renal disease?", "Is 12 345 (n=20) “much”?\n\nSay why"]
ANSWERS = ["So.", "the patients were significantly increased", "No; p<0.05"]


@pytest.mark.parametrize("template", OWN)
@pytest.mark.parametrize("name", KINDS)
def test_training_generation_and_transformers_chat_give_the_same_ids(made, name, template, tmp_path):
    t, template = load_tokenizer(made[name]), OWN[template]
    for file in made[name].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template.save(t, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert of_model(tmp_path) == template
    for asked, said in zip(MESSAGES, ANSWERS, strict=True):
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        (example,) = encode_instructions([Conversation.of(asked, "", said)], t, template, 500).examples
        rendered = theirs.apply_chat_template(chat, tokenize=True, return_dict=False)
        prompt = theirs.apply_chat_template(
            chat[:1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert example.ids.tolist() == rendered
        assert example.ids[: example.spans[0][0]].tolist() == t.prompt(template.ask(asked)).tolist() == prompt
        assert t.eos in example.ids[example.spans[0][0] :]


@pytest.fixture(scope="module")
def models(made, tmp_path_factory):
    """A random Llama over each kind of vocabulary."""
    out = {}
    for name in KINDS:
        out[name] = tmp_path_factory.mktemp("model")
        make_hf_model(
            out[name], family="llama", vocab_size=load_tokenizer(made[name]).vocab_size, eos_token_id=None
        )
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (out[name] / file).write_bytes((made[name] / file).read_bytes())
    return out


@pytest.mark.parametrize("name", KINDS)
def test_choices_have_lm_evals_likelihoods(models, name):
    rng = random.Random(3)
    prompts = [f"Question: {' '.join(rng.choices(WORDS, k=6))}\nAnswer:" for _ in range(4)]
    items = [Item(prompt, (" yes", " no", " maybe"), 0) for prompt in prompts]
    items += [
        Item(prompts[0] + " ", ("the patients", "blood"), 0),
        Item(prompts[1] + "\n", ("acute", "renal disease"), 0),
    ]
    o = measure.open_model(str(models[name]), dtype="fp32")
    pairs = [(item.prompt, choice) for item in items for choice in item.choices]
    theirs = [value for value, _ in lm_eval(models[name], "loglikelihood", pairs)]
    encoded = [encode(item, o.tokenizer, o.model.config.n_positions) for item in items]
    np.testing.assert_allclose(np.concatenate(loglikelihoods(o, encoded, 16)), theirs, rtol=1e-5)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", KINDS)
def test_choices_in_a_template_are_scored_as_responses_were_trained(made, name, template):
    t, template = load_tokenizer(made[name]), TEMPLATES[template]
    for (ids, n), choice in zip(
        encode(Item("Why?", (" yes", "no"), 0), t, 500, template), ("yes", "no"), strict=True
    ):
        (example,) = encode_instructions([Conversation.of("Why?", "", choice)], t, template, 500).examples
        assert ids.tolist() == example.ids[:-1].tolist() and n == len(example.ids) - 1 - example.spans[0][0]


def test_a_template_of_a_file_may_spell_special_tokens(made, tmp_path):
    (tmp_path / "t.toml").write_text(
        'prompt = "<|im_start|>{instruction}"\nresponse = "{response}<|im_end|>"\n'
    )
    template = load_template(str(tmp_path / "t.toml"))
    t = load_tokenizer(made["smollm2"])
    ids = t.prompt(template.ask("<|im_start|>"))
    assert ids[0] == t.bos and t.bos not in ids[1:]  # the template's is the token; the user's is text
    assert template.ends == ("<|im_end|>",)
    assert t.prompt(Written("<|im_start|>")).tolist() == ids[1:].tolist()


@pytest.mark.parametrize("text", PARTS, ids=repr)
def test_a_whole_text_is_a_continuation_of_nothing(pair, text):
    assert pair[0].continuation("", text).tolist() == pair[0].encode(text).tolist()


def test_where_a_token_crosses_lm_eval_scores_something_else(models):
    """lm-eval 0.4.13 cuts the whole's ids by the number of the prompt's, and so loses what the choice begins
    with."""
    directory = models["smollm2"]
    t, theirs = load_tokenizer(directory), transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    prompt, choices = "The pati", ("ents were significantly increased", "ents significantly increased levels")
    assert t.encode(prompt + choices[0]).tolist() != [
        *t.encode(prompt),
        *t.encode(choices[0]),
    ]  # " patients" is a token
    o = measure.open_model(str(directory), dtype="fp32")
    encoded = encode(Item(prompt, choices, 0), t, o.model.config.n_positions)
    (ours,) = loglikelihoods(o, [encoded], 16)
    for value, choice in zip(ours, choices, strict=True):
        ids = torch.tensor([[*t.prompt(prompt).tolist(), *t.encode(choice).tolist()]])
        with torch.no_grad():
            logprobs = theirs(ids).logits[0].log_softmax(-1)
        n = len(t.encode(choice))
        expected = logprobs[-n - 1 : -1].gather(1, ids[0, -n:, None]).sum().item()
        assert value == pytest.approx(expected, rel=1e-4)
    lm = [value for value, _ in lm_eval(directory, "loglikelihood", [(prompt, choice) for choice in choices])]
    assert abs(lm[0] - ours[0]) > 5 and abs(lm[1] - ours[1]) > 5
