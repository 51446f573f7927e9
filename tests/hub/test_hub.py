"""Every layout of the Hub loads, what is saved loads in transformers, and what is wrong is named."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanomed import hub, network
from nanomed.errors import UserError
from nanomed.hub import source
from nanomed.models.lora import LoRAConfig, inject
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import ROOT, assert_near, assert_refused, make_hf_model, make_texts, write_jsonl
from tests.standin_hub import StandinHub

X = torch.arange(30).reshape(2, 15)


def load(directory):
    return hub.load_model(hub.find(str(directory))).eval()


def weights(directory):
    return load_file(directory / "model.safetensors")


def rewrite(directory, change):
    """Save the directory's tensors again after `change(dict) -> dict`."""
    save_file(
        {k: v.contiguous() for k, v in change(weights(directory)).items()}, directory / "model.safetensors"
    )


@pytest.fixture
def tiny(tmp_path, bpe_dir):
    return tmp_path, make_hf_model(tmp_path, bpe_dir)


def gpt2s_own(state):
    """As in the file of `gpt2`: no prefix, and each layer's causal mask as a buffer."""
    state = {k.removeprefix("transformer."): v for k, v in state.items()}
    return state | {f"h.{i}.attn.bias": torch.ones(64, 64).tril().reshape(1, 1, 64, 64) for i in range(3)}


def distilgpt2s(state):
    """As in `distilgpt2`: prefix, mask and masked_bias."""
    masks = {
        f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril() for i in range(3)
    }
    return state | masks | {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}


def with_head(state):
    return state | {"lm_head.weight": state["transformer.wte.weight"].clone()}


@pytest.mark.parametrize("layout", [gpt2s_own, distilgpt2s, with_head])
def test_layouts(tiny, layout):
    directory, theirs = tiny
    rewrite(directory, layout)
    assert_near(load(directory)(X), theirs(X).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage(tiny, dtype):
    directory, theirs = tiny
    rewrite(directory, lambda state: {k: v.to(dtype) for k, v in state.items()})
    rounded = theirs.to(dtype).float()
    model = load(directory)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_near(model(X), rounded(X).logits)


def test_shards(tiny):
    directory, theirs = tiny
    theirs.save_pretrained(directory, max_shard_size="20KB")
    (directory / "model.safetensors").unlink()
    assert len(list(directory.glob("model-*.safetensors"))) > 3
    assert_near(load(directory)(X), theirs(X).logits)
    next(directory.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match="no such file"):
        load(directory)


@pytest.mark.parametrize("flags", [{}, {"tie_word_embeddings": False}, {"n_inner": 40}])
def test_saved_models_load_in_transformers_with_identical_logits(tmp_path, bpe_dir, flags):
    make_hf_model(tmp_path / "in", bpe_dir, **flags)
    model = load(tmp_path / "in")
    hub.save_model(model, tmp_path / "out", tmp_path / "in")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert_near(theirs(X).logits, model(X))
    again = load(tmp_path / "out")
    assert torch.equal(again(X), model(X))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer.encode("the acute patient")) == "the acute patient"
    stored = weights(tmp_path / "out")
    assert ("lm_head.weight" in stored) == (flags.get("tie_word_embeddings") is False)


