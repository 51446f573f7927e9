"""Tables for a terminal and for a file, what they refuse to put side by side, and the curves of a run."""

import io
import json
import math
import os
import subprocess
import sys

import pytest

from nanomed.errors import UserError
from nanomed.evaluation import tables
from nanomed.training import curves
from tests.conftest import ROOT

RESULT = {
    "ppl": 20.0,
    "ppl_ci95": [18.0, 22.5],
    "bits_per_byte": 1.25,
    "tokens_scored": 100,
    "context": 64,
    "stride": 32,
    "data_sha256": "a" * 64,
    "vocab_size": 400,
}


def cells_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


# --- text_table ---------------------------------------------------------------------------------------------


def test_a_narrow_table_keeps_its_shape_and_aligns_numbers_on_the_right():
    rows = [
        ["", "accuracy", "F1"],
        ["---", "---:", "---:"],
        ["model", "0.5", "0.25"],
        ["majority", "10.25", "1"],
    ]
    assert tables.text_table(rows) == "\n".join(
        [
            "          accuracy    F1",
            "--------  --------  ----",
            "model          0.5  0.25",
            "majority     10.25     1",
        ]
    )


@pytest.mark.parametrize("models", [1, 2, 4, 7])
@pytest.mark.parametrize("columns", [1, 3, 10, 30])
@pytest.mark.parametrize("name", ["adapted, then instructed", "runs/" + 90 * "x"])
def test_every_table_fits_80_columns_and_loses_nothing(models, columns, name):
    rows = [["model", *(f"exact match: column{c}" for c in range(columns))], ["---", *["---:"] * columns]]
    rows += [[f"{name} {m}", *(f"{m}{c}.5 [{m}, {c}]" for c in range(columns))] for m in range(models)]
    text = tables.text_table(rows)
    assert max(map(len, text.splitlines())) <= 80
    for m in range(models):
        for c in range(columns):
            assert f"[{m}, {c}]" in text  # an interval is never torn
    assert all(str(f"column{c}") in text for c in range(columns))


def test_a_table_too_wide_is_turned_and_a_confusion_matrix_is_not():
    rows = [
        ["model", *(f"measure{c:02}" for c in range(10))],
        ["---", *["---:"] * 10],
        ["base", *map(str, range(10))],
        ["adapted", *map(str, range(10, 20))],
    ]
    lines = cells_of(tables.text_table(rows))
    assert lines[0] == "model base adapted" and lines[2] == "measure00 0 10" and lines[-1] == "measure09 9 19"
    labels = [f"label-{c:02}" for c in range(12)]
    table = tables.confusion_table([[10 * i + j for j in range(12)] for i in range(12)], labels)
    lines = cells_of(tables.text_table(table, turn=False))
    first, second = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert first[2].split()[:3] == ["label-00", "0", "1"] and second[-1].split()[-1] == "121"


def test_markdown_and_text_hold_the_same_cells():
    rows = tables.table({("base", "bio"): RESULT, ("adapted", "bio"): RESULT | {"ppl": 10.0}})
    assert tables.markdown(rows).splitlines() == [
        "| model | bio: perplexity [95 %] | bits/byte | change |",
        "| --- | ---: | ---: | ---: |",
        "| base | 20.00 [18.00, 22.50] | 1.250 |  |",
        "| adapted | 10.00 [18.00, 22.50] | 1.250 | -50.0% |",
    ]
    text = cells_of(tables.text_table(rows))
    assert text[2:] == ["base 20.00 [18.00, 22.50] 1.250", "adapted 10.00 [18.00, 22.50] 1.250 -50.0%"]


# --- perplexities side by side ------------------------------------------------------------------------------


def test_a_perplexity_beyond_the_vocabulary_is_worse_than_guessing():
    assert (
        tables.ppl_cell(8192.0, 8192) == "8,192"
        and tables.ppl_cell(8193.0, 8192) == "8,193 (worse than guessing)"
    )
    assert tables.ppl_cell(8193.0) == "8,193"  # a result of which the vocabulary is not known
    assert [tables.ppl_cell(p) for p in (1.404, 99.994, 223.04, 35925.4)] == [
        "1.40",
        "99.99",
        "223.0",
        "35,925",
    ]
    assert tables.ppl_cell(math.inf, 400) == "inf (worse than guessing)"
    table = tables.markdown(tables.table({("m", "d"): RESULT | {"ppl": 401.0}}))
    assert "401.0 (worse than guessing)" in table


@pytest.mark.parametrize(
    "other", [{"context": 16}, {"stride": 8}, {"data_sha256": "b" * 64}, {"context": 16, "stride": 8}]
)
def test_what_was_not_measured_alike_has_no_change(other):
    with pytest.raises(UserError) as refused:
        tables.table({("base", "bio"): RESULT, ("same", "bio"): RESULT, ("adapted", "bio"): RESULT | other})
    said = str(refused.value)
    assert "adapted and base" in said and "on bio" in said
    for key in ("context", "stride", "data_sha256"):
        assert (f"{key} " in said) == (key in other), said


