"""Recipes: each is read, its sections are the scripts' flags, and a whole reproduction leaves what it
promises and goes on."""

import csv
import json
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import metadata_load

from nanomed import reproduce as program
from nanomed.errors import UserError
from nanomed.hub import Source
from nanomed.outputs import release
from nanomed.systems import card as card_module
from nanomed.systems import reproduction, trial
from nanomed.systems.figures import beside_published, published_text
from nanomed.systems.recipe import MODEL_OF, SCRIPTS, prepare, read_recipe, stand_in
from nanomed.text.templates import of_model as template_of
from nanomed.text.vocabulary import CHAT, MORE
from tests.conftest import ROOT, make_hf_model, make_texts, run_script, write_jsonl

NAMES = (
    "gpt2-biomedical gpt2-lora-medical-terms gpt-neo-flashcards distilgpt2-pubmedqa llama2-medtuned".split()
)
# Of a reproduction of a small model m.
SMALL = (
    "--model m --out r --max-steps 1 --context 200 --answers 2 --max-new-tokens 3 --batch-size 2 --dtype fp32"
)


@pytest.fixture
def reproduce(tmp_path, monkeypatch):
    """reproduce(*flags), flags being one or more words, runs the program in this process, its commands too;
    gives the commands, or raises what it raised."""
    commands = []

    def run(command):
        commands.append([str(word) for word in command])
        done = run_script(ROOT, command[0], *command[1:])
        if done.returncode:
            raise UserError(done.stderr)

    monkeypatch.setattr(reproduction, "run", run)
    # Seconds, and tested elsewhere: bootstrap intervals of a classifier.
    monkeypatch.setattr("nanomed.evaluation.metrics.interval", lambda *args, **kwargs: None)
    monkeypatch.chdir(tmp_path)

    def call(*flags):
        commands.clear()
        monkeypatch.setattr(sys, "argv", ["reproduce", *shlex.split(" ".join(map(str, flags)))])
        program.main()
        return list(commands)

    return call


@pytest.fixture
def files(tmp_path):
    corpus, negatives = (write_jsonl(tmp_path / f"{n}.jsonl", make_texts(40, n, 8, 30)) for n in (1, 2))
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"question": q, "answer": a, "context": c}
        for q, a, c in zip(*(make_texts(30, n, 2, 8) for n in (3, 4, 5)), strict=True)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"corpus": corpus, "negatives": negatives, "pairs": pairs}


def smaller(name, tmp_path):
    """The recipe with sides that a few texts can have."""
    text = (ROOT / "recipes" / f"{name}.toml").read_text()
    path = tmp_path / f"{name}.toml"
    path.write_text(re.sub(r"^test = \d{2,}", "test = 8", text, flags=re.M))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_sections_are_flags_of_the_scripts(name, script, tmp_path, bpe_dir, files):
    recipe = read_recipe(name)
    assert recipe.published and all(
        p.ours.split(".")[0] in ("base", *MODEL_OF.values()) for p in recipe.published
    )
    family = "gpt_neo" if "neo" in name else "llama" if "llama" in name else "gpt2"
    positions = "n_positions" if family == "gpt2" else "max_position_embeddings"
    make_hf_model(tmp_path / "m", bpe_dir, family=family, **{positions: 1024})
    for phase in recipe.phases:
        data = ["--positives", files["corpus"], "--negatives", files["negatives"]]
        data = (
            data if phase == "classify" else ["--data", files["pairs" if phase == "instruct" else "corpus"]]
        )
        data += ["--out", "o", "--dry-run", "--config", ROOT / "recipes" / f"{name}.toml"]
        out = script(SCRIPTS[phase], "--model", tmp_path / "m", *data, "--batch-size", 1)
        assert out.returncode == 0, out.stderr


