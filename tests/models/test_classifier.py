"""The classifier against transformers' GPT2ForSequenceClassification and peft; its data and its measures."""

import json

import numpy as np
import peft
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
import transformers

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation import classes, measure, metrics
from nanomed.evaluation.baselines import beside_baselines, verdict
from nanomed.evaluation.training_texts import training_sides
from nanomed.models import FAMILIES as FAMILY
from nanomed.models.classifier import Classifier, classification_loss, collate_labelled, predict
from nanomed.models.lora import LoRAConfig, inject
from nanomed.text.labelled import Labelled, Sides, class_weights, oversampled, read_labelled, targets_of
from nanomed.text.labels import Spelling
from tests.conftest import (
    FAMILIES,
    assert_near,
    assert_refused,
    every_family,
    linears,
    make_hf_model,
    make_texts,
    write_jsonl,
)

CPU = torch.device("cpu")
TINY = ("--batch-size", 4, "--lr", 1e-3, "--log-every", 1, "--dtype", "fp32")


def ragged(n=9, seed=0, vocab=400):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab, rng.integers(1, 30)) for _ in range(n)]


def theirs_on(model, ids, pad=0):
    T = max(map(len, ids))
    with torch.no_grad():
        return model(torch.tensor([[*i, *[pad] * (T - len(i))] for i in ids])).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [2, 5])
def test_logits_are_those_of_transformers_both_ways(tmp_path, bpe_dir, k, family):
    # transformers' own file, read here
    names = {str(i): f"label {i}" for i in range(k)}
    labels = {"id2label": names, "label2id": {v: int(i) for i, v in names.items()}, "pad_token_id": 0}
    theirs = make_hf_model(tmp_path / "theirs", bpe_dir, FAMILIES[family][0][2], family=family, **labels)
    ours = hub.load_classifier(hub.find(str(tmp_path / "theirs"))).eval()
    ids = ragged()
    assert_near(predict(ours, ids, 0, 4, CPU, "fp32"), theirs_on(theirs, ids))
    assert ours.labels == list(names.values())
    # and saved here, read by transformers
    hub.save_model(ours, tmp_path / "ours", tmp_path / "theirs")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert again.config.id2label == {i: f"label {i}" for i in range(k)}
    assert again.config.pad_token_id == 0
    assert_near(theirs_on(again, ids), predict(ours, ids, 0, 4, CPU, "fp32"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("multi", [False, True])
def test_loss_and_gradients_are_those_of_transformers(tmp_path, bpe_dir, multi, family):
    kind = "multi_label_classification" if multi else "single_label_classification"
    names = {str(i): f"label {i}" for i in range(3)}
    flags = {"id2label": names, "pad_token_id": 0, "problem_type": kind} | dict.fromkeys(
        FAMILY[family].DROPOUTS, 0.0
    )
    theirs = make_hf_model(tmp_path, bpe_dir, FAMILIES[family][0][2], family=family, **flags)
    ours = hub.load_classifier(hub.find(str(tmp_path)))
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (9, 3)).astype(float) if multi else rng.integers(0, 3, 9)
    batch = collate_labelled(list(zip(ragged(), targets, strict=True)), 0)
    loss = classification_loss(ours, batch)[0] / batch.supervised
    loss.backward()
    expected = theirs(batch.idx, labels=batch.targets.float() if multi else batch.targets).loss
    expected.backward()
    assert_near(loss, expected)
    assert_near(ours.score.weight.grad, theirs.score.weight.grad, 1e-4)
    embedding = ours.family.EMBEDDING
    assert_near(ours.get_parameter(embedding).grad, theirs.get_parameter(embedding).grad, 1e-4)


@every_family
def test_padding_and_batch_size_change_nothing(tmp_path, model_dir):
    model = Classifier(hub.load_model(hub.find(str(model_dir))), ["a", "b"], False, 0).eval()
    ids = ragged(12)
    one_by_one = torch.cat([predict(model, [i], 0, 1, CPU, "fp32") for i in ids])
    assert_near(predict(model, ids, 0, 12, CPU, "fp32"), one_by_one)
    assert_near(predict(model, ids, 7, 5, CPU, "fp32"), one_by_one)


@every_family
def test_an_adapter_with_its_head_loads_in_peft_and_here(tmp_path, model_dir):
    lm = hub.load_model(hub.find(str(model_dir)))
    inject(lm, LoRAConfig(4, 8.0, 0.0, linears(lm)))
    model = Classifier(lm, ["no", "maybe", "yes"], False, 0).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "score" in name:
                p.normal_()
    out = tmp_path / "adapter"
    hub.save_adapter(model, out, str(model_dir), model_dir)
    ids = ragged()
    logits = predict(model, ids, 0, 4, CPU, "fp32")
    again = hub.load_classifier(hub.find(str(out))).eval()
    assert again.labels == ["no", "maybe", "yes"]
    assert_near(predict(again, ids, 0, 4, CPU, "fp32"), logits)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_dir, num_labels=3, pad_token_id=0
    )
    theirs = peft.PeftModel.from_pretrained(base, out).eval()
    assert_near(theirs_on(theirs, ids), logits, 1e-4)
    with pytest.raises(UserError, match="a classifier, not a language model"):
        hub.load_model(hub.find(str(out)))


