"""eval.py's commands as a user runs them."""

import json
import math
import os
import pty
import select

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from nanomed.evaluation import metrics
from tests.conftest import PATIENCE, ROOT, assert_refused, make_texts, write_jsonl

GREEDY = ("--temperature", 0, "--dtype", "fp32")


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [
        {"question": f"What is {a}?", "answer": b}
        for a, b in zip(make_texts(6, 1, 1, 2), make_texts(6, 2, 3, 6), strict=True)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


# --- generate -----------------------------------------------------------------------------------------------


def test_prompts_in_a_file_give_completions_in_their_order(script, model_dir, tmp_path):
    prompts = ["the patients were", "a", "treatment of disease in the liver and renal cells"]
    (tmp_path / "p.txt").write_text("\n".join(prompts) + "\n")
    out = script(
        "eval.py", "generate", "--model", model_dir, "--prompts", "p.txt", "--json", "out.json", *GREEDY
    )
    assert out.returncode == 0, out.stderr
    done = json.loads((tmp_path / "out.json").read_text())
    assert [d["prompt"] for d in done] == prompts
    assert all(d.keys() == {"prompt", "completion", "stopped"} for d in done)
    assert "<|endoftext|>" not in "".join(d["completion"] for d in done)
    one = script(
        "eval.py", "generate", "--model", model_dir, "--prompt", prompts[1], "--json", "one.json", *GREEDY
    )
    assert one.returncode == 0, one.stderr
    again = json.loads((tmp_path / "one.json").read_text())
    assert again[0] == done[1] or not done[1]["stopped"]  # alone it has more room
    write_jsonl(tmp_path / "p.jsonl", prompts, field="prompt")
    script("eval.py", "generate", "--model", model_dir, "--prompts", "p.jsonl", "--json", "b.json", *GREEDY)
    assert json.loads((tmp_path / "b.json").read_text()) == done


def test_a_seed_reproduces_and_streaming_writes_the_same(script, model_dir, tmp_path):
    asked = (
        "--model",
        model_dir,
        "--prompt",
        "the cells",
        "--dtype",
        "fp32",
        "--max-new-tokens",
        30,
        "--temperature",
        1.0,
    )

    def run(*flags):
        return script("eval.py", "generate", *asked, *flags)

    first = run("--seed", 3, "--json", "a.json")
    assert first.returncode == 0, first.stderr
    text = json.loads((tmp_path / "a.json").read_text())[0]["completion"]
    streamed = run("--seed", 3)
    assert streamed.stdout.split("\n", 1)[1].rstrip("\n") == text.rstrip("\n")
    assert run("--seed", 4).stdout != streamed.stdout


def test_a_template_wraps_the_prompt(script, model_dir, tmp_path):
    wrapped = script(
        "eval.py",
        "generate",
        "--model",
        model_dir,
        "--prompt",
        "Why?",
        "--template",
        "response",
        "--json",
        "a.json",
        "--max-new-tokens",
        20,
        *GREEDY,
    )
    assert wrapped.returncode == 0, wrapped.stderr
    by_hand = "### Instruction:\nWhy?\n### Response:\n"
    script(
        "eval.py",
        "generate",
        "--model",
        model_dir,
        "--prompt",
        by_hand,
        "--json",
        "b.json",
        "--max-new-tokens",
        20,
        *GREEDY,
    )
    a, b = (json.loads((tmp_path / f).read_text())[0] for f in ("a.json", "b.json"))
    assert a["completion"] == b["completion"] and a["prompt"] == "Why?"


def test_wrong_uses_of_generate(script, model_dir, tmp_path):
    assert_refused(script("eval.py", "generate", "--model", model_dir), "no --prompt", "terminal")
    assert_refused(
        script("eval.py", "generate", "--model", model_dir, "--prompt", "a", "--prompts", "b.txt"),
        "one of them",
    )
    assert_refused(script("eval.py", "generate", "--model", model_dir, "--prompts", "no.txt"), "no.txt")
    assert_refused(script("eval.py", "generate", "--model", model_dir, "--prompt", ""), "empty prompt")
    long = "the patients " * 80
    assert_refused(script("eval.py", "generate", "--model", model_dir, "--prompt", long), "64 positions")
    assert_refused(
        script("eval.py", "generate", "--model", model_dir, "--prompt", "a", "--template", "x"), "flashcards"
    )
    assert_refused(
        script("eval.py", "generate", "--model", model_dir, "--prompt", "a", "--max-new-tokens", 64),
        "64 positions",
    )


def test_without_a_prompt_a_terminal_becomes_a_chat(model_dir, python):
    """In a terminal of its own: two questions, two answers, then the end of input."""
    words = ["generate", "--model", str(model_dir), "--max-new-tokens", "8"]
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(python[0], [*python, str(ROOT / "eval.py"), *words])

    seen = b""

    def until(word, count):
        """Read until `word` has come `count` times."""
        nonlocal seen
        while seen.count(word) < count:
            assert select.select([fd], [], [], PATIENCE)[0], seen
            seen += os.read(fd, 4096)

    for n, question in enumerate((b"the patients were", b"a disease of"), 1):
        until(b"\n> ", n)
        os.write(fd, question + b"\n")
        until(b"\n> ", n + 1)
        assert len(seen.split(question)[-1].strip(b"\r\n> ")) > 0
    assert b"Ctrl-D ends" in seen
    os.write(fd, b"\x04")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# --- qa -----------------------------------------------------------------------------------------------------


def test_answer_measures_are_the_libraries(script, model_dir, questions, tmp_path):
    out = script(
        "eval.py",
        "qa",
        "--model",
        model_dir,
        "--data",
        questions,
        "--template",
        "medtuned",
        "--json",
        "r.json",
        "--max-new-tokens",
        12,
        "--dtype",
        "fp32",
    )
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    answers, references = ([a[key] for a in r["answers"]] for key in ("completion", "reference"))
    assert np.isclose(r["bleu"], sacrebleu.corpus_bleu(answers, [references]).score)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=metrics.UnicodeWords())
    rouge = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(answers, references, strict=True)]
    assert np.isclose(r["rouge_l"], np.mean(rouge))
    assert r["answers"][0]["prompt"].startswith("### Instruction:\nWhat is")
    assert not any("### Instruction:" in a for a in answers)  # the completion only
    for key in ("exact_match", "token_f1", "bleu", "rouge_1", "rouge_2", "rouge_l", "words", "stopped"):
        low, high = r[key + "_ci95"]
        assert (low <= r[key] + 1e-9 and r[key] <= high + 1e-9) or key == "bleu"
        assert {"exact_match": "exact match", "bleu": "BLEU"}.get(key, "") in out.stdout
    assert math.isfinite(r["answer_ppl"])
    assert r["settings"]["bleu"] in out.stdout and r["settings"]["rouge"] in out.stdout
    # three answers beside their references
    names = ("  question:", "  reference:", "  answer:")
    shown = [line.split(":", 1) for line in out.stdout.splitlines() if line.startswith(names)]
    assert [name.strip() for name, _ in shown] == ["question", "reference", "answer"] * 3
    first = json.loads(questions.read_text().splitlines()[0])
    assert [text.strip() for _, text in shown[:2]] == [first["question"], first["answer"]]
    assert all(len(text) <= 147 for _, text in shown)


