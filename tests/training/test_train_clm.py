"""The script as a user runs it: what DIR holds, what is refused, and that nothing is lost when it is
stopped."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanomed import hub, tensors
from nanomed.training import curves, loop
from tests.conftest import PATIENCE, ROOT, assert_near, assert_refused, make_texts, run_script, write_jsonl
from tests.standin_hub import StandinHub

X = torch.arange(30).reshape(2, 15)
TINY = ("--batch-size", 2, "--lr", 1e-3, "--log-every", 1, "--dtype", "fp32")


@pytest.fixture
def docs(tmp_path):
    return write_jsonl(tmp_path / "docs.jsonl", make_texts(40, 31))


def summary(directory):
    return json.loads((directory / "summary.json").read_text())


def records(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in lines]


def test_full_training_leaves_a_model_directory(script, model_dir, docs, tmp_path, monkeypatch):
    monkeypatch.setattr("nanomed.training.directory.curves", curves)  # a real picture
    out = script(
        "train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", "--max-steps", 6, *TINY
    )
    assert out.returncode == 0, out.stderr
    d = tmp_path / "out"
    assert {p.name for p in d.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "run.json",
        "metrics.jsonl",
        "summary.json",
        "loss.png",
        "held_out.json",
    }
    assert not (d / "state").exists()  # nobody will ask for it any more
    ours = hub.load_model(hub.find(str(d))).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(d).eval()
    assert_near(theirs(X).logits, ours(X))
    before = hub.load_model(hub.find(str(model_dir))).eval()
    assert (before(X) - ours(X)).abs().max() > 1e-3
    # the line that says what will be done, the bar, and the line that says where the results are
    for word in (
        "parameters",
        "trainable",
        "38 documents",
        "2 validation documents",
        "cpu, fp32",
        "6 updates",
    ):
        assert word in out.stdout.splitlines()[0]
    assert "training:" in out.stderr and "tokens/s" in out.stderr
    assert "results in out" in out.stdout.splitlines()[-1]
    log = records(d)
    assert [r["step"] for r in log] == [0, 1, 2, 3, 4, 5, 6]
    assert log[1].keys() == {"step", "tokens", "loss", "lr", "grad_norm"}
    assert "val_ppl" in log[0] and "val_ppl" in log[-1]
    run = json.loads((d / "run.json").read_text())
    assert run["versions"]["torch"] == torch.__version__ and run["settings"]["batch_size"] == 2
    assert len(next(iter(run["data"].values()))) == 64
    assert (d / "loss.png").stat().st_size > 1000


def test_validation_perplexity_is_what_eval_gives(script, model_dir, docs, tmp_path):
    val = write_jsonl(tmp_path / "val.jsonl", make_texts(6, 32, 30, 90))
    args = ("--model", model_dir, "--data", docs, "--val-data", val, "--out", "out", "--max-steps", 3)
    assert script("train_clm.py", *args, *TINY).returncode == 0
    assert (
        script(
            "eval.py", "ppl", "--model", "out", "--data", val, "--dtype", "fp32", "--json", "e.json"
        ).returncode
        == 0
    )
    assert json.loads((tmp_path / "e.json").read_text())["ppl"] == pytest.approx(
        records(tmp_path / "out")[-1]["val_ppl"]
    )


def test_lora_leaves_an_adapter_that_peft_loads_from_anywhere(script, model_dir, docs, tmp_path):
    link = tmp_path / "model"
    link.symlink_to(model_dir)
    args = (
        "--data",
        docs,
        "--out",
        "out",
        "--max-steps",
        4,
        *TINY,
        "--lora-r",
        4,
        "--lora-targets",
        "c_attn,c_proj,c_fc",
    )
    out = script("train_clm.py", "--model", "model", *args)
    assert out.returncode == 0, out.stderr
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert os.path.isabs(config["base_model_name_or_path"]) and config["fan_in_fan_out"] is True
    assert not (tmp_path / "out" / "model.safetensors").exists()
    base = transformers.AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ours = hub.load_model(hub.find(str(tmp_path / "out"))).eval()
    assert_near(theirs(X).logits, ours(X))
    merged = script("train_clm.py", "--model", "model", *args[:3], "merged", *args[4:], "--merge")
    assert merged.returncode == 0, merged.stderr
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_near(theirs(X).logits, ours(X))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_adapters_on_adapters(script, model_dir, docs, tmp_path):
    common = ("--data", docs, "--max-steps", 3, "--val-fraction", 0, *TINY)
    lora = ("--lora-r", 4, "--lora-alpha", 8)

    def train(model, out, *flags):
        done = script("train_clm.py", "--model", model, "--out", out, *common, *flags)
        assert done.returncode == 0, done.stderr
        return hub.load_model(hub.find(str(tmp_path / out))).eval()

    train(model_dir, "first", *lora)
    again = train("first", "again", *lora)  # the same settings: the adapter goes on, on its own base
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_dir) and not (tmp_path / "again" / "base").exists()
    first = load_file(tmp_path / "first" / "adapter_model.safetensors")
    moved = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert first.keys() == moved.keys() and not torch.equal(*(next(iter(s.values())) for s in (first, moved)))
    other = train("first", "other", "--lora-r", 2)  # other settings: merged first
    config = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "other" / "base") and config["r"] == 2
    merged = hub.load_model(hub.find(str(tmp_path / "other" / "base"))).eval()
    assert_near(merged(X), hub.load_model(hub.find(str(tmp_path / "first"))).eval()(X))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "other" / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "other").eval()
    assert_near(theirs(X).logits, other(X))
    full = train("first", "full")  # no LoRA: merged, then all weights are trained
    assert full.lora is None and again.lora.r == 4


def test_from_scratch_needs_a_shape_and_a_tokenizer_only(script, model_dir, bpe_dir, docs, tmp_path):
    shape = tmp_path / "shape"
    shape.mkdir()
    for source in (model_dir / "config.json", bpe_dir / "vocab.json", bpe_dir / "merges.txt"):
        (shape / source.name).write_bytes(source.read_bytes())
    for model in ("shape", "shape/config.json"):
        out = script(
            "train_clm.py",
            "--from-scratch",
            "--model",
            model,
            "--data",
            docs,
            "--out",
            f"out-{len(model)}",
            "--max-steps",
            2,
            *TINY,
        )
        assert out.returncode == 0, out.stderr
    a, b = (
        load_file(tmp_path / f"out-{len(m)}" / "model.safetensors") for m in ("shape", "shape/config.json")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)  # the seed decides
    assert records(tmp_path / "out-5")[0]["val_loss"] == pytest.approx(
        6.0, abs=0.2
    )  # ln 400: it knows nothing
    assert_refused(
        script("train_clm.py", "--model", "shape", "--data", docs, "--out", "x"), "no model.safetensors"
    )


def test_duplicates_of_held_out_documents_are_removed_and_said(script, model_dir, docs, tmp_path):
    texts = make_texts(40, 31)
    val = write_jsonl(tmp_path / "val.jsonl", [*texts[:3], "only here"])
    later = write_jsonl(tmp_path / "later.jsonl", texts[10:12])
    out = script(
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        docs,
        "--val-data",
        val,
        "--exclude",
        later,
        "--out",
        "out",
        "--max-steps",
        1,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith(
        "5 training documents that are held out too were taken out of the training side\n"
    )
    s = summary(tmp_path / "out")
    assert (s["documents"], s["val_documents"], s["duplicates_removed"]) == (35, 4, 5)


def test_several_sources_with_weights(script, model_dir, docs, tmp_path):
    general = write_jsonl(tmp_path / "general.jsonl", make_texts(40, 33))
    out = script(
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        f"{docs}:0.9",
        "--data",
        f"{general}:0.1",
        "--out",
        "out",
        "--context",
        16,
        "--max-steps",
        1,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    assert summary(tmp_path / "out")["documents"] == 76
    bad = script("train_clm.py", "--model", model_dir, "--data", f"{docs}:0.9", general, "--out", "bad")
    assert_refused(bad, "--data: give every source a weight")


def test_the_first_training_loss_is_the_evaluators_loss(script, model_dir, tmp_path):
    """Of a corpus that is one document in one block, before anything was learnt: the same tokens, each
    predicted from the same ones before it. A target that is not the next token, or a token left out, would
    show here."""
    doc = write_jsonl(tmp_path / "doc.jsonl", make_texts(1, 5, 12, 12))
    args = ("--model", model_dir, "--data", doc, "--dtype", "fp32", "--context", 64)
    done = script(
        "train_clm.py", *args, "--out", "out", "--val-fraction", 0, "--max-steps", 1, "--log-every", 1
    )
    assert done.returncode == 0, done.stderr
    assert script("eval.py", "ppl", *args, "--json", "r.json").returncode == 0
    measured, (first,) = json.loads((tmp_path / "r.json").read_text()), records(tmp_path / "out")
    assert 12 < first["tokens"] == measured["tokens_scored"] < 64
    assert first["loss"] == pytest.approx(measured["loss"], rel=1e-5)


def test_a_recipe_presets_flags_and_the_command_line_wins(script, model_dir, docs, tmp_path):
    recipe = tmp_path / "r.toml"
    preset = "max-steps = 2\nbatch_size = 2\nlr = 0.5\nskip-bad-rows = true\ncompile = true\n"
    recipe.write_text(f'[adapt]\nmodel = "{model_dir}"\ndata = ["no.jsonl"]\n{preset}')
    out = script(
        "train_clm.py", "--config", recipe, "--data", docs, "--out", "out", "--lr", 1e-4, "--no-compile"
    )
    assert out.returncode == 0, out.stderr
    s = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert [s[k] for k in ("max_steps", "batch_size", "lr", "skip_bad_rows", "compile", "data")] == [
        2,
        2,
        1e-4,
        True,
        False,
        [str(docs)],
    ]
    for text, words in {
        "[adapt]\nlearning_rate = 1\n": ("unknown key", "learning_rate"),
        "[adapt]\nlr = 'x'\n": ("lr",),
        "[adapt]\ndtype = 'fp8'\n": ("dtype",),
        "[other]\n": ("no section [adapt]",),
        "[adapt": ("not valid TOML",),
        "[adapt]\nmerge = 1\n": ("true or false",),
    }.items():
        recipe.write_text(text)
        assert_refused(
            script("train_clm.py", "--config", recipe, "--data", docs, "--out", "o"), "r.toml", *words
        )


WRONG = {
    "flag": (("--learning-rate", "1"), ("--learning-rate",)),
    "abbreviation": (("--max-step", "1"), ("--max-step",)),
    "number": (("--batch-size", "0"), ("--batch-size", "at least 1")),
    "context": (("--context", "65"), ("--context 65", "64 positions")),
    "fraction": (("--val-fraction", "1"), ("--val-fraction",)),
    "target": (("--lora-r", "2", "--lora-targets", "q_proj"), ("q_proj", "c_attn")),
    "data": (("--val-data", "gone.jsonl"), ("gone.jsonl", "no such file")),
    "exclude": (("--exclude", "docs.txt"), ("docs.txt", "no such file")),
    "head": (("--lora-r", "2", "--lora-targets", "lm_head"), ("lm_head", "cannot have an adapter")),
    "seed": (("--seed", "-1"), ("--seed",)),
    "steps": (("--max-steps", "-1"), ("--max-steps",)),
    "alpha": (("--lora-alpha", "4"), ("--lora-alpha", "--lora-r")),
    "merge": (("--merge",), ("--merge", "--lora-r")),
    "scratch": (("--from-scratch", "--lora-r", "2"), ("--from-scratch",)),
    "patience": (("--patience", "2", "--val-fraction", "0"), ("--patience", "no validation")),
    "config": (("--config",), ("--config",)),
}


@pytest.mark.parametrize(("flags", "words"), WRONG.values(), ids=WRONG)
def test_wrong_flags(script, model_dir, docs, tmp_path, flags, words):
    assert_refused(
        script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", *flags), *words
    )
    assert not (tmp_path / "out" / "state").exists()


def test_missing_flags_and_paths(script, model_dir, docs, tmp_path):
    assert_refused(script("train_clm.py", "--data", docs, "--out", "x"), "--model")
    assert_refused(
        script("train_clm.py", "--model", "./gone", "--data", docs, "--out", "x"), "./gone", "no such"
    )
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert_refused(
        script("train_clm.py", "--model", model_dir, "--data", "bad.jsonl", "--out", "x"), "bad.jsonl, row 2"
    )
    assert not (tmp_path / "x").exists()
    if not torch.cuda.is_available():
        assert_refused(
            script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "x", "--device", "cuda"),
            "cuda",
        )


def test_what_is_in_dir_is_not_trained_over(script, model_dir, docs, tmp_path):
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", "--max-steps", 2, *TINY)
    assert script(*args).returncode == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert_refused(script(*args), "--out out: not empty", "--resume")
    done = script(*args, "--resume")
    assert done.returncode == 0 and "complete" in done.stdout
    assert_refused(
        script(*args, "--resume", "--lr", 0.5, "--lora-r", 2), "lr = 0.001", "lr = 0.5", "lora_r = 2"
    )
    write_jsonl(docs, make_texts(40, 98))
    assert_refused(script(*args, "--resume"), "the data changed")
    write_jsonl(docs, make_texts(40, 31))
    other = tmp_path / "no-run"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"precious")
    elsewhere = [a if a != "out" else "no-run" for a in args]
    assert_refused(script(*elsewhere, "--resume"), "no-run: not a run's directory")
    assert_refused(script(*elsewhere), "no-run: not empty")
    assert (other / "model.safetensors").read_bytes() == b"precious"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def command(out, model_dir, docs, *flags):
    return (
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        docs,
        "--out",
        out,
        "--max-steps",
        40,
        "--save-every",
        5,
        "--eval-every",
        20,
        *TINY,
        "--dropout",
        0.1,
        "--resume",
        *flags,
    )


LORA = ("--lora-r", 4, "--lora-dropout", 0.1)
# Runs the script in its arguments, and kills itself with signal 9 in update 9; or while the second checkpoint
# is written.
KILLED = """import os, runpy, sys
where, script = sys.argv[1:3]
sys.argv, sys.path[0] = sys.argv[2:], os.path.dirname(script)
from nanomed import tensors
from nanomed.training import loop
calls = []
original, save = loop.learning_rate, tensors.save_file
def in_an_update(*args):
    calls.append(1)
    return os.kill(os.getpid(), 9) if len(calls) == 9 else original(*args)