@pytest.mark.parametrize("lora", [False, True])
def test_what_the_bases_config_says_of_other_labels_is_not_passed_on(tmp_path, bpe_dir, lora):
    base, out = tmp_path / "base", tmp_path / "out"
    make_hf_model(base, bpe_dir)
    config = json.loads((base / "config.json").read_text())
    other = {"num_labels": 5, "finetuning_task": "cola", "id2label": {"0": "x"}, "label2id": {"x": 0}}
    (base / "config.json").write_text(json.dumps(config | other))
    lm = hub.load_model(hub.find(str(base)))
    if lora:
        inject(lm, LoRAConfig(4, 8.0, 0.0, ("c_attn",)))
    model = Classifier(lm, ["no", "maybe", "yes"], False, 0).eval()
    if lora:
        hub.save_adapter(model, out, str(base), base)
        config = transformers.AutoConfig.from_pretrained(out)
        lm = transformers.AutoModelForSequenceClassification.from_pretrained(base, config=config)
        theirs = peft.PeftModel.from_pretrained(lm, out).eval()
    else:
        hub.save_model(model, out, base)
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"} and theirs.config.num_labels == 3
    saved = json.loads((out / "config.json").read_text())
    assert "finetuning_task" not in saved and saved.get("num_labels", 3) == 3
    ids = ragged()
    assert_near(theirs_on(theirs, ids), predict(model, ids, 0, 4, CPU, "fp32"))


def test_a_language_model_is_no_classifier_and_the_other_way_round(tmp_path, bpe_dir, model_dir):
    with pytest.raises(UserError, match="not a classifier"):
        hub.load_classifier(hub.find(str(model_dir)))
    make_hf_model(tmp_path, bpe_dir, "GPT2ForSequenceClassification", num_labels=2, pad_token_id=0)
    with pytest.raises(UserError, match="a classifier, not a language model"):
        hub.load_model(hub.find(str(tmp_path)))


# --- data ---------------------------------------------------------------------------------------------------


