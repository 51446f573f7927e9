"""docs/licences.md names what requirements.lock pins, each with the licence that its own metadata declare and
what needs it. `python tests/test_licences.py` writes it from what is installed."""

import ast
import re
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# The licences of what nanomed stands on

Every package that `make setup` installs, in the version that `requirements.lock` pins, with the licence that it declares, and what
needs it: the program itself, or one of its extras. (`python tests/test_licences.py` writes this page, and a test holds it to what
is installed.) A PyTorch for CUDA brings NVIDIA's libraries besides, under NVIDIA's terms.

| package | licence | for |
| --- | --- | --- |
"""


def pinned() -> dict[str, str]:
    return dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)


def licence(package: str) -> str:
    """As declared: as an expression, in words, or as a classifier; of a whole text, its first line."""
    declared = metadata(package)
    classifiers = [
        c.split(" :: ")[-1] for c in declared.get_all("Classifier") or [] if c.startswith("License")
    ]
    said = declared.get("License-Expression") or declared.get("License") or ""
    if "\n" in said.strip():
        said = ", ".join(classifiers) or said.strip().splitlines()[0]
    return (said or ", ".join(classifiers)).strip().replace("|", "/")


def needed_by() -> dict[str, str]:
    """{package: the first that needs it, of the program and its extras}; what an extra brings brings more."""
    found: dict[str, str] = {}

    def walk(requirement: Requirement, why: str, extras: frozenset) -> None:
        name = normal(requirement.name)
        if (name, extras) in seen:
            return
        seen.add((name, extras))
        found.setdefault(name, why)
        try:
            below = requires(name) or []
        except PackageNotFoundError:
            return
        for r in map(Requirement, below):
            if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras or {""}):
                walk(r, why, frozenset(r.extras))

    own = [Requirement(r) for r in requires("nanomed")]
    for extra in ["", "report", "sentencepiece", "tasks", "corpora", "gguf", "dev"]:
        seen: set = set()
        for r in own:
            if (extra in str(r.marker)) if extra else r.marker is None:
                walk(r, f"`[{extra}]`" if extra else "the program", frozenset(r.extras))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def page() -> str:
    why = needed_by()
    rows = [
        f"| {p} {v} | {licence(p)} | {why.get(normal(p), '')} |"
        for p, v in sorted(pinned().items(), key=lambda i: i[0].lower())
    ]
    return HEAD + "\n".join(rows) + "\n"


def test_the_page_of_licences_is_what_is_installed():
    others = [p for p, v in pinned().items() if installed(p) != v]
    if others:
        pytest.skip(f"other versions are installed here than are pinned: {', '.join(others[:5])}")
    assert PAGE.read_text(encoding="utf-8") == page()


def test_everything_pinned_has_a_licence_and_a_reason():
    lines = PAGE.read_text(encoding="utf-8").split("| --- | --- | --- |\n")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert dict(cells[0].split() for cells in rows) == pinned()
    assert all(cells[1] and cells[2] for cells in rows)


FORBIDDEN = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "os.system",
    "os.popen",
    "pandas.read_pickle",
    "pd.read_pickle",
}


def test_nothing_is_unpickled_or_executed():
    """Of what stands in the project's own files, SECURITY.md's first two sentences."""
    files = [*ROOT.glob("*.py"), *(ROOT / "nanomed").rglob("*.py")]
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {m.split(".")[0] for m in modules} & FORBIDDEN, file
                assert not ("torch" in modules and "load" in modules), file
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in CALLS, (file, called)
                words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert (
                    "allow_pickle" not in words
                    and "trust_remote_code" not in words
                    and words.get("shell") != "True"
                ), file


def installed(package: str) -> str | None:
    try:
        return version(package).split("+")[0]  # 2.13.0+cpu
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
