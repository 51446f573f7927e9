"""eval.py compare and its page: what the figures say, what is measured alike, what is refused; and the page
in a browser."""

import contextlib
import io
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from nanomed.commands import compare as command
from nanomed.demo import page as demo_page
from nanomed.evaluation import compare, measure, metrics
from nanomed.evaluation import page as pages
from nanomed.evaluation.prompts import read_prompts
from nanomed.evaluation.tables import ppl_cell
from nanomed.text import templates
from nanomed.text.conversations import user
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import assert_refused, make_hf_model, make_texts, write_jsonl

ATTACK = "<script>alert(1)</script> & the patients"


def result(ppl, low=None, high=None, **others):
    bounds = [low, high] if low else None
    return {
        "ppl": ppl,
        "ppl_ci95": bounds,
        "bits_per_byte": 1.0,
        "tokens_scored": 100,
        "context": 64,
        "stride": 32,
        "vocab_size": 8192,
        "data_sha256": "a",
        **others,
    }


def model(name, **ppl):
    return {"name": name, "model": name, "ppl": ppl}


# --- what the figures say -----------------------------------------------------------------------------------


def test_the_claim_says_what_changed_and_whether_intervals_are_apart():
    base = model("gpt2", biomedical=result(31.86, 30, 33), general=result(26.0, 24, 28))
    adapted = model("adapted", biomedical=result(16.8, 16, 18), general=result(29.0, 27, 31))
    assert compare.claims([base, adapted]) == [
        "adapted: biomedical perplexity 31.9 → 16.8 (-47 %, intervals apart), "
        "general perplexity 26.0 → 29.0 (+12 %, intervals overlap)."
    ]
    worse = model("lost", biomedical=result(34683, 30000, 40000), general=result(26.0))
    assert (
        compare.claims([base, adapted, worse])[1]
        == "lost: biomedical perplexity 31.9 → 34,683 (+108,761 %, intervals apart, worse than guessing), "
        "general perplexity 26.0 → 26.0 (+0 %)."
    )
    assert compare.claims([base]) == ["gpt2: perplexity on biomedical 31.86, on general 26.00."]


def test_the_claim_between_tokenizers_is_in_bits_a_byte():
    pair = [
        model("a", d=result(20.0, 19, 21)),
        model("b", d=result(10.0, 9, 11, tokens_scored=120, bits_per_byte=1.1)),
    ]
    assert compare.claims(pair) == ["b: d bits a byte 1.000 → 1.100 (+10 %, another tokenizer)."]
    table = compare.perplexity_table(pair)
    best = [[bool(c.get("best")) for c in row] for row in table["rows"]]
    assert best == [[False, False, True], [False, False, False]]  # no perplexity; of the bits, the fewer


def test_best_cells_and_warnings():
    models = [
        model("a", x=result(20.0, 19, 21), y=result(9.0, bits_per_byte=2)),
        model("b", x=result(10.0), y=result(9000.0)),
    ]
    table = compare.perplexity_table(models)
    assert table["groups"] == [("", 1), ("perplexity", 2), ("bits per byte", 2)]
    (_, xa, ya, _, bits), (_, xb, yb, _, _) = table["rows"]
    assert xb["best"] and not xa["best"] and ya["best"] and not bits["best"]
    assert xa["note"] == "[19.00, 21.00]" and xb["note"] == "-50.0%"
    assert yb["bad"] == "worse than guessing" and not ya["bad"] and yb["text"] == "9,000"
    rows = [
        [{"text": "m"}, {"text": "97 %"}, {"text": "0 %"}],
        [{"text": "n"}, {"text": "97 %"}, {"text": "0 %"}],
        [{"text": "o"}, {"text": "9 %"}, {"text": "0 %"}],
    ]
    pages.mark_best(rows, [[0.97, 0.0], [0.968, 0.0], [0.09, 0.0]], [False, False])
    assert [r[1]["best"] for r in rows] == [True, True, False]  # what reads the same is equally good
    assert not any("best" in r[2] for r in rows)