def labelled_file(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def read(path, skip=False, **kwargs):
    return read_labelled([(path, kwargs.get("label"))], "text", "label,labels", None, skip)


def test_labels_of_rows(tmp_path):
    single = read(
        labelled_file(tmp_path / "a.jsonl", [{"text": "t", "label": "b"}, {"text": "u", "label": 3}])
    )
    assert single.items == [Labelled("t", ("b",)), Labelled("u", ("3",))] and not single.multi_label
    assert targets_of(single.items, ["3", "b"], False).tolist() == [1, 0]
    multi = read(
        labelled_file(
            tmp_path / "b.jsonl", [{"text": "t", "labels": []}, {"text": "u", "labels": ["x", "y"]}]
        )
    )
    assert multi.multi_label and multi.names() == ["x", "y"]
    assert targets_of(multi.items, ["x", "y"], True).tolist() == [[0, 0], [1, 1]]
    with pytest.raises(UserError, match="'z' is none of the model's: x, y"):
        targets_of([Labelled("t", ("z",))], ["x", "y"], False)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "t"}, "row 2: no label"),
        ({"text": "t", "label": 1.5}, "row 2: no label"),
        ({"text": " ", "label": "a"}, "row 2: an empty text"),
        ({"text": "t", "label": ["a"]}, "a list in some rows"),
    ],
)
def test_bad_labels_are_named(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        read(labelled_file(tmp_path / "a.jsonl", [{"text": "t", "label": "a"}, row]))


def test_balancing():
    targets = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(targets, 3)
    assert np.allclose([6 * weights[0], 3 * weights[1], weights[2]], 10 / 3)  # each class the same share
    assert np.isclose(weights[targets].mean(), 1)
    drawn = targets[oversampled(targets, 0)]
    assert np.bincount(drawn).tolist() == [6, 6, 6]
    assert set(oversampled(targets, 0)) == set(range(10))  # and no text is lost
    assert class_weights(np.array([[1, 0], [0, 0], [0, 1], [0, 1]]), 2).tolist() == [3.0, 1.0]
    # the weighted loss is PyTorch's
    logits, y = torch.randn(10, 3, dtype=torch.double), torch.from_numpy(targets)
    w = torch.from_numpy(weights)
    mean = F.cross_entropy(logits, y, weight=w)
    torch.testing.assert_close(F.cross_entropy(logits, y, weight=w, reduction="sum") / 10, mean)


# --- measures -----------------------------------------------------------------------------------------------


def test_measures_are_scikit_learns_and_the_definitions():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    logits = rng.normal(size=(200, 3)) + 1.5 * np.eye(3)[targets]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    got = metrics.classification(probs, targets, ["a", "b", "c"])
    predicted = probs.argmax(1)
    assert got["accuracy"] == (predicted == targets).mean()
    assert (
        np.array(got["confusion"]).sum() == 200
        and got["confusion"][0][1] == ((targets == 0) & (predicted == 1)).sum()
    )
    assert np.isclose(got["auc"], sklearn.metrics.roc_auc_score(targets, probs, multi_class="ovr"))
    hits = np.array([((targets == c) & (predicted == c)).sum() for c in range(3)])
    per_class = 2 * hits / (np.bincount(targets) + np.bincount(predicted))
    assert np.isclose(got["macro_f1"], np.mean(per_class))
    assert got["accuracy_ci95"][0] < got["accuracy"] < got["accuracy_ci95"][1]
    half_width = 1.96 * np.sqrt(got["accuracy"] * (1 - got["accuracy"]) / 200)  # the normal approximation
    assert np.allclose(
        got["accuracy_ci95"], [got["accuracy"] - half_width, got["accuracy"] + half_width], atol=0.015
    )


def test_calibration_error():
    # Ten answers at 0.8, of which 8 are right: calibrated. Ten at 0.6 of which 9 are right: 0.3 off.
    confidence = np.array([0.8] * 10 + [0.6] * 10)
    correct = np.array([1] * 8 + [0] * 2 + [1] * 9 + [0])
    assert np.isclose(metrics.calibration_error(confidence, correct), 0.15)
    assert metrics.calibration_error(np.ones(4), np.ones(4)) == 0


def test_multi_label_measures():
    probs = np.array([[0.9, 0.2], [0.6, 0.7], [0.1, 0.4]])
    targets = np.array([[1, 0], [0, 1], [0, 0]])
    got = metrics.classification(probs, targets, ["a", "b"])
    assert np.isclose(got["accuracy"], 2 / 3)  # the second text has one label too many
    assert np.isclose(got["macro_f1"], (2 / 3 + 1) / 2) and np.isclose(got["micro_f1"], 0.8)
    assert got["confusion"][0] == [[1, 1], [0, 1]]


def test_baselines_stand_beside_the_model_and_win_where_it_does_not_beat_them():
    items = [
        Labelled(f"{'fever cough' if k % 3 else 'goal match'} number {k}", ("ill" if k % 3 else "well",))
        for k in range(60)
    ]
    sides = Sides(["ill", "well"], False, items[:40], {"validation": items[40:]})
    targets = targets_of(items[40:], sides.labels, False)
    got = beside_baselines(
        torch.zeros(20, 2) + torch.tensor([1.0, 0.0]), sides.labels, sides, items[40:], targets, 0
    )
    assert list(got) == ["model", "majority", "TF-IDF + logistic regression"]
    assert got["TF-IDF + logistic regression"]["accuracy"] == 1
    assert got["majority"]["accuracy"] == got["model"]["accuracy"] == (targets == 0).mean()
    assert "does NOT beat" in verdict(got)


# --- the script ---------------------------------------------------------------------------------------------


@pytest.fixture
def two_kinds(tmp_path):
    good = [f"protein gene {t}" for t in make_texts(40, 1)]
    bad = [f"fox jumps {t} dogs" for t in make_texts(20, 2)]
    return write_jsonl(tmp_path / "pos.jsonl", good), write_jsonl(tmp_path / "neg.jsonl", bad)


KINDS = [(), ("--lora-r", 4), ("--lora-r", 4, "--merge"), ("--freeze",), ("--balance", "sampling")]


@pytest.mark.parametrize("flags", KINDS)
def test_training_leaves_a_classifier_that_transformers_loads(script, model_dir, two_kinds, tmp_path, flags):
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--positives",
        two_kinds[0],
        "--negatives",
        two_kinds[1],
        "--out",
        "out",
        "--epochs",
        2,
        "--val-fraction",
        0.2,
        *TINY,
        *flags,
    )
    assert out.returncode == 0, out.stderr
    assert (
        "TF-IDF" in out.stdout
        and "majority" in out.stdout
        and "results in out" in out.stdout.splitlines()[-1]
    )
    ids = ragged()
    ours = hub.load_classifier(hub.find(str(tmp_path / "out"))).eval()
    assert ours.labels == ["negative", "positive"]
    if flags[:1] == ("--lora-r",) and "--merge" not in flags:
        base = transformers.AutoModelForSequenceClassification.from_pretrained(model_dir, pad_token_id=0)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    else:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        assert theirs.config.id2label == {0: "negative", 1: "positive"}
    assert_near(predict(ours, ids, 0, 4, CPU, "fp32"), theirs_on(theirs, ids))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["classification"]["model"]["texts"] == 12
    pair = summary["classification"]["model"]["against_tfidf"]
    assert pair.keys() == {
        "difference",
        "difference_ci95",
        "difference_p",
        "only_model_right",
        "only_tfidf_right",
        "p",
    }
    assert len(set(predict(ours, ids, 0, 4, CPU, "bf16")[:, 0].tolist())) == len(ids)  # in fp32, without ties
    if flags == ("--freeze",):
        before = hub.load_model(hub.find(str(model_dir)))
        for name, p in before.transformer.named_parameters():
            assert torch.equal(p, ours.transformer.get_parameter(name)), name
        assert summary["trainable"] == 2 * 32


