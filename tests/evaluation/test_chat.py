"""Conversations: each turn's answer is what the model writes on from the whole conversation, read anew, and what
transformers writes; what is measured is the last answer after all that was said before."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from nanomed.evaluation.chat import Chat, talk
from nanomed.evaluation.generate import Ending, Sampling, generate
from nanomed.evaluation.measure import open_model
from nanomed.evaluation.prompts import ask, read_prompts
from nanomed.text.chat import ChatTemplate
from nanomed.text.conversations import Turn
from nanomed.text.templates import TEMPLATES
from tests.conftest import FAMILIES, make_hf_model, make_texts

EOT = "<|endoftext|>"
CHATML = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
# As Qwen 3's and DeepSeek's do, it writes an earlier answer otherwise than the last one.
REWRITING = CHATML.replace(
    "m['content']", "(m['content'] if loop.index > messages|length - 2 else m['content'][:3])"
)
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
)
POSITIONS = 110
QUESTIONS = [
    "the dose",
    "of blood",
    "we saw",
    "a trial of the liver",
    "renal",
    "levels after weeks",
    "gene",
    "p<0.05",
]


def chat_template(source):
    return ChatTemplate(source, "chat_template.jinja", (("eos_token", EOT),))


TEMPLATE = {"own": chat_template(CHATML), "rewriting": chat_template(REWRITING)}
TEMPLATE |= {"response": TEMPLATES["response"], "none": None}


@pytest.fixture(scope="module")
def opened(tmp_path_factory, bpe_dir):
    """{family: a model, ready}."""
    out = {}
    for family in FAMILIES:
        directory = tmp_path_factory.mktemp(family)
        positions = "n_positions" if family == "gpt2" else "max_position_embeddings"
        make_hf_model(directory, bpe_dir, family=family, **{positions: POSITIONS})
        out[family] = open_model(str(directory), "cpu", "fp32")
    return out


def anew(o, template, turns, n):
    """What a model writes on from a whole conversation."""
    ending = Ending(o.tokenizer, template.ends if template else ())
    ids = list(ask(o.tokenizer, tuple(turns), template).ids)
    return generate(o.model, [ids], n, Sampling(), ending, o.device, o.dtype)[0].text


@pytest.mark.parametrize("template", TEMPLATE)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_that_to_the_whole_conversation(opened, family, template, capsys):
    o, template = opened[family], TEMPLATE[template]
    chat, system = Chat(o, template, Sampling(), 12), Turn("system", "be brief")
    chat.command("/system be brief")
    trimmed = 0
    for question in QUESTIONS:
        before = chat.turns
        chat.answer(question)
        said = capsys.readouterr().out
        *turns, answer = chat.turns
        assert answer.text == anew(o, template, turns, 12) and answer.text in said
        assert turns[0] == system and turns[-1].text == question
        assert turns[1:-1] == before[len(before) + 2 - len(turns) :]  # the newest of what was said
        assert (f"{POSITIONS} positions are full" in said) == (len(turns) < len(before) + 1)
        trimmed += "positions are full" in said
        longer = [*before[:1], *before[len(before) - len(turns) :], turns[-1]]
        if "positions are full" in said:  # and no more was forgotten than had to be
            assert len(ask(o.tokenizer, tuple(longer), template).ids) > POSITIONS - 12
        assert len(ask(o.tokenizer, tuple(turns), template).ids) <= POSITIONS - 12
    assert trimmed > 1


def test_only_what_is_new_is_read(opened, monkeypatch):
    o, read = opened["llama"], []
    chat, forward = Chat(o, TEMPLATE["own"], Sampling(), 5), o.model.backbone.forward
    monkeypatch.setattr(
        o.model.backbone, "forward", lambda idx, *a: read.append(idx.size(1)) or forward(idx, *a)
    )
    known = 0
    for question in QUESTIONS[:3]:
        read.clear()
        chat.answer(question)
        whole = len(ask(o.tokenizer, tuple(chat.turns[:-1]), chat.template).ids)
        # nothing of the prompt before; what was answered to it, only where a text has other ids than were written
        assert read[0] <= whole - known and read[1:] == [1] * (len(read) - 1)
        known = whole


def typed(monkeypatch, capsys, chat, *lines):
    """What a terminal shows when these lines are typed."""
    given = iter(lines)

    def line(prompt):
        print(prompt, end="")
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    talk(chat)
    return capsys.readouterr().out


def test_the_commands_of_a_chat(opened, monkeypatch, capsys):
    o = opened["gpt2"]
    chat = Chat(o, TEMPLATE["own"], Sampling(), 4, system="be kind")
    shown = typed(
        monkeypatch, capsys, chat, "the dose", "/system be brief", "of blood", "", "/now", "/new", "we saw"
    )
    assert all(word in shown.splitlines()[0] for word in ("/new", "/system TEXT", "Ctrl-D"))
    assert "no command: /now. /new forgets" in shown
    assert [(turn.role, turn.text) for turn in chat.turns[:-1]] == [
        ("system", "be brief"),
        ("user", "we saw"),
    ]
    assert chat.turns[-1].text == anew(o, chat.template, chat.turns[:-1], 4)
    typed(monkeypatch, capsys, chat, "/system")
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]


def test_ctrl_c_stops_an_answer_and_not_the_conversation(opened, monkeypatch, capsys):
    o, written = opened["llama"], []
    chat = Chat(o, TEMPLATE["own"], Sampling(), 6)
    typed(monkeypatch, capsys, chat, "the dose")
    before, forward = list(chat.turns), o.model.backbone.forward

    def interrupted(*a):
        out = forward(*a)
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(o.model.backbone, "forward", interrupted)
    assert "stopped; the question is forgotten" in typed(monkeypatch, capsys, chat, "of blood")
    assert chat.turns == before
    typed(monkeypatch, capsys, chat, "we saw")
    assert chat.turns[-1].text == anew(o, chat.template, chat.turns[:-1], 6) and len(chat.turns) == 4


def test_a_system_text_that_the_template_leaves_out_is_said(opened, monkeypatch, capsys):
    silent = chat_template(CHATML.replace("in messages", "in messages if m.role != 'system'"))
    chat = Chat(opened["gpt2"], silent, Sampling(), 4, system="be kind")
    shown = typed(monkeypatch, capsys, chat, "/system be brief", "/system")
    assert shown.count("system texts of 1 turns, for which the template has no place") == 2


def test_what_cannot_be_asked_leaves_the_conversation_as_it_was(opened, monkeypatch, capsys):
    chat = Chat(opened["gpt2"], chat_template(REFUSING), Sampling(), 4)
    typed(monkeypatch, capsys, chat, "the dose")
    before = list(chat.turns)
    shown = typed(monkeypatch, capsys, chat, "/system be brief", "the patients " * 200)
    assert (
        "no system here" in shown
        and f"{POSITIONS} positions; shorten it" in shown
        and "forgotten" not in shown
    )
    assert chat.turns == before
    typed(monkeypatch, capsys, chat, "of blood")
    assert chat.turns[:2] == before and len(chat.turns) == 4


# --- conversations out of files ---


@pytest.mark.parametrize(
    ("row", "said", "answer"),
    [
        # UltraChat's: the prompt is the first question
        (
            {
                "prompt": "a",
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            },
            (Turn("user", "a"),),
            "b",
        ),
        ({"prompt": "a", "completion": "b"}, "a", "b"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a", None),
        ({"question": "q", "messages": [{"role": "user", "content": "a"}]}, "q", None),
    ],
)
def test_a_prompt_beside_a_conversation_is_its_beginning(tmp_path, row, said, answer):
    assert read_prompts(str(write(tmp_path / "p.jsonl", [row]))) == ([said], [answer])


@pytest.fixture(scope="module")
def chat_dir(tmp_path_factory, bpe_dir):
    """A chat model as its makers give it: with a template of its own, which nanomed did not write."""
    directory = tmp_path_factory.mktemp("chat")
    make_hf_model(directory, bpe_dir, family="llama", max_position_embeddings=256)
    (directory / "chat_template.jinja").write_text(CHATML)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": EOT}))
    return directory


def rows(n, turns=2):
    texts = iter(make_texts(2 * n * turns, 5, 2, 6))
    roles = ("user", "assistant")
    return [
        {"messages": [{"role": roles[k % 2], "content": next(texts)} for k in range(2 * turns)]}
        for _ in range(n)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_transformers(directory, messages, n):
    """What transformers' generate() writes on from a conversation in the model's own template."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=n, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_prompts_that_are_conversations_are_answered_as_transformers_does(script, chat_dir, tmp_path):
    (answered, waiting), flags = rows(2), ("--max-new-tokens", 9, "--temperature", 0, "--dtype", "fp32")
    waiting["messages"].pop()
    write(tmp_path / "c.jsonl", [answered, waiting])
    out = script(
        "eval.py", "generate", "--model", chat_dir, "--prompts", "c.jsonl", "--json", "o.json", *flags
    )
    assert out.returncode == 0, out.stderr
    done = json.loads((tmp_path / "o.json").read_text())
    asked = [answered["messages"][:-1], waiting["messages"]]
    assert [d["prompt"] for d in done] == asked
    assert [d["completion"] for d in done] == [by_transformers(chat_dir, messages, 9) for messages in asked]
    system = {"role": "system", "content": "be brief"}
    out = script(
        "eval.py", "generate", "--model", chat_dir, "--prompt", "why", "--system", "be brief", "--json", "o.json",
        *flags,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    said = [system, {"role": "user", "content": "why"}]
    assert json.loads((tmp_path / "o.json").read_text())[0]["completion"] == by_transformers(
        chat_dir, said, 9
    )


def test_qa_scores_the_last_answer_after_its_whole_conversation(script, chat_dir, tmp_path):
    data = write(tmp_path / "c.jsonl", asked := rows(3))
    out = script(
        "eval.py", "qa", "--model", chat_dir, "--data", data, "--json", "r.json", "--max-new-tokens", 9,
        "--dtype", "fp32",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_dir)
    model, losses = transformers.AutoModelForCausalLM.from_pretrained(chat_dir), []
    for row, answer in zip(asked, r["answers"], strict=True):
        *messages, last = row["messages"]
        assert answer["reference"] == last["content"]
        assert answer["completion"] == by_transformers(chat_dir, messages, 9).strip()
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        assert whole[: len(prompt)] == prompt
        with torch.no_grad():
            logits = model(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, torch.tensor(whole[len(prompt) :]), reduction="none")
        )
    assert np.isclose(r["answer_ppl"], torch.cat(losses).mean().exp().item(), rtol=1e-5)


