"""Special tokens that texts spell: read as the `tokenizers` library reads them or as their letters, or
refused; where each stands, and the files that name them."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from nanomed.errors import Unencodable, UserError
from nanomed.text.conversations import Conversation
from nanomed.text.corpus import encode_corpus
from nanomed.text.examples import encode_instructions
from nanomed.text.special import Written
from nanomed.text.templates import TEMPLATES, of_model
from nanomed.text.tokenizer import EOT, load_tokenizer
from tests.conftest import assert_refused, make_hf_model, write_jsonl
from tests.text.test_other_tokenizers import KINDS, llama2, llama3, smollm2

TINY = ("--context", 64, "--batch-size", 2, "--max-steps", 1, "--dtype", "fp32")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every kind, with three more special tokens that take the blanks beside them along, or want to stand
    alone."""
    out = {}
    for name, make in KINDS.items():
        out[name] = make(tmp_path_factory.mktemp(name))
        theirs = Tokenizer.from_file(str(out[name] / "tokenizer.json"))
        more = [
            AddedToken("<mask>", lstrip=True),
            AddedToken("<end>", rstrip=True),
            AddedToken("STOP", single_word=True),
        ]
        theirs.add_special_tokens([*more, "<endless>"])
        theirs.save(str(out[name] / "tokenizer.json"))
    return out


@pytest.fixture(scope="module", params=KINDS)
def pair(request, made):
    theirs = Tokenizer.from_file(str(made[request.param] / "tokenizer.json"))
    return load_tokenizer(made[request.param], reading="read"), theirs


PIECES = [
    "<mask>",
    "<end>",
    "STOP",
    "<endless>",
    EOT,
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    " ",
    "  ",
    "\n",
    "a",
    "patients",
    "x1",
]


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_read_gives_the_librarys_ids(pair, text):
    ours, theirs = pair
    assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids
    literal = Written(text, ((0, len(text)),))  # a template's own text is read so, whatever the reading
    assert ours.encode(literal).tolist() == ours.encode(text).tolist()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
)
def test_what_goes_on_behind_a_special_token_has_the_whole_texts_ids(pair, before, text):
    ours, theirs = pair
    whole = theirs.encode(before + text, add_special_tokens=False)
    if any(start < len(before) < end for start, end in whole.offsets):
        return
    expected = [i for i, (start, _) in zip(whole.ids, whole.offsets, strict=True) if start >= len(before)]
    assert ours.continuation(before, text).tolist() == expected


@pytest.mark.parametrize("name", KINDS)
def test_text_refuse_and_what_is_counted(made, name, tmp_path):
    t = load_tokenizer(made[name])
    end = t.name(t.eos)
    rows = ["acute", f"renal{end}", f"{end} liver {end}", "<mask>"]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    text, read, refuse = (load_tokenizer(made[name], reading=how) for how in ("text", "read", "refuse"))
    assert len({t.hash for t in (text, read, refuse)}) == 3
    assert text.eos not in text.encode(rows[1]) and read.encode(rows[1])[-1] == read.eos
    with pytest.raises(
        UserError, match=r"the special token .* is spelled in it; --special-tokens text or read"
    ):
        refuse.encode(rows[1])
    assert refuse.encode("acute").tolist() == text.encode("acute").tolist()
    for t in (text, read):
        found = encode_corpus(str(data), t).special_tokens
        assert found == {"read_as": t.reading, "rows": {end: 2, "<mask>": 1}}
        assert encode_corpus(str(data), t).special_tokens == found  # as the cache has it
    with pytest.raises(UserError, match=r"row 2: a text is refused"):
        encode_corpus(str(data), refuse)
    kept = encode_corpus(str(data), refuse, skip_bad_rows=True)
    assert len(kept.documents) == 1 and kept.bad_rows == 3


@pytest.mark.parametrize("name", KINDS)
def test_what_begins_and_ends_itself_gets_no_second_token(made, name, tmp_path):
    t = load_tokenizer(made[name], reading="read")
    lead, eos = t.name(t.lead), t.name(t.eos)
    assert t.document(f"{lead}acute").tolist().count(t.lead) == 1
    if t.adds_bos:
        assert t.prompt(f"{t.name(t.bos)}acute").tolist().count(t.bos) == 1
    items = [Conversation.of("Why?", "", "So."), Conversation.of("Why?", "", f"So.{eos}")]
    plain, spelled = encode_instructions(items, t, TEMPLATES["response"], 200).examples
    assert plain.ids.tolist() == spelled.ids.tolist()
    letters = encode_instructions(items, load_tokenizer(made[name]), TEMPLATES["response"], 200).examples
    assert len(letters[1].ids) > len(letters[0].ids)


