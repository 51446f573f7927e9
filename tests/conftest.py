"""Tiny random models in Hugging Face's layout, with a tokenizer of their own, and some text; all made here,
all offline."""

import contextlib
import io
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Equal bits and 1e-5 are promised on the CPU, so a GPU is hidden but from tests/test_cuda.py, which
# bench/gpu_check.py runs; and the oracles must not look for anything (the Hub's tests run in processes of
# their own).
os.environ |= {"HF_HUB_OFFLINE": "1"} | (
    {} if "NANOMED_TEST_CUDA" in os.environ else {"CUDA_VISIBLE_DEVICES": ""}
)
# The models are so small that a second thread would only wait for the first, and long on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers

from nanomed.errors import STOPS
from nanomed.text.bpe import train_bpe
from nanomed.training import directory as run_directory
from nanomed.training import loop

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds until a process counts as hanging; nothing else is measured by the clock
WORDS = """the a patient patients with of in and treatment disease cells were was study we results showed effect acute
chronic therapy blood pressure clinical trial group control response risk protein gene expression tumor liver renal heart
significantly increased decreased compared associated levels observed after before during weeks years dose mg/day p<0.05
naïve β-cell 37°C it's don't they've 12 345 (n=20), however; moreover: "quoted" fox jumps over lazy dogs""".split()


def make_texts(n: int, seed: int, low: int = 5, high: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(low, high))) + "." for _ in range(n)]


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: t}) + "\n" for t in texts), encoding="utf-8")
    return path


def randomise(model) -> None:
    """Weights far from their initial values, gains and biases included, so that a loader that drops one
    fails."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * (0.2 if p.dim() < 2 else 0.1))


# Files that take long are begun first, so that the two workers of `make test` end together.
LONG = "test_train_clm test_hub test_outputs test_killed test_demo test_reproduce test_distributed test_readers".split()


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of many tests


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


# A tiny model of each family: transformers' names of its config, language model and classifier, its sizes (3
# layers, 64 positions; sequences here are longer than the window), and the linear layers of a block.
FAMILIES = {
    "gpt2": (
        ("GPT2Config", "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
        {"n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
        ("c_attn", "c_proj", "c_fc"),
    ),
    "gpt_neo": (
        ("GPTNeoConfig", "GPTNeoForCausalLM", "GPTNeoForSequenceClassification"),
        {"max_position_embeddings": 64, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "window_size": 8}
        | {"attention_types": [[["global", "local"], 1], [["local"], 1]]},
        ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"),
    ),
    "llama": (
        ("LlamaConfig", "LlamaForCausalLM", "LlamaForSequenceClassification"),
        {"max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "intermediate_size": 48},
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "gemma3_text": (
        ("Gemma3TextConfig", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
        {"max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"num_key_value_heads": 1, "head_dim": 12, "query_pre_attn_scalar": 24, "intermediate_size": 48}
        | {"sliding_window": 8, "sliding_window_pattern": 2, "pad_token_id": None},
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
}
# Members of the Llama family beside it: its sizes with classes of their own.
MEMBERS = {
    name: (tuple(n.replace("Llama", kind) for n in FAMILIES["llama"][0]), *FAMILIES["llama"][1:])
    for name, kind in (("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3"))
}
# Of a test that takes model_dir (or a fixture made from it): run it on each.
every_family = pytest.mark.parametrize("model_dir", FAMILIES, indirect=True)
# The same of one that compiles: the newest family takes as long as all others together.
_COMPILED = [f if f != "gemma3_text" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
every_family_compiled = pytest.mark.parametrize("model_dir", _COMPILED, indirect=True)


def make_hf_model(
    directory: Path, tokenizer_from: Path | None = None, cls=None, attn="eager", family="gpt2", **config
):
    """A random model of transformers, saved in `directory`; returned in eval mode. cls: its class, if it is
    not the family's language model; config: in place of the family's sizes."""
    (config_class, lm, _), sizes, _ = (FAMILIES | MEMBERS)[family]
    tokens = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, config_class)(**(sizes | tokens | config))
    torch.manual_seed(0)
    model = getattr(transformers, cls or lm)._from_config(config, attn_implementation=attn)
    randomise(model)
    model.save_pretrained(directory)
    for name in (
        ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json") if tokenizer_from else ()
    ):
        (directory / name).write_bytes((tokenizer_from / name).read_bytes())
    return model.eval()


def linears(model) -> tuple[str, ...]:
    """The names of the linear layers in a block of a model's family."""
    return FAMILIES[model.config.model_type][2]


def assert_near(ours, theirs, rel=1e-5, name="") -> None:
    """Equal up to `rel` of the largest entry. fp32 keeps 6e-8 of what is summed, each CPU sums in its own
    order, and an entry may be the small difference of large ones: so no entry is held to its own size, nor to
    a fixed number."""
    scale = theirs.detach().abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=rel * scale, msg=lambda m: f"{name}: {m}")


