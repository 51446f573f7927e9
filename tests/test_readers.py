"""Whatever stands in a file that the program reads, the program reads it or refuses it in one line: values of
the wrong type, out of range, missing, in every place of every such file; and bytes that are no JSON. No
traceback, no hang."""

import contextlib
import copy
import gc
import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation import page, tables, training_texts
from nanomed.models.loss import clm_loss
from nanomed.systems.recipe import read_recipe
from nanomed.tensors import read_safetensors
from nanomed.text import heldout, templates
from nanomed.text.batch import Batch
from nanomed.text.corpus import encode_corpus
from nanomed.text.tokenizer import load_tokenizer
from nanomed.training import checkpoint, curves, directory, loop
from nanomed.training.progress import Metrics, Progress
from nanomed.training.settings import Adapt, Classify, Instruct, Settings, parse
from tests.conftest import ROOT, make_hf_model, make_texts, run_script, write_jsonl

PATIENCE = 60  # seconds for one file: a hang, and no measure of speed
WRONG = [None, True, 0, -4, 3, 0.5, 1e30, 10**30, 10**9, math.nan, math.inf, "", "x", "7", "a/../../b", "\ud800", "(a+)+$", [], [1],
         ["x"], [[]], {}, {"a": 1}]  # fmt: skip
TINY = ("--batch-size", 2, "--max-steps", 2, "--log-every", 1, "--dtype", "fp32")