def test_it_is_said_and_kept_wherever_texts_are_read(script, model_dir, tmp_path):
    rows = [f"acute renal disease {k}{EOT * (k < 3)}" for k in range(8)]
    docs = write_jsonl(tmp_path / "d.jsonl", rows)
    pairs = tmp_path / "p.jsonl"
    pairs.write_text(
        "".join(json.dumps({"instruction": r, "response": f"so {k}"}) + "\n" for k, r in enumerate(rows))
    )
    labelled = tmp_path / "l.jsonl"
    labelled.write_text(
        "".join(json.dumps({"text": r, "label": str(k % 2)}) + "\n" for k, r in enumerate(rows))
    )
    choices = tmp_path / "c.jsonl"
    choices.write_text(
        "".join(json.dumps({"prompt": r, "choices": [" a", " b"], "answer": 0}) + "\n" for r in rows)
    )
    line = f"special tokens are spelled in texts (rows): {EOT} in 3; read as"
    report = {"read_as": "read", "rows": {EOT: 3}}
    read = ("--special-tokens", "read")
    for name, data in (("train_clm.py", docs), ("train_sft.py", pairs), ("train_cls.py", labelled)):
        out = script(
            name,
            "--model",
            model_dir,
            "--data",
            data,
            "--out",
            f"{name}.out",
            "--val-fraction",
            0.25,
            *TINY,
            *read,
        )
        assert out.returncode == 0, out.stderr
        assert line in out.stdout
        made = tmp_path / f"{name}.out"
        assert json.loads((made / "summary.json").read_text())["special_tokens"] == report
        run = json.loads((made / "run.json").read_text())
        assert run["special_tokens"] == report and run["settings"]["special_tokens"] == "read"
    for command, model, data in (
        ("ppl", model_dir, docs),
        ("qa", model_dir, pairs),
        ("choices", model_dir, choices),
        ("cls", "train_cls.py.out", labelled),
    ):
        flags = ("--model", model, "--data", data, "--json", "r.json", "--dtype", "fp32")
        flags += ("--max-new-tokens", 2) if command == "qa" else ()
        out = script("eval.py", command, *flags, *read)
        assert out.returncode == 0, out.stderr
        assert (
            line in out.stdout and json.loads((tmp_path / "r.json").read_text())["special_tokens"] == report
        ), command
        out = script("eval.py", command, *flags, "--special-tokens", "refuse")
        assert_refused(out, EOT, "--special-tokens text or read")
    out = script(
        "eval.py",
        "generate",
        "--model",
        model_dir,
        "--prompt",
        f"a {EOT}",
        "--max-new-tokens",
        1,
        "--dtype",
        "fp32",
    )
    assert out.returncode == 0 and f"{EOT} in 1; read as ordinary letters" in out.stdout


# --- the files that name them -------------------------------------------------------------------------------


