"""README and RESULTS are short, every link leads somewhere, and what the README names is there."""

import re

from tests.conftest import ROOT

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("nanomed/**/*.md")]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def prose(page) -> str:
    return re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))


def test_links_lead_somewhere():
    links = [(p, *m) for p in PAGES for m in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", prose(p))]
    for page, file, anchor in links:
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), (page, file)
        headings = re.findall(r"(?m)^#+ (.*)", prose(there)) if anchor else [""]
        assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], page


def test_readme_and_results_are_short():
    assert len(README.encode()) <= 10_000 and max(map(len, README.splitlines())) <= 100
    assert (ROOT / "RESULTS.md").stat().st_size <= 15_000


def test_the_house_and_the_functions_are_there():
    house, rest = README.split("## The house")[1].split("## Where")[0].split("```")[1:3]
    folders = {0: ROOT, 2: ROOT / "nanomed"}
    for indent, names in re.findall(r"(?m)^( *)((?:[\w/.]+, )*[\w/.]+)", house):
        for name in names.split(", "):
            file = folders[len(indent)] / name
            assert file.exists() or file.with_suffix(".py").exists(), file
            folders[4] = file if name.endswith("/") else folders[4]
    code = "\n".join(p.read_text("utf-8") for p in [*ROOT.glob("*.py"), *ROOT.glob("nanomed/**/*.py")])
    for name in set(re.findall(r"`(?:\w+\.)?(\w+)`", rest)) - {"py", "Makefile", "GradScaler"}:
        assert re.search(rf"(?m)^ *(def|class) {name}\b|^{name} = ", code), name