def places(value, path=()):
    """Every path into a JSON value, its own first; of long lists the ends."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for k in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from places(value[k], (*path, k))


def put(value, path, new):
    """A copy with `new` there; without that place if `new` is ...."""
    if not path:
        return {} if new is ... else new
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return value


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_dir, bpe_dir):
    """A place with a directory of every kind that the program reads."""
    d = tmp_path_factory.mktemp("made")
    docs = write_jsonl(d / "docs.jsonl", make_texts(30, 31))
    others = write_jsonl(d / "others.jsonl", make_texts(30, 17))
    pairs = [json.dumps({"question": f"What is {k}?", "answer": f"It is {k}."}) for k in range(12)]
    (d / "pairs.jsonl").write_text("\n".join(pairs) + "\n")
    shutil.copytree(model_dir, d / "model")
    make_hf_model(
        d / "llama",
        bpe_dir,
        family="llama",
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    )
    theirs = make_hf_model(d / "sharded", bpe_dir)
    (d / "sharded" / "model.safetensors").unlink()
    theirs.save_pretrained(d / "sharded", max_shard_size="40KB")
    for name, *args in (
        ("train_clm.py", "--data", docs, "--out", "adapter", "--lora-r", 2),
        ("train_clm.py", "--data", docs, "--out", "full"),
        ("train_sft.py", "--data", "pairs.jsonl", "--out", "instructed"),
        (
            "train_cls.py",
            "--positives",
            docs,
            "--negatives",
            others,
            "--out",
            "classifier",
            "--val-fraction",
            0.3,
        ),
    ):
        done = run_script(d, name, "--model", d / "model", *TINY, *args)
        assert done.returncode == 0, done.stderr
    peft = {
        "rank_pattern": {"c_attn": 2},
        "alpha_pattern": {"h.1": 3},
        "layers_to_transform": [0, 1, 2],
        "layers_pattern": "h",
    }
    peft |= {
        "exclude_modules": ["c_fc"],
        "modules_to_save": ["score"],
        "trainable_token_indices": {"wte": [1]},
        "use_dora": False,
    }
    peft |= {
        "lora_bias": False,
        "init_lora_weights": "gaussian",
        "layer_replication": None,
        "ensure_weight_tying": False,
    }
    shutil.copytree(d / "adapter", d / "others")
    written = json.loads((d / "others" / "adapter_config.json").read_text())
    (d / "others" / "adapter_config.json").write_text(json.dumps(written | peft))
    done = run_script(
        d, "eval.py", "ppl", "--model", "model", "--data", docs, "--json", "base.test.json", "--dtype", "fp32"
    )
    assert done.returncode == 0, done.stderr
    model = hub.load_model(hub.find(str(d / "model")))
    s = Settings(lr=1e-3)
    optimizer = loop.make_optimizer(model, s)
    data = torch.zeros(1, 5, dtype=torch.long)
    loop.one_update(
        model, [Batch(data, data)], clm_loss, optimizer, torch.amp.GradScaler("cpu", enabled=False), s
    )
    progress = Progress.new()
    progress.step = progress.consumed = 1
    progress.first_val = {"step": 0, "loss": 1.0}
    checkpoint.save(d / "state-of", progress, model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    return d


# What reads a file, by the file: each gets the directory of `made` with a wrong file in it.


def read_model(d):
    hub.load_model(hub.find(str(d)))


def read_scratch(d):
    hub.load_model(hub.find(str(d), weights=False), from_scratch=True)


def read_classifier(d):
    hub.load_classifier(hub.find(str(d)))


def read_tokenizer(d):
    tokenizer = load_tokenizer(d)
    tokenizer.decode(tokenizer.prompt("the fever of a patient <|endoftext|>").tolist())


def read_run(d):
    training_texts.trained_with(d)
    training_texts.training_sides(d)
    with contextlib.suppress(UserError):
        list(training_texts.read_training(d))
    directory.began_compiled(d)
    directory.quantized(d)
    s = Adapt(model="m", device="cpu", dtype="fp32", context=8, lr=1.0, out=d)
    directory.check_same(s, {"data": {}, "tokenizer": "x"})


def read_summary(d):
    page.read_classifier(str(d))


def read_adapters_summary(d):
    hub.find(str(d))


def read_metrics(d):
    (d / "again.jsonl").write_bytes((d / "metrics.jsonl").read_bytes())
    curves.draw_curves({"d": d}, "svg", "black", "tokens", "title")
    done = Progress.new()
    done.consumed = done.step = 1
    Metrics(d / "again.jsonl", done)


def read_held_out(d):
    heldout.earlier(d)
    heldout.earlier(d, own=True)


def read_template(d):
    template = templates.of_model(d)
    template.ask("Why?", "x") + template.answer("So.")


def read_result(d):
    tables.text_table(tables.table(tables.read_results([str(d / "base.test.json")])))


READERS = {
    "model/config.json": read_model,
    "llama/config.json": read_model,
    "model/generation_config.json": read_model,
    "sharded/model.safetensors.index.json": read_model,
    "adapter/adapter_config.json": read_model,
    "others/adapter_config.json": read_model,
    "adapter/summary.json": read_adapters_summary,
    "classifier/config.json": read_classifier,
    "classifier/summary.json": read_summary,
    "model/tokenizer.json": read_tokenizer,
    "model/tokenizer_config.json": read_tokenizer,
    "full/run.json": read_run,
    "classifier/run.json": read_run,
    "instructed/run.json": read_run,
    "full/metrics.jsonl": read_metrics,
    "full/held_out.json": read_held_out,
    "instructed/template.json": read_template,
    "base.test.json": read_result,
}


def attempt(read, where):
    """Call it; a hang is a failure, and so is everything that is no UserError in one line of bearable
    length."""

    def hang(*_):
        raise AssertionError(f"no end after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read(where)
    except UserError as e:
        line = " ".join(str(e).split())
        assert len(line) < 600, line[:1000]
        line.encode(
            "utf-8", "strict" if not any("\ud800" <= c <= "\udfff" for c in line) else "backslashreplace"
        )
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def wrong(file: Path, content: bytes):
    right = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(right)


def dumps(value) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("examples", [15, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_a_wrong_value_anywhere_in_a_file(made, name, examples):
    """Each key of each file in turn, with a few of WRONG that hypothesis chooses, and missing."""
    file, read = made / name, READERS[name]
    where = file.parent
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    value = json.loads(lines[-1])
    attempt(read, where)  # as it is, it is read

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.sampled_from(list(places(value))), st.sampled_from([..., *WRONG]))
    def one(path, new):
        content = b"\n".join([*(line.encode() for line in lines[:-1]), dumps(put(value, path, new)), b""])
        with wrong(file, content):
            try:
                attempt(read, where)
            except AssertionError:
                raise
            except Exception as e:
                raise AssertionError(f"{name} with {path} = {new!r}: {type(e).__name__}: {e}") from e

    one()


def resident() -> float:
    """MB that this process holds, after what is unreachable was freed."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="no /proc here that tells what a process holds"
)
@pytest.mark.parametrize("name", READERS)
def test_what_is_refused_leaves_no_memory_behind(made, name):
    """A reader that kept its file, some 100 KB, for each of 400 would hold 40 MB more."""
    file, read, chance = made / name, READERS[name], random.Random(0)
    value = json.loads(file.read_text().splitlines()[-1] if file.suffix == ".jsonl" else file.read_text())
    everywhere, held = list(places(value)), []
    for k in range(600):
        with wrong(file, dumps(put(value, chance.choice(everywhere), chance.choice(WRONG)))):
            attempt(read, file.parent)
        if k in (199, 599):
            held.append(resident())
    assert held[1] - held[0] < 10