def demo_rows(**changes):
    keys = list(demo_page.COLUMNS)
    row = dict(zip(keys, [244.1, 271, 223, 126.6, 0.69, 0.67, 0, 0, 0.004, 0], strict=True))
    rows = {n: {"name": n, **row} for n in ("base", "adapted", "instructed_only", "adapted_instructed")}
    rows["adapted"] |= {"abstracts_ppl": 110.0, "general_ppl": 240.0}
    rows["adapted_instructed"] |= {
        "em_read": 0.97,
        "em_unknown": 0.01,
        "abstracts_ppl": 134.0,
        "general_ppl": 253.2,
    }
    for name, values in changes.items():
        rows[name] |= values
    return list(rows.values())


def test_the_demos_claims_are_honest():
    first, second, third = demo_page.claims(demo_rows(), 8192)
    assert (
        first
        == "After reading and instruction, the model answers 97 % of the questions about conditions it only"
        " read about (before, 0 %), and general English surprises it 2.0 times as much."
    )
    assert (
        second
        == "With instruction alone it answers 0 % of them; about conditions that it never met, 1 % after"
        " both."
    )
    assert (
        third
        == "Perplexity before, after reading, and after both: real abstracts 223 → 110 (-51 %) → 134 (-40"
        " %), "
        "general English 127 → 240 (+90 %) → 253 (+100 %)."
    )
    assert (
        "answers only 12 % of" in demo_page.claims(demo_rows(adapted_instructed={"em_read": 0.12}), 8192)[0]
    )
    bad = demo_page.claims(
        demo_rows(adapted_instructed={"em_read": 0.0}, adapted={"general_ppl": 36000}), 8192
    )
    assert "answers 0 % of" in bad[0] and "(no more than before, 0 %)" in bad[0]
    assert "127 → 36,000 (+28,336 %, worse than guessing)" in bad[2]


def test_the_demos_table_has_grouped_headings_and_its_best_cells_marked():
    rows = demo_rows(adapted={"general_ppl": 36000})
    names = {row["name"]: row["name"] for row in rows}
    table = demo_page.table(rows, names, 8192, "")
    assert table["groups"] == [("", 1), ("perplexity", 4), ("probe", 2), ("cloze", 1), ("exact match", 3)]
    assert table["head"][-3:] == ["taught", "read", "unknown"]
    keys = list(demo_page.COLUMNS)
    by = {row[0]["text"]: dict(zip(keys, row[1:], strict=True)) for row in table["rows"]}
    assert by["adapted_instructed"]["em_read"] == {"text": "97 %", "best": True}
    assert (
        by["adapted"]["abstracts_ppl"]["best"]
        and by["adapted"]["general_ppl"]["bad"] == "worse than guessing"
    )
    assert not by["adapted"]["general_ppl"]["best"] and "best" not in by["base"]["em_taught"]


def test_an_answer_is_right_if_the_expected_words_stand_in_it():
    assert compare.stands_in("the genitals", "It affects the Genitals.") is True
    assert compare.stands_in("gout", "goutweed") is False and compare.stands_in("x y", "y x") is False
    assert compare.stands_in(None, "anything") is None
    questions = [
        {"expected": e, "answers": [{"model": "a", "right": r}, {"model": "b", "right": e and True}]}
        for e, r in (("x", False), ("y", True), (None, None))
    ]
    said = "Right answers to the 2 questions below whose answer is known: a 1, b 2."
    assert compare.claim_of_answers(questions) == [said] and compare.claim_of_answers(questions[2:]) == []