def in_a_save(state, path, metadata):
    calls.append(1)
    save(state, path, metadata)
    if len(calls) == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), 9)
if where == "update":
    loop.learning_rate = in_an_update
else:
    tensors.save_file = in_a_save
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory, model_dir):
    """The same run without an interruption, full and LoRA."""
    directory = tmp_path_factory.mktemp("whole")
    docs = write_jsonl(directory / "docs.jsonl", make_texts(40, 31))
    for name, flags in {"full": (), "lora": LORA}.items():
        out = run_script(directory, *command(name, model_dir, docs, *flags))
        assert out.returncode == 0, out.stderr
    return docs, {(): directory / "full", LORA: directory / "lora"}


@pytest.mark.parametrize(
    "stop, flags",
    [
        pytest.param("update", (), id="kill-full"),
        pytest.param("save", LORA, id="kill-lora-while-saving"),
        *(
            pytest.param(sig, flags, id=f"{sig.name}-{'lora' if flags else 'full'}")
            for sig in (signal.SIGTERM, signal.SIGINT)
            for flags in ((), LORA)
        ),
    ],
)
def test_stopped_at_any_point_and_resumed_it_ends_in_the_same_bits(
    script, python, whole_runs, model_dir, tmp_path, monkeypatch, stop, flags
):
    docs, whole = whole_runs
    args = command("stopped", model_dir, docs, *flags)
    if isinstance(stop, str):  # kill -9, by its own hand, so that it comes when it should
        again = [*python, "-c", KILLED, stop, str(ROOT / args[0]), *map(str, args[1:])]
        done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    else:
        original, calls = loop.learning_rate, []

        def rate(*args):
            calls.append(1)
            if len(calls) == 9:
                os.kill(os.getpid(), stop)
            return original(*args)

        monkeypatch.setattr(loop, "learning_rate", rate)
        done = script(*args)
        monkeypatch.setattr(loop, "learning_rate", original)
        assert done.returncode == 128 + stop, done.stderr
        assert "--resume goes on from it" in done.stderr.splitlines()[-1]
    out, whole = tmp_path / "stopped", whole[flags]
    kept = 5 if isinstance(stop, str) else 9  # a signal that can be caught lets the update end, and saves
    assert [p.name for p in out.glob("state/step-*.safetensors")] == [f"step-{kept:08d}.safetensors"]
    again = script(*args)
    assert again.returncode == 0, again.stderr
    name = "adapter_model.safetensors" if flags else "model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert records(out) == records(whole)


