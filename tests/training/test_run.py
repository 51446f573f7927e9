"""A run's directory and what is said around a training: several validation sets, what is kept, what it would
take, what a batch looks like, the template that travels."""

import gc
import json
import re
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation import measure
from nanomed.models.loss import clm_loss, token_nll
from nanomed.text import heldout, show
from nanomed.text.batch import Batch
from nanomed.text.conversations import Conversation
from nanomed.text.corpus import encode_corpus
from nanomed.text.examples import collate, encode_instructions, pack, text_examples
from nanomed.text.templates import TEMPLATES
from nanomed.text.tokenizer import load_tokenizer
from nanomed.training import checkpoint, directory, estimate
from nanomed.training.loop import Settings, fit, learning_rate, total_steps
from nanomed.training.settings import Adapt
from tests.conftest import assert_refused, make_texts, write_jsonl

TINY = ("--batch-size", 2, "--lr", 1e-3, "--log-every", 1, "--dtype", "fp32")


@pytest.fixture
def docs(tmp_path):
    return write_jsonl(tmp_path / "docs.jsonl", make_texts(40, 31))


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"acute {k}?", "answer": "renal disease"}) + "\n" for k in range(30))
    )
    return path


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- validation ---------------------------------------------------------------------------------------------


def test_each_named_set_is_a_line_and_a_curve_and_is_what_eval_measures(script, model_dir, docs, tmp_path):
    a, b = (write_jsonl(tmp_path / f"{n}.jsonl", make_texts(6, n)) for n in (1, 2))
    out = script(
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        docs,
        "--val-data",
        f"near={a}",
        f"far={b}",
        "--out",
        "o",
        "--max-steps",
        4,
        "--eval-every",
        2,
        "--context",
        32,
        "--sample-prompt",
        "the patient",
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    lines = [line for line in out.stdout.splitlines() if line.startswith("after update")]
    assert [re.match(r"after update (\d)", line)[1] for line in lines] == ["0", "2", "4"]
    assert all("near loss" in line and "far loss" in line for line in lines)
    validated = [r for r in records(tmp_path / "o") if "val" in r]
    assert len(validated) == 3 and all(r["val_loss"] == r["val"]["near"]["loss"] for r in validated)
    assert all(r["sample"].startswith("the patient >>> ") for r in validated)
    for name, file in (("near", a), ("far", b)):
        assert (
            script(
                "eval.py",
                "ppl",
                "--model",
                "o",
                "--data",
                file,
                "--context",
                32,
                "--json",
                "r.json",
                "--dtype",
                "fp32",
            ).returncode
            == 0
        )
        got = json.loads((tmp_path / "r.json").read_text())["ppl"]
        assert validated[-1]["val"][name]["ppl"] == pytest.approx(got, rel=1e-5)
    assert "near perplexity" in out.stdout and "kept: the last weights (update 4)" in out.stdout


def test_instruction_tuning_watches_answers_and_documents(script, model_dir, pairs, docs, tmp_path):
    out = script(
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        pairs,
        "--val-data",
        f"text={docs}",
        f"answers={pairs}",
        "--out",
        "o",
        "--max-steps",
        1,
        *TINY,
    )
    assert_refused(out, "all rows are held out")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": "new?", "answer": "chronic"}) + "\n")
    out = script(
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        pairs,
        "--val-data",
        f"text={docs}",
        f"answers={other}",
        "--out",
        "o",
        "--max-steps",
        1,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    assert list(records(tmp_path / "o")[-1]["val"]) == ["answers", "text"]


class Steps:
    """A micro-batch an update, always the same."""

    windows_per_epoch, unit = 100, "tokens"

    def __init__(self):
        self.batch = torch.randint(0, 400, (2, 8), generator=torch.Generator().manual_seed(1))

    def window(self, k):
        return [Batch(self.batch[:, :-1], self.batch[:, 1:])]


def a_model(model_dir):
    return hub.load_model(hub.find(str(model_dir)), dropout=0.0)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_that_are_asked_for_are_kept(model_dir, tmp_path, keep):
    model, losses, seen = a_model(model_dir), iter([3.0, 2.0, 4.0]), []

    def evaluate():
        seen.append(model.transformer.wte.weight.detach().clone())
        return {"validation": {"loss": next(losses)}}, None

    fit(model, Steps(), clm_loss, Settings(lr=1e-3, max_steps=4, eval_every=2, keep=keep), tmp_path, evaluate)
    assert torch.equal(model.transformer.wte.weight, seen[{"best": 1, "last": 2}[keep]])
    assert not torch.equal(seen[1], seen[2])


def test_what_is_kept_is_said_and_needs_a_validation(script, model_dir, docs, tmp_path):
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--max-steps", 2, *TINY)
    assert_refused(
        script(*args, "--out", "a", "--val-fraction", 0, "--keep", "best"), "--keep best", "--val-data"
    )
    assert (
        "kept: the weights of the best validation (update "
        in script(*args, "--out", "b", "--keep", "best").stdout
    )
    assert "kept the last weights (update 2)" in script(*args, "--out", "c", "--val-fraction", 0).stdout


def test_a_stop_during_the_first_validation_does_not_count_it_twice(model_dir, tmp_path):
    """SIGTERM in the validation before the first update; after --resume it was done, and patience has not
    begun."""

    def run(out, stop):
        losses, model = iter([1.0, 2.0, 3.0]), a_model(model_dir)

        def evaluate():
            if stop:
                signal.raise_signal(signal.SIGTERM)
            return {"validation": {"loss": next(losses) + (0 if stop else offset)}}, None

        offset = 0 if out.name == "whole" else 1  # the first one is done already
        out.mkdir(exist_ok=True)
        s = Settings(lr=1e-3, max_steps=9, eval_every=1, save_every=1, patience=2, log_every=1)
        return fit(model, Steps(), clm_loss, s, out, evaluate)

    whole = run(tmp_path / "whole", False)
    with pytest.raises(BaseException, match="resume goes on"):
        run(tmp_path / "stopped", True)
    again = run(tmp_path / "stopped", False)
    assert (again["step"], again["bad_evals"]) == (whole["step"], whole["bad_evals"]) == (2, 2)
    assert (
        [r["step"] for r in records(tmp_path / "stopped")]
        == [r["step"] for r in records(tmp_path / "whole")]
        == [0, 1, 2]
    )


def test_without_a_checkpoint_no_message_promises_one(model_dir, tmp_path):
    def broken(model, batch):
        nll, parts = clm_loss(model, batch)
        return nll * float("nan"), parts

    with pytest.raises(UserError, match="no checkpoint was due yet"):
        fit(a_model(model_dir), Steps(), broken, Settings(lr=1e-3, max_steps=3), tmp_path)


def test_the_best_weights_are_those_of_the_run_that_is_gone_on_with(model_dir, tmp_path):
    """A best validation after the last checkpoint, then a kill: the resumed run must not come back to those
    weights."""

    def run(losses, out, stop=None):
        model, seen, values = a_model(model_dir), [], iter(losses)

        def evaluate():
            seen.append(model.transformer.wte.weight.detach().clone())
            if len(seen) == stop:
                raise KeyboardInterrupt
            return {"validation": {"loss": next(values)}}, None

        out.mkdir(exist_ok=True)
        s = Settings(lr=1e-3, max_steps=6, eval_every=1, save_every=2, keep="best")
        fit(model, Steps(), clm_loss, s, out, evaluate)
        return model.transformer.wte.weight, seen

    out = tmp_path / "o"
    with pytest.raises(KeyboardInterrupt):
        run([9.0, 5.0, 6.0, 1.0], out, stop=5)  # best at update 3; the checkpoint is that of update 2
    weights, _ = run([7.0, 7.0, 7.0, 7.0], out)  # updates 3 to 6, none better than 5.0 at update 1
    whole, seen = run([9.0, 5.0, 7.0, 7.0, 7.0, 7.0, 7.0], tmp_path / "whole")
    assert torch.equal(weights, seen[1]) and torch.equal(whole, seen[1])


@pytest.mark.parametrize("name", ["one", "validation"])
def test_a_single_named_set_keeps_its_name(model_dir, tmp_path, name):
    s = Settings(lr=1e-3, max_steps=1)
    summary = fit(a_model(model_dir), Steps(), clm_loss, s, tmp_path, lambda: ({name: {"loss": 1.0}}, None))
    assert (
        (list(records(tmp_path)[-1].get("val", [])) == ["one"])
        == (name == "one")
        == ("sets" in summary["last_val"])
    )


def test_what_does_not_fit_is_said_before_the_training(script, model_dir, docs, tmp_path):
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--out", "o", "--max-steps", 1, *TINY)
    assert_refused(script(*args, "--sample-prompt", "the patient " * 60), "does not fit")
    assert_refused(
        script(*args, "--sample-prompt", "the", "--val-fraction", 0), "--sample-prompt", "--val-data"
    )
    assert not (tmp_path / "o").exists()


def test_what_the_user_keeps_in_a_runs_folders_stays(script, model_dir, docs, tmp_path):
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--out", "o", "--max-steps", 1, *TINY)
    assert script(*args).returncode == 0
    for folder in ("state", "base"):
        (tmp_path / "o" / folder).mkdir()
        (tmp_path / "o" / folder / "notes.txt").write_text("mine")
        assert_refused(script(*args, "--resume"), f"{folder}/notes.txt is no part of a run")
        assert (tmp_path / "o" / folder / "notes.txt").read_text() == "mine"
        shutil.rmtree(tmp_path / "o" / folder)


def test_a_resumed_run_notices_that_what_was_held_out_earlier_has_changed(
    script, model_dir, docs, pairs, tmp_path, monkeypatch
):
    monkeypatch.setattr("nanomed.training.checkpoint.remove", lambda out: None)
    source = tmp_path / "source"
    shutil.copytree(model_dir, source)
    heldout.write(heldout.HeldOut({heldout.digest("a")}), source)
    args = (
        "train_sft.py",
        "--model",
        source,
        "--data",
        pairs,
        "--replay",
        docs,
        "--out",
        "o",
        "--max-steps",
        1,
        *TINY,
    )
    assert script(*args).returncode == 0
    (tmp_path / "o" / "summary.json").unlink()
    (source / "held_out.json").unlink()
    assert_refused(script(*args, "--resume"), "held_out.json of the model changed")


def test_an_instructed_model_that_reads_on_keeps_its_template(script, model_dir, pairs, docs, tmp_path):
    assert (
        script(
            "train_sft.py", "--model", model_dir, "--data", pairs, "--out", "o", "--max-steps", 1, *TINY
        ).returncode
        == 0
    )
    assert (
        script(
            "train_clm.py", "--model", "o", "--data", docs, "--out", "p", "--max-steps", 1, *TINY
        ).returncode
        == 0
    )
    assert measure.open_model(str(tmp_path / "p")).template == TEMPLATES["response"]


def test_a_sample_of_an_instructed_model_that_reads_on_is_a_bare_continuation(
    script, model_dir, pairs, docs, tmp_path
):
    assert (
        script(
            "train_sft.py", "--model", model_dir, "--data", pairs, "--out", "o", "--max-steps", 1, *TINY
        ).returncode
        == 0
    )
    prompt = "the patient " * 20  # fits alone, and not with a template around it
    args = ("--data", docs, "--out", "p", "--max-steps", 1, "--sample-prompt", prompt, *TINY)
    assert script("train_clm.py", "--model", "o", *args).returncode == 0
    assert_refused(
        script("train_sft.py", "--model", "o", "--data", pairs, *args[2:3], "q", *args[4:]), "does not fit"
    )


def test_a_dry_run_looks_at_the_widest_batch_and_at_whole_updates(model_dir, capsys):
    class Uneven:
        """Short rows, one long one; the last window has a single row."""

        windows_per_epoch, unit = 3, "tokens"

        def window(self, k):
            x = torch.zeros(4 if k < 2 else 1, 50 if k == 1 else 9, dtype=torch.long)
            return [Batch(x, x)]

    estimate.dry_run(a_model(model_dir), Uneven(), clm_loss, Settings(lr=1e-3, max_steps=5), False)
    assert "(4 x 50 tokens at once)" in capsys.readouterr().out


def test_shares_are_what_is_written_not_what_floats_make_of_it():
    assert (
        learning_rate(6, 100, Settings(lr=1.0, warmup_ratio=0.07))
        == learning_rate(7, 100, Settings(lr=1.0, warmup_ratio=0.07))
        == 1
    )
    assert total_steps(Steps(), Settings(lr=1.0, epochs=0.07)) == 7


# --- before a training --------------------------------------------------------------------------------------


def test_a_dry_run_counts_times_and_writes_nothing(script, model_dir, docs, tmp_path):
    out = script(
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        docs,
        "--out",
        "o",
        "--dry-run",
        "--epochs",
        3,
        "--lora-r",
        2,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    assert not (tmp_path / "o").exists()
    for words in (
        "documents",
        "tokens an epoch",
        "updates",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "s an update",
        "nothing was written",
    ):
        assert words in out.stdout
    assert "results in" not in out.stdout


def test_activations_are_what_autograd_keeps():
    """A layer of which it is known: y = tanh(x W) keeps x, which is given, and y, B x T x C fp32."""
    layer = torch.nn.Linear(16, 16, bias=False)
    x = torch.randn(8, 16)
    kept = estimate.kept_for_backward(
        layer, Batch(x, x), lambda m, b: (torch.tanh(m(b.idx)).sum(), 1), "fp32"
    )
    assert kept == 8 * 16 * 4


def test_a_disk_without_room_is_said_before_the_first_update(script, model_dir, docs, tmp_path, monkeypatch):
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    out = script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "o", "--max-steps", 1, *TINY)
    assert_refused(out, "--out o", "0.1 MB are free there")
    assert not (tmp_path / "o" / "metrics.jsonl").exists()
    lora = ("--lora-r", 2, "--lora-targets", "attn.c_proj")  # a few kilobytes
    assert (
        script(
            "train_clm.py", "--model", model_dir, "--data", docs, "--out", "p", "--max-steps", 1, *lora, *TINY
        ).returncode
        == 0
    )


def test_what_a_run_that_goes_on_has_on_the_disk_already_counts(model_dir, tmp_path, monkeypatch):
    model, s = a_model(model_dir), Adapt(out=tmp_path)
    state = 12 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda path: SimpleNamespace(free=state + 10))
    with pytest.raises(UserError, match="are free there"):
        directory.check_space(model, s)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "step-00000001.safetensors").write_bytes(bytes(state))
    directory.check_space(model, s)