def test_questions_come_with_their_answers_where_rows_have_them(tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"question": "c", "answer": " "}, {"instruction": "d"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read_prompts(str(tmp_path / "q.jsonl")) == (["a", "c", "d"], ["b", None, None])
    assert read_prompts(str(tmp_path / "q.jsonl"), 2)[0] == ["a", "c"]
    rows = [{"instruction": "d", "input": "e", "output": "f"}, {"instruction": "d", "input": ""}]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read_prompts(str(tmp_path / "i.jsonl")) == ([(user("d", "e"),), "d"], ["f", None])
    (tmp_path / "bad.jsonl").write_text('{"prompt": 7}\n{"prompt": " "}\n{"prompt": "a"}\n')
    assert read_prompts(str(tmp_path / "bad.jsonl"), skip_bad=True) == (["a"], [None])
    (tmp_path / "q.txt").write_text("one\n\ntwo\n")
    assert read_prompts(str(tmp_path / "q.txt")) == (["one", "two"], [None, None])


# --- the page -----------------------------------------------------------------------------------------------


def write(out, **changes):
    """A page of made figures, one model's answer being an attack."""
    models = [model("base", bio=result(31.9, 30, 33)), model("ours", bio=result(16.8, 16, 18))]
    answers = [
        {"model": "base", "text": ATTACK, "stopped": False, "right": False},
        {"model": "ours", "text": "<img src=x onerror=alert(2)>", "stopped": True, "right": True},
    ]
    content = {
        "title": "<b>base</b> → ours",
        "claim": compare.claims(models),
        "table": compare.perplexity_table(models),
        "questions": [{"prompt": ATTACK, "expected": "<i>x</i>", "group": "", "answers": answers}],
        "curves": [],
        "classifier": None,
        "models": models,
        "measured": [("windows", "64 <tokens>")],
    }
    out.mkdir(exist_ok=True)
    return pages.write_page(content | changes, out).read_text()


def test_the_page_opens_with_the_claim_then_the_table_then_the_answers(tmp_path):
    html = write(tmp_path / "p")
    heads = (
        "<h1>ours: bio perplexity 31.9 → 16.8 (-47\xa0%, intervals apart).</h1>",
        "<table>",
        "What they write",
        "How it was measured",
    )
    places = [html.index(head) for head in heads]
    assert places == sorted(places)
    assert re.search(r'<td class="best starts">16\.80<span class="hidden"> \(best\)', html)
    assert not re.search(r'<td class="best[^>]*>31\.90', html) and html.count('class="best') == 1
    assert '<th scope="colgroup" colspan="1" class="starts">perplexity</th>' in html
    assert re.search(r'base <span class="wrong">✗ wrong</span>', html)
    assert re.search(r'ours <span class="right">✓ right</span>', html)
    assert html.count("<table>") == 1 and "loss" not in html


def test_what_models_write_is_escaped(tmp_path):
    html = write(tmp_path / "p")
    assert "<script" not in html and "<img" not in html and "<i>x" not in html and "<b>base" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; the patients") == 2
    assert "64 &lt;tokens&gt;" in html


def test_a_classifier_of_several_labels_whose_measures_are_not_all_defined(tmp_path):
    undefined = {
        "accuracy": 0.5,
        "accuracy_ci95": None,
        "macro_f1": None,
        "macro_f1_ci95": None,
        "auc": None,
        "calibration_error": 0.25,
        "f1": {"<b>": None, "c": 0.125},
        "confusion": [[[1, 0], [0, 1]]],
    }
    found = {
        "labels": ["<b>", "c"],
        "multi_label": True,
        "measures": {"model": undefined},
        "on": "x",
        "name": "y",
    }
    html = write(tmp_path / "p", classifier=found)
    assert (
        "0.500" in html
        and "0.250" in html
        and "0.125" in html
        and "&lt;b&gt;" in html
        and 'class="confusion"' not in html
    )


def test_without_a_known_answer_nothing_is_marked(tmp_path):
    answers = [{"model": "base", "text": "", "stopped": True, "right": None}]
    html = write(
        tmp_path / "p", questions=[{"prompt": "q", "expected": None, "group": "g", "answers": answers}]
    )
    assert "Expected" not in html and "✓" not in html and "✗" not in html and "(nothing)" in html


# --- compare ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory, model_dir, bpe_dir):
    """The page of two tiny models and a classifier, one prompt being an attack; and what was printed on the
    way."""
    d = tmp_path_factory.mktemp("page")
    make_hf_model(d / "adapted", bpe_dir, n_layer=2)
    write_jsonl(d / "bio.jsonl", make_texts(30, 1)), write_jsonl(d / "general.test.jsonl", make_texts(20, 2))
    (d / "classifier").mkdir()
    targets, labels = np.array([0, 0, 1, 1]), ["general", "biomedical"]
    probs = {"model": [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], "majority": [[0, 1]] * 4}
    measures = {name: metrics.classification(np.array(p), targets, labels) for name, p in probs.items()}
    (d / "classifier" / "summary.json").write_text(json.dumps({"labels": labels, "classification": measures}))
    update = {
        "step": 1,
        "tokens": 9,
        "loss": 5.0,
        "lr": 1e-4,
        "grad_norm": 1.0,
        "val_loss": 5.0,
        "val_ppl": 148.4,
    }
    for name in ("adapted", "classifier"):
        (d / name / "metrics.jsonl").write_text(json.dumps(update) + "\n")
    args = SimpleNamespace(
        runs=None,
        models=[str(model_dir), str(d / "adapted")],
        classifier=str(d / "classifier"),
        tasks=None,
        benchmarks=None,
        quantize=None,
        special_tokens="text",
        out=str(d / "report"),
        data=[f"bio={d / 'bio.jsonl'}", str(d / "general.test.jsonl")],
        template=None,
        prompts=str(write_jsonl(d / "attack.jsonl", [ATTACK], "prompt")),
        context=None,
        stride=None,
        text_field="text",
        limit=None,
        skip_bad_rows=False,
        batch_size=8,
        seed=0,
        device="cpu",
        dtype="fp32",
        max_new_tokens=8,
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.main(args)
    return d / "report", printed.getvalue()


def test_the_page_holds_everything_that_was_measured(compared):
    page, printed = compared
    html, figures = (page / "report.html").read_text(), json.loads((page / "report.json").read_text())
    assert figures["columns"] == ["bio", "general.test"]
    for m in figures["models"]:
        for r in m["ppl"].values():
            assert ppl_cell(r["ppl"]) in html and ppl_cell(r["ppl"]) in printed
            assert (r["context"], r["stride"]) == (64, 32)
    assert "64 tokens, stride 32, the same for every model" in html
    assert figures["claim"][0].startswith("adapted: bio perplexity ") and figures["claim"][0] in printed
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', html)  # nothing from outside
    assert html.count("data:image/svg+xml") == 4  # two runs, light and dark
    assert "majority" in html and 'class="confusion"' in html
    table = printed[printed.index("bio: perplexity") - 80 : printed.index("adapted: bio")]
    assert max(map(len, table.splitlines())) <= 80 and "|" not in table


def test_equal_weights_have_equal_perplexities_however_many_their_positions(script, tmp_path, bpe_dir):
    make_hf_model(tmp_path / "long", bpe_dir)
    shutil.copytree(tmp_path / "long", tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"n_positions": 16}))
    weights = load_file(tmp_path / "short" / "model.safetensors")
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:16].clone()
    save_file(weights, tmp_path / "short" / "model.safetensors", {"format": "pt"})
    write_jsonl(tmp_path / "d.jsonl", make_texts(10, 1, 30, 60))
    (tmp_path / "p.txt").write_text("a\n")

    def ppl(*flags):
        out = script(
            "eval.py",
            "compare",
            "--models",
            "long",
            "short",
            "--data",
            "d.jsonl",
            "--dtype",
            "fp32",
            "--out",
            "r",
            "--prompts",
            "p.txt",
            "--max-new-tokens",
            4,
            *flags,
        )
        assert out.returncode == 0, out.stderr
        return [m["ppl"]["d"] for m in json.loads((tmp_path / "r" / "report.json").read_text())["models"]]

    for flags, context, stride in ((("--context", 12, "--stride", 4), 12, 4), ((), 16, 8)):
        long, short = ppl(*flags)
        assert long["ppl"] == pytest.approx(short["ppl"], rel=1e-5)
        assert (long["context"], long["stride"]) == (short["context"], short["stride"]) == (context, stride)
    assert "16 tokens, stride 8, the same for every model" in (tmp_path / "r" / "report.html").read_text()


