"""docs/tasks.md and docs/published-systems.md say every key, form and field that there is, and no other."""

import re
from dataclasses import fields

import pytest

from nanomed.systems import recipe
from nanomed.systems.tasks import sources
from nanomed.systems.tasks.forms import FIELDS, FORMS
from tests.conftest import ROOT

PAGE, RECIPES = (ROOT.joinpath("docs", f"{n}.md").read_text("utf-8") for n in ("tasks", "published-systems"))


def table(heading: str, page: str = PAGE) -> dict[str, list[str]]:
    """{each name in the first cell of a row: the other cells} of the table below a line that begins so."""
    lines = page[page.index("\n" + heading) :].strip().split("\n")
    start = next(k for k, line in enumerate(lines) if line.startswith("| ---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return {name: rest for first, *rest in rows for name in re.findall(r"`([^`]+)`", first)}


def test_every_key_of_a_section():
    known = {f.name for f in fields(sources.Source)} - {"name"}
    assert table("## The keys").keys() == known


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("[system]", recipe.System), ("[data.NAME]", recipe.Data), ("[[published]]", recipe.Published)],
)
def test_every_key_of_a_recipe(heading, kind):
    assert table(f"| `{heading}`", RECIPES).keys() == {f.name for f in fields(kind)}


def test_every_form_and_its_fields():
    found = table("## The forms")
    assert found.keys() == FORMS.keys()
    named = {name for has, _ in found.values() for name in re.findall(r"`([^`]+)`", has)}
    assert named == FIELDS.keys()


def test_where_every_field_is_taken_from():
    found = table("What these fields are called")
    assert {name: re.search(r"`([^`]+)`", cell)[1] for name, (cell,) in found.items()} == FIELDS


def test_every_measure_and_the_example(tmp_path):
    assert set(re.findall(r"`([^`]+)`", " ".join(table("## The keys")["measure"]))) - {"options"} == set(
        sources.MEASURES
    )
    (tmp_path / "t.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.S)[1], encoding="utf-8")
    ages, exam = sources.read_sources(tmp_path / "t.toml")
    assert (ages.label_separator, ages.words, ages.measure) == ("|", 200, "macro_f1")
    assert (exam.fields, exam.split_field, exam.measure) == ({"label": "answer_idx"}, "split", "accuracy")