def test_what_is_instructed_on_conversations_is_a_chat_model_for_others(script, chat_dir, tmp_path):
    """transformers' pipeline takes the directory as it is: the model's own template in it, unchanged, and
    answers as eval.py does, at a turn's end."""
    said = [{"role": "user", "content": "the dose"}, {"role": "assistant", "content": "low"}]
    write(tmp_path / "c.jsonl", [{"messages": said + said}] * 8)
    flags = ("--max-steps", 30, "--lr", 2e-2, "--batch-size", 4, "--val-fraction", 0, "--dtype", "fp32")
    out = script("train_sft.py", "--model", chat_dir, "--data", "c.jsonl", "--out", "o", *flags)
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "o" / "chat_template.jinja").read_text() == CHATML
    asked = [*said, said[0]]
    write(tmp_path / "p.jsonl", [{"messages": asked}])
    flags = ("--max-new-tokens", 9, "--temperature", 0, "--dtype", "fp32", "--json", "r.json")
    out = script("eval.py", "generate", "--model", "o", "--prompts", "p.jsonl", *flags)
    assert out.returncode == 0, out.stderr
    (ours,) = json.loads((tmp_path / "r.json").read_text())
    pipe = transformers.pipeline("text-generation", model=str(tmp_path / "o"))
    theirs = pipe(asked, max_new_tokens=9, do_sample=False)[0]["generated_text"]
    assert theirs == [*asked, {"role": "assistant", "content": ours["completion"]}]
    assert ours["stopped"] and ours["completion"] == "low"