@pytest.mark.parametrize(
    "line, said",
    [
        ("lora-rank = 8", "[instruct]: unknown key 'lora-rank'; did you mean 'lora-r'?"),
        ('lr = "fast"', "[instruct]: lr: must be a number, not 'fast'"),
    ],
)
def test_a_phase_that_would_be_refused_is_refused_before_the_first(
    monkeypatch, tmp_path, model_dir, line, said
):
    path = smaller("gpt2-biomedical", tmp_path)
    path.write_text(re.sub(r"\[instruct\]\n(?:[^\[].*\n)*", f"[instruct]\n{line}\n", path.read_text()))
    words = ["--recipe", str(path), "--model", str(model_dir), "--out", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", ["reproduce", *words])
    with pytest.raises(UserError, match=re.escape(said)):
        program.main()
    assert not (tmp_path / "o").exists()


def test_published_settings_stand_in_the_recipes():
    """The settings that the published systems name, written out by hand."""
    phases = {name: tomllib.loads((ROOT / "recipes" / f"{name}.toml").read_text()) for name in NAMES}

    def has(section, **settings):
        assert {key: section[key.replace("_", "-")] for key in settings} == settings

    a = phases["gpt2-biomedical"]
    has(a["adapt"], epochs=3, batch_size=4, grad_accum=4)
    has(a["classify"], limit=250)
    has(a["data"]["pairs"], train=50)
    has(a["instruct"], template="response")
    has(a["system"], model="gpt2")
    b = phases["gpt2-lora-medical-terms"]["adapt"]
    has(b, lora_r=8, lora_alpha=32, lora_dropout=0.1, epochs=1, lr=1e-4)
    has(b, batch_size=4, grad_accum=4, warmup_ratio=0.03, grad_clip=0.3)
    c = phases["gpt-neo-flashcards"]
    has(c["instruct"], lora_r=16, lora_alpha=32, lora_dropout=0.1, merge=True, batch_size=8, lr=2e-4)
    has(c["instruct"], template="flashcards")
    has(c["data"]["pairs"], test=0.1)
    has(c["system"], model="EleutherAI/gpt-neo-125m")
    d = phases["distilgpt2-pubmedqa"]
    has(
        d["instruct"],
        context=512,
        batch_size=8,
        grad_accum=4,
        lr=5e-5,
        weight_decay=0.01,
        grad_checkpoint=True,
    )
    assert 3 <= d["instruct"]["epochs"] <= 5 and d["data"]["general"]["ratio"] > 0
    e = phases["llama2-medtuned"]
    has(e["instruct"], epochs=3, batch_size=8, template="medtuned", lora_r=16, quantize="nf4")
    has(e["system"], model="meta-llama/Llama-2-7b-hf")
    has(e["data"]["pairs"], source=["hub:nlpie/Llama2-MedTuned-Instructions"])
    assert round(e["instruct"]["warmup-ratio"] * 3 * 200_252 / 8, -2) == 1000


def test_all_phases_end_to_end(reproduce, model_dir, files, tmp_path):
    recipe = smaller("gpt2-biomedical", tmp_path)
    data = " ".join(f"{name}={file}" for name, file in files.items())
    flags = f"--recipe {recipe} --model {model_dir} --data {data} --out r --limit 16"
    flags += " --context 32 --answers 3 --max-new-tokens 4 --dtype fp32 --max-steps"
    first = reproduce(flags, 2)
    out = tmp_path / "r"
    assert [c[0] for c in first if c[0].startswith("train")] == [
        "train_clm.py",
        "train_cls.py",
        "train_sft.py",
    ]
    results = json.loads((out / "results.json").read_text())
    assert list(results["stages"]) == ["base", "adapted", "instructed"] and results["stand_in"][
        "model"
    ] == str(model_dir)
    assert results["stages"]["adapted"]["corpus"]["also"].keys() >= {"padding-counted", "train-set"}
    assert results["stages"]["adapted"]["corpus"]["overlap"]["training_documents"] == 16
    before, after, accuracy = results["published"]
    assert (before["published"], after["published"], accuracy["published"]) == (31.86, 16.80, 1.0)
    assert (
        before["ours"] == results["stages"]["base"]["corpus"]["ppl"]
        and accuracy["ours"] == results["classifier"]["accuracy"]
    )
    with open(out / "model_performance_comparison.csv") as f:
        rows = {row["measure"]: row for row in csv.DictReader(f)}
    assert float(rows["perplexity: corpus"]["adapted"]) == pytest.approx(after["ours"])
    assert (
        rows["BLEU (0 to 100)"]["instructed"]
        and float(rows["classifier's accuracy: model"]["classifier"]) == accuracy["ours"]
    )
    with open(out / "generation_comparison.csv") as f:
        written = list(csv.DictReader(f))
    assert [w["prompt"] for w in written] == read_recipe(str(recipe)).prompts and written[0].keys() >= {
        "base",
        "instructed",
    }
    for name in ("loss.png", "perplexity.png", "report.html"):
        assert (out / name).stat().st_size > 5000
    assert "31.86" in (out / "published.md").read_text()
    # No text that is measured on is trained on.
    train, test = (
        set((out / "data" / f"corpus.{side}.jsonl").read_text().splitlines()) for side in ("train", "test")
    )
    assert len(test) == 8 and len(train) == 16 and not train & test
    # A card's code loads the model that it lies beside.
    for name, published in (
        ("adapted", "perplexity of corpus"),
        ("classifier", "macro-F1"),
        ("instructed", "BLEU"),
    ):
        card = (out / name / "README.md").read_text()
        assert (
            published in card
            and "A stand-in" in card
            and json.loads((out / name / "run.json").read_text())["model"] in card
        )
        code = "".join(block.split("```")[0] for block in card.split("```python\n")[1:])
        place = {}
        exec(code.replace(f'"{name}"', repr(str(out / name))).replace("=64", "=2"), place)
        front = metadata_load(out / name / "README.md")
        assert str(tmp_path.parent) not in card and "base_model" not in front and "license" not in front
        assert f"# {model_dir.name}: {name}" in card and ("answer" in place) == (name == "instructed")
        stored = json.loads((out / name / "config.json").read_text())["dtype"]
        assert f"weights stored in {stored}" in card and str(place["model"].dtype) == f"torch.{stored}"
        assert place["model"].config.vocab_size == 400 and place["tokenizer"]("the")["input_ids"]
    # Of a base that is on the Hub, or has a card of its own, the front matter says what others need.
    asked = template_of(out / "instructed").ask("{question}").text
    assert f"```\n{asked}\n```" in (out / "instructed" / "README.md").read_text()
    whole = replace(read_recipe("gpt2-biomedical"), model="openai-community/gpt2")

    def carded(source: Source) -> dict:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(card_module.hub, "find", lambda name, weights: source)
            text = card_module.model_card(whole, results | {"stand_in": {}}, "adapt", out / "adapted")
        (tmp_path / "card.md").write_text(text)
        return metadata_load(tmp_path / "card.md")

    front = carded(Source(whole.model, tmp_path))
    assert (front["base_model"], front["license"]) == ("openai-community/gpt2", "mit")
    assert front["datasets"] == ["qiaojin/PubMedQA"]  # ag_news is not what it read
    (tmp_path / "README.md").write_text("---\nlicense: other\nbase_model: a/b\n---\n")
    front = carded(Source(str(tmp_path), tmp_path))
    assert (front["base_model"], front["license"]) == ("a/b", "other")
    # Again: nothing is measured or trained a second time, and what is lost is made again, to the same.
    figures = (out / "results.json").read_text()
    stamp = (out / "adapted" / "model.safetensors").stat().st_mtime_ns
    (out / "measured" / "adapted.corpus.json").unlink()
    again = reproduce(flags, 2)
    assert [c[:2] for c in again if c[0] == "eval.py"] == [["eval.py", "ppl"]]
    assert (out / "adapted" / "model.safetensors").stat().st_mtime_ns == stamp
    timed = re.compile(r'"(seconds|tokens_per_s)": [\d.e+-]+')
    assert timed.sub("", (out / "results.json").read_text()) == timed.sub("", figures)
    with pytest.raises(UserError, match="another --max-steps 2, now 3"):
        reproduce(flags, 3)


def test_rows_with_a_context_a_general_text_and_three_choices(reproduce, bpe_dir, files, tmp_path):
    make_hf_model(tmp_path / "m", bpe_dir, n_positions=256)
    labelled = tmp_path / "labelled.jsonl"
    ids = (ROOT / "nanomed" / "evaluation" / "pubmedqa_test_ids.txt").read_text().split()
    rows = [
        {"pubid": i, "question": "Is it?", "context": {"contexts": ["a cell"]}, "final_decision": d}
        for i, d in zip(ids, ("yes", "no"), strict=False)
    ]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"--data pairs={files['pairs']} labelled={labelled} general={files['negatives']}"
    commands = reproduce("--recipe", smaller("distilgpt2-pubmedqa", tmp_path), data, SMALL)
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert (
        results["stages"]["base"]["choices"]["questions"] == 2
        and results["stages"]["instructed"]["general"]["ppl"] > 1
    )
    (training,) = [c for c in commands if c[0] == "train_sft.py"]
    assert training[training.index("--replay-ratio") + 1] == "0.1"
    asked = [
        json.loads(line)["input"]
        for line in (tmp_path / "r" / "data" / "pairs.test.jsonl").read_text().splitlines()
    ]
    assert len(asked) == 8 and all(asked)
    assert (
        results["published"][0]["mistake"] == "document-mean" and results["published"][0]["with_mistake"] > 1
    )


def test_medtuned_rows_are_read_as_they_are(reproduce, bpe_dir, tmp_path):
    """Its fields are instruction, input, output and source; the adapter stands over 4 bits in training and in
    every measurement."""
    make_hf_model(tmp_path / "m", bpe_dir, family="llama", max_position_embeddings=256)
    texts = zip(make_texts(30, 1, 2, 8), make_texts(30, 2, 2, 8), strict=True)
    rows = [
        {"instruction": "Positive or Negative?", "input": f"{k} {i}", "output": o, "source": "gad"}
        for k, (i, o) in enumerate(texts)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = smaller("llama2-medtuned", tmp_path)
    commands = reproduce("--recipe", recipe, "--data pairs=rows.jsonl", SMALL)
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert [r["published"] for r in results["published"]] == [0.372, 0.8946]
    settings = json.loads((tmp_path / "r" / "instructed" / "run.json").read_text())["settings"]
    assert (settings["quantize"], settings["template"], settings["lora_r"]) == ("nf4", "medtuned", 16)
    assert sum(c[0].startswith("train") for c in commands) == 1


def test_questions_stay_on_one_side(tmp_path):
    rows = [{"instruction": f"q{k // 5}", "output": f"a{k}"} for k in range(50)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows * 2))
    recipe = stand_in(read_recipe("gpt-neo-flashcards"), None, {"pairs": [str(tmp_path / "p.jsonl")]})
    prepare(recipe, tmp_path / "out", None)
    sides = [
        [json.loads(line) for line in (tmp_path / "out" / f"pairs.{s}.jsonl").read_text().splitlines()]
        for s in ("train", "test")
    ]
    questions = [{row["instruction"] for row in side} for side in sides]
    assert sum(map(len, sides)) == 50 and len(questions[1]) == 1 and not questions[0] & questions[1]
    texts = (tmp_path / "out" / "pairs.test.texts.jsonl").read_text()
    assert json.loads(texts.splitlines()[0])["text"].startswith(
        "Instruction: Answer this question truthfully\nQuestion: q"
    )


def test_groups_stay_on_one_side(tmp_path):
    rows = [{"question": f"q{k}", "answer": "a", "focus": f"disease {k // 5}"} for k in range(50)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = ROOT / "recipes" / "gpt-neo-flashcards.toml"
    text = path.read_text().replace("[data.pairs]", '[data.pairs]\ngroup = "focus"')
    (tmp_path / "r.toml").write_text(text)
    recipe = stand_in(read_recipe(str(tmp_path / "r.toml")), None, {"pairs": [str(tmp_path / "p.jsonl")]})
    prepare(recipe, tmp_path / "out", None)
    sides = [
        [json.loads(line) for line in (tmp_path / "out" / f"pairs.{s}.jsonl").read_text().splitlines()]
        for s in ("train", "test")
    ]
    focus = {row["question"]: row["focus"] for row in rows}
    assert all(row["group"] == focus[row["instruction"]] for side in sides for row in side)
    train, test = ({row["group"] for row in side} for side in sides)
    assert len(test) == 1 and len(train) == 9 and not train & test


def test_turns_of_a_conversation_are_not_lost_in_silence(tmp_path):
    said = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    recipe = stand_in(read_recipe("gpt-neo-flashcards"), None, {"pairs": [str(tmp_path / "p.jsonl")]})
    with pytest.raises(UserError, match=r"p.jsonl: conversations of several turns; \[data.pairs\]"):
        prepare(recipe, tmp_path / "out", None)


def test_a_field_that_is_not_there_is_named_by_what_sets_it(tmp_path):
    """A key of the recipe, or the flag where a file stands in."""
    docs, rows = write_jsonl(tmp_path / "d.jsonl", make_texts(20, 1)), tmp_path / "p.jsonl"
    rows.write_text('{"q": "a", "a": "b"}\n')
    text = smaller("gpt-neo-flashcards", tmp_path).read_text()
    path = tmp_path / "r.toml"
    path.write_text(re.sub(r"(\[data.pairs\]\nsource = )\[.*?\]", rf'\1["{rows}"]', text, flags=re.S))
    with pytest.raises(UserError, match=r"\[data.pairs\] instruction = a,b takes the first"):
        prepare(read_recipe(str(path)), tmp_path / "a", None)
    recipe = read_recipe(str(smaller("gpt2-biomedical", tmp_path)))
    recipe.data.pop("pairs")
    with pytest.raises(UserError, match="--field a,b takes the first"):
        prepare(stand_in(recipe, None, {"corpus": [str(docs)]}, "zz"), tmp_path / "b", None)
    found = recipe.data | {"corpus": replace(recipe.data["corpus"], source=[str(docs)], field="zz")}
    with pytest.raises(UserError, match=r"\[data.corpus\] field = a,b takes the first"):
        prepare(replace(recipe, data=found), tmp_path / "c", None)


def test_where_a_model_has_several_chat_templates_the_recipes_is_taken(model_dir, tmp_path, monkeypatch):
    m = shutil.copytree(model_dir, tmp_path / "m")
    (m / MORE).mkdir()
    for name in "ab":
        (m / MORE / f"{name}.jinja").write_text("{{ messages[0].content }}")
    recipe = replace(read_recipe("gpt-neo-flashcards"), model=str(m), prompts=["Why?"])
    trial.prompts(recipe, 3)
    asked = reproduction.Reproduction(recipe, tmp_path, SimpleNamespace(max_new_tokens=3)).prompts()
    assert asked[-2:] == ["--template", "flashcards"]
    (m / MORE / "a.jinja").rename(m / CHAT)
    assert (
        "--template"
        not in reproduction.Reproduction(recipe, tmp_path, SimpleNamespace(max_new_tokens=3)).prompts()
    )


def test_a_line_separator_in_a_text_parts_no_row(tmp_path):
    data = {}
    for k, name in enumerate(("corpus", "negatives")):
        data[name] = [
            str(write_jsonl(tmp_path / f"{name}.jsonl", [f"{t}\u2028x" for t in make_texts(20, k)]))
        ]
    recipe = stand_in(read_recipe(str(smaller("gpt2-biomedical", tmp_path))), None, data)
    recipe.data.pop("pairs")
    prepare(recipe, tmp_path / "out", None)
    rows = (tmp_path / "out" / "classify.test.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(rows) == 16 and all("\u2028x" in json.loads(row)["text"] for row in rows)


def test_what_cannot_be_reproduced_is_refused(reproduce, model_dir, files, tmp_path):
    def refused(*flags, match):
        with pytest.raises(UserError, match=match):
            reproduce("--out", "x", *flags)
        release()  # as the program does at its end
        assert not Path("x").exists()

    refused("--recipe", "gpt3", match="gpt2-biomedical")
    refused("--recipe", ROOT / "recipes" / "nano.toml", match=re.escape("[system]"))
    refused("--recipe", "gpt-neo-flashcards", "--data", "corpus=a.jsonl", match="has the data pairs")
    (tmp_path / "odd.toml").write_text(
        '[system]\ntitle = "t"\nmodel = "m"\nmeasured = "corpus"\nprompts = []\n[data.corpus]\nsauce = []\n'
    )
    refused("--recipe", tmp_path / "odd.toml", match="'sauce'")
    text = (ROOT / "recipes" / "gpt-neo-flashcards.toml").read_text()
    for old, new, match in (
        ("test = 0.1", "", "with a `test`"),
        ("[instruct]", "[unheard]", "unheard"),
        ('measured = "pairs"', 'measured = "pairs"\nchoices = "pubmedqa"', "labelled"),
        ('ours = "base.', 'ours = "bass.', "bass"),
    ):
        (tmp_path / "changed.toml").write_text(text.replace(old, new))
        refused("--recipe", tmp_path / "changed.toml", match=match)
    flags = f"--recipe gpt-neo-flashcards --model {model_dir} --data {files['pairs']}"
    refused(flags, match="give --context 64")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        reproduce("--recipe", "gpt-neo-flashcards", "--out", "full")


def test_a_figure_that_is_not_there_is_none():
    recipe = read_recipe("distilgpt2-pubmedqa")
    rows = beside_published(
        recipe,
        {
            "stages": {
                "base": {"pairs": {"ppl": 9.0, "ppl_ci95": [8.0, 10.0], "also": {"document-mean": 12.0}}}
            }
        },
    )
    assert (rows[0]["ours"], rows[0]["with_mistake"], rows[0]["ours_ci95"]) == (9.0, 12.0, [8.0, 10.0])
    assert rows[1]["ours"] is None and rows[2]["ours"] is None


@pytest.mark.parametrize(
    "after, reproduced", [(3.0, True), (40.0, False), (2000.0, False), (1e-9, False), (None, None)]
)
def test_a_mistake_that_does_not_move_the_figure_as_published_is_said(after, reproduced):
    recipe = read_recipe("gpt-neo-flashcards")  # 115.51 to 2.37

    def stage(ppl, mistaken):
        return {"pairs": {"ppl": ppl, "ppl_ci95": None, "also": {"padding-counted": mistaken}}}

    stages = {"base": stage(30.0, 150.0), "instructed": stage(20.0, after)}
    rows = beside_published(recipe, {"stages": stages})
    assert [r["reproduced"] for r in rows] == [None, reproduced]
    said = published_text({"stand_in": {}, "shortened": {}, "title": "t", "published": rows})
    assert ("not reproduced" in said) == (reproduced is False) and "conjecture" in said


def test_what_was_begun_with_a_wrong_name_is_begun_anew(reproduce, bpe_dir, files, tmp_path):
    make_hf_model(tmp_path / "m", bpe_dir, n_positions=512)
    flags = "--recipe gpt-neo-flashcards --model m --out r --max-steps 1 --answers 2 --max-new-tokens 3"
    with pytest.raises(UserError, match="no such file"):
        reproduce(flags, "--data", "typo.jsonl")
    more = tmp_path / "more.jsonl"
    more.write_text(
        "".join(json.dumps({"question": q, "answer": "so"}) + "\n" for q in make_texts(30, 8, 3, 6)) + "{}\n"
    )
    reproduce(flags, "--data", files["pairs"], more)  # several files are one side
    sides = [
        (tmp_path / "r" / "data" / f"pairs.{side}.jsonl").read_text().splitlines()
        for side in ("train", "test")
    ]
    assert sorted(map(len, sides)) == [6, 54]
    with pytest.raises(UserError, match="another --data pairs.*more.*RUNS"):
        reproduce(flags, "--data", more)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('ours = "base.pairs.ppl"', 'ours = "base.pairs"', "base has answers.answer_ppl"),
        ('ours = "base.pairs.ppl"', 'ours = "base.pairs.ppl.x"', "is no figure"),
        ('mistake = "padding-counted"', 'mistake = "typo"', "there are batch-mean"),
        ("value = 115.51", "value = inf", "value"),
        ("context = 512\nepochs", 'context = "512"\nepochs', "[instruct]: context: expected int"),
        ('template = "flashcards"', "template = 5", "[instruct]: template: expected str"),
        ('template = "flashcards"', 'template = "typo"', "typo"),
        ("[instruct]", "[instruct]\ndry-run = true", "dry-run leaves no model"),
        ("[data.pairs]", "[data.pairs]\nkept = true", "kept = true is for [data.labelled]"),
        ("[data.pairs]", '[data.x]\nsource = ["a"]\ngroup = "b"\n[data.pairs]', "group is for [data.pairs]"),
        ("[instruct]", '[instruct]\ngroup-field = "focus"', 'group = "..." in [data.pairs]'),
        ("[instruct]", '[data."a\\u0000b"]\nsource = ["x"]\n[instruct]', "a name becomes a file's"),
        ('prompts = ["', 'prompts = ["two\\nlines", "', "prompts[0]"),
        ('prompts = ["', 'prompts = [" ", "', "prompts[0]"),
        ('measured = "pairs"', 'measured = "pairs"\nchoices = "typo"', "choices"),
        ('mistake = "padding-counted"', 'mistake = "last-loss"', "of base.pairs there are batch-mean"),
        ('ours = "base.pairs.ppl"', 'ours = "base.pairs.also.train-set"', "is no figure"),
        ("[instruct]", '[data."a.b"]\nsource = ["x"]\n[instruct]', "a name consists of letters"),
        ("[instruct]", '[data.classify]\nsource = ["x"]\n[instruct]', "none of answers, choices, classify"),
        ("[instruct]", '[instruct]\ninstruction-field = "q"', "[instruct]: instruction-field is about texts"),
        ("lora-r = 16", 'quantize = "nf4"', "[instruct]: --quantize nf4 needs --lora-r"),
        ("[instruct]", '[instruct]\nexclude = ["none.jsonl"]', "[instruct]: none.jsonl: no such file"),
        ("[instruct]", '[instruct]\nval-data = ["x.jsonl"]', "[instruct]: val-data is about texts"),
    ],
)
def test_what_a_recipe_says_is_tried_before_the_first_phase(reproduce, tmp_path, old, new, said):
    text = (ROOT / "recipes" / "gpt-neo-flashcards.toml").read_text()
    assert old in text
    (tmp_path / "r.toml").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=re.escape(said)):
        reproduce("--recipe", "r.toml", "--out", "x")
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "old, new, said",
    [
        (
            "lora-r = 16",
            'lora-r = 16\nlora-targets = "nope"',
            "[instruct]: LoRA targets nope: match no module",
        ),
        ("lora-r = 16", "lora-r = 1000000000", "[instruct]: LoRA of rank 1000000000"),
        (
            "lora-r = 16\nlora-alpha = 32\nlora-dropout = 0.1\nmerge = true",
            'l2-sp = 0.1\npull-on = "no"',
            "[instruct]: --pull-on no",
        ),
        ("[instruct]", '[instruct]\ndevice = "cuda"', "[instruct]: --device cuda"),
        ('prompts = ["', f'prompts = ["{"a " * 60}", "', "[system]: prompts: 'a a"),
        (
            "[data.pairs]",
            'choices = "pubmedqa"\n[data.labelled]\nsource = ["DOCS"]\nkept = true\n[data.pairs]',
            "1.jsonl: no questions there of the 500",
        ),
        ("test = 0.1", "test = 0.999", "cannot be split"),
    ],
)
def test_what_a_model_cannot_do_is_tried_before_the_first_phase(
    reproduce, model_dir, files, tmp_path, old, new, said
):
    """And costs nothing: what was made of the recipe before is still there."""
    text = (ROOT / "recipes" / "gpt-neo-flashcards.toml").read_text()
    text = re.sub("prompts = .*", 'prompts = ["What?"]', text)
    assert old in text
    (tmp_path / "r.toml").write_text(text.replace(old, new).replace("DOCS", str(files["corpus"])))
    flags = f"--recipe r.toml --model {model_dir} --context 32 --max-new-tokens 3 --out o"
    before = {"program": "nanomed.reproduce", "format": 1, "asked": {}}
    for name, content in (("reproduce.json", json.dumps(before)), ("data/pairs.test.jsonl", "{}")):
        (tmp_path / "o" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "o" / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(said)):
        reproduce(flags, "--data", f"pairs={files['pairs']}")
    release()
    left = {p.name: p.read_text() for p in (tmp_path / "o").rglob("*.json*")}
    assert left == {"reproduce.json": json.dumps(before), "pairs.test.jsonl": "{}"}


def test_a_directory_of_anothers_is_left_and_what_is_no_part_of_a_run(reproduce, model_dir, tmp_path):
    out = tmp_path / "o"
    (out / "data").mkdir(parents=True)
    (out / "data" / "mine.csv").write_text("precious")
    (out / "reproduce.json").write_text('{"name": "mine"}')
    flags = f"--recipe gpt-neo-flashcards --model {model_dir} --out o"
    with pytest.raises(UserError, match="none of nanomed.reproduce's files"):
        reproduce(flags)
    assert (out / "data" / "mine.csv").read_text() == "precious"
    other = {"program": "nanomed.reproduce", "format": 1, "asked": {"the recipe": "other"}}
    (out / "reproduce.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="data/mine.csv is no part of a run"):  # begun anew, but for that
        reproduce(flags, "--context 32")
    assert (out / "data" / "mine.csv").read_text() == "precious"
