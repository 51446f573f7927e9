"""From Python the same comes out as from the scripts, to the bit, whatever form the data has; and errors, stops
and settings are Python's."""

import doctest
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas
import pytest
import torch

import nanomed
from nanomed import calling, cli, flags, network, outputs, python
from nanomed.asking import Model
from nanomed.errors import STOPS
from nanomed.evaluation.measure import open_model
from nanomed.models.narrow import HalfLinear
from nanomed.models.prepacked import pays_for_texts
from nanomed.tensors import read_safetensors, write_safetensors
from nanomed.text import at_hand
from nanomed.training import loop
from tests.conftest import ROOT, make_texts, write_jsonl

TEXTS = make_texts(24, 31)
LABELLED = [{"text": t, "label": ("renal", "heart")[k % 2]} for k, t in enumerate(make_texts(24, 5, 5, 20))]
PAIRS = [{"question": f"acute {k}?", "answer": "renal disease"} for k in range(24)]
TINY = {"batch_size": 2, "lr": 1e-3, "log_every": 1, "dtype": "fp32", "max_steps": 3}
# function: (script, data, settings)
PHASES = {
    "adapt": ("train_clm.py", TEXTS, {"lora_r": 2, "lora_targets": ["c_attn", "c_fc"]}),
    "classify": (
        "train_cls.py",
        LABELLED,
        {"label_names": ["renal", "heart"], "stratify": True, "save_dtype": "bf16"},
    ),
    "instruct": ("train_sft.py", PAIRS, {"template": "flashcards", "no_packing": True}),
}


def words(settings: dict) -> list[str]:
    """Settings as flags."""
    found = []
    for name, value in settings.items():
        value = [] if value is True else [",".join(value) if isinstance(value, list) else value]
        found += ["--" + name.replace("_", "-"), *value]
    return found


def weights(directory) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.glob("*.safetensors")}


def records(directory) -> list[dict]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in lines]


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_a_training_is_the_script_s_to_the_bit(phase, script, model_dir, tmp_path, capsys):
    name, data, own = PHASES[phase]
    rows = [{"text": row} if isinstance(row, str) else row for row in data]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TINY | own
    done = script(name, "--model", model_dir, "--data", file, "--out", "script", *words(settings))
    assert done.returncode == 0, done.stderr
    train, random = getattr(nanomed, phase), torch.get_rng_state()
    run = train(model_dir, data, tmp_path / "list", **settings)
    of_other = {"adapt": file, "classify": datasets.Dataset.from_list(rows), "instruct": [file]}[phase]
    other = train(str(model_dir), of_other, str(tmp_path / "other"), **settings)
    script_s = json.loads((tmp_path / "script" / "run.json").read_text())
    for each in (run, other):
        assert weights(each.out) == weights(tmp_path / "script") != {}
        assert records(each.out) == records(tmp_path / "script")
        assert (each.out / "held_out.json").read_bytes() == (
            tmp_path / "script" / "held_out.json"
        ).read_bytes()
        told = json.loads((each.out / "run.json").read_text())
        assert told["settings"] | {"data": 0} == script_s["settings"] | {"data": 0}
        assert [*told["data"].values()] == [*script_s["data"].values()]
        assert told["command"].startswith(f"nanomed.{phase}(model=")
        assert each.summary["step"] == 3 and each.metrics[-1]["step"] == 3
        assert each._repr_png_() == (each.out / "loss.png").read_bytes()
    printed = capsys.readouterr()
    assert "%|" in printed.err and not calling.FLAG.search(printed.out), printed.out
    assert ("save_dtype fp32)" in printed.out) == (phase == "classify")
    assert not list((tmp_path / "list").glob(".nanomed*"))  # no lock is left
    assert torch.equal(random, torch.get_rng_state())  # the caller's own draws go on
    with pytest.raises(nanomed.UserError, match=r"^out .*list: not empty; resume=True goes on"):
        train(model_dir, data, tmp_path / "list", **settings)
    again = train(model_dir, data, tmp_path / "list", resume=True, **settings)
    assert again == python.Run(tmp_path / "list") and "nothing to do" in capsys.readouterr().out
    assert train(run, data, tmp_path / "dry", dry_run=True, **settings) is None
    assert not (tmp_path / "dry").exists()


