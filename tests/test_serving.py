"""docs/serving.md: its Python runs as it stands, and answers as eval.py does; what it says of templates is
so."""

import json
import re

import pytest
import transformers

from nanomed.text.conversations import Turn, user
from nanomed.text.templates import TEMPLATES
from tests.conftest import ROOT, make_hf_model, make_texts, run_script

PAGE = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
PROMPT, WHOLE, ADAPTER, PIPELINE = BLOCKS
QUESTION = "What is anthrax?"


@pytest.fixture(scope="module")
def home(tmp_path_factory, bpe_dir):
    """runs/instructed and runs/adapter, as the page calls them, instructed in Alpaca's words."""
    home = tmp_path_factory.mktemp("serving")
    rows = [
        {"question": q, "answer": a}
        for q, a in zip(make_texts(12, 1, 2, 4), make_texts(12, 2, 2, 4), strict=True)
    ]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, family, positions, lora in (
        ("instructed", "gpt2", "n_positions", ()),
        ("adapter", "llama", "max_position_embeddings", ("--lora-r", 4)),
    ):
        make_hf_model(home / name, bpe_dir, family=family, **{positions: 512})
        flags = (
            "--template",
            "alpaca",
            "--max-steps",
            3,
            "--lr",
            2e-3,
            "--val-fraction",
            0,
            "--dtype",
            "fp32",
            *lora,
        )
        out = run_script(
            home, "train_sft.py", "--model", name, "--data", "pairs.jsonl", "--out", f"runs/{name}", *flags
        )
        assert out.returncode == 0, out.stderr
    return home


def run(code, home) -> dict:
    place = {}
    exec(code.replace('"runs/', f'"{home}/runs/'), place)
    return place


def by_eval(home, name) -> str:
    flags = (
        "--prompt",
        QUESTION,
        "--temperature",
        0,
        "--max-new-tokens",
        60,
        "--dtype",
        "fp32",
        "--json",
        "answer.json",
    )
    out = run_script(home, "eval.py", "generate", "--model", f"runs/{name}", *flags)
    assert out.returncode == 0, out.stderr
    return json.loads((home / "answer.json").read_text())[0]["completion"]


def test_the_pages_code_gives_our_answers(home):
    ours = by_eval(home, "instructed")
    whole = run(WHOLE, home)
    assert len(ours) > 20 and whole["answer"] == ours
    assert run(PIPELINE, home)["piped"] == ours
    whole["ask"].__globals__.update(run(ADAPTER, home))
    adapted = whole["ask"](QUESTION)
    assert adapted == by_eval(home, "adapter") and len(adapted) > 20
    with whole["model"].disable_adapter():
        assert whole["ask"](QUESTION) != adapted


def test_a_system_message_stands_in_front_of_the_question(home):
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "runs" / "instructed")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered == TEMPLATES["alpaca"].ask((Turn("system", "Be brief."), user(QUESTION))).text
    assert rendered == TEMPLATES["alpaca"].ask(f"Be brief.\n\n{QUESTION}").text


def test_prompts_with_an_input(home):
    ours, theirs = TEMPLATES["alpaca"], run(PROMPT, home)["prompt_of"]
    instruction, passage = "Say {input} in one word.", "A {instruction}\nwith two lines"
    assert (
        theirs(instruction, passage) == ours.ask(instruction, passage).text
        and theirs(QUESTION) == ours.ask(QUESTION).text
    )
    truthfully = "Answer this question truthfully"
    messages = {
        "response": (instruction, f"{instruction}\n{passage}"),
        "medtuned": (instruction, f"{instruction}\n### Input:\n{passage}"),
        "flashcards": (truthfully, passage),
    }
    table = re.findall(r"^\| `(\w+)` \| (?!`)", PAGE, re.M)
    assert table == [*messages, "alpaca"] == [name for name in TEMPLATES if name != "none"]
    for name, (asked, message) in messages.items():
        assert TEMPLATES[name].ask(asked, passage).text == TEMPLATES[name].ask(message).text, name
    head = {template.partition("{")[0] for template in (ours.prompt, ours.prompt_with_input)}
    assert len(head) == 2  # so no message will do