def test_what_was_counted_is_freed(model_dir):
    """At once, and not when Python next looks for cycles: the updates after it would be timed and measured
    beside it."""
    model, x = a_model(model_dir), torch.zeros(2, 9, dtype=torch.long)

    def held():
        return sum(1 for t in gc.get_objects() if isinstance(t, torch.Tensor))

    gc.collect()
    gc.disable()
    try:
        before = held()
        estimate.kept_for_backward(model, Batch(x, x), clm_loss, "fp32")
        assert held() == before
    finally:
        gc.enable()


def test_gradients_come_as_activations_go_but_for_those_of_earlier_micro_batches():
    sizes = {
        "weights": 100,
        "optimizer": 200,
        "gradients": 100,
        "activations": 60,
        "the loss": 10,
        "where they started": 1,
    }
    assert estimate.at_most(sizes, 1) == 301 + 100 and estimate.at_most(sizes, 2) == 301 + 170
    assert estimate.at_most(sizes | {"activations": 600}, 1) == 301 + 610


def test_a_dry_runs_memory_is_within_reach_of_what_torch_counts(model_dir, capsys):
    model = a_model(model_dir)
    estimate.dry_run(model, Steps(), clm_loss, Settings(lr=1e-3, max_steps=5), False)
    n = sum(p.numel() for p in model.parameters())
    said = capsys.readouterr().out
    for name, size in (("weights", 4 * n), ("gradients", 4 * n), ("optimizer", 8 * n)):
        assert f"{name} {size / 1e6:.1f} MB" in said
    assert "for 5" in said and "held at most in two updates" in said