def test_it_learns_what_can_be_learnt(script, model_dir, two_kinds, tmp_path):
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--positives",
        two_kinds[0],
        "--negatives",
        two_kinds[1],
        "--out",
        "out",
        "--epochs",
        15,
        "--val-fraction",
        0.3,
        *TINY,
        "--lr",
        3e-3,
    )
    assert out.returncode == 0, out.stderr
    measured = json.loads((tmp_path / "out" / "summary.json").read_text())["classification"]["model"]
    assert measured["accuracy"] > 0.9


def test_a_multi_label_task(script, model_dir, tmp_path):
    rows = [{"text": t, "labels": [w for w in ("gene", "fox") if w in t]} for t in make_texts(60, 4)]
    file = labelled_file(tmp_path / "m.jsonl", rows)
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--data",
        file,
        "--out",
        "out",
        "--max-steps",
        4,
        "--val-fraction",
        0.3,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert theirs.config.problem_type == "multi_label_classification"
    measured = json.loads((tmp_path / "out" / "summary.json").read_text())["classification"]["model"]
    assert measured["micro_f1"] is not None and len(measured["confusion"]) == 2


def run_on(script, model_dir, file, *flags):
    out = script(
        "train_cls.py", "--model", model_dir, "--data", file, "--out", "out", "--max-steps", 2, *TINY, *flags
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_vectors_make_a_multi_label_classifier_that_is_measured_on_vectors_and_on_names(
    script, model_dir, tmp_path
):
    names, texts = ["gene", "fox", "dogs"], make_texts(60, 4)
    hot = [[int(n in t) for n in names] for t in texts]
    vectors = labelled_file(
        tmp_path / "v.jsonl", [{"text": t, "labels": h} for t, h in zip(texts, hot, strict=True)]
    )
    run_on(script, model_dir, vectors, "--val-fraction", 0.3)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    lists = [
        {"text": t, "labels": [n for n, x in zip(names, h, strict=True) if x]}
        for t, h in zip(texts, hot, strict=True)
    ]
    columns = [{"text": t} | dict(zip(names, h, strict=True)) for t, h in zip(texts, hot, strict=True)]
    joined = [{"text": row["text"], "labels": "|".join(row["labels"])} for row in lists]
    for rows, how in (
        (lists, Spelling(names=tuple(names))),
        (columns, Spelling(columns=tuple(names), names=tuple(names))),
        (joined, Spelling(separator="|", names=tuple(names))),
    ):
        o = measure.open_model(str(tmp_path / "out"), classifier=True)
        classes.name_labels(o, how.names)
        file = labelled_file(tmp_path / "t.jsonl", rows)
        found = classes.read_test_texts(o, [(file, None)], "text", "labels", None, False, how)
        assert o.model.labels == names and targets_of(found.items, names, True).tolist() == hot
    out = script(
        "eval.py",
        "cls",
        "--model",
        "out",
        "--data",
        vectors,
        "--label-names",
        ",".join(names),
        "--json",
        "r.json",
    )
    assert out.returncode == 0, out.stderr
    got = json.loads((tmp_path / "r.json").read_text())
    assert got["labels"] == names and set(got["measures"]) == {
        "model",
        "majority",
        "TF-IDF + logistic regression",
    }
    four = labelled_file(
        tmp_path / "four.jsonl", [{"text": t, "labels": [*h, 1]} for t, h in zip(texts, hot, strict=True)]
    )
    assert_refused(
        script("eval.py", "cls", "--model", "out", "--data", four), "vectors over 4 labels, and out has 3"
    )
    two = ("--label-names", "a,b")
    assert_refused(
        script("eval.py", "cls", "--model", "out", "--data", vectors, *two), "2 names, and out has 3 labels"
    )


def test_a_run_is_measured_and_resumed_with_the_labels_that_it_was_told_of(script, model_dir, tmp_path):
    rows = [{"text": t, "gene": "gene" in t, "fox": int("fox" in t)} for t in make_texts(30, 4)]
    file, flags = (
        labelled_file(tmp_path / "d.jsonl", rows),
        ("--label-columns", "gene,fox", "--val-fraction", 0),
    )
    run_on(script, model_dir, file, *flags)
    assert "this run is complete" in run_on(script, model_dir, file, *flags, "--resume")
    sides, why = training_sides(tmp_path / "out")  # they are found again
    assert why is None and sides.labels == ["gene", "fox"] and len(sides.training) == 30


@every_family
def test_a_classifier_without_names_is_measured_as_transformers_predicts(
    script, tmp_path, model_dir, bpe_dir
):
    family = hub.read_config(model_dir)[1].model_type
    tokenizer = transformers.AutoTokenizer.from_pretrained(bpe_dir)
    for k in (2, 3):  # two labels are transformers' default, which config.json leaves out
        theirs = make_hf_model(
            tmp_path / f"m{k}", bpe_dir, FAMILIES[family][0][2], family=family, num_labels=k, pad_token_id=0
        )
        assert ("id2label" in json.loads((tmp_path / f"m{k}" / "config.json").read_text())) == (k != 2)
        texts = [t[:60] for t in make_texts(12, 3)]
        with torch.no_grad():
            said = [theirs(**tokenizer(t, return_tensors="pt")).logits.argmax(-1).item() for t in texts]
        spelled = {"names": [f"LABEL_{n}" for n in said], "numbers": said, "floats": [float(n) for n in said]}
        if k == 2:
            spelled["truth"] = [bool(n) for n in said]
        o = measure.open_model(str(tmp_path / f"m{k}"), dtype="fp32", classifier=True)
        assert o.model.labels == list(theirs.config.id2label.values())
        for values in spelled.values():
            file = labelled_file(
                tmp_path / "d.jsonl", [{"text": t, "label": v} for t, v in zip(texts, values, strict=True)]
            )
            found = classes.read_test_texts(o, [(file, None)], "text", "label", None, False)
            assert targets_of(found.items, o.model.labels, False).tolist() == said and not o.model.multi_label
        got = classes.measure_classes(o, found.items)
        assert got["measures"]["model"]["accuracy"] == 1
    words = [{"text": t, "label": ["no", "yes", "maybe"][n]} for t, n in zip(texts, said, strict=True)]
    classes.name_labels(o, ("no", "yes", "maybe"))
    found = classes.read_test_texts(
        o, [(labelled_file(tmp_path / "d.jsonl", words), None)], "text", "label", None, False
    )
    assert targets_of(found.items, o.model.labels, False).tolist() == said


def test_what_config_json_says_of_labels(tmp_path, bpe_dir):
    make_hf_model(tmp_path, bpe_dir, "GPT2ForSequenceClassification", num_labels=3, pad_token_id=0)
    path = tmp_path / "config.json"
    plain = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("id2label", "label2id")}
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    for said in (
        {"num_labels": 3},
        {"id2label": {"0": 1, "1": 2, "2": 3}},
        {"id2label": {"2": "c", "0": "a", "1": "b"}},
    ):
        path.write_text(json.dumps(plain | said))
        ours = hub.load_classifier(hub.find(str(tmp_path)))
        assert (
            ours.labels == [str(load(tmp_path).config.id2label[k]) for k in range(3)]
            and ours.multi_label is None
        )
    for said, words in (
        ({}, "score.weight has shape"),  # two labels, then, and a head of three rows: refused there too
        ({"num_labels": 3, "problem_type": "regression"}, "a regression"),
        ({"num_labels": 1}, "a regression"),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, "none has the number 2"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "two labels one name"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 1}}, "different numbers of 'a'"),
    ):
        path.write_text(json.dumps(plain | said))
        with pytest.raises(UserError, match=words):
            hub.load_classifier(hub.find(str(tmp_path)))