def test_data_by_names_and_weights_and_a_recipe(model_dir, tmp_path):
    a, b, c = (write_jsonl(tmp_path / f"{n}.jsonl", make_texts(8, n)) for n in (1, 2, 3))
    (tmp_path / "r.toml").write_text("[adapt]\nbatch-size = 4\nmax-steps = 1\n")
    sets = {"own": make_texts(3, 4), "other": str(c)}
    data, mixed = [f"{a}:0.7", f"{b}:0.3"], [(str(a), 0.7), ([b], 0.3)]
    how = {"config": tmp_path / "r.toml", "val_data": sets, "batch_size": 2, "exclude": None}
    run = nanomed.adapt(model_dir, mixed, tmp_path / "out", **how)
    told = json.loads((run.out / "run.json").read_text())["settings"]
    assert told["data"] == data and (told["batch_size"], told["max_steps"]) == (2, 1)
    assert told["val_data"][1] == f"other={c}" and told["val_data"][0].startswith("own=/")
    assert [*run.summary["last_val"]["sets"]] == ["own", "other"]


def test_positives_and_negatives(model_dir, tmp_path):
    sides = {"positives": make_texts(8, 1), "negatives": make_texts(8, 2)}
    run = nanomed.classify(model_dir, out=tmp_path / "out", val_fraction=0.3, **sides, **TINY)
    m = run.load()
    assert m.labels == ["negative", "positive"] and repr(m).endswith("family gpt2; 2 labels)")
    one, several = m.classify("acute renal disease"), m.classify(["acute renal disease", "fever"])
    assert several[0]["probabilities"] == pytest.approx(one["probabilities"]) and len(several) == 2
    assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
    assert sum(one["probabilities"].values()) == pytest.approx(1)
    with pytest.raises(nanomed.UserError, match="a classifier"):
        m.generate("acute")
    assert m.classify([]) == [] and m.classify(iter(["fever"]))[0]["label"] in m.labels
    for texts, size, said in (
        ([3], 1, "texts: a text, or a list of texts, not 3"),
        ("a", 0, "batch_size"),
        (["a", ""], 1, "empty"),
    ):
        with pytest.raises(nanomed.UserError, match=said):
            m.classify(texts, size)


def test_an_interrupt_saves_and_resume_goes_on_to_the_same_bits(model_dir, tmp_path, monkeypatch):
    whole = nanomed.adapt(model_dir, TEXTS, tmp_path / "whole", **TINY)
    real, calls = loop.one_update, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    before = {sig: signal.getsignal(sig) for sig in STOPS}
    monkeypatch.setattr(loop, "one_update", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped after update 2 of 3; .* with resume=True goes on"):
        nanomed.adapt(model_dir, TEXTS, tmp_path / "out", **TINY)
    assert {sig: signal.getsignal(sig) for sig in STOPS} == before
    assert not list((tmp_path / "out").glob(".nanomed*"))
    run = nanomed.adapt(model_dir, TEXTS, tmp_path / "out", resume=True, **TINY)
    assert len(calls) == 3 and weights(run.out) == weights(whole.out)
    monkeypatch.undo()
    assert outputs.take(tmp_path / "other", "another thread's") == {}
    threads = []  # where no signal comes
    thread = threading.Thread(
        target=lambda: threads.append(nanomed.adapt(model_dir, TEXTS, tmp_path / "thread", **TINY))
    )
    thread.start()
    thread.join()
    assert weights(threads[0].out) == weights(whole.out)
    with pytest.raises(BlockingIOError):  # it let go of its own directory alone
        outputs.locked(tmp_path / "other" / outputs.LOCK)
    outputs.release()
    assert not (tmp_path / "other").exists()


# --- a model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def m(model_dir):
    return nanomed.load(model_dir)


def evaluated(script, tmp_path, command, *args):
    done = script("eval.py", command, *args, "--json", "r.json")
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "r.json").read_text())


def test_perplexity_is_eval_s_to_the_bit(script, m, model_dir, tmp_path):
    file = write_jsonl(tmp_path / "docs.jsonl", TEXTS)
    flags = ("--model", model_dir, "--data", file, "--context", 16, "--stride", 5, "--also", "document-mean")
    theirs = evaluated(script, tmp_path, "ppl", *flags)
    how = {"context": 16, "stride": 5, "also": "document-mean"}
    rows = [{"text": text} for text in TEXTS]
    for texts in (TEXTS, datasets.Dataset.from_list(rows), str(file)):
        ours = json.loads(json.dumps(m.perplexity(texts, **how)))
        timing = {k for k in ours if "seconds" in k or k == "tokens_per_s"} | {"data"}
        assert {k: v for k, v in ours.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }
    assert m.perplexity(TEXTS[0])["ppl"] == m.perplexity(TEXTS[:1])["ppl"]
    assert m.perplexity(TEXTS, limit=2)["documents"] == 2