def test_show_marks_exactly_what_is_supervised_and_tells_packed_examples_apart(bpe_dir, tmp_path, capsys):
    tokenizer = load_tokenizer(bpe_dir)
    items = [Conversation.of("Why?", "", "So."), Conversation.of("How?", "fox", "Like this.")]
    sft = encode_instructions(items, tokenizer, TEMPLATES["flashcards"], 60).examples
    corpus = encode_corpus(str(write_jsonl(tmp_path / "d.jsonl", ["fever and cough"])), tokenizer)
    batch = collate(pack(sft + text_examples(corpus.all(), 60, 1, 0), 200))
    show.rows([batch], tokenizer, 5)
    said = capsys.readouterr().out
    start = "Instruction: Answer this question truthfully\\nQuestion: Why?\\nResponse:"
    assert f"{start}[[ So.<|endoftext|>]]\n" in said
    assert "Instruction: How?\\nQuestion: fox\\nResponse:[[ Like this.<|endoftext|>]]\n" in said
    assert "(replayed) <|endoftext|>[[fever and cough]]\n" in said
    assert [line.strip()[:2] for line in said.splitlines() if "[[" in line] == ["1.", "2.", "3."]


def test_show_in_each_script(script, model_dir, docs, pairs, tmp_path):
    common = ("--model", model_dir, "--show", 1, "--dry-run", "--out", "o", *TINY)
    out = script("train_clm.py", "--data", docs, *common)
    assert len(re.findall(r"\[\[.*\]\]", out.stdout)) == 1, out.stderr
    assert (
        "Response:\\n[[renal disease<|endoftext|>]]"
        in script("train_sft.py", "--data", pairs, *common, "--no-packing").stdout
    )
    out = script(
        "train_cls.py",
        "--positives",
        docs,
        "--negatives",
        write_jsonl(tmp_path / "n.jsonl", ["fox"] * 9),
        *common,
    )
    assert re.search(r"^(positive|negative):\n  \S", out.stdout, re.M), out.stderr


