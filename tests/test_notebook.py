"""notebooks/four_phases.ipynb: its cells compile and name only what there is; run from top to bottom on the
bundled model, it shows what it says."""

import ast
import builtins
import importlib
import inspect
import json
import re

import pytest

import nanomed
from nanomed.python import Model
from tests.conftest import PATIENCE, ROOT

NOTEBOOK = ROOT / "notebooks" / "four_phases.ipynb"


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def trees() -> list[ast.Module]:
    """Of the code, without the notebook's own commands (%pip)."""
    return [ast.parse(re.sub(r"(?m)^( *)[%!].*$", r"\1pass", cell)) for cell in cells("code")]


def test_cells_name_only_what_there_is():
    known = {*dir(builtins)}
    for tree in trees():
        nodes = [*ast.walk(tree)]
        for node in nodes:
            if isinstance(node, ast.Import):
                known |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
                assert all(importlib.import_module(a.name) for a in node.names if a.name != "IPython")
            elif isinstance(node, ast.ImportFrom):
                known |= {alias.asname or alias.name for alias in node.names}
                module = None if node.module.startswith("IPython") else importlib.import_module(node.module)
                assert module is None or all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.FunctionDef):
                known |= {node.name, *(argument.arg for argument in node.args.args)}
        known |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert {n.id for n in nodes if isinstance(n, ast.Name)} <= known


def parameters(name: str):
    return inspect.signature(getattr(nanomed, name)).parameters.keys()


def test_functions_and_settings_are_nanomed_s():
    nodes = [node for tree in trees() for node in ast.walk(tree)]
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    ours = [n for n in calls if ast.unparse(n.func.value) == "nanomed"]
    assert {"load", "adapt", "classify", "instruct"} == {n.func.attr for n in ours}
    for node in ours:
        assert {k.arg for k in node.keywords} - {None} <= parameters(node.func.attr)
    assert {"perplexity", "generate", "chat", "classify"} <= {
        n.func.attr for n in calls if hasattr(Model, n.func.attr)
    }
    checked = []
    given = {"ADAPT": "adapt", "INSTRUCT": "instruct", "SIDES": "classify", "HEAD": "classify"}
    for node in (
        n for n in nodes if isinstance(n, ast.Assign | ast.AugAssign) and isinstance(n.value, ast.Dict)
    ):
        name = ast.unparse(node.target if isinstance(node, ast.AugAssign) else node.targets[0])
        if name in given:
            assert {key.value for key in node.value.keys} <= parameters(given[name]), name
            checked.append(name)
    assert {*checked} == {*given} and len(checked) > 8  # with the Hub and without


def test_it_is_small():
    assert NOTEBOOK.stat().st_size < 100_000
    assert all(len(line) <= 120 for cell in cells("code") for line in cell.splitlines())


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(NOTEBOOK, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        book, timeout=None, startup_timeout=PATIENCE, kernel_name="python3", resources=where
    ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    printed = "".join(output.get("text", "") for output in outputs)
    assert (
        sum("image/png" in data for data in shown) == 2
    )  # a curve of each run that was named last in its cell
    assert "\033[32m[[" in printed and "biomedical | Patients with anthrax" in printed
    tables = [data["text/markdown"] for data in shown if "text/markdown" in data]
    assert [*map(len, map(str.splitlines, tables))] == [3, 4, 5]  # a row more of each model
    assert (tmp_path / "runs" / "nano" / "instructed" / "model.safetensors").exists()
    answer = printed.split("after: ")[1]
    assert "home-canned food" in answer, answer