BROKEN = {
    "missing": (
        lambda s: {k: v for k, v in s.items() if k != "transformer.h.1.mlp.c_fc.bias"},
        "h.1.mlp.c_fc.bias is missing",
    ),
    "unexpected": (
        lambda s: s | {"transformer.h.0.extra": torch.zeros(1)},
        "unexpected tensor transformer.h.0.extra",
    ),
    "fourth layer": (lambda s: s | {"transformer.h.3.ln_1.weight": torch.zeros(32)}, "unexpected tensor"),
    "shape": (
        lambda s: s | {"transformer.wpe.weight": torch.zeros(63, 32)},
        r"wpe.weight has shape \(63, 32\)",
    ),
    "not transposed": (
        lambda s: s | {"transformer.h.0.mlp.c_fc.weight": torch.zeros(128, 32)},
        "c_fc.weight has shape",
    ),
    "integers": (
        lambda s: s | {"transformer.wpe.weight": torch.zeros(64, 32, dtype=torch.int8)},
        "stored as torch.int8",
    ),
    "other head": (lambda s: s | {"lm_head.weight": torch.zeros(400, 32)}, "differs from the embedding"),
    "twice": (lambda s: s | {"wpe.weight": torch.zeros(64, 32)}, "stored twice"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_wrong_tensors_are_named(tiny, change, message):
    rewrite(tiny[0], change)
    with pytest.raises(UserError, match=message) as e:
        load(tiny[0])
    assert str(tiny[0]) in str(e.value)


def test_truncated_corrupt_and_pickled_weights(tiny):
    file = tiny[0] / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"\x80\x02not safetensors"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="model.safetensors: truncated, corrupt or not safetensors"):
            load(tiny[0])
    file.unlink()
    torch.save({"a": torch.zeros(1)}, tiny[0] / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle.*never loaded"):
        load(tiny[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("add_cross_attention", True, "add_cross_attention = True is not supported"),
        ("activation_function", "mish", "activation_function = 'mish' is not supported"),
        ("quantization_config", {"bits": 4}, "quantization_config is not of bitsandbytes"),
        ("rotary_dim", 64, "'rotary_dim' is not supported"),
        ("model_type", "bert", "unknown architecture 'bert'"),
        ("n_head", 5, "n_embd 32 is not a multiple of n_head 5"),
    ],
)
def test_a_config_flag_that_is_not_supported_is_an_error(tiny, key, value, message):
    config = json.loads((tiny[0] / "config.json").read_text()) | {key: value}
    (tiny[0] / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load(tiny[0])


# The keys of configs on the Hub, as transformers of many versions wrote them.
PUBLISHED = {
    "gpt2": {"n_ctx": 64, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
    "gpt2-medium": {"n_special": 0, "predict_special_tokens": True, "n_ctx": 64},
    "gpt2-xl": {"output_past": True, "n_ctx": 64},
    "distilgpt2": {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    "biomedlm": {
        "gradient_checkpointing": False,
        "torch_dtype": "float32",
        "use_cache": False,
        "n_inner": None,
    },
}


@pytest.mark.parametrize("keys", PUBLISHED.values(), ids=PUBLISHED)
def test_keys_of_published_configs_are_known(tiny, keys):
    path = tiny[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    assert_near(load(tiny[0])(X), tiny[1](X).logits)


@pytest.mark.parametrize(
    "key", ["layer_replication", "use_qalora", "modules_to_save", "rank_pattern", "target_parameters"]
)
def test_an_adapter_setting_that_is_not_supported_is_an_error(tiny, tmp_path, key):
    model = load(tiny[0])
    inject(model, LoRAConfig(2, 2.0, 0.0, ("c_attn",)))
    hub.save_adapter(model, tmp_path / "a", str(tiny[0]), tiny[0])
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: [1]}))
    with pytest.raises(UserError, match=key):
        load(tmp_path / "a")


def test_wrong_adapters_are_named(tiny, tmp_path):
    model = load(tiny[0])
    inject(model, LoRAConfig(2, 2.0, 0.0, ("c_attn",)))
    out = tmp_path / "a"
    hub.save_adapter(model, out, str(tiny[0]), tiny[0])
    file = out / "adapter_model.safetensors"
    whole = load_file(file)
    key = next(iter(whole))
    save_file({k: v for k, v in whole.items() if k != key}, file)
    with pytest.raises(UserError, match="is missing"):
        load(out)
    save_file(whole | {key: torch.zeros(3, 3)}, file)
    with pytest.raises(UserError, match=r"has shape \(3, 3\)"):
        load(out)
    file.unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        load(out)
    for name in ("summary.json", "adapter_config.json"):
        (out / name).write_text("[]")
        with pytest.raises(UserError, match=f"{name}: .*object"):
            load(out)
        (out / name).unlink()
    hub.save_adapter(model, out, str(tmp_path / "gone"), tiny[0])
    with pytest.raises(UserError, match="base cannot be had"):
        load(out)


def test_a_base_is_hashed_once_and_again_when_it_changed(tiny, tmp_path, monkeypatch):
    """Every find() of an adapter checks its base, whose weights may be gigabytes."""
    base, out = tmp_path / "base-model", tmp_path / "a"
    shutil.copytree(tiny[0], base)
    model = load(base)
    inject(model, LoRAConfig(2, 2.0, 0.0, ("c_attn",)))
    hub.save_adapter(model, out, str(base), base)
    (out / "summary.json").write_text(json.dumps({"base_sha256": hub.fingerprint(hub.find(str(base)))}))
    hashed, digest = [], source.hashlib.file_digest
    monkeypatch.setattr(
        source.hashlib, "file_digest", lambda f, kind: hashed.append(f.name) or digest(f, kind)
    )
    hub.find(str(out)), hub.find(str(out))
    assert not hashed
    state = load_file(base / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, base / "model.safetensors")
    with pytest.raises(UserError, match="base-model is not what it was"):
        hub.find(str(out))
    assert [name.endswith("model.safetensors") for name in hashed] == [True]


def test_saving_leaves_the_old_file_when_it_fails(tiny, monkeypatch):
    model, before = load(tiny[0]), (tiny[0] / "model.safetensors").read_bytes()

    def full(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanomed.tensors.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        hub.save_model(model, tiny[0], tiny[0])
    assert (tiny[0] / "model.safetensors").read_bytes() == before
    assert not list(tiny[0].glob("*.tmp"))


def test_a_fingerprint_is_of_the_files_that_the_index_names(tmp_path, bpe_dir):
    make_hf_model(tmp_path, bpe_dir)
    state, shard = load_file(tmp_path / "model.safetensors"), "pytorch_model-00001-of-00001.safetensors"
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(state, shard)})
    )
    save_file(state, tmp_path / shard)
    before = hub.fingerprint(hub.find(str(tmp_path)))
    save_file({k: v + 1 for k, v in state.items()}, tmp_path / shard)
    assert hub.fingerprint(hub.find(str(tmp_path))) != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "4"),
        ("r", 4.5),
        ("lora_alpha", "8"),
        ("lora_dropout", 2),
        ("target_modules", [1]),
        ("target_modules", 5),
    ],
)
def test_a_value_of_the_wrong_kind_in_an_adapters_config_is_named(tiny, tmp_path, key, value):
    model = load(tiny[0])
    inject(model, LoRAConfig(2, 2.0, 0.0, ("c_attn",)))
    hub.save_adapter(model, tmp_path / "a", str(tiny[0]), tiny[0])
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"adapter_config.json: {key}\W.*expected"):
        load(tmp_path / "a")