def test_answers_and_replayed_text_are_logged_apart(model_dir, bpe_dir, tmp_path):
    """Their sums are the whole; each is the mean of its own tokens' losses, computed one example at a
    time."""
    tokenizer, model = load_tokenizer(bpe_dir), a_model(model_dir).eval()
    answers = encode_instructions(
        [Conversation.of("Why?", "", "So it is."), Conversation.of("Who?", "", "He.")],
        tokenizer,
        TEMPLATES["response"],
        60,
    ).examples
    corpus = encode_corpus(str(write_jsonl(tmp_path / "d.jsonl", ["fever and cough"])), tokenizer)
    texts = text_examples(corpus.all(), 60, 1, 0)
    with torch.no_grad():
        batch = collate(pack(answers + texts, 60))
        total, parts = clm_loss(model, batch)
    for name, examples in (("answer", answers), ("replay", texts)):
        expected = 0.0
        for e in examples:
            ids = torch.from_numpy(e.ids)
            x = model.backbone(ids[None, :-1])[0, e.spans[0][0] - 1 :]
            expected += float(token_nll(x, model.lm_head.weight, ids[e.spans[0][0] :]).sum())
        assert float(parts[name][0]) == pytest.approx(expected, rel=1e-4)
        assert parts[name][1] == sum(len(e.ids) - e.spans[0][0] for e in examples)
    assert float(total) == pytest.approx(sum(float(p) for p, _ in parts.values()), rel=1e-5)
    assert batch.supervised == sum(n for _, n in parts.values())