def test_a_model_is_asked_in_its_own_template_unless_another_is_given(
    script, tmp_path, model_dir, monkeypatch
):
    def complete(o, asked, *_, **__):  # the model that writes what it was asked
        return [{"prompt": a.text, "completion": a.text, "stopped": True} for a in asked]

    monkeypatch.setattr(measure, "complete", complete)
    shutil.copytree(model_dir, tmp_path / "plain"), shutil.copytree(model_dir, tmp_path / "instructed")
    templates.TEMPLATES["response"].save(load_tokenizer(model_dir), tmp_path / "instructed")
    write_jsonl(tmp_path / "d.jsonl", make_texts(3, 1)), (tmp_path / "p.txt").write_text("the cells\n")

    how = ("eval.py", "compare", "--models", "plain", "instructed", "--data", "d.jsonl", "--prompts", "p.txt")
    how = (*how, "--max-new-tokens", 8, "--out", "r", "--dtype", "fp32")

    def written(*flags):
        out = script(*how, *flags)
        assert out.returncode == 0, out.stderr
        (question,) = json.loads((tmp_path / "r" / "report.json").read_text())["questions"]
        assert question["prompt"] == "the cells"
        return [a["text"] for a in question["answers"]], (tmp_path / "r" / "report.html").read_text()

    plain, own = "the cells", "### Instruction:\nthe cells\n### Response:"
    found, html = written()
    assert found == [plain, own]
    assert "put into the template that a model was instructed with, if it was" in html
    assert written("--template", "none")[0] == [plain, plain]
    both, html = written("--template", "response")
    assert both == [own, own] and "each put into the template “response”" in html
    for model, mark in (("plain", "M"), ("instructed", "I")):  # a name of each model's own
        others = tmp_path / model / "additional_chat_templates"
        others.mkdir()
        (others / "brief.jinja").write_text(mark + " {{ messages[0].content }}:")
    both, html = written("--template", "brief")
    assert both == ["M the cells:", "I the cells:"] and "each put into the template “brief”" in html
    shutil.rmtree(others)
    assert_refused(script(*how, "--template", "brief"), "--template brief")