@pytest.fixture(scope="session")
def bpe_dir(tmp_path_factory) -> Path:
    """A byte-level BPE of 400 tokens, <|endoftext|> being 0."""
    out = tmp_path_factory.mktemp("bpe")
    assert train_bpe(make_texts(300, seed=1), 400, out) == 400
    return out


@pytest.fixture(scope="session")
def model_dir(request, tmp_path_factory, bpe_dir, _made={}) -> Path:  # noqa: B006 (made once a session)
    """A complete model directory: tiny random model and tokenizer, GPT-2's if the test is not one of every
    family's."""
    family = getattr(request, "param", "gpt2")
    if family not in _made:
        _made[family] = tmp_path_factory.mktemp(family)
        make_hf_model(_made[family], bpe_dir, family=family)
    return _made[family]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    os.environ["NANOMED_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _no_pictures():
    """Drawing loss.png would take longer than the tiny trainings here do: they leave the beginning of one."""

    def plot(directory, unit):
        (directory / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    with pytest.MonkeyPatch.context() as m:
        m.setattr(run_directory, "curves", SimpleNamespace(plot_curves=plot))
        yield


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    """A script that ends within this process ignores them from then on, and so would every process that is
    started after it."""
    before = {sig: signal.getsignal(sig) for sig in STOPS}
    yield
    for sig, handler in before.items():
        signal.signal(sig, handler)


@pytest.fixture
def plain_steps(monkeypatch):
    """Updates that are the (clipped) gradient times the rate. AdamW divides by the gradient's own size, so
    that the rounding of a nearly vanishing one becomes a visible step; here it stays as small as it is."""
    monkeypatch.setattr(loop, "make_optimizer", lambda model, s: torch.optim.SGD(model.parameters(), lr=s.lr))


@pytest.fixture(scope="session")
def python():
    """The beginning of a command line that stands for `python`, without its seconds of imports: see
    tests/warm.py. For processes that are the point; a limit or a kill -9 from outside wants a real one,
    sys.executable."""
    with tempfile.TemporaryDirectory() as directory:  # a socket's path must be short
        path = Path(directory, "s")
        command = [sys.executable, str(ROOT / "tests" / "warm.py"), str(path)]
        # A hang-up ends it, as in a terminal, also where the tests themselves are told to outlive one
        # (nohup).
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
        ) as process:
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.01)
            yield [sys.executable, "-S", str(ROOT / "tests" / "warm.py"), str(path)]


def run_script(directory: Path, name: str, *args) -> subprocess.CompletedProcess:
    """Run a script in this process and in `directory`, as `python NAME ARGS` would."""
    handlers, argv, before = {sig: signal.getsignal(sig) for sig in STOPS}, sys.argv, Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [str(ROOT / name), *map(str, args)]
    os.chdir(directory)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            runpy.run_path(str(ROOT / name), run_name="__main__")
        return subprocess.CompletedProcess(sys.argv, end.value.code, out.getvalue(), err.getvalue())
    finally:
        for sig, handler in handlers.items():
            signal.signal(sig, handler)
        os.chdir(before)
        sys.argv = argv


@pytest.fixture
def script(tmp_path, request):
    """script("train_clm.py", "--model", ...) runs it as a user would, from tmp_path; gives returncode,
    stdout, stderr. In this process, which saves its start; in one of its own if the environment is to be
    another."""

    def run(name, *args, env=None):
        if not env:
            return run_script(tmp_path, name, *args)
        command = [*request.getfixturevalue("python"), str(ROOT / name), *map(str, args)]
        how = {"cwd": tmp_path, "env": {**os.environ, **env}, "timeout": PATIENCE}
        return subprocess.run(command, capture_output=True, text=True, **how)

    return run


LIMITED = """
import resource, runpy, sys
name, limit, *sys.argv = sys.argv[1:]
resource.setrlimit(getattr(resource, "RLIMIT_" + name), (int(limit), int(limit)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def limited(python):
    """limited(directory, "DATA", bytes, script, *args) runs a script in a process that may use no more."""

    def run(directory, *words):
        command = [*python, "-c", LIMITED, *map(str, words)]
        return subprocess.run(command, cwd=directory, timeout=PATIENCE, capture_output=True, text=True)

    return run


def lm_eval(model_dir, kind: str, arguments: list[tuple], **how) -> list:
    """What lm-eval answers to requests of a kind (`loglikelihood`, ...) about a tiny model of 64
    positions."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(model_dir),
        backend="causal",
        device="cpu",
        tokenizer=transformers.AutoTokenizer.from_pretrained(model_dir),
        batch_size=1,
        max_length=64,
        **how,
    )
    return getattr(lm, kind)([Instance(kind, {}, a, i) for i, a in enumerate(arguments)], disable_tqdm=True)


def assert_refused(process, *words) -> None:
    """Exit status 2, one line on stderr with these words, no traceback."""
    assert process.returncode == 2, process.stderr[-2000:]
    lines = [
        line for line in process.stderr.splitlines() if line.strip() and "%|" not in line
    ]  # a bar is no message
    assert len(lines) == 1, process.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]
