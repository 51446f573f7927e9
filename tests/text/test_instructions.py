"""Which tokens are supervised, exactly; and packed = separate."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanomed import hub
from nanomed.errors import UserError
from nanomed.models.loss import clm_loss
from nanomed.text.batch import IGNORE, Batches
from nanomed.text.conversations import Conversation
from nanomed.text.corpus import encode_corpus
from nanomed.text.examples import (
    Encoded,
    Example,
    collate,
    encode_instructions,
    pack,
    supervise_prompts,
    text_examples,
)
from nanomed.text.instructions import Fields, read_instructions
from nanomed.text.templates import TEMPLATES, load_template
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import assert_near, every_family, make_texts, write_jsonl

# What must be supervised (the end besides) and the whole text before it, written out by hand for each
# template.
EXPECTED = {
    ("response", ""): ("### Instruction:\nWhat is flu?\n### Response:\n", "A viral disease."),
    ("response", "In adults."): (
        "### Instruction:\nWhat is flu?\nIn adults.\n### Response:\n",
        "A viral disease.",
    ),
    ("medtuned", ""): ("### Instruction:\nWhat is flu?\n### Output:\n", "A viral disease."),
    ("medtuned", "In adults."): (
        "### Instruction:\nWhat is flu?\n### Input:\nIn adults.\n### Output:\n",
        "A viral disease.",
    ),
    ("flashcards", ""): (
        "Instruction: Answer this question truthfully\nQuestion: What is flu?\nResponse:",
        " A viral disease.",
    ),
    ("flashcards", "In adults."): (
        "Instruction: What is flu?\nQuestion: In adults.\nResponse:",
        " A viral disease.",
    ),
    ("alpaca", ""): (
        (
            "Below is an instruction that describes a task. Write a response that appropriately completes the"
            " request.\n\n### Instruction:\nWhat is flu?\n\n### Response:\n"
        ),
        "A viral disease.",
    ),
    ("alpaca", "In adults."): (
        (
            "Below is an instruction that describes a task, paired with an input that provides further"
            " context. Write a response that appropriately completes the request.\n\n### Instruction:\nWhat"
            " is flu?\n\n### Input:\nIn adults.\n\n### Response:\n"
        ),
        "A viral disease.",
    ),
}


@pytest.fixture(scope="module")
def tok(bpe_dir):
    return load_tokenizer(bpe_dir)


def supervised(tok, example):
    """The supervised ids as collate lays them out, and the text of the inputs that are not."""
    targets = collate([[example]]).targets
    return targets[targets != IGNORE].tolist()


def encode(tok, items, template="response", context=1000):
    return encode_instructions(items, tok, TEMPLATES[template], context)


@pytest.mark.parametrize(("template", "input"), EXPECTED)
def test_the_response_and_its_end_are_supervised_and_nothing_else(tok, template, input):
    prompt, response = EXPECTED[template, input]
    (example,) = encode(tok, [Conversation.of("What is flu?", input, "A viral disease.")], template).examples
    assert supervised(tok, example) == [*tok.encode(response).tolist(), tok.eos]
    assert tok.decode(example.ids[: example.spans[0][0]]) == prompt
    batch = collate([[example]])
    idx, targets = batch.idx, batch.targets
    assert tok.decode(idx[0]) == prompt + response  # the end is predicted and never an input
    assert (targets[0, : len(tok.encode(prompt)) - 1] == IGNORE).all()
    assert (
        targets[0, len(tok.encode(prompt)) - 1] == tok.encode(response)[0]
    )  # the prompt's last token predicts it


def test_a_marker_or_a_brace_in_the_answer_is_text_like_any_other(tok):
    answer = "Write ### Response:\nand {instruction} <|endoftext|> ### Instruction:\nAgain"
    (example,) = encode(tok, [Conversation.of("How {response}?", "", answer)]).examples
    assert supervised(tok, example) == [*tok.encode(answer).tolist(), tok.eos]
    assert (
        tok.decode(example.ids[: example.spans[0][0]]) == "### Instruction:\nHow {response}?\n### Response:\n"
    )
    assert example.ids.tolist().count(tok.eos) == 1  # the one that was put there


def test_truncated_dropped_and_empty_examples_are_counted(tok):
    item = Conversation.of("What is flu?", "", "A viral disease of the lungs.")
    n_prompt = len(tok.encode(TEMPLATES["response"].ask(item.instruction)))
    response = tok.encode(item.response).tolist()
    whole = n_prompt + len(response) + 1
    fits = encode(tok, [item], context=whole - 1)  # the end is no input
    assert fits.truncated == 0 and supervised(tok, fits.examples[0]) == [*response, tok.eos]
    cut = encode(tok, [item], context=whole - 2)
    assert cut.truncated == 1 and supervised(tok, cut.examples[0]) == response  # a cut answer teaches no end
    cut = encode(tok, [item], context=n_prompt)
    assert supervised(tok, cut.examples[0]) == response[:1]
    none = encode(tok, [item, item], context=n_prompt - 1)
    assert (none.dropped, none.examples) == (2, [])
    empty = encode(tok, [Conversation.of("What is flu?", "", "")])
    assert empty.empty == 1 and supervised(tok, empty.examples[0]) == [tok.eos]
    assert (
        str(Encoded([], 3, 2, 1))
        == ", 3 truncated, 2 dropped (no room for an answer), 1 with an empty response"
    )


def test_prompts_are_supervised_if_asked_for(tok):
    (example,) = supervise_prompts(encode(tok, [Conversation.of("What is flu?", "", "A disease.")]).examples)
    assert supervised(tok, example) == example.ids[1:].tolist()


def many(n=23, seed=0, longest=20):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        ids = rng.integers(1, 400, rng.integers(3, longest))
        out.append(Example(ids, ((int(rng.integers(1, len(ids))), len(ids)),)))
    return out


def test_packing_loses_nothing_and_fills_rows():
    examples = many(200)
    rows = pack(examples, 40)
    key = lambda e: (e.ids.tolist(), e.spans)  # noqa: E731
    assert sorted(map(key, (e for row in rows for e in row))) == sorted(map(key, examples))
    sizes = [sum(len(e.ids) - 1 for e in row) for row in rows]
    assert max(sizes) <= 40
    assert len(rows) <= 1.05 * sum(sizes) / 40 + 1  # nearly as few as can be


def test_layout_of_a_packed_row():
    a, b = Example(np.array([11, 12, 13]), ((2, 3),)), Example(np.array([21, 22]), ((1, 2),))
    batch = collate([[a, b], [b]])
    assert batch.idx.tolist() == [[11, 12, 21], [21, 0, 0]]
    assert batch.pos.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 1], [0, -1, -1]]
    assert batch.targets.tolist() == [[IGNORE, 13, 22], [22, IGNORE, IGNORE]]


@every_family
def test_packed_examples_have_the_loss_and_gradients_that_they_have_alone(model_dir):
    model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
    examples = many()
    results = []
    for rows in ([[e] for e in examples], pack(examples, 60)):
        model.zero_grad()
        batches = [collate(rows[i : i + 3]) for i in range(0, len(rows), 3)]
        assert any(b.segments is not None for b in batches) == (len(rows) < len(examples))
        loss, count = sum(clm_loss(model, b)[0] for b in batches), sum(b.supervised for b in batches)
        (loss / count).backward()
        results.append((count, loss / count, {k: p.grad.clone() for k, p in model.named_parameters()}))
    # and alone means: one example, no padding, no mask, plain PyTorch
    model.zero_grad()
    total = 0.0
    for e in examples:
        ids = torch.from_numpy(e.ids)[None]
        total = total + F.cross_entropy(
            model(ids[:, :-1])[0, e.spans[0][0] - 1 :], ids[0, e.spans[0][0] :], reduction="sum"
        )
    count = sum(len(e.ids) - e.spans[0][0] for e in examples)
    (total / count).backward()
    results.append((count, total / count, {k: p.grad.clone() for k, p in model.named_parameters()}))
    for other in results[:2]:
        assert other[0] == results[2][0]
        assert_near(other[1], results[2][1])
        for name, grad in other[2].items():
            assert_near(grad, results[2][2][name], 1e-4, name)


def test_text_is_replayed_whole_and_in_pieces(tok, tmp_path):
    texts = make_texts(6, seed=5, low=30, high=50)
    corpus = encode_corpus(str(write_jsonl(tmp_path / "d.jsonl", texts)), tok)
    pieces = text_examples(corpus.all(), 16, limit=6, seed=0)
    ids = np.concatenate([e.ids[e.spans[0][0] :] for e in pieces])
    assert (
        ids.tolist() == np.concatenate([tok.encode(t) for t in texts]).tolist()
    )  # each token predicted once
    assert max(len(e.ids) for e in pieces) == 17
    assert pieces[0].ids[0] == tok.eos
    few = text_examples(corpus.all(), 1000, limit=2, seed=0)
    assert len(few) == 2 and {tok.decode(e.ids[1:]) for e in few} < set(texts)


def test_batches_deal_every_item_once_an_epoch_in_an_order_of_its_own():
    batches = Batches(list(range(10)), lambda items: items, batch_size=2, grad_accum=2, seed=3)
    assert batches.windows_per_epoch == 3
    epochs = [[i for w in range(3) for batch in batches.window(3 * e + w) for i in batch] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert [len(b) for b in batches.window(0)] == [2, 2] and [len(b) for b in batches.window(2)] == [2]
    assert batches.window(4) == Batches(list(range(10)), lambda items: items, 2, 2, 3).window(4)


# --- rows ---------------------------------------------------------------------------------------------------


def rows_file(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_rows_of_the_usual_kinds(tmp_path):
    file = rows_file(
        tmp_path / "a.jsonl",
        [
            {"instruction": "I", "input": "", "output": "O"},
            {"instruction": "I", "input": "X", "response": "R", "output": ""},
            {"question": "Q", "answer": "A", "input": None},
            {"question": "Q", "answer": "A"},
        ],
    )
    items, bad, sha = read_instructions([file], Fields(), None, False)
    assert items == [
        Conversation.of("I", "", "O"),
        Conversation.of("I", "X", "R"),
        Conversation.of("Q", "", "A"),
        Conversation.of("Q", "", "A"),
    ]
    assert bad == 0 and len(sha) == 64
    nested = rows_file(
        tmp_path / "b.jsonl", [{"q": {"text": "Q"}, "contexts": ["one", "two"], "long": "A", "topic": 7}]
    )
    fields = Fields("q.text", "contexts", "long", "topic")
    assert read_instructions([nested], fields, None, False)[0] == [Conversation.of("Q", "one\ntwo", "A", "7")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "Q"}, ["row 2", "response,output,answer", "--response-field"]),
        ({"answer": "A"}, ["row 2", "instruction,question", "--instruction-field"]),
        ({"question": "  ", "answer": "A"}, ["row 2", "empty instruction"]),
        ({"question": "Q", "answer": "A", "input": 3}, ["row 2", "'input' is not text"]),
    ],
)
def test_bad_rows_are_named_or_counted(tmp_path, row, words):
    file = rows_file(tmp_path / "a.jsonl", [{"question": "Q", "answer": "A"}, row])
    with pytest.raises(UserError) as e:
        read_instructions([file], Fields(), None, False)
    for word in words:
        assert word in str(e.value)
    items, bad, _ = read_instructions([file], Fields(), None, True)
    assert (len(items), bad) == (1, 1)


# --- templates of one's own ---------------------------------------------------------------------------------


def test_a_template_from_a_file(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('prompt = "Q: {instruction}\\nA:"\nresponse = " {response}"\nmarkers = ["\\nQ:"]\n')
    template = load_template(str(path))
    assert template.ask("Why?").text == "Q: Why?\nA:"
    assert template.ask("Why?", "Context.").text == "Q: Why?\nContext.\nA:"
    assert template.answer("Yes.").text == " Yes." and template.markers == ("\nQ:",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompt = "Q:"', "must contain {instruction}"),
        ('prompt = "{instruction}"\nresponse = "x"', "must contain {response}"),
        ('prompt = "{instruction}"\nprompt_with_input = "{instruction}"', "must contain {input}"),
        ('prompt = "{instruction}"\nstop = "x"', "unknown key 'stop'"),
        ('prompt = "{instruction}"\nmarkers = "x"', "markers: expected array"),
        ("prompt = 3", "prompt: expected str"),
        ('response = "{response}"', "missing required field prompt"),
        ("prompt = ", "not valid TOML"),
    ],
)
def test_a_wrong_template_is_said(tmp_path, text, message):
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_template(str(path))


def test_an_unknown_template_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="response, medtuned, flashcards, alpaca"):
        load_template("vicuna")
    with pytest.raises(UserError, match="No such file"):
        load_template(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        ({"instruction": "Why?", "question": "Why?", "answer": "So."}, ("Why?", "So.")),
        ({"instruction": "", "question": "Why?", "response": "", "output": "So."}, ("Why?", "So.")),
        ({"instruction": None, "question": "Why?", "answer": ""}, ("Why?", "")),
        (
            {"instruction": "Answer.", "question": "Why?", "answer": "So."},
            "instruction and question hold different texts",
        ),
        (
            {"question": "Why?", "response": "So.", "output": "Not so."},
            "response and output hold different texts; --response-field",
        ),
    ],
)
def test_of_several_names_of_one_field_the_filled_one_is_taken_and_two_are_asked_about(tmp_path, row, taken):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row) + "\n")
    if isinstance(taken, str):
        with pytest.raises(UserError, match=taken):
            read_instructions([str(path)], Fields(), None, False)
        (item,) = read_instructions(
            [str(path)], Fields(instruction="question", response="output,answer"), None, False
        )[0]
        assert item.instruction == "Why?"
        return
    (item,) = read_instructions([str(path)], Fields(), None, False)[0]
    assert (item.instruction, item.response) == taken


def test_fields_that_others_put_into_a_prompt_are_named_where_they_are_not_read(tmp_path, capsys):
    path = tmp_path / "d.jsonl"
    rows = [{"question": "Why?", "context": "Because.", "answer": "So."}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_instructions([str(path)], Fields(), None, False)
    assert "the field context of 3 rows is not read (--input-field context" in capsys.readouterr().out
    read_instructions([str(path)], Fields(input="context"), None, False)
    assert capsys.readouterr().out == ""
    rows = [{"question": "Why?", "answer": "So.", "image": {"path": "a.png"}, "images": [], "kto_tag": False}]
    path.write_text(json.dumps(rows[0]) + "\n")
    read_instructions([str(path)], Fields(), None, False)
    said = capsys.readouterr().out
    assert "the field image of 1 rows" in said and "kto_tag of 1 rows" in said and "images" not in said
    rows = [
        {"question": "Which?", "choices": ["a", "b"], "answer": 1, "system_prompt": "Be short."}
    ]  # MMLU, Orca
    path.write_text(json.dumps(rows[0]) + "\n")
    read_instructions([str(path)], Fields(), None, False)
    said = capsys.readouterr().out
    assert "the field choices of 1 rows is not read" in said and "field system_prompt of 1" in said