def test_a_prompt_that_fits_no_model_is_refused_before_anything_is_measured(
    script, tmp_path, model_dir, bpe_dir
):
    make_hf_model(tmp_path / "short", bpe_dir, n_positions=16)
    docs = write_jsonl(tmp_path / "d.jsonl", make_texts(3, 1))
    out = script(
        "eval.py",
        "compare",
        "--models",
        model_dir,
        "short",
        "--data",
        docs,
        "--out",
        "r",
        "--max-new-tokens",
        16,
    )
    assert_refused(out, "short: ", "16 positions", "--max-new-tokens")
    assert "parameters" not in out.stdout  # no model was opened


def test_a_page_of_ones_own_is_never_replaced(script, model_dir, tmp_path):
    docs = write_jsonl(tmp_path / "d.jsonl", make_texts(3, 1))
    command = ("eval.py", "compare", "--models", model_dir, "--data", docs, "--max-new-tokens", 4)
    (tmp_path / "a_file").write_text("mine")
    for name, content in (
        ("report.html", "<title>Our ward</title>"),
        ("report.json", '{"mine": 1}'),
        ("report.json", "["),
    ):
        mine = tmp_path / f"d{len(content)}"
        mine.mkdir()
        (mine / name).write_text(content)
        out = script(*command, "--out", mine)
        assert_refused(out, mine, "choose another directory")
        assert (mine / name).read_text() == content and len(list(mine.iterdir())) == 1
        assert "parameters" not in out.stdout
    assert_refused(script(*command, "--out", "a_file"), "a_file")
    for _ in range(2):  # one that nanomed wrote is
        assert script(*command, "--out", "r").returncode == 0