def test_resuming_with_other_settings_or_data_is_refused(script, model_dir, docs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "nanomed.training.checkpoint.remove", lambda out: None
    )  # as if it had been killed at the very end
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", "--max-steps", 2, *TINY)
    assert script(*args).returncode == 0
    (tmp_path / "out" / "summary.json").unlink()
    assert_refused(script(*args, "--resume", "--weight-decay", 0.5), "weight_decay", "0.1", "0.5")
    write_jsonl(docs, make_texts(40, 99))
    assert_refused(script(*args, "--resume"), "the data changed")


def test_a_disk_that_fills_up_while_saving_costs_only_that_checkpoint(
    script, model_dir, docs, tmp_path, monkeypatch
):
    """The file-size limit plays the full disk: the first checkpoint fits, and then the limit is lowered."""
    args, save, limit = (
        command("out", model_dir, docs),
        tensors.save_file,
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )

    def save_on_a_small_disk(state, path, metadata):
        if list(tmp_path.glob("out/state/step-*")):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        try:
            save(state, path, metadata)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(tensors, "save_file", save_on_a_small_disk)
    out = script(*args)
    assert out.returncode == 2, out.stderr
    assert "could not be written" in out.stderr.splitlines()[-1] and "Traceback" not in out.stderr
    (kept,) = tmp_path.glob("out/state/step-*")
    assert kept.name == "step-00000005.safetensors" and len(load_file(kept)) > 10
    monkeypatch.setattr(tensors, "save_file", save)
    out = script(*args)
    assert out.returncode == 0, out.stderr