def test_a_model_that_says_no_problem_type_is_measured_as_the_rows_are(script, tmp_path, bpe_dir):
    make_hf_model(tmp_path / "m", bpe_dir, "GPT2ForSequenceClassification", num_labels=3, pad_token_id=0)
    for values, multi in (([[1, 0, 0], [1, 1, 0]], True), ([0, 2], False)):
        file = labelled_file(tmp_path / "d.jsonl", [{"text": "t", "labels": v} for v in values])
        out = script("eval.py", "cls", "--model", "m", "--data", file, "--json", "r.json")
        assert out.returncode == 0, out.stderr
        assert json.loads((tmp_path / "r.json").read_text())["multi_label"] == multi


def test_pefts_classifier_has_the_bases_labels_or_numbers(tmp_path, model_dir):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_dir, num_labels=3, pad_token_id=0
    )
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["c_attn"], init_lora_weights=False)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    ours = hub.load_classifier(hub.find(str(tmp_path)))
    assert ours.labels == ["LABEL_0", "LABEL_1", "LABEL_2"] and ours.multi_label is None
    ids = ragged()
    assert_near(predict(ours, ids, 0, 4, CPU, "fp32"), theirs_on(theirs, ids), 1e-4)


@pytest.mark.parametrize("spelled", ["LABEL_{}", "{}"])
def test_training_goes_on_with_the_head_of_another_classifier(script, tmp_path, bpe_dir, spelled):
    theirs = make_hf_model(
        tmp_path / "m", bpe_dir, "GPT2ForSequenceClassification", num_labels=3, pad_token_id=0
    )
    rows = [{"text": t, "label": spelled.format(k % 3)} for k, t in enumerate(make_texts(30, 4))]
    said = run_on(script, "m", labelled_file(tmp_path / "d.jsonl", rows), "--val-fraction", 0, "--lr", 1e-9)
    assert "m: its head goes on" in said
    ours = hub.load_classifier(hub.find(str(tmp_path / "out")))
    assert ours.labels == [spelled.format(k) for k in range(3)]
    assert_near(ours.score.weight, theirs.score.weight)