# --- the template travels -----------------------------------------------------------------------------------


def test_the_template_is_saved_and_used_by_default(script, model_dir, pairs, docs, tmp_path):
    (tmp_path / "mine.toml").write_text(
        'prompt = "{instruction}\\nA\\"\'{{x}}:"\nresponse = " {response}"\nmarkers = ["\\nQ"]\n'
    )
    out = script(
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        pairs,
        "--template",
        "mine.toml",
        "--out",
        "o",
        "--max-steps",
        2,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    asked = {}
    for name, flags in {
        "default": (),
        "named": ("--template", "mine.toml"),
        "bare": ("--template", "none"),
    }.items():
        done = script(
            "eval.py",
            "qa",
            "--model",
            "o",
            "--data",
            pairs,
            "--limit",
            3,
            "--json",
            "r.json",
            "--max-new-tokens",
            3,
            *flags,
        )
        assert done.returncode == 0, done.stderr
        asked[name] = [a["prompt"] for a in json.loads((tmp_path / "r.json").read_text())["answers"]]
        assert ("note: " in done.stderr) == (name == "bare")
    assert asked["default"] == asked["named"] and asked["default"][0] == "acute 0?\nA\"'{{x}}:"
    assert asked["bare"][0] == "acute 0?"
    again = script(
        "train_sft.py", "--model", "o", "--data", pairs, "--out", "p", "--max-steps", 1, "--lora-r", 2, *TINY
    )
    assert "template the model's own" in again.stdout, again.stderr
    for name in ("o", "p"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        template = measure.open_model(str(tmp_path / name)).template
        chat = [{"role": "user", "content": "Why {{?}}"}]
        assert theirs.apply_chat_template(chat, tokenize=False) == template.ask("Why {{?}}").text
        chat.append({"role": "assistant", "content": "So."})
        assert (
            theirs.apply_chat_template(chat, tokenize=False)
            == template.ask("Why {{?}}").text + " So.<|endoftext|>"
        )


# --- bases and adapters -------------------------------------------------------------------------------------


def test_a_base_that_changed_under_its_adapter_is_noticed(script, model_dir, docs, tmp_path):
    base = tmp_path / "base-model"
    shutil.copytree(model_dir, base)
    assert (
        script(
            "train_clm.py",
            "--model",
            base,
            "--data",
            docs,
            "--out",
            "o",
            "--max-steps",
            1,
            "--lora-r",
            2,
            *TINY,
        ).returncode
        == 0
    )
    ppl = ("eval.py", "ppl", "--model", "o", "--data", docs, "--dtype", "fp32")
    assert script(*ppl).returncode == 0
    save_file(
        {k: v * 1.01 for k, v in load_file(base / "model.safetensors").items()}, base / "model.safetensors"
    )
    assert_refused(script(*ppl), "base-model is not what it was")


def test_an_adapter_and_its_merged_base_move_together(script, model_dir, docs, tmp_path):
    common = ("--data", docs, "--max-steps", 1, *TINY)
    assert script("train_clm.py", "--model", model_dir, "--out", "a", "--lora-r", 2, *common).returncode == 0
    assert script("train_clm.py", "--model", "a", "--out", "b", "--lora-r", 3, *common).returncode == 0
    ids = torch.arange(20)[None]
    before = hub.load_model(hub.find(str(tmp_path / "b"))).eval().backbone(ids)
    (tmp_path / "b").rename(tmp_path / "c")
    assert torch.equal(hub.load_model(hub.find(str(tmp_path / "c"))).eval().backbone(ids), before)


def test_from_scratch_wants_a_shape_and_no_adapter(script, model_dir, docs, tmp_path):
    common = ("--data", docs, "--max-steps", 1, *TINY)
    assert script("train_clm.py", "--model", model_dir, "--out", "a", "--lora-r", 2, *common).returncode == 0
    assert_refused(
        script("train_clm.py", "--model", "a", "--from-scratch", "--out", "b", *common),
        "is an adapter",
        model_dir,
    )


# --- flags --------------------------------------------------------------------------------------------------


def test_an_unknown_flag_names_the_nearest(script, model_dir, docs, tmp_path):
    assert_refused(
        script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "o", "--epoch", 2),
        "did you mean --epochs?",
    )
    assert_refused(
        script("eval.py", "ppl", "--model", model_dir, "--data", docs, "--strid", 2), "did you mean --stride?"
    )
    (tmp_path / "r.toml").write_text("[adapt]\nwarmup-ration = 0.1\n")
    assert_refused(
        script("train_clm.py", "--config", "r.toml", "--model", model_dir, "--data", docs, "--out", "o"),
        "did you mean 'warmup-ratio'?",
    )


@pytest.mark.parametrize("seed", [2**63, 10**30, -1])
def test_a_seed_fits_the_generators(script, model_dir, docs, seed):
    assert_refused(
        script("train_clm.py", "--model", model_dir, "--data", docs, "--out", "o", f"--seed={seed}"), "--seed"
    )


def test_a_state_that_is_no_longer_needed_goes_even_after_a_kill(
    script, model_dir, docs, tmp_path, monkeypatch
):
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--out", "o", "--max-steps", 1, *TINY)
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "remove", lambda out: None)
        assert script(*args).returncode == 0
    assert (tmp_path / "o" / "state").exists()
    assert "complete" in script(*args, "--resume").stdout and not (tmp_path / "o" / "state").exists()


