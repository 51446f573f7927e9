"""Configs and weights as the tools that wrote them mean them: transformers, PyTorch's wrappers, safetensors,
trl, bitsandbytes."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from nanomed import hub
from nanomed.errors import UserError
from nanomed.hub import quantised
from nanomed.text.tokenizer import EOT, load_tokenizer
from tests.conftest import MEMBERS, assert_near, assert_refused, make_hf_model, write_jsonl
from tests.text.test_other_tokenizers import llama2

X = torch.arange(42).reshape(2, 21)
WEIGHTS = "model.safetensors"


def load(directory):
    return hub.load_model(hub.find(str(directory))).eval()


def theirs_of(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    ).eval()


def change_config(directory, drop=(), **keys):
    path = directory / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop}
    path.write_text(json.dumps(config | keys))


def change_weights(directory, change, metadata=None):
    state = {k: v.contiguous() for k, v in change(load_file(directory / WEIGHTS)).items()}
    save_file(state, directory / WEIGHTS, metadata=metadata or {"format": "pt"})


# --- weights ------------------------------------------------------------------------------------------------


def checkpointed(model):
    for block in model.transformer.h:
        block.mlp = checkpoint_wrapper(block.mlp)
    return model


WRAPPERS = {
    "torch.compile": torch.compile,
    "torch.compile of the backbone": lambda m: setattr(m, "transformer", torch.compile(m.transformer)) or m,
    "DataParallel": torch.nn.DataParallel,
    "both": lambda m: torch.nn.DataParallel(torch.compile(m)),
    "activation checkpointing": lambda m: torch.compile(checkpointed(m)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_names_that_wrappers_put_before_tensors_are_taken_off(tmp_path, wrap):
    """transformers itself finds none of such tensors, and goes on with random weights."""
    theirs = make_hf_model(tmp_path)
    logits = theirs(X).logits
    state = wrap(theirs).state_dict()
    state = {k: v.clone().contiguous() for k, v in state.items() if "lm_head" not in k}
    if wrap is not WRAPPERS["activation checkpointing"]:  # whose state_dict() takes its own name off
        assert any(word in next(iter(state)) for word in ("_orig_mod", "module."))
    save_file(state, tmp_path / WEIGHTS)
    assert_near(load(tmp_path)(X), logits)


def test_a_tied_matrix_may_be_stored_under_either_name(tmp_path):
    """safetensors' save_model keeps one of the names of a matrix that has two: for GPT-2 the head's."""
    theirs = make_hf_model(tmp_path)
    save_model(theirs, str(tmp_path / WEIGHTS))
    stored = load_file(tmp_path / WEIGHTS)
    assert "lm_head.weight" in stored and "transformer.wte.weight" not in stored
    assert_near(load(tmp_path)(X), theirs(X).logits)
    assert_near(theirs_of(tmp_path)(X).logits, theirs(X).logits)


def with_heads(state):
    """As trl's AutoModelForCausalLMWithValueHead and transformers' GPT2DoubleHeadsModel save them."""
    heads = {
        "v_head.summary.weight": (1, 32),
        "v_head.summary.bias": (1,),
        "multiple_choice_head.summary.weight": (1, 32),
    }
    return state | {name: torch.ones(shape) for name, shape in heads.items()}


def test_a_value_head_beside_the_language_model_is_left_out_and_said(tmp_path, capsys):
    make_hf_model(tmp_path)
    change_weights(tmp_path, with_heads)
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and "multiple_choice_head, v_head" in line and str(tmp_path) in line


@pytest.mark.parametrize(
    "name", ["classifier.weight", "qa_outputs.weight", "lm_head.bias", "final_logits_bias"]
)
def test_another_tasks_head_is_refused(tmp_path, name):
    make_hf_model(tmp_path)
    change_weights(tmp_path, lambda state: state | {name: torch.ones(400)})
    with pytest.raises(UserError, match=f"unexpected tensor {name}"):
        load(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tied_head_that_differs_is_refused_with_the_mend(tmp_path, family):
    make_hf_model(tmp_path, family=family, tie_word_embeddings=False)
    change_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(UserError, match="differs from the embedding.*tie_word_embeddings to false"):
        load(tmp_path)
    change_config(tmp_path, tie_word_embeddings=False)
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)


def test_a_backbone_without_its_head_is_refused(tmp_path):
    """transformers draws a head at random there, with a warning."""
    make_hf_model(tmp_path, family="llama", cls="LlamaModel")
    with pytest.raises(UserError, match="tensor lm_head.weight is missing"):
        load(tmp_path)


def mixed(state):
    return {
        k: v.half() if "mlp" in k else v.bfloat16() if "attn" in k else v.double() for k, v in state.items()
    }


def test_each_tensor_is_read_in_the_dtype_that_it_is_stored_in(tmp_path):
    make_hf_model(tmp_path)
    change_weights(tmp_path, mixed)
    change_config(
        tmp_path, dtype="float16"
    )  # what transformers would load all of it in, if it is asked to ("auto")
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)


@pytest.mark.parametrize("kind", ["pt", "tf", "flax", "mlx", "np"])
def test_the_format_in_a_files_metadata_changes_nothing(tmp_path, kind):
    make_hf_model(tmp_path)
    change_weights(tmp_path, lambda state: state, {"format": kind})
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)


def test_a_file_of_all_weights_wins_over_an_index_and_over_a_pickle(tmp_path):
    make_hf_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "b.safetensors"}})
    )
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)


def test_buffers_of_old_files_are_recomputed(tmp_path):
    """Rotary frequencies that a file holds are not read, whatever they are: config.json says them."""
    make_hf_model(tmp_path, family="llama")
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(3)}
    change_weights(tmp_path, lambda state: state | buffers)
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)


def test_a_padded_vocabulary_is_read(tmp_path, bpe_dir):
    """To a multiple of 64, say, for speed: rows of the embedding that no text gives."""
    theirs = make_hf_model(tmp_path, bpe_dir, vocab_size=448)
    source = hub.find(str(tmp_path))
    hub.check_vocabulary(load_tokenizer(source.tokenizer_directory), hub.read_config(tmp_path)[1], source)
    assert_near(load(tmp_path)(X), theirs(X).logits)


def with_padding(directory, bpe_dir, **tokens):
    """A model of 400 words under a tokenizer of 400 + 1."""
    make_hf_model(directory, bpe_dir)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    theirs.add_special_tokens({"pad_token": "[PAD]"} | tokens)
    theirs.save_pretrained(directory)
    return theirs, write_jsonl(directory / "docs.jsonl", ["the acute patient", "a [PAD] in a text"])


def test_a_token_beyond_the_vocabulary_harms_no_text_that_does_not_need_it(tmp_path, bpe_dir, script):
    theirs, docs = with_padding(tmp_path, bpe_dir)
    assert theirs.pad_token_id == 400
    ppl = ("eval.py", "ppl", "--model", tmp_path, "--data", docs, "--dtype", "fp32", "--json", "r.json")
    done = script(*ppl)
    assert done.returncode == 0, done.stderr
    note = f"note: {tmp_path}: added tokens without an embedding (vocab_size 400): [PAD] (400); a text that"
    assert note in done.stderr and "rows are filled with <|endoftext|> here" in done.stderr
    ids = torch.tensor([[0] + theirs("the acute patient")["input_ids"]])
    loss = theirs_of(tmp_path)(ids, labels=ids).loss.item()
    for more in ((), ("--special-tokens", "read")):
        assert script(*ppl, "--limit", 1, *more).returncode == 0
        assert json.loads((tmp_path / "r.json").read_text())["loss"] == pytest.approx(loss, rel=1e-5)
    read = ("--special-tokens", "read")
    needs = ("docs.jsonl, row 2: a text needs the token '[PAD]' (400)", "knows 400 tokens", "--skip-bad-rows")
    done = script(*ppl, *read)
    assert done.returncode == 2 and all(words in done.stderr for words in needs), done.stderr
    done = script(*ppl, *read, "--skip-bad-rows")
    assert done.returncode == 0 and json.loads((tmp_path / "r.json").read_text())["bad_rows"] == 1


@pytest.mark.parametrize("family", ["gpt2", "llama2"])
def test_words_without_an_embedding(tmp_path, bpe_dir, family, script):
    """add_tokens without resize_token_embeddings: of both kinds, tiktoken's and the library's."""
    if family == "gpt2":
        make_hf_model(tmp_path, bpe_dir)
    else:
        make_hf_model(tmp_path, family="llama", vocab_size=len(json.loads(llama2_vocabulary(tmp_path))))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=EOT if family == "gpt2" else "</s>"
    )
    theirs.add_tokens(["hepatosplenomegaly", "sepsis"])
    theirs.save_pretrained(tmp_path)
    docs = write_jsonl(tmp_path / "docs.jsonl", ["the acute patient", "the patient with sepsis"])
    ppl = ("eval.py", "ppl", "--model", tmp_path, "--data", docs, "--dtype", "fp32")
    done = script(*ppl, "--limit", 1)
    assert done.returncode == 0 and "hepatosplenomegaly (" in done.stderr, done.stderr
    done, why = script(*ppl), "docs.jsonl, row 2: a text needs the token 'sepsis'"
    assert done.returncode == 2 and why in done.stderr, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(len(theirs))
    model.save_pretrained(tmp_path)
    done = script(*ppl, "--json", "r.json")
    assert done.returncode == 0 and "note: " not in done.stderr
    rows = [
        theirs(t, add_special_tokens=False)["input_ids"]
        for t in ("the acute patient", "the patient with sepsis")
    ]
    lead = 0 if family == "gpt2" else 1
    batch = [torch.tensor([[lead, *row]]) for row in rows]
    nll = sum(theirs_of(tmp_path)(x, labels=x).loss.item() * (x.shape[1] - 1) for x in batch)
    assert json.loads((tmp_path / "r.json").read_text())["nll"] == pytest.approx(nll, rel=1e-5)


def llama2_vocabulary(directory) -> str:
    llama2(directory)
    return json.dumps(json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"])


def test_a_missing_tokenizer_is_looked_for_where_the_model_came_from(tmp_path, bpe_dir, script):
    """As transformers' Trainer leaves checkpoints that were given no tokenizer (config.json of transformers 4
    says what they were made of)."""
    make_hf_model(tmp_path / "base", bpe_dir)
    make_hf_model(tmp_path / "checkpoint-5")
    docs = write_jsonl(tmp_path / "docs.jsonl", ["the acute patient"])
    ppl = ("eval.py", "ppl", "--model", "checkpoint-5", "--data", docs, "--dtype", "fp32")
    assert_refused(script(*ppl), "checkpoint-5: no tokenizer there", "copy it from the model")
    change_config(tmp_path / "checkpoint-5", _name_or_path=str(tmp_path / "base"))
    done = script(*ppl)
    said = f"note: checkpoint-5: no tokenizer; that of {tmp_path / 'base'} is taken (_name_or_path)"
    assert done.returncode == 0 and done.stderr.count(said) == 1, done.stderr
    train = ("train_clm.py", "--model", "checkpoint-5", "--data", docs, "--out", "out", "--val-fraction", 0)
    done = script(*train, "--context", 8, "--max-steps", 1)
    assert done.returncode == 0 and (tmp_path / "out" / "tokenizer.json").exists(), done.stderr
    for gone in ("C:\\models\\base", "nobody/has-this", str(tmp_path / "gone")):
        change_config(tmp_path / "checkpoint-5", _name_or_path=gone)
        assert_refused(script(*ppl), "checkpoint-5: no tokenizer there", f"nor at {gone} (_name_or_path")


def test_any_other_token_beyond_the_vocabulary_is_refused(tmp_path, bpe_dir, script):
    _, docs = with_padding(tmp_path, bpe_dir, eos_token="<|im_end|>")
    assert_refused(
        script("eval.py", "ppl", "--model", tmp_path, "--data", docs), "the tokenizer has ids up to 401"
    )


# --- config.json --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", *MEMBERS])
@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 300.0},
        {"rope_theta": 500000, "rope_scaling": None},
        {"rope_theta": 300.0, "rope_scaling": {}},
        {"rope_theta": 300.0, "rope_parameters": None},
        {"rope_theta": 300.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {
            "rope_parameters": {"rope_theta": 300.0, "rope_type": "default"},
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 64},
    ],
    ids=str,
)
def test_every_form_of_rope_is_read_as_transformers_reads_it(tmp_path, name, keys):
    make_hf_model(tmp_path, family=name, **({"head_dim": 8} if name == "qwen3" else {}))
    change_config(tmp_path, drop=("rope_parameters",), **keys)
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)


WINDOWS = [
    ("mistral", {"sliding_window": 4}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 4, "use_sliding_window": False, "max_window_layers": 2}),
    ("llama", {"sliding_window": 4}),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": False}),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}),
    (
        "qwen2",
        {
            "sliding_window": 4,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention"] + ["full_attention"] * 2,
        },
    ),
    ("qwen3", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2, "head_dim": 8}),
]


@pytest.mark.parametrize("family, keys", WINDOWS, ids=map(str, WINDOWS))
def test_how_far_each_layer_looks_back_is_transformers(tmp_path, family, keys):
    make_hf_model(tmp_path, family=family, **({"head_dim": 8} if family == "qwen3" else {}))
    change_config(tmp_path, drop=("layer_types",), **keys)
    assert_near(load(tmp_path)(X), theirs_of(tmp_path)(X).logits)


@pytest.mark.parametrize(
    "keys",
    [
        {"use_sliding_window": False, "sliding_window": 4},
        {"use_sliding_window": True, "sliding_window": None},
    ],
)
def test_layers_with_a_window_that_nothing_gives_are_refused(tmp_path, keys):
    """transformers fails at the first text."""
    make_hf_model(tmp_path, family="qwen2")
    change_config(tmp_path, layer_types=["sliding_attention", "full_attention", "full_attention"], **keys)
    with pytest.raises(UserError, match="layer_types.*sliding_attention.*use_sliding_window"):
        load(tmp_path)
    with pytest.raises(TypeError):
        theirs_of(tmp_path)(X)


# Of architectures that are built like these, and of older programs; transformers ignores a key that it does
# not know.
STRANGE = """attention_multiplier logits_scaling residual_multiplier embedding_multiplier logit_scale no_rope_layers qk_norm
    clip_qkv num_local_experts original_max_position_embeddings hidden_size_per_head final_logit_softcapping quantization""".split()


@pytest.mark.parametrize("key", STRANGE)
def test_a_key_that_is_not_known_is_refused_and_never_passed_over(tmp_path, key):
    make_hf_model(tmp_path, family="llama")
    change_config(tmp_path, **{key: 2})
    with pytest.raises(UserError, match=f"config.json: '{key}' is not supported"):
        load(tmp_path)


BOOKKEEPING = {
    "_name_or_path": "gpt2",
    "_attn_implementation_autoset": True,
    "_num_labels": 2,
    "transformers_version": "4.9.0",
    "torch_dtype": "bfloat16",
    "architectures": ["GPT2Model"],
    "output_hidden_states": True,
    "n_ctx": 32,
    "prefix": "Title: ",
    "eos_token_id": [0, 5],
    "pad_token_id": 3,
    "id2label": {"0": "a", "1": "b"},
    "problem_type": "single_label_classification",
    "tokenizer_class": "GPT2Tokenizer",
}


def test_bookkeeping_changes_nothing_here_and_in_transformers(tmp_path):
    make_hf_model(tmp_path)
    before = load(tmp_path)(X)
    change_config(tmp_path, **BOOKKEEPING)
    assert torch.equal(load(tmp_path)(X), before)
    assert_near(theirs_of(tmp_path)(X).logits, before)


def test_code_that_a_config_names_is_never_run_and_this_is_said(tmp_path, bpe_dir, capsys):
    """As in transformers without trust_remote_code, for an architecture that it knows."""
    make_hf_model(tmp_path / "m", bpe_dir)
    change_config(tmp_path / "m", auto_map={"AutoModelForCausalLM": "modeling_own.OwnModel"})
    ours = load(tmp_path / "m")
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("note: ")
        and "auto_map" in line
        and "modeling_own.OwnModel" in line
        and "config.json" in line
    )
    assert_near(ours(X), theirs_of(tmp_path / "m")(X).logits)
    hub.save_model(ours, tmp_path / "saved", tmp_path / "m")  # where that code would not be
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())


# --- quantised ----------------------------------------------------------------------------------------------


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    "keys, word",
    [
        ({"load_in_8bit": True}, "both"),
        ({"bnb_4bit_blocksize": 128}, "bnb_4bit_blocksize"),
        ({"modules_to_not_convert": ["h.0"]}, "modules_to_not_convert"),
        ({"llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight"),
        ({"bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"quant_method": "gptq"}, "not of bitsandbytes"),
    ],
)
def test_what_a_quantisation_says_besides_is_refused_unless_known(tmp_path, keys, word):
    make_hf_model(tmp_path)
    change_config(tmp_path, quantization_config=NF4 | keys)
    with pytest.raises(UserError, match=f"config.json: .*{word}"):
        load(tmp_path)


def test_all_that_transformers_writes_of_a_quantisation_is_known():
    for how in ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}):
        written = json.loads(transformers.BitsAndBytesConfig(**how).to_json_string(use_diff=False))
        assert quantised.kind_of({"quantization_config": written}, "config.json")