def test_lines_of_a_model_speak_of_parameters(m, capsys):
    streams = sys.stdout, sys.stderr
    m.generate("a <|endoftext|> b", max_new_tokens=1)
    assert "; special_tokens read makes them the tokens" in capsys.readouterr().out
    with calling.from_python(), calling.from_python():  # of another thread, say
        assert not isinstance(sys.stdout.stream, calling.Saying)
    assert streams == (sys.stdout, sys.stderr)


def test_what_is_written_is_eval_s(script, m, model_dir, tmp_path):
    prompts = ["The patients", "acute renal"]
    (tmp_path / "p.txt").write_text("\n".join(prompts) + "\n")
    flags = ("--model", model_dir, "--prompts", "p.txt", "--max-new-tokens", 6, "--seed", 3, "--top-k", 20)
    theirs = [d["completion"] for d in evaluated(script, tmp_path, "generate", *flags)]
    how = {"max_new_tokens": 6, "seed": 3, "top_k": 20}
    assert m.generate(prompts, **how) == theirs
    assert m.generate(prompts[0], **how) == theirs[0] and m.generate([]) == []
    turns = [{"role": "user", "content": "renal?"}, {"role": "assistant", "content": "acute"}]
    turns += [{"role": "user", "content": "heart?"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    flags = ("--model", model_dir, "--prompts", "c.jsonl", "--max-new-tokens", 6)
    (theirs,) = evaluated(script, tmp_path, "generate", *flags, "--system", "Be brief.")
    how = {"max_new_tokens": 6, "system": "Be brief."}
    assert m.chat(turns, **how) == theirs["completion"]
    assert m.chat("heart?", **how) == m.chat(turns[-1:], **how) == m.generate("heart?", **how)


def test_what_is_stored_in_16_bits_is_written_in_16_and_scored_without_a_copy(m, model_dir, tmp_path):
    for file in model_dir.iterdir():
        shutil.copy(file, tmp_path)
    state = read_safetensors(model_dir / "model.safetensors")
    write_safetensors({k: t.bfloat16() for k, t in state.items()}, tmp_path / "model.safetensors")
    half = nanomed.load(tmp_path, dtype="fp32")
    layers = [layer for layer in half.model.modules() if isinstance(layer, HalfLinear)]
    assert len(layers) == 3 * 4 + 1 and half.model.writing_head in layers  # m is stored in fp32
    assert not any(isinstance(layer, HalfLinear) for layer in m.model.modules())
    plain = open_model(str(tmp_path), "cpu", "fp32", plain=True)
    assert half.generate("acute", temperature=0) == Model(plain).generate("acute", temperature=0)
    assert half.perplexity(TEXTS)["loss"] == pytest.approx(Model(plain).perplexity(TEXTS)["loss"], rel=1e-6)
    assert bool(half.model.head_blocks) == pays_for_texts()


def test_what_is_chosen_is_eval_s(script, m, model_dir, tmp_path):
    row = {"prompt": "Is it acute?", "choices": [" yes", " no, never"], "answer": 0}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    theirs = evaluated(script, tmp_path, "choices", "--model", model_dir, "--data", "q.jsonl")
    ours = m.choose(row["prompt"], row["choices"])
    assert ours["choice"] == row["choices"][theirs["predictions"][0]]
    for kind in ("loglikelihoods", "loglikelihoods_per_byte"):
        assert ours[kind] == dict(zip(row["choices"], theirs[kind][0], strict=True))


def test_a_model_is_at_hand(m, model_dir, tmp_path):
    assert repr(m).startswith(f"Model({model_dir}: ") and repr(m).endswith(
        "parameters, none trainable; cpu, fp32; family gpt2)"
    )
    idx = torch.from_numpy(m.tokenizer.encode(TEXTS[0]).astype("int64"))[None, :20]
    assert m.model(idx).shape == (1, idx.size(1), 400) and (m.device.type, m.dtype) == ("cpu", "fp32")
    adapter = nanomed.adapt(model_dir, TEXTS, tmp_path / "out", lora_r=2, **TINY)
    assert adapter.load(dtype="fp32").perplexity(TEXTS[:3])["overlap"]["of"] == 3  # its texts are found again


# --- errors -------------------------------------------------------------------------------------------------


class Frame:
    pass


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", lora_rank=3), "nanomed.adapt: unknown key 'lora_rank'; did you mean 'lora_r'?"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", lora_r="x"), "nanomed.adapt: lora_r: must be a whole number"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", lora_alpha=3), "lora_alpha needs lora_r"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", merge=True), "merge=True needs lora_r"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", merge=1), "merge must be true or false"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", context=4000), "context 4000: must be from 2 to the 64"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", learning_rate=1e-4), "unknown key 'learning_rate'; did you mean 'lr'?"),
        (lambda m, d: nanomed.classify(d, [("fever", 0), ("cough", 1)], d / "o"), "data[0]: must be a text or a row (a dict), not ('fever', 0)"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", val_data={"a/b": TEXTS}), "val_data: a set's name is a text without / and =, not 'a/b'"),
        (lambda m, d: nanomed.adapt(d, (text for text in TEXTS), d / "o"), "generator"),
        (lambda m, d: nanomed.adapt(d, [{"txt": "a"}], d / "o"), "data, row 1: no text in the field 'text'"),
        (lambda m, d: nanomed.adapt(d, [], d / "o"), "data: must be a file's name, a list"),
        (lambda m, d: nanomed.adapt(d, datasets.DatasetDict(a=datasets.Dataset.from_list([{"text": "x"}])), d / "o"), "data: a data set of several splits (a); give one of them"),
        (lambda m, d: nanomed.adapt(d, ["a fever", d / "a.txt"], d / "o"), "is a file's name among others"),
        (lambda m, d: nanomed.adapt(d, ["a fever", 3], d / "o"), "data[1]: must be a text or a row (a dict), not 3"),
        (lambda m, d: nanomed.adapt(d, [{"text": {1, 2}}], d / "o"), "data[0]: holds what JSON does not ('set'"),
        (lambda m, d: nanomed.adapt(d, "missing.jsonl", d / "o"), "missing.jsonl: no such file"),
        (lambda m, d: nanomed.adapt(m, TEXTS, d / "o"), "model: its name, its directory or a Run, not a Model"),
        (lambda m, d: nanomed.instruct(d, ["a fever"], d / "o"), "data, row 1"),
        (lambda m, d: nanomed.adapt(d, TEXTS, d / "o", config={"lr": 1}), "config {'lr': 1}: No such file"),
        (lambda m, d: nanomed.classify(d), "the following arguments are required: out"),
        (lambda m, d: nanomed.classify(d, out=d / "o"), "give positives and negatives, or data"),
        (lambda m, d: m.generate("a", max_tokens=3), "generate: unknown key 'max_tokens'; did you mean 'max_new_tokens'?"),
        (lambda m, d: m.generate("a", model="b"), "generate: unknown key 'model'"),
        (lambda m, d: m.generate("a", write_in="fp16"), "generate: unknown key 'write_in'"),
        (lambda m, d: m.generate("a", max_new_tokens=100), "lower max_new_tokens"),
        (lambda m, d: m.generate(["a", ""]), "prompt, row 2: an empty prompt"),
        (lambda m, d: m.generate([{"role": "user", "content": "a"}]), "chat() takes messages"),
        (lambda m, d: m.chat([{"role": "assistant", "content": "a"}]), "messages: no turn of a user's"),
        (lambda m, d: m.chat(None), "messages: a text, or a list of turns, not None"),
        (lambda m, d: m.chat({"role": "user", "content": "a"}), "messages: a text, or a list of turns, not {'content'"),
        (lambda m, d: m.generate({"prompt": "a"}), "prompt: a text, or a list of texts, not {'prompt': 'a'}"),
        (lambda m, d: m.choose("a", "bc"), "must be a list of two texts or more, not 'bc'"),
        (lambda m, d: m.perplexity(TEXTS, stride=80), "stride"),
        (lambda m, d: m.perplexity("missing.jsonl"), "missing.jsonl: no such file"),
        (lambda m, d: m.choose("a", ["b"]), "two texts or more"),
        (lambda m, d: m.choose("a", ["b", "c"], template=3), "template 3: unknown"),
        (lambda m, d: m.perplexity(TEXTS, context=1), "context 1: must be at least 2"),
        (lambda m, d: nanomed.adapt(d, "missing.jsonl", 3), "missing.jsonl: no such file"),
        (lambda m, d: nanomed.load(""), "model '': name a model"),
        (lambda m, d: m.classify("a"), "not a classifier (nanomed.classify makes one)"),
        (lambda m, d: nanomed.load(d, dtype="float16"), "nanomed.load: dtype: invalid choice: 'float16'"),
        (lambda m, d: nanomed.load(d, device="cuda"), "device cuda: this PyTorch sees no CUDA device; use device cpu"),
        (lambda m, d: nanomed.load(d / "nothing"), "nothing: no such model directory"),
    ],
)  # fmt: skip
def test_errors_are_a_line_about_parameters(call, said, m, model_dir):
    with pytest.raises(nanomed.UserError) as e:
        call(m, model_dir)
    assert said in str(e.value) and "\n" not in str(e.value) and "--" not in str(e.value)
    assert e.value._render_traceback_() == [f"UserError: {e.value}"]
    assert not (model_dir / "o").exists()