def test_a_page_shows_all_turns_of_a_conversation(script, chat_dir, tmp_path):
    row = {"messages": [*rows(1)[0]["messages"][:2], {"role": "user", "content": "And of <b>?"}]}
    row["messages"].append({"role": "assistant", "content": "levels"})
    write(tmp_path / "c.jsonl", [row]), write(tmp_path / "d.jsonl", [{"text": t} for t in make_texts(3, 1)])
    shutil.copytree(chat_dir, tmp_path / "other")
    out = script(
        "eval.py", "compare", "--models", chat_dir, "other", "--data", "d.jsonl", "--prompts", "c.jsonl", "--out", "r",
        "--max-new-tokens", 5,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    (question,) = json.loads((tmp_path / "r" / "report.json").read_text())["questions"]
    said = "\n".join(f"{m['role']}: {m['content']}" for m in row["messages"][:3])
    assert question["prompt"] == said and question["expected"] == "levels"
    html = (tmp_path / "r" / "report.html").read_text()
    assert said.replace("<b>", "&lt;b&gt;") in html


def test_a_conversation_that_nobody_waits_in_is_refused_with_its_row(script, chat_dir, tmp_path):
    good = rows(1)[0]
    for bad, word in (
        ({"messages": []}, "waits"),
        ({"messages": [{"role": "system", "content": "x"}]}, "waits"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "nobody"),
        ({"messages": [{"role": "user", "content": "the patients " * 200}]}, "256 positions"),
    ):
        write(tmp_path / "c.jsonl", [good, bad])
        out = script(
            "eval.py", "generate", "--model", chat_dir, "--prompts", "c.jsonl", "--max-new-tokens", 2
        )
        assert out.returncode == 2 and "c.jsonl, row 2" in out.stderr and word in out.stderr