def test_a_run_that_began_before_a_setting_was_thought_of_goes_on(
    script, model_dir, docs, tmp_path, monkeypatch
):
    """An absent key of run.json is its default; one that this version does not know is refused, and so is
    another phase."""
    monkeypatch.setattr("nanomed.training.checkpoint.remove", lambda out: None)
    args = ("train_clm.py", "--model", model_dir, "--data", docs, "--out", "o", "--max-steps", 2, *TINY)
    assert script(*args).returncode == 0
    path = tmp_path / "o" / "run.json"
    (tmp_path / "o" / "summary.json").unlink()
    record = json.loads(path.read_text())

    def resume(settings, *flags, **more):
        path.write_text(json.dumps(record | {"settings": settings} | more))
        return script(*args, "--resume", *flags)

    settings = record["settings"]
    older = {k: v for k, v in settings.items() if k not in ("patience", "dropout", "lora_targets")}
    assert_refused(resume(older, "--dropout", 0.1), "started with dropout = 0.0, now it is dropout = 0.1")
    assert_refused(resume(settings | {"invented_later": 1}), "'invented_later'", "version of nanomed")
    assert_refused(resume(settings, phase="instruct"), "another phase ([instruct])")
    with_what_was_kept_then = older | {
        "resume": False,
        "save_every": 7,
        "grad_checkpoint": True,
        "out": "elsewhere",
    }
    done = resume(with_what_was_kept_then)
    assert done.returncode == 0, done.stderr
    assert "complete" in script(*args, "--resume").stdout