def toml(value) -> str:
    """A value of JSON as TOML writes it, on one line; what TOML has not (null, half a character) as a
    text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf"
    return json.dumps("null" if value in (None, "\ud800") else value)


@pytest.mark.parametrize("examples", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_wrong_value_anywhere_in_a_recipe(tmp_path, monkeypatch, examples):
    value = tomllib.loads((ROOT / "recipes" / "gpt2-biomedical.toml").read_text())
    file = tmp_path / "recipe.toml"

    kinds = {kind.phase: kind for kind in (Adapt, Classify, Instruct)}

    def read(path):
        for phase in read_recipe(str(path)).phases:
            monkeypatch.setattr(
                sys, "argv", [phase, "--config", str(path), "--out", "o", "--model", "m", "--data", "d"]
            )
            parse(kinds[phase], None)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.sampled_from(list(places(value))), st.sampled_from([..., *WRONG]))
    def one(path, new):
        changed = put(value, path, new)
        whole = isinstance(changed, dict)
        file.write_text(
            "\n".join(f"{json.dumps(k)} = {toml(v)}" for k, v in changed.items()) if whole else toml(changed)
        )
        attempt(read, file)

    one()


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(st.binary(max_size=40), st.floats(0, 1))
@example(b"\xff\xfe", 0.5)
@example(b"[" * 30_000, 0.0)
@example(b"", 0.0)
@example(b"\x00", 1.0)
def test_bytes_that_are_no_json(made, name, junk, at):
    file = made / name
    whole = file.read_bytes()
    with wrong(file, whole[: int(at * len(whole))] + junk):
        attempt(READERS[name], file.parent)


@pytest.mark.parametrize("which", ["progress", "scaler"])
def test_a_checkpoint_whose_record_is_wrong(made, which):
    (file,) = (made / "state-of" / "state").glob("step-*.safetensors")
    tensors = read_safetensors(file)
    with safe_open(file, "pt") as f:
        metadata = dict(f.metadata())
    model = hub.load_model(hub.find(str(made / "model")))
    optimizer = loop.make_optimizer(model, Settings(lr=1e-3))
    value = json.loads(metadata[which])

    def read(where):
        checkpoint.load(where, model, optimizer, torch.amp.GradScaler("cpu", enabled=False))

    attempt(read, file)
    broken = file.with_name("broken.safetensors")

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.sampled_from(list(places(value))), st.sampled_from([..., *WRONG]))
    def one(path, new):
        save_file(tensors, broken, metadata | {which: json.dumps(put(value, path, new))})
        attempt(read, broken)

    one()
    for text in ("", "nonsense", "[" * 30_000):
        save_file(tensors, broken, metadata | {which: text})
        attempt(read, broken)
    save_file(tensors, broken)
    attempt(read, broken)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("rng.cpu"),
        lambda t: t.update({"rng.cpu": torch.zeros(3)}),
        lambda t: t.update({"rng.cpu": t["rng.cpu"][:7].contiguous()}),
        lambda t: [t.pop(k) for k in list(t) if k.startswith("optimizer.")],
        lambda t: t.update({next(k for k in t if k.endswith("exp_avg")): torch.zeros(3)}),
        lambda t: t.pop(next(k for k in t if k.endswith("exp_avg"))),
        lambda t: t.update({next(k for k in t if k.startswith("model.")): torch.zeros(1, dtype=torch.int8)}),
    ],
)
def test_a_checkpoint_whose_tensors_are_wrong(made, change):
    (file,) = (made / "state-of" / "state").glob("step-*.safetensors")
    tensors = read_safetensors(file)
    with safe_open(file, "pt") as f:
        metadata = dict(f.metadata())
    change(tensors)
    broken = file.with_name("broken.safetensors")
    save_file(tensors, broken, metadata)
    model = hub.load_model(hub.find(str(made / "model")))
    optimizer = loop.make_optimizer(model, Settings(lr=1e-3))
    with pytest.raises(UserError, match="broken.safetensors"):
        checkpoint.load(broken, model, optimizer, torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize("what", ["meta.json", "documents.bin", "tokens.bin"])
def test_a_wrong_cache_is_made_anew(made, what, monkeypatch):
    monkeypatch.setenv("NANOMED_CACHE", str(made / "cache"))
    tokenizer = load_tokenizer(made / "model")
    right = encode_corpus(str(made / "docs.jsonl"), tokenizer).tokens.tolist()
    (file,) = (made / "cache").glob(f"*/{what}")
    contents = [b"", b"\x00" * 64, file.read_bytes()[:-3]]
    if what == "meta.json":
        value = json.loads(file.read_text())
        kinds = itertools.cycle(WRONG)  # two of each place; the loop below encodes anew each time
        contents += [dumps(put(value, path, next(kinds))) for path in places(value) for _ in range(2)]
    for content in contents:
        file.write_bytes(content)
        assert encode_corpus(str(made / "docs.jsonl"), tokenizer).tokens.tolist() == right
        (file,) = (made / "cache").glob(f"*/{what}")


def test_the_settings_of_every_phase_are_read_back(made):
    for name, kind in (("full", Adapt), ("classifier", Classify), ("instructed", Instruct)):
        settings = json.loads((made / name / "run.json").read_text())["settings"]
        assert kind.read(settings, made / name / "run.json").recorded() == settings