def test_after_an_error_the_hub_is_asked_again(monkeypatch):
    asked = []
    session = SimpleNamespace(head=lambda *args, **how: asked.append(1) and None or 1 / 0)
    monkeypatch.setattr(network, "OFFLINE", False)
    monkeypatch.setattr(network.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network.huggingface_hub, "get_session", lambda: session)
    for k in (1, 2):
        with pytest.raises(nanomed.UserError, match="nobody/nothing: no such .* no network"):
            nanomed.load("nobody/nothing")
        assert len(asked) == k


def test_settings_are_in_the_signature_and_the_help():
    for name in PHASES:
        function = getattr(nanomed, name)
        parameters = inspect.signature(function).parameters
        assert [*parameters][:3] == ["model", "data", "out"] and parameters["lora_r"].default == 0
        assert "    lora_r: rank; 0 trains all weights" in function.__doc__ and "--" not in function.__doc__
        assert (
            not set("{%") & set(function.__doc__) and "    val_data: validate on these " in function.__doc__
        )
        assert "    keep (last, best): the weights" in function.__doc__
        flags.add_flags(p := cli.Parser(add_help=False), python.PHASES[name])
        assert {*parameters} == {action.dest for action in p._actions}
    assert not {"freeze"} & {*inspect.signature(nanomed.adapt).parameters}
    assert not {"ewc", "sample_prompt"} & {*inspect.signature(nanomed.classify).parameters}
    with pytest.raises(AttributeError):
        nanomed.train  # noqa: B018