def test_every_seed_trains_and_what_cannot_be_validated_is_named(script, model_dir, tmp_path):
    rows = [{"text": t, "label": "rare" if k < 1 else "ab"[k % 2]} for k, t in enumerate(make_texts(40, 4))]
    file = labelled_file(tmp_path / "d.jsonl", rows)
    for seed in range(2):
        said = run_on(script, model_dir, file, "--dry-run", "--val-fraction", 0.1, "--seed", seed)
        assert (
            "too rare for a share of 0.1 to hold a text of theirs, so trained on and not validated: rare"
            in said
        )
        assert "1 rare)" in said and "; 4 validation texts" in said
    args = (
        "--model",
        model_dir,
        "--data",
        file,
        "--out",
        "o",
        "--dry-run",
        "--max-steps",
        1,
        *TINY,
        "--val-fraction",
        0.9,
    )
    out = script("train_cls.py", *args, "--no-stratify")  # drawn from all texts alike
    assert_refused(out, "no text of the label 'rare' is left to train on")
    assert script("train_cls.py", *args).returncode == 0


def test_a_label_that_no_text_has_is_named_and_keeps_its_number(script, model_dir, tmp_path):
    file = labelled_file(
        tmp_path / "d.jsonl", [{"text": t, "labels": [1, k % 2, 0]} for k, t in enumerate(make_texts(20, 4))]
    )
    said = run_on(script, model_dir, file, "--val-fraction", 0)
    assert "no text has the label LABEL_2: what it looks like cannot be learnt" in said
    assert hub.load_classifier(hub.find(str(tmp_path / "out"))).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_labels_that_are_numbers_keep_their_order(script, model_dir, tmp_path):
    rows = [{"text": t, "label": k % 11} for k, t in enumerate(make_texts(44, 4))]
    file = labelled_file(tmp_path / "n.jsonl", rows)
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--data",
        file,
        "--out",
        "out",
        "--max-steps",
        1,
        "--val-fraction",
        0,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    names = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert names == {str(k): str(k) for k in range(11)}