def test_wrong_uses_of_compare(script, model_dir, bpe_dir, tmp_path):
    docs = write_jsonl(tmp_path / "d.jsonl", make_texts(3, 1))
    common = ("eval.py", "compare", "--models", model_dir, "--out", "r", "--max-new-tokens", 4)
    assert_refused(script(*common, "--data", docs, docs), "same name")
    assert_refused(script(*common, "--data", docs, "--classifier", model_dir), "summary.json")
    for content in ("[]", '{"measures": {"model": 1}}'):
        (tmp_path / "list.json").write_text(content)
        assert_refused(script(*common, "--data", docs, "--classifier", "list.json"), "list.json")
    assert_refused(script(*common, "--data", "no.jsonl"), "no.jsonl")
    assert_refused(script(*common, "--data", docs, "--context", 8, "--stride", 8), "less than the context")
    (tmp_path / "p.txt").write_text("a\n")
    shutil.copytree(model_dir, tmp_path / "long")
    make_hf_model(tmp_path / "short", bpe_dir, n_positions=32)
    out = script(
        "eval.py",
        "compare",
        "--models",
        "long",
        "short",
        "--out",
        "r",
        "--max-new-tokens",
        4,
        "--data",
        docs,
        "--prompts",
        "p.txt",
        "--context",
        64,
    )
    assert_refused(out, "short: --context 64", "32 positions")
    assert "parameters" not in out.stdout
    twice = ("eval.py", "compare", "--models", "long", "short", "./long/", "--out", "r", "--data", docs)
    assert_refused(script(*twice), "--models", "./long/", "twice")


def test_names_of_models_and_columns():
    names = ["gpt2", "runs/a/adapted", "runs/b/adapted"]
    assert compare.short_names(names) == names and compare.short_names(names[:2]) == ["gpt2", "adapted"]
    assert compare._named("bio=x/y.jsonl") == ("bio", "x/y.jsonl")
    assert compare._named("hub:owner/name:config") == ("name", "hub:owner/name:config")
    assert compare._named("runs/a=b/y.jsonl") == ("y", "runs/a=b/y.jsonl")  # a path, and no name
    assert len(compare.PROMPTS) == 6


# --- in a browser -------------------------------------------------------------------------------------------

PROBE = """<script>addEventListener('load', () => {
    const wide = document.querySelector('.wide'), head = wide.querySelector('tbody th');
    const at = () => Math.round(head.getBoundingClientRect().left), before = at();
    wide.scrollLeft = 1000;
    document.body.dataset.seen = JSON.stringify({
        tables: document.querySelectorAll('table').length, curves: [...document.images].map(i => i.naturalWidth),
        overflow: document.documentElement.scrollWidth - innerWidth, cells: document.querySelectorAll('.confusion tbody td').length,
        answers: document.querySelectorAll('.sides .text').length, scrolled: wide.scrollLeft, moved: at() - before,
        claim: document.querySelector('h1').getBoundingClientRect().bottom }) })</script></body>"""


def chromium():
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    return browser


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(compared, tmp_path, width):
    """Tables and curves are there and drawn, nothing reaches over the edge, the console says nothing; on a
    phone the claim is on the first screen, and the table's first column stays while the others scroll."""
    (tmp_path / "probe.html").write_text((compared[0] / "report.html").read_text().replace("</body>", PROBE))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-quic",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        f"--window-size={max(width, 500)},1400",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    target = tmp_path / "probe.html"
    if width < 500:  # a window cannot be that narrow; a frame can
        copy = "() => setTimeout(() => document.body.dataset.seen = f.contentDocument.body.dataset.seen, 300)"
        frame = (
            f'<iframe id="f" src="probe.html" width="{width}" height="844"></iframe><script>f.onload ='
            f" {copy}</script>"
        )
        target = tmp_path / "frame.html"
        target.write_text(frame)
        flags += ["--allow-file-access-from-files", "--virtual-time-budget=3000"]
    command = [chromium(), *flags, "--dump-dom", target.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    seen = re.search(r'data-seen="(\{.*?\})"', done.stdout)
    assert seen, done.stderr[-2000:]
    seen = json.loads(seen[1].replace("&quot;", '"'))
    assert seen["tables"] == 3 and seen["cells"] == 4 and seen["answers"] == 2
    assert len(seen["curves"]) == 2 and min(seen["curves"]) > 0
    assert seen["overflow"] <= 0
    assert seen["moved"] == 0 and (seen["scrolled"] > 0) == (width == 390)
    assert seen["claim"] < 844
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