@pytest.mark.slow
def test_shards_are_loaded_one_by_one_without_a_second_copy(tmp_path):
    """Sixteen files in bf16 of a model of 200 MB in fp32: the peak is the model and one tensor, not the model
    and its files."""
    make_hf_model(tmp_path / "tiny", family="llama")  # loaded first, for whatever is imported only then
    shape = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "vocab_size": 400,
        "num_attention_heads": 8,
    }
    theirs = make_hf_model(tmp_path, family="llama", **shape).bfloat16()
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="6MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 12
    code = (
        "import sys; from nanomed import hub; from nanomed.memory import peak_rss; source ="
        " hub.find(sys.argv[1]); hub.load_model(hub.find(sys.argv[1] + '/tiny')); before = peak_rss(); model"
        " = hub.load_model(source); print(peak_rss() - before, sum(p.nbytes for p in model.parameters()),"
        " max(p.nbytes for p in model.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, size, largest = map(int, done.stdout.split())
    assert size > 180e6 and grown < size + 2 * largest + 30e6  # pages of the file at hand
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_near(load(tmp_path)(X), theirs(X).logits)


# --- the Hub, from processes of their own -------------------------------------------------------------------


@pytest.fixture
def online(tmp_path, bpe_dir):
    """A stand-in hub with the model `gpt2`, other formats beside it, and the environment that leads there."""
    root = tmp_path / "hub"
    make_hf_model(root / "models" / "gpt2", bpe_dir)
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/decoder.onnx", "README.md"):
        file = root / "models" / "gpt2" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    (root / "models" / "owner" / "gated").mkdir(parents=True)
    (root / "models" / "owner" / "gated" / ".gated").touch()
    make_hf_model(root / "models" / "owner" / "pickled", bpe_dir)
    os.rename(
        root / "models/owner/pickled/model.safetensors", root / "models/owner/pickled/pytorch_model.bin"
    )
    with StandinHub(root) as standin:
        yield standin, {"HF_ENDPOINT": standin.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}


@pytest.fixture
def texts(tmp_path):
    return write_jsonl(tmp_path / "texts.jsonl", make_texts(5, 7))


def test_a_hub_id_downloads_only_what_is_needed_and_then_works_offline(
    online, script, texts, tmp_path, monkeypatch
):
    standin, env = online

    def nll(**more):
        command = ("eval.py", "ppl", "--model", "gpt2", "--data", texts, "--json", "r.json")
        out = script(*command, env=env | more)
        assert out.returncode == 0, out.stderr
        return json.loads((tmp_path / "r.json").read_text())["nll"]

    first = nll()
    asked = [path for method, path in standin.requests if method == "GET" and "/resolve/" in path]
    files = {"config.json", "generation_config.json", "model.safetensors"}
    files |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.rsplit("/", 1)[1] for path in asked} == files  # and none of the formats beside them
    assert (tmp_path / "home" / "hub" / "models--gpt2").is_dir()
    assert nll(HF_HUB_OFFLINE="1") == first
    ask_here(monkeypatch, standin, offline=True)  # out of reach
    monkeypatch.setattr(network.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    assert {p.name for p in hub.find("gpt2").directory.iterdir()} == files


def test_a_hub_id_is_read_as_a_copy_of_it_is(online, monkeypatch, tmp_path):
    """All that decides ids, ends and chats comes along, though most models have only some of it."""
    standin, _ = online
    ask_here(monkeypatch, standin)
    local = standin.root / "models" / "gpt2"
    content = {
        "special_tokens_map.json": json.dumps({"eos_token": "!"}),
        "added_tokens.json": json.dumps({"<|endoftext|>": 0}),
        "generation_config.json": json.dumps({"eos_token_id": [5]}),
        "chat_template.jinja": "{{ messages }}",
    }
    for name, text in content.items():
        (local / name).write_text(text)
    there = hub.find("gpt2").directory
    assert {p.name for p in there.iterdir()} >= content.keys()
    ours, copied = load_tokenizer(there), load_tokenizer(local)
    assert (ours.eos, ours.ends, ours.hash) == (copied.eos, copied.ends, copied.hash) and copied.name(
        copied.eos
    ) == "!"


def test_an_adapter_finds_its_base_on_the_hub(online, script, texts, tmp_path, monkeypatch):
    ask_here(monkeypatch, online[0])
    flags = ("--out", "a", "--lora-r", 2, "--max-steps", 1, "--val-fraction", 0)
    out = script("train_clm.py", "--model", "gpt2", "--data", texts, *flags)
    assert out.returncode == 0, out.stderr
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "gpt2"
    out = script("eval.py", "ppl", "--model", "a", "--data", texts)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("owner/nothing", "no such repository"),
        ("owner/gated", "gated"),
        ("owner/pickled", "no safetensors"),
        ("not a name", "no such repository"),
    ],
)
def test_unknown_gated_and_pickled_repositories(online, monkeypatch, name, word):
    ask_here(monkeypatch, online[0])
    with pytest.raises(UserError, match=f"^{name}: .*{word}.*give a local directory$"):
        hub.find(name)