def test_running_out_of_memory_is_said_in_one_line(limited, model_dir, tmp_path):
    long = write_jsonl(tmp_path / "long.jsonl", make_texts(400, 5, 200, 300))
    words = ["--model", model_dir, "--data", long, "--out", "out", "--batch-size", 4000]
    words += ["--val-fraction", 0.01, "--eval-every", 1000, "--max-steps", 2]
    out = limited(tmp_path, "DATA", 2 * 10**9, ROOT / "train_clm.py", *words)
    assert_refused(out, "out of memory", "--batch-size")


@pytest.mark.parametrize("name", ["train_clm.py", "eval.py"])
def test_help_is_complete_and_shows_defaults(script, name):
    out = script(name, *(["ppl"] if name == "eval.py" else []), "--help")
    assert out.returncode == 0
    wanted = {
        "eval.py": "model data json context stride batch-size dtype device limit seed text-field",
        "train_clm.py": (
            "model data out val-data val-fraction from-scratch config text-field limit context batch-size"
            " grad-accum epochs max-steps lr warmup-ratio weight-decay grad-clip dtype device compile"
            " grad-checkpoint lora-r lora-alpha lora-dropout lora-targets merge seed resume save-every"
            " eval-every patience log-every"
        ),
    }
    for flag in wanted[name].split():
        assert f"--{flag} " in out.stdout or f"--{flag}\n" in out.stdout or f"--{flag}," in out.stdout, flag
    assert "default: auto" in " ".join(out.stdout.split())