# --- data at hand -------------------------------------------------------------------------------------------


def test_names_and_texts_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for name in ("a.jsonl", "b.csv.gz", "hub:a/b", "val=a.jsonl", "a.jsonl:0.5", "n.json#data", "notes"):
        assert at_hand.is_name(name), name
    monkeypatch.setenv("HOME", str(tmp_path))  # ~ is no shell's here
    assert at_hand.names(["~/a.jsonl", Path("~/b.csv")], "data", {}) == [
        f"{tmp_path}/{n}" for n in ("a.jsonl", "b.csv")
    ]
    given = calling.plain({"out": "~/runs", "seed": None, "label_names": ["a,b", "c"]})
    assert given == {"out": f"{tmp_path}/runs", "label_names": '"a,b",c'}
    for text in (
        "A fever.",
        "See the data in supplement.csv",
        "x" * 5000,
        "a\0b",
        "aspirin",
        "p < 0.05: significant",
    ):
        assert not at_hand.is_name(text), text


def test_class_names_of_a_data_set_are_kept(model_dir, tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"])
    )
    rows = [{"text": t, "label": np.arange(12)[k] % 2} for k, t in enumerate(make_texts(12, 3))]
    table, plain = pandas.DataFrame(rows), [{k: str(v) for k, v in row.items()} for row in rows]
    assert at_hand.names(table.astype(str), "data", {}) == at_hand.names(plain, "data", {})
    column = at_hand.names(table["text"], "data", {})
    data = datasets.Dataset.from_list(rows, features=features)
    run = nanomed.classify(model_dir, data, tmp_path / "out", **TINY)
    assert run.summary["labels"] == ["no", "yes"]
    kept = [at_hand.names(d, "data", {}) for d in (data, data.select(range(5)), data)]
    assert kept[0] == kept[2] != kept[1]
    assert at_hand.names(data["text"], "data", {}) == at_hand.names(data["text"][:], "data", {}) == column
    assert nanomed.classify(model_dir, rows, tmp_path / "numbers", **TINY).summary["labels"] == ["0", "1"]


def test_the_caller_s_process_stays_the_caller_s():
    code = "import os, nanomed; nanomed.load; from nanomed.training import curves; print(os.environ['MPLBACKEND'])"
    own = {
        "cwd": ROOT,
        "env": os.environ | {"MPLBACKEND": "module://json"},
        "capture_output": True,
        "text": True,
    }
    done = subprocess.run([sys.executable, "-c", f"{code}; raise KeyboardInterrupt"], **own)
    assert done.stdout == "module://json\n" and "Traceback" in done.stderr, done.stderr


# --- the page -----------------------------------------------------------------------------------------------


def test_what_the_page_shows_comes_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", page))
    test = doctest.DocTestParser().get_doctest(shown, {}, "docs/python.md", None, 0)
    assert len(test.examples) > 20
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