def test_wrong_uses_of_the_script(script, model_dir, two_kinds, tmp_path):
    pos, neg = two_kinds
    common = ("train_cls.py", "--model", model_dir, "--out", "out")
    assert_refused(script(*common, "--positives", pos), "--positives and --negatives")
    assert_refused(script(*common, "--data", pos, "--positives", pos, "--negatives", neg), "or --data")
    assert_refused(script(*common, "--data", pos), "row 1", "no label", "--label-field")
    one = labelled_file(tmp_path / "one.jsonl", [{"text": t, "label": "a"} for t in make_texts(5, 1)])
    assert_refused(script(*common, "--data", one), "one label only")
    assert_refused(
        script(*common, "--positives", pos, "--negatives", neg, "--freeze", "--lora-r", 4), "--freeze"
    )
    other = labelled_file(tmp_path / "val.jsonl", [{"text": "t", "label": "new"}])
    assert_refused(
        script(*common, "--positives", pos, "--negatives", neg, "--val-data", other), "'new' is none of"
    )
    lists = labelled_file(tmp_path / "lists.jsonl", [{"text": "t", "label": ["a"]}])
    assert_refused(script(*common, "--data", one.replace("one", "two"), "--val-data", lists), "no such file")
    two = labelled_file(
        tmp_path / "two.jsonl", [{"text": t, "label": "ab"[k % 2]} for k, t in enumerate(make_texts(9, 1))]
    )
    assert_refused(script(*common, "--data", two, "--val-data", lists), "a list of labels")
    none = labelled_file(tmp_path / "none.jsonl", [{"text": "t", "labels": []}])
    assert_refused(script(*common, "--data", none), "one label only (none)")
    blank = labelled_file(tmp_path / "blank.jsonl", [{"text": "t", "label": ""}])
    assert_refused(script(*common, "--data", blank), "row 1", "no label")
    same = ("--positive-name", "x", "--negative-name", "x")
    assert_refused(script(*common, "--positives", pos, "--negatives", neg, *same), "one label only")
    held = ("--exclude", neg, "--val-fraction", 0)
    assert_refused(
        script(*common, "--positives", pos, "--negatives", neg, *held),
        "no text of the label 'negative' is left",
    )


def test_a_measure_that_was_lost_is_made_up_for(script, model_dir, two_kinds, tmp_path, monkeypatch):
    pos, neg = two_kinds
    command = (
        "train_cls.py",
        "--model",
        model_dir,
        "--positives",
        pos,
        "--negatives",
        neg,
        "--out",
        "out",
        "--lora-r",
        2,
        "--merge",
        "--epochs",
        15,
        "--val-fraction",
        0.3,
        *TINY,
        "--lr",
        1e-2,
        "--resume",
    )
    assert script(*command).returncode == 0
    path = tmp_path / "out" / "summary.json"
    summary = json.loads(path.read_text())
    first = summary.pop("classification")
    path.write_text(json.dumps(summary))
    again = script(*command)
    assert again.returncode == 0 and "this run is complete" in again.stdout
    assert json.loads(path.read_text())["classification"] == first
    # and it is of the model in DIR: head and adapter merged
    assert first["model"]["auc"] > 0.6


def test_held_out_texts_leave_the_training_side(script, model_dir, two_kinds, tmp_path):
    pos, neg = two_kinds
    held = write_jsonl(
        tmp_path / "held.jsonl", [json.loads(line)["text"] for line in neg.read_text().splitlines()[:5]]
    )
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--positives",
        pos,
        "--negatives",
        neg,
        "--exclude",
        held,
        "--out",
        "out",
        "--val-fraction",
        0,
        "--max-steps",
        1,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    assert "5 training texts" in out.stdout and "15 negative, 40 positive" in out.stdout