def test_a_generation_ends_where_either_of_the_models_files_says(tmp_path, bpe_dir, capsys):
    make_hf_model(tmp_path / "m", bpe_dir, eos_token_id=0)
    t = load_tokenizer(tmp_path / "m")
    assert t.ends == {t.eos}
    (tmp_path / "m" / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9, 10**6, True]}))
    assert load_tokenizer(tmp_path / "m").ends == {t.eos, 7, 8, 9}
    said = capsys.readouterr().err
    assert (
        "m: eos_token_id names 1000000, True, no token of its vocabulary; what ends a text is <|endo" in said
    )
    (tmp_path / "adapter").mkdir()
    for file in bpe_dir.iterdir():
        (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    assert load_tokenizer(tmp_path / "adapter", tmp_path / "m").ends == {t.eos, 7, 8, 9}


def test_an_end_in_generation_config_alone_ends_an_answer(script, tmp_path, bpe_dir):
    model = make_hf_model(tmp_path / "m", bpe_dir, eos_token_id=0)
    ids = load_tokenizer(bpe_dir).prompt("acute renal").tolist()
    written = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
    end = int(written[0, len(ids) + 2])
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
    flags = (
        "--prompt",
        "acute renal",
        "--temperature",
        0,
        "--max-new-tokens",
        4,
        "--json",
        "r.json",
        "--dtype",
        "fp32",
    )
    out = script("eval.py", "generate", "--model", "m", *flags)
    assert out.returncode == 0, out.stderr
    (done,) = json.loads((tmp_path / "r.json").read_text())
    expected = written[0, len(ids) : len(ids) + 2].tolist()
    expected = expected[: expected.index(end)] if end in expected else expected
    assert done["stopped"] and done["completion"] == load_tokenizer(bpe_dir).decode(expected)


def test_what_the_library_cannot_encode_is_a_bad_row_beside_a_token_too(bpe_dir, monkeypatch):
    def fails(text, allowed_special):
        raise ValueError("too long")

    ours = load_tokenizer(bpe_dir, reading="read")
    monkeypatch.setattr(ours.codec, "_tiktoken", fails)
    for text in ("acute", f"acute{EOT}"):
        with pytest.raises(Unencodable, match="too long.*'acute"):
            ours.encode(text)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            {},
            {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
        ),  # as it was saved before transformers 4.34
        (
            {"bos_token": "<unk>", "eos_token": "<unk>"},
            {"bos_token": "<s>", "eos_token": "</s>"},
        ),  # the older file wins
        (
            {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {"0": {"content": "<unk>"}}},
            {"bos_token": "<unk>", "eos_token": "<unk>"},
        ),  # unless the newer has all that was added
    ],
)
def test_special_tokens_map_names_the_tokens(tmp_path, config, named):
    llama2(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    assert of_model(tmp_path).render(()) == theirs.eos_token
    assert ours.prompt("acute").tolist() == theirs("acute").input_ids


def put_around(single):
    return lambda spec: spec.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": single,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                t: {"id": t, "ids": [i], "tokens": [t]} for t, i in (("<s>", 1), ("</s>", 2), ("<unk>", 0))
            },
        }
    )


def piece(token):
    return {"SpecialToken": {"id": token, "type_id": 0}}


A = {"Sequence": {"id": "A", "type_id": 0}}
AROUND = {
    "both": put_around([piece("<s>"), A, piece("</s>")]),
    "behind": put_around([A, piece("</s>")]),
    "another beginning": put_around([piece("<unk>"), A]),
    "Roberta's": lambda spec: spec.update(
        post_processor={
            "type": "RobertaProcessing",
            "sep": ["</s>", 2],
            "cls": ["<s>", 1],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
    ),
}


@pytest.mark.parametrize("change", AROUND.values(), ids=AROUND)
def test_what_a_post_processor_puts_before_a_text_is_put_there_and_what_it_puts_behind_is_said(
    tmp_path, change, capsys
):
    llama2(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("acute renal").ids
    ours = load_tokenizer(tmp_path)
    closed = theirs[-1] == 2
    assert ours.prompt("acute renal").tolist() == theirs[: len(theirs) - closed]
    assert ("puts </s> behind every text" in capsys.readouterr().err) == closed


def test_files_that_contradict_the_vocabulary_are_refused(tmp_path):
    smollm2(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|forgotten|>"}))
    with pytest.raises(UserError, match=r"eos_token is '<\|forgotten\|>', which its vocabulary has not"):
        load_tokenizer(tmp_path)
    llama3(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    last = spec["added_tokens"][-1]
    last["id"] += 50
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id(last["content"])
    assert theirs == last["id"] - 50
    with pytest.raises(
        UserError, match=f"has the id {last['id']}, which the tokenizers library takes for {theirs}"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"), [({"add_prefix_space": False}, "add_prefix_space: false is not supported")]
)
def test_side_files_of_the_librarys_kinds_are_looked_at_too(tmp_path, config, message):
    llama2(tmp_path)
    plain = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(plain | config))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    config |= {"added_tokens_decoder": {"700": {"content": "[INST]", "special": False}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    ids = theirs("acute [INST] renal").input_ids
    assert ours.prompt("acute [INST] renal").tolist() == ids and 700 in ids


def test_tokens_beside_vocab_json_have_their_ids(tmp_path, bpe_dir):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((bpe_dir / name).read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 400}))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = (
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        load_tokenizer(tmp_path, reading="read"),
    )
    assert ours.eos == theirs.eos_token_id == 400 and ours.vocab_size == 401
    text = "acute<|im_end|>renal"
    assert ours.encode(text).tolist() == theirs(text).input_ids and ours.decode(ours.encode(text)) == text