def test_each_column_may_be_measured_in_its_own_way():
    table = tables.table(
        {(m, d): RESULT | {"context": c} for d, c in (("a", 16), ("b", 64)) for m in ("x", "y")}
    )
    assert len(table) == 4


def test_the_change_between_tokenizers_is_that_of_bits_per_byte():
    other = RESULT | {"tokens_scored": 120, "ppl": 12.0, "bits_per_byte": 1.0}
    assert tables.change(other, RESULT) == "-20.0% bits/byte"


def test_the_command_prints_text_or_markdown_and_refuses_what_is_none(tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["nanomed.evaluation.tables", *map(str, args)])
        tables.main()
        return capsys.readouterr().out

    base, adapted, odd = (tmp_path / f"{n}.bio.json" for n in ("base", "adapted", "odd"))
    base.write_text(json.dumps(RESULT)), adapted.write_text(json.dumps(RESULT | {"context": 16}))
    odd.write_text('{"accuracy": 1}')
    assert "| base | 20.00 [18.00, 22.50] |" in run("--markdown", base)
    assert "base" in run(base) and "|" not in run(base)
    with pytest.raises(
        UserError, match=r"adapted and base were not measured alike on bio \(context 16 and 64\)"
    ):
        run(base, adapted)
    with pytest.raises(UserError, match=r"odd.bio.json: not what eval.py ppl --json writes"):
        run(odd)
    with pytest.raises(UserError, match="no result of base on general"):
        run(base, adapted.rename(tmp_path / "adapted.general.json"))
    odd.write_text(json.dumps(RESULT | {"ppl": None}))  # an infinite one, in JSON
    with pytest.raises(UserError, match="beyond what a number can hold"):
        run(odd)
    with pytest.raises(UserError, match="MODEL.DATA.json"):
        run(tmp_path / "base.json")


# --- curves -------------------------------------------------------------------------------------------------

UPDATE = {"loss": 2.0, "lr": 1e-4, "grad_norm": 1.0, "tokens_per_s": 9.0}


def test_each_series_has_a_curve_of_its_own():
    plain = [{"step": 0, "tokens": 0, "val_loss": 3.0, "val_ppl": 20.0}, {"step": 1, "tokens": 10, **UPDATE}]
    assert curves.curves(plain) == {
        "training": {"training": [(10, 2.0)]},
        "validation": {"validation": [(0, 3.0)]},
        "lr": {"learning rate": [(10, 1e-4)]},
        "grad_norm": {"gradient norm": [(10, 1.0)]},
    }
    named = [
        {"tokens": 0, "val_loss": 3.0, "val": {"bio": {"loss": 3.0}, "general": {"loss": 4.0}}},
        {"tokens": 10, **UPDATE, "answer_loss": 1.0, "replay_loss": 2.5},
        {"tokens": 20, **UPDATE, "answer_loss": 0.5, "replay_loss": None},
    ]
    found = curves.curves(named)
    assert found["training"] == {"answers": [(10, 1.0), (20, 0.5)], "replayed text": [(10, 2.5)]}
    assert found["validation"] == {"validation: bio": [(0, 3.0)], "validation: general": [(0, 4.0)]}
    assert curves.curves([{"tokens": 5, "loss": float("nan")}])["training"] == {}


def test_no_name_breaks_the_picture_and_the_legend_names_every_series(tmp_path, monkeypatch):
    directory = tmp_path / r"cost $\foo"
    directory.mkdir()
    records = [
        {"tokens": k, **UPDATE, "val": {r"$\bar{": {"loss": 3.0}, "_general": {"loss": 4.0}}} for k in (1, 2)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert curves.plot_curves(directory) == directory / "loss.png"
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        svg = curves.draw_curves({"": directory}, "svg", "black", "tokens", directory.name).decode()
    for text in (
        r"cost $\foo",
        r"validation: $\bar{",
        "validation: _general",
        ">training<",
        "gradient",
        "tokens trained on",
    ):
        assert text in svg, text


def test_an_unusual_backend_in_the_environment_does_not_matter(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"tokens": 1, **UPDATE}) + "\n")
    code = (
        "from pathlib import Path; from nanomed.training import curves;"
        f" print(curves.plot_curves(Path({str(tmp_path)!r})))"
    )
    env = {**os.environ, "MPLBACKEND": "module://a_notebook_of_another_environment"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "loss.png" in done.stdout, done.stderr


def test_a_damaged_metrics_file_is_named(tmp_path):
    for content, word in (
        ('{"tokens": 1}\n{"tok', "line 2"),
        ("[]\n", "line 1"),
        ('{"epoch": 1}\n', "not what a training writes there: object missing required field tokens"),
    ):
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(UserError, match=word):
            curves.read_metrics(tmp_path)


def test_a_run_without_a_logged_update_has_an_empty_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert curves.draw_curves({"": tmp_path}, "png", "black", "tokens", "").startswith(b"\x89PNG")
    assert io.BytesIO(curves.draw_curves({"": tmp_path}, "svg", "black", "tokens", "")).read(5) == b"<?xml"