@pytest.mark.slow
def test_compiled_training_ends_where_eager_training_does(script, model_dir, docs, tmp_path, plain_steps):
    before = load_file(model_dir / "model.safetensors")
    for name, flags in {
        "eager": (),
        "compiled": ("--compile",),
        "checkpointed": ("--grad-checkpoint",),
    }.items():
        out = script(
            "train_clm.py",
            "--model",
            model_dir,
            "--data",
            docs,
            "--out",
            name,
            "--max-steps",
            5,
            *TINY,
            "--lr",
            1,
            *flags,
        )
        assert out.returncode == 0, out.stderr
    eager, compiled, checkpointed = (
        load_file(tmp_path / n / "model.safetensors") for n in ("eager", "compiled", "checkpointed")
    )
    for name in eager:
        a, b, c = (weights[name] - before[name] for weights in (eager, compiled, checkpointed))
        assert_near(b, a, 1e-3, name)
        assert_near(c, a, 1e-4, name)


def test_a_run_without_a_checkpoint_can_simply_be_started_again(script, model_dir, docs, tmp_path):
    """The mend that the program names must work: other settings, the same DIR."""
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--out", "out", "--max-steps", 2, *TINY)
    assert_refused(script(*args, "--lora-r", 2, "--lora-targets", "q_proj"), "q_proj")
    assert (tmp_path / "out" / "run.json").exists()
    assert script(*args, "--batch-size", 1).returncode == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["batch_size"] == 1