class Silent:
    """A host that takes connections and never answers; how many it took."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.socket.setblocking(False)
        return self

    def __exit__(self, *exc):
        self.socket.close()

    def connections(self) -> int:
        n = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.accept()[0].close()
                n += 1
        return n


@pytest.mark.parametrize("network", ["refused", "silent", "unknown host"])
def test_without_a_network_it_fails_after_asking_once(script, texts, tmp_path, network):
    with Silent() as silent:
        endpoint = {
            "refused": "http://127.0.0.1:9",
            "silent": silent.url,
            "unknown host": "http://no.such.host.invalid",
        }[network]
        env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        out = script("eval.py", "ppl", "--model", "gpt2", "--data", texts, env=env)
        assert_refused(out, "gpt2", "no network", "give a local directory")
        assert silent.connections() == (network == "silent")  # once, so it waits CONNECT_SECONDS once


def test_a_host_that_keeps_it_waiting_is_given_up_after_connect_seconds(monkeypatch):
    """However long the request itself takes: a dead name server knows nothing of its timeout."""
    asked, over = [], threading.Event()

    class Session:
        def head(self, url, timeout):
            asked.append((threading.current_thread(), timeout))
            over.wait(60)  # the end of it, should anyone wait for it

    assert network.CONNECT_SECONDS <= 5  # ten seconds are promised, and it asks once
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(network, "OFFLINE", False)
    monkeypatch.setattr(network.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network.huggingface_hub, "get_session", Session)
    network.online.cache_clear()
    try:
        assert not network.online() and not network.online()
        ((thread, timeout),) = asked
        assert thread.is_alive() and timeout == 0.1  # it is still waiting there, and not here
        assert network.constants.HF_HUB_OFFLINE  # for what huggingface_hub would ask besides
        over.set()
        thread.join()
    finally:
        over.set()
        network.online.cache_clear()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_asked_again(online, monkeypatch, status):
    standin, _ = online
    ask_here(monkeypatch, standin)
    standin.failing = {"config.json": [status, 2], "model.safetensors": [status, 1]}
    source = hub.find("gpt2")
    assert hub.load_model(source) and not any(left for _, left in standin.failing.values())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_stays_busy_is_said_in_one_line(online, monkeypatch, capfd, status):
    standin, _ = online
    ask_here(monkeypatch, standin)
    standin.failing = {"config.json": [status, 99]}
    began = len(standin.requests)
    with pytest.raises(
        UserError, match=f"gpt2: could not be had from {standin.url} .*{status}.*; or give a local directory"
    ):
        hub.find("gpt2")
    assert sum(path.endswith("config.json") for _, path in standin.requests[began:]) <= 4
    assert not capfd.readouterr().err
    standin.failing = {}
    hub.find("gpt2")
    everything = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    )
    standin.failing = {name: [status, 99] for name in everything}
    assert hub.find("gpt2").directory.exists()  # of the cache, where not all of these are


def test_a_busy_hub_is_waited_for_as_it_asks_if_that_is_not_long(online, monkeypatch, capfd):
    standin, _ = online
    ask_here(monkeypatch, standin)
    pauses = []
    monkeypatch.setattr(network.time, "sleep", pauses.append)
    for asked, waited in (("4", [4, 4]), ("11", []), ("Mon, 30 Nov 2026 05:00:00 GMT", [0.01, 0.02])):
        pauses.clear()
        standin.retry_after, standin.failing = asked, {"config.json": [429, 99]}
        with pytest.raises(UserError, match="429"):
            hub.find("gpt2")
        assert pauses == waited


def test_a_hub_that_says_nothing_but_that_it_is_busy_is_given_up(online, monkeypatch, tmp_path):
    """However long huggingface_hub, which datasets uses, would go on asking."""
    standin, _ = online
    ask_here(monkeypatch, standin)
    monkeypatch.setattr(network, "SILENCE_SECONDS", 0.5)
    standin.failing, url = {"config.json": [429, 99]}, f"{standin.url}/gpt2/resolve/main/config.json"
    with pytest.raises(TimeoutError, match="for 0.5 seconds it has answered 429 Too Many Requests"):
        network.watched(lambda: huggingface_hub.utils.http_backoff("GET", url), tmp_path, all_the_time=False)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://127.0.0.1:x", "nowhere", "ftp://a"])
def test_an_address_that_is_none_is_named(script, texts, model_dir, tmp_path, endpoint):
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    for model, data in (("gpt2", texts), (model_dir, "hub:owner/texts")):
        out = script("eval.py", "ppl", "--model", model, "--data", data, env=env)
        assert_refused(out, f"HF_ENDPOINT {endpoint}")


def test_an_adapter_whose_base_is_an_adapter_is_refused_however_it_is_written(tiny, tmp_path, monkeypatch):
    model = load(tiny[0])
    inject(model, LoRAConfig(2, 2.0, 0.0, ("c_attn",)))
    monkeypatch.setenv("HOME", str(tmp_path))
    hub.save_adapter(model, tmp_path / "first", str(tiny[0]), tiny[0])
    for base in ("~/first", str(tmp_path / "first"), str(tmp_path / "second")):
        hub.save_adapter(model, tmp_path / "second", base, tiny[0])
        with pytest.raises(UserError, match="is an adapter too"):
            hub.find(str(tmp_path / "second"))


def test_a_download_that_stalls_is_asked_for_from_where_it_stopped(online, monkeypatch):
    standin, _ = online
    ask_here(monkeypatch, standin)
    monkeypatch.setattr(network.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    standin.stuck, standin.stuck_often = "model.safetensors", 1
    assert hub.load_model(hub.find("gpt2"))
    ((path, begin),) = standin.ranges
    assert path.endswith("/model.safetensors") and begin >= network.constants.DOWNLOAD_CHUNK_SIZE


def test_a_download_that_stops_is_given_up_and_may_be_begun_again(online, monkeypatch):
    standin, _ = online
    ask_here(monkeypatch, standin)
    monkeypatch.setattr(network, "SILENCE_SECONDS", 1)
    standin.stuck = "model.safetensors"
    with pytest.raises(UserError, match="gpt2: could not be had from .*nothing came for 1 seconds"):
        hub.find("gpt2")
    standin.stuck = None
    standin.over.set()
    assert hub.load_model(hub.find("gpt2"))


@pytest.mark.parametrize("all_the_time", [True, False])
@pytest.mark.parametrize("what", ["begun", "left by another", "other work"])
def test_what_counts_as_silence(tmp_path, monkeypatch, what, all_the_time):
    """A data set's call makes its tables after the download, in silence; a model's does nothing else."""
    monkeypatch.setattr(network, "SILENCE_SECONDS", 0.5)
    over, file = threading.Event(), tmp_path / "blobs" / "sha.incomplete"
    file.parent.mkdir()
    if what == "left by another":
        file.write_bytes(b"half")
    given_up = what == "begun" or all_the_time

    def call():
        if what == "begun":
            file.write_bytes(b"half")
        over.wait(60 if given_up else 0.8)
        return "there"

    with pytest.raises(TimeoutError) if given_up else contextlib.nullcontext():
        assert network.watched(call, tmp_path, all_the_time) == "there"
    over.set()


def test_other_work_that_never_ends_is_given_up_too(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "IDLE_SECONDS", 0.5)
    over = threading.Event()
    with pytest.raises(TimeoutError, match="nothing came for 0.5 seconds"):
        network.watched(lambda: over.wait(60), tmp_path, all_the_time=False)
    over.set()


def test_a_panic_of_a_library_ends_the_wait(tmp_path):
    class Panic(BaseException):
        pass

    def call():
        raise Panic("out of reach")

    with pytest.raises(Panic):
        network.watched(call, tmp_path)


@pytest.mark.slow
def test_a_slow_download_is_no_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "SILENCE_SECONDS", 2)
    file, over = tmp_path / "sha.incomplete", threading.Event()

    def call():
        for k in range(1, 13):
            file.write_bytes(b"x" * k)
            over.wait(0.25)
        return "there"

    assert network.watched(call, tmp_path) == "there"


def ask_here(monkeypatch, standin, offline=False):
    """The stand-in, from within this process; offline: which cannot be reached."""
    monkeypatch.setattr(network, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(network, "OFFLINE", False)
    for name, value in (
        ("HF_HUB_OFFLINE", offline),
        ("ENDPOINT", standin.url),
        ("HF_HUB_CACHE", str(standin.root / "cache")),
    ):
        monkeypatch.setattr(network.constants, name, value)
    monkeypatch.setattr(
        network.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        standin.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    network.online.cache_clear()
    monkeypatch.setattr(network, "online", lambda: not offline)
    monkeypatch.setattr(source, "online", lambda: not offline)


LOOKED_UP = """
import os, socket
real = socket.getaddrinfo
def asked(host, *args, **kwargs):
    with open(os.environ["LOOKED_UP"], "a") as f:
        f.write(f"{host}\\n")
    return real(host, *args, **kwargs)
