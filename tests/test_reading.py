"""docs/reading.md says how files of others are read; each of its lines names a test, and that test is
there."""

import re

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reading.md"
USAGE = ROOT / "docs" / "usage.md"


def lines(text):
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if not row.startswith(("|---", "| file or key", "| what |"))]


def test_every_line_names_a_test_that_exists():
    loads = USAGE.read_text(encoding="utf-8").partition("### Which adapters")[2].partition("\n## ")[0]
    page = lines(PAGE.read_text(encoding="utf-8"))
    assert len(page) > 50 and len(lines(loads)) > 20
    for line in page + lines(loads):
        what, does, *_, test = (part.strip() for part in line.strip("|").split("|"))
        assert what and does, line
        file, name = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", test).groups()
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), line


def test_the_versions_are_those_that_are_tested_with():
    """Those of requirements.lock, where they stand there."""
    named = dict(
        re.findall(r"(\w[\w-]*) (\d+\.\d+\.\d+)", PAGE.read_text(encoding="utf-8").partition("##")[0])
    )
    locked = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.M))
    assert len(named) >= 8 and {k: locked[k] for k in named if k in locked} == {
        k: v for k, v in named.items() if k in locked
    }
    assert named.keys() & locked.keys() >= {"transformers", "torch", "safetensors", "datasets", "tokenizers"}


def test_every_finding_is_named_and_every_named_one_is_there():
    """findings/README.md: scripts that run other programs alone, outside this suite."""
    page = (ROOT / "findings" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([\w-]+\.sh)`", page)) == {p.name for p in (ROOT / "findings").glob("*.sh")}
    for script in (ROOT / "findings").glob("*.sh"):
        text = script.read_text(encoding="utf-8")
        assert "nanomed" not in text and "assert " in text and "pip install" in text and "==" in text, script