def test_resuming_on_another_base_is_refused(script, model_dir, docs, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    args = (
        "train_clm.py",
        "--model",
        model,
        "--data",
        docs,
        "--out",
        "out",
        "--max-steps",
        2,
        "--lora-r",
        2,
        *TINY,
    )
    assert script(*args).returncode == 0
    state = load_file(model / "model.safetensors")
    save_file({k: v * 1.5 for k, v in state.items()}, model / "model.safetensors")
    assert_refused(script(*args, "--resume"), "the model changed since the run was started")


def test_an_out_that_cannot_be_made_is_said_in_one_line(script, model_dir, docs, tmp_path):
    (tmp_path / "file").touch()
    out = script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "file/sub", "--max-steps", 1)
    assert_refused(out, "file/sub")


@pytest.fixture
def make(tmp_path, python):
    """make("adapt", "DATA=...", HF_HOME=...): what a `make` of the user's prints; the flags of the one that
    runs these tests are none of its business. In an environment that counts as ready: a test must not install
    anything."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    (venv / ".ready").touch()

    def run(*args, **env):
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | env
        args = [f"VENV={venv}", f"RUNS={tmp_path}/runs", *map(str, args)]
        out = subprocess.run(
            ["make", *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert out.returncode == 0, out.stderr[-3000:]
        return out.stdout

    return run


def test_make_refuses_a_variable_that_it_does_not_know():
    out = subprocess.run(["make", "-n", "help", "ARG=--lora-r 8"], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 2 and "unknown variable ARG" in out.stderr


def test_eval_without_a_command_says_so(script, model_dir, docs):
    assert_refused(
        script("eval.py", "--model", model_dir, "--data", docs), "a command comes first: eval.py ppl"
    )


MEASURED = (  # perplexity with its interval, bits per byte
    r" +[\d,.]+ (\(worse than guessing\) )?\[[\d,.]+, [\d,.]+\] +[\d.]+"
)


@pytest.mark.slow
def test_make_study_walks_the_whole_road(make, tmp_path):
    general = write_jsonl(tmp_path / "general.jsonl", make_texts(120, 1))
    pubmed = write_jsonl(tmp_path / "pubmed.jsonl", make_texts(60, 2))
    held = [write_jsonl(tmp_path / f"{i}.jsonl", make_texts(6, i)) for i in (3, 4)]
    out = make(
        "study",
        f"GENERAL={general}",
        f"PUBMED={pubmed}",
        f"TEST={held[0]}",
        f"GENERAL_TEST={held[1]}",
        "STEPS=2",
        "BATCH=4",
    )
    assert re.search(r"^model +base +adapted +adapted-lora$", out, re.M)
    assert len(re.findall(r"^change +[-+][\d.]+% +[-+][\d.]+%$", out, re.M)) == 2, out
    assert (tmp_path / "runs/study/adapted-lora/adapter_model.safetensors").exists()


def hub_dataset(root, repo, configs):
    """A data set of the stand-in hub: {config: rows}, each with the split train."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / "datasets" / repo
    for name, rows in configs.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name / "train-0.parquet")
    blocks = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n" for c in configs
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{blocks}---\n")