socket.getaddrinfo = asked
"""

# Several commands in one process, each with its exit status.
SEVERAL = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    sys.path[0] = sys.argv[0].rpartition("/")[0]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as e:
        print("STATUS", e.code, flush=True)
"""


def test_a_data_set_of_the_hub(online, script, model_dir, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    standin, env = online
    # Python loads it at the start: every host that is looked up is written down.
    (tmp_path / "sitecustomize.py").write_text(LOOKED_UP)
    env |= {"PYTHONPATH": str(tmp_path), "LOOKED_UP": str(tmp_path / "asked")}
    folder = standin.root / "datasets" / "owner" / "abstracts"
    (folder / "big").mkdir(parents=True)
    texts = make_texts(12, 8)
    rows = [{"id": i, "context": {"contexts": t.split(" ", 1)}} for i, t in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "big" / "train-0.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: big\n  data_files:\n  - split: train\n    path: big/train-*\n---\n"
    )
    local = write_jsonl(tmp_path / "local.jsonl", [t.replace(" ", "\n", 1) for t in texts])
    flags = ["--model", str(model_dir), "--json", "r.json", "--text-field", "context.contexts"]
    commands = [
        [str(ROOT / "eval.py"), "ppl", "--data", f"hub:owner/{data}", *flags]
        for data in ("nothing", "abstracts:big:train")
    ]
    there = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert there.stdout.split()[-2:] == ["STATUS", "0"], there.stderr
    assert "STATUS 2" in there.stdout and len(there.stderr.splitlines()) == 1
    assert "owner/nothing: could not be had" in there.stderr
    results = [json.loads((tmp_path / "r.json").read_text())]
    out = script("eval.py", "ppl", "--model", model_dir, "--data", local, "--json", "r.json")
    assert out.returncode == 0, out.stderr
    results.append(json.loads((tmp_path / "r.json").read_text()))
    asked = set((tmp_path / "asked").read_text().split())
    assert {"127.0.0.1"} <= asked <= {"127.0.0.1", "datasets-server.127.0.0.1"}  # the Hub, and nobody besides
    assert results[0]["data_sha256"] == results[1]["data_sha256"] and results[0]["nll"] == results[1]["nll"]
    with Silent() as silent:  # datasets itself would try for half a minute
        gone = env | {"HF_ENDPOINT": silent.url, "HF_HOME": str(tmp_path / "other")}
        out = script("eval.py", "ppl", "--model", model_dir, "--data", "hub:owner/abstracts:big", env=gone)
        assert silent.connections() == 1
    assert_refused(out, "no network", "give a local file")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stays busy", "stuck", "broken"])
def test_a_data_set_that_does_not_come_is_said_in_one_line_and_comes_later(online, script, model_dir, how):
    standin, env = online
    folder = standin.root / "datasets" / "owner" / "texts"
    folder.mkdir(parents=True)
    write_jsonl(folder / "train.jsonl", make_texts(12, 8))
    if how == "stays busy":
        standin.failing = {"train.jsonl": [503, 99]}
    else:
        setattr(standin, how, "train.jsonl")
    out = script("eval.py", "ppl", "--model", model_dir, "--data", "hub:owner/texts", env=env)
    said = {
        "stays busy": "503 Service Unavailable",
        "stuck": "nothing came for 10 seconds",
        "broken": "peer closed connection",
    }
    assert_refused(out, "owner/texts: could not be had from", said[how], "or give a local file")
    standin.failing, standin.stuck, standin.broken = {"train.jsonl": [503, 2]}, None, None
    out = script("eval.py", "ppl", "--model", model_dir, "--data", "hub:owner/texts", env=env)
    assert (
        out.returncode == 0 and not out.stderr and not standin.failing["train.jsonl"][1]
    )  # busy for a moment
