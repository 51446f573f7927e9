"""notebooks/four_phases.ipynb: its cells compile and name only what there is; run from top to bottom on the
bundled model, it shows what it says."""

import ast
import builtins
import importlib
import inspect
import json
import re
import shutil

import pytest

import nanomed
from nanomed import hub
from nanomed.asking import Model
from tests.conftest import PATIENCE, ROOT, make_texts
from tests.standin_hub import StandinHub
from tests.training.test_train_clm import hub_dataset

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


def executed(where, of_hub: str) -> tuple[list[dict], str]:
    """What a kernel in `where` shows for the notebook, and what it prints. of_hub: in place of the question
    whether there is a GPU."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, 4)
    for cell in book.cells:
        cell.source = cell.source.replace("torch.cuda.is_available()", of_hub)
    how = {"timeout": None, "startup_timeout": PATIENCE, "kernel_name": "python3"}
    nbclient.NotebookClient(book, resources={"metadata": {"path": str(where)}}, **how).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    return [output["data"] for output in outputs if "data" in output], printed


def check(shown: list[dict], printed: str) -> None:
    assert sum("image/png" in data for data in shown) == 2  # curves, where a cell ends with a run
    assert "\033[32m[[" in printed and "| Patients with anthrax" in printed
    tables = [data["text/markdown"].splitlines() for data in shown if "text/markdown" in data]
    assert [*map(len, tables)] == [3, 4, 5]  # a model more in each


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shown, printed = executed(tmp_path, "False")
    check(shown, printed)
    assert "biomedical | Patients with anthrax" in printed
    before, after = re.search(r"(?s)before: (.*?)\n\nafter: (.*)", printed).groups()
    assert "risk of botulism" in after and "risk of botulism" not in before  # an answer's form was learnt


@pytest.mark.slow
def test_with_a_gpu_the_same_cells_take_the_hub_s(tmp_path, monkeypatch):
    root = tmp_path / "hub"
    shutil.copytree(hub.BUNDLED["nano"], root / "models" / "gpt2")
    texts = {"pqa_artificial": make_texts(40, 5), "pqa_labeled": make_texts(20, 6)}
    rows = {
        c: [{"pubid": k, "context": {"contexts": [t]}} for k, t in enumerate(of)] for c, of in texts.items()
    }
    hub_dataset(root, "qiaojin/PubMedQA", rows)
    hub_dataset(root, "fancyzhx/ag_news", {"default": [{"text": t, "label": 2} for t in make_texts(20, 7)]})
    cards = [{"instruction": "Answer it", "input": t, "output": "Yes."} for t in make_texts(30, 8, 2, 4)]
    hub_dataset(root, "medalpaca/medical_meadow_medical_flashcards", {"default": cards})
    with StandinHub(root) as standin:
        own = {"HF_ENDPOINT": standin.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        for name, value in (own | {"PYTHONPATH": str(ROOT)}).items():
            monkeypatch.setenv(name, value)
        check(*executed(tmp_path, "True"))
    assert json.loads((tmp_path / "runs" / "hub" / "adapted" / "summary.json").read_text())["documents"] == 38