def test_make_goes_through_all_four_phases_with_models_and_data_from_the_hub(make, model_dir, tmp_path):
    root = tmp_path / "hub"
    shutil.copytree(model_dir, root / "models" / "gpt2")
    abstracts = {"pqa_artificial": make_texts(40, 5), "pqa_labeled": make_texts(40, 5)[:4] + make_texts(3, 6)}
    hub_dataset(
        root,
        "qiaojin/PubMedQA",
        {
            name: [
                {"pubid": i, "context": {"contexts": t.split(" ", 1), "labels": ["a"]}}
                for i, t in enumerate(texts)
            ]
            for name, texts in abstracts.items()
        },
    )
    news = [{"text": "fox " + t, "label": 2} for t in make_texts(9, 7)]
    hub_dataset(root, "fancyzhx/ag_news", {"default": news})
    cards = [
        {"instruction": "Answer this question truthfully", "input": t, "output": "Yes."}
        for t in make_texts(30, 8, 2, 4)
    ]
    hub_dataset(root, "medalpaca/medical_meadow_medical_flashcards", {"default": cards})
    (tmp_path / "short.toml").write_text(
        'prompt = "{instruction}\\n"\nprompt_with_input = "{instruction}{input}\\n"\n'
    )
    with StandinHub(root) as standin:
        env = {"HF_ENDPOINT": standin.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        common = (f"TEMPLATE={tmp_path}/short.toml",)
        out = make("adapt", *common, "ARGS=--max-steps 2 --lora-r 2", **env)
        assert "4 training documents that are held out too were taken out" in out
        assert re.search(rf"^base{MEASURED}$", out, re.M) and re.search(
            rf"^adapted{MEASURED} +[-+][\d.]+%$", out, re.M
        )
        assert "this run is complete" in make("adapt", *common, "ARGS=--max-steps 2 --lora-r 2", **env)
        assert "next: make classify" in out
        out = make("classify", *common, "ARGS=--max-steps 2", **env)
        assert (
            all(re.search(rf"^{row} ", out, re.M) for row in ("model", "majority", "TF-IDF"))
            and "make sft" in out
        )
        out = make("sft", *common, "ARGS=--max-steps 2", **env)
        assert "28 examples" in out or "29 examples" in out
        assert "next: make report" in out
        make("report", *common, "ARGS=--max-new-tokens 5", **env)
    page = (tmp_path / "runs/report/report.html").read_text()
    assert "gpt2 → adapted → instructed" in page and "Cox proportional" in page and "confusion" in page


def weights_of(directory):
    return load_file(directory / "model.safetensors")