def test_rows_that_ask_the_same_are_one_question(script, model_dir, tmp_path):
    rows = [{"question": q, "answer": a} for q, a in (("a cell", "x"), ("a gene", "y"), ("a cell", "z"))]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("eval.py", "qa", "--model", model_dir, "--template", "none", "--max-new-tokens", 2)
    out = script(*flags, "--data", "q.jsonl", "--dtype", "fp32", "--json", "r.json")
    assert out.returncode == 0 and "2 questions with 3 references, of which the best" in out.stdout, (
        out.stderr
    )
    r = json.loads((tmp_path / "r.json").read_text())
    assert r["questions"] == 2 and [a.get("references") for a in r["answers"]] == [["x", "z"], None]
    said = r["answers"][0]["completion"]
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows, rows[0] | {"answer": said}])
    )
    out = script(*flags, "--data", "q.jsonl", "--dtype", "fp32", "--json", "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["exact_match"] == 0.5


def test_a_list_is_several_references(script, model_dir, tmp_path):
    """As rows that ask the same with each of them."""
    flags = ("eval.py", "qa", "--model", model_dir, "--template", "none", "--max-new-tokens", 2)
    found = []
    for rows in ([{"a": ["the blood", "a dose"]}], [{"a": "the blood"}, {"a": "a dose"}]):
        lines = [json.dumps({"question": "a cell"} | row) + "\n" for row in rows]
        (tmp_path / "q.jsonl").write_text("".join(lines))
        how = ("--data", "q.jsonl", "--response-field", "a", "--dtype", "fp32", "--json", "r.json")
        assert script(*flags, *how).returncode == 0
        found.append(json.loads((tmp_path / "r.json").read_text()))
    one, two = found
    assert one["questions"] == two["questions"] == 1 and one["answers"] == two["answers"]
    assert one["answers"][0]["references"] == ["the blood", "a dose"]
    assert one["answer_ppl"] == pytest.approx(two["answer_ppl"])


def test_known_pairs():
    got = metrics.answers(
        ["The cat sat.", "a dog", ""], ["the cat sat", "two dogs here", "x"], [True, False, True]
    )
    assert got["exact_match"] == pytest.approx(1 / 3)  # articles, case and punctuation aside
    assert got["token_f1"] == pytest.approx(1 / 3)
    assert got["words"] == pytest.approx(5 / 3) and got["stopped"] == pytest.approx(2 / 3)
    assert metrics.token_f1("the red house", "a red car") == pytest.approx(0.5)
    assert metrics.token_f1("", "") == 1 and metrics.token_f1("", "x") == 0
    same = ["six words make a sentence here"] * 3
    perfect = metrics.answers(same, same, [True] * 3)
    assert perfect["bleu"] == pytest.approx(100) and perfect["rouge_2"] == 1
    assert perfect["bleu_ci95"] == pytest.approx([100, 100])
    z2 = 1.959964**2  # Wilson's interval of all, and of none: a bootstrap's would have no width
    assert perfect["exact_match_ci95"] == pytest.approx([3 / (3 + z2), 1])
    none = metrics.answers(["x"] * 3, same, [False] * 3)
    for key in ("exact_match", "exact_match_squad", "stopped"):
        assert none[key + "_ci95"] == pytest.approx([0, z2 / (3 + z2)])


# --- names and flags ----------------------------------------------------------------------------------------


def test_a_name_without_its_file_is_said_to_be_one(script, model_dir, tmp_path):
    docs = write_jsonl(tmp_path / "d.jsonl", make_texts(9, 1))
    common = ("--model", model_dir, "--data", docs, "--out", "o")
    assert_refused(
        script("train_clm.py", *common, "--val-data", "general="), "general=: the name has no file"
    )
    compare = ("eval.py", "compare", "--models", model_dir, "--out", "r")
    assert_refused(script(*compare, "--data", "general="), "general=: the name has no file")


def test_the_nearest_flag_is_named_where_a_misspelt_one_was_required(script):
    out = script("train_clm.py", "--modle", "nano", "--data", "d", "--out", "o")
    assert_refused(out, "required: --model; --modle: did you mean --model?")
    assert_refused(
        script("eval.py", "ppl", "--dta=d", "--model", "nano"), "--data", "did you mean --data?", "--dta"
    )
    plain = script("eval.py", "ppl", "--model", "nano")
    assert_refused(plain, "required: --data (--help")


# --- cls ----------------------------------------------------------------------------------------------------


def test_cls_measures_a_classifier_beside_baselines_from_its_own_training_texts(script, model_dir, tmp_path):
    good, bad = make_texts(30, 1), ["fox " + t for t in make_texts(30, 2)]
    write_jsonl(tmp_path / "pos.jsonl", good[:20]), write_jsonl(tmp_path / "neg.jsonl", bad[:20])
    names = ("--positive-name", "bio", "--negative-name", "other")
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--positives",
        "pos.jsonl",
        "--negatives",
        "neg.jsonl",
        "--out",
        "c",
        "--max-steps",
        2,
        "--dtype",
        "fp32",
        *names,
    )
    assert out.returncode == 0, out.stderr
    rows = [{"text": t, "label": "bio"} for t in good[20:]] + [
        {"text": t, "label": "other"} for t in bad[20:]
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = script(
        "eval.py", "cls", "--model", "c", "--data", "test.jsonl", "--json", "r.json", "--dtype", "fp32"
    )
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    assert list(r["measures"]) == ["model", "majority", "TF-IDF + logistic regression"] and r["texts"] == 20
    assert "the TF-IDF baseline" in out.stdout and "true \\ predicted" in out.stdout
    write_jsonl(tmp_path / "p2.jsonl", good[20:]), write_jsonl(tmp_path / "n2.jsonl", bad[20:])
    other = script(
        "eval.py",
        "cls",
        "--model",
        "c",
        "--positives",
        "p2.jsonl",
        "--negatives",
        "n2.jsonl",
        "--json",
        "s.json",
        "--dtype",
        "fp32",
    )
    assert other.returncode == 0, other.stderr
    assert (
        json.loads((tmp_path / "s.json").read_text())["measures"]["model"]["accuracy"]
        == r["measures"]["model"]["accuracy"]
    )
    write_jsonl(tmp_path / "pos.jsonl", good[:19])
    changed = script("eval.py", "cls", "--model", "c", "--data", "test.jsonl", "--dtype", "fp32")
    assert "no baselines: the training texts have changed since" in changed.stdout
    assert_refused(script("eval.py", "cls", "--model", model_dir, "--data", "test.jsonl"), "not a classifier")
    swapped = (
        "--positives",
        "n2.jsonl",
        "--negatives",
        "p2.jsonl",
        "--positive-name",
        "other",
        "--negative-name",
        "bio",
    )
    other = script("eval.py", "cls", "--model", "c", *swapped, "--json", "t.json", "--dtype", "fp32")
    assert other.returncode == 0, other.stderr
    assert (
        json.loads((tmp_path / "t.json").read_text())["measures"]["model"]["accuracy"]
        == r["measures"]["model"]["accuracy"]
    )
    unknown = ("--positives", "p2.jsonl", "--negatives", "n2.jsonl", "--positive-name", "x")
    assert_refused(
        script("eval.py", "cls", "--model", "c", *unknown), "must be two of the model's labels: other, bio"
    )
    (tmp_path / "odd.jsonl").write_text(json.dumps({"text": "t", "label": "new"}) + "\n")
    assert_refused(
        script("eval.py", "cls", "--model", "c", "--data", "odd.jsonl"),
        "'new' is none of the model's: other, bio",
    )


def test_cls_never_writes_over_what_its_model_was_trained_on(script, model_dir, tmp_path):
    (tmp_path / "a=b").mkdir()
    names = ("lab.jsonl", "lab2.jsonl", "a=b/val.jsonl", "out.jsonl", "v.jsonl")
    for seed, name in enumerate(names):
        rows = [{"text": t, "label": "ab"[k % 2]} for k, t in enumerate(make_texts(8, seed))]
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--data",
        "lab.jsonl",
        "lab2.jsonl",
        "--val-data",
        "x=lab2.jsonl",
        "--val-data",
        "a=b/val.jsonl",
        "--exclude",
        "out.jsonl",
        "--out",
        "c",
        "--max-steps",
        1,
        "--dtype",
        "fp32",
    )
    assert out.returncode == 0, out.stderr
    for name in names:
        before = (tmp_path / name).read_bytes()
        assert_refused(
            script("eval.py", "cls", "--model", "c", "--data", "v.jsonl", "--json", name), "reads", name
        )
        assert (tmp_path / name).read_bytes() == before
    command = ("eval.py", "cls", "--model", "c", "--data", "v.jsonl", "--json", "r.json", "--dtype", "fp32")
    assert script(*command).returncode == 0
    for content in ("{}", "[]", "{", '{"settings": 1, "data": {}}', '{"settings": {"context": "x"}}'):
        (tmp_path / "c" / "run.json").write_text(content)  # another program's
        out = script(*command)
        assert out.returncode == 0, out.stderr
        assert "no baselines: c/run.json" in out.stdout.replace(str(tmp_path) + "/", ""), out.stdout
