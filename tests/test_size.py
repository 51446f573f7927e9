"""The house stays small enough to be read, and its imports go in one direction (tests/size.py)."""

import ast

import pytest

from tests.size import ROOT, SCRIPTS, against_the_walk, circles, functions, lines, modules

LONGEST_FUNCTION = 60
LONGEST_FILE = 300
LONGEST_LINE = 110
WHOLE = 22_548  # lines of the package and the scripts; to be lowered where something goes


@pytest.mark.parametrize("name", modules())
def test_a_file_and_its_functions_fit_on_a_few_screens(name):
    path = modules()[name]
    text = path.read_text(encoding="utf-8").splitlines()
    assert len(text) <= LONGEST_FILE
    assert [line for line in text if len(line) > LONGEST_LINE] == []
    most = 45 if name in SCRIPTS else LONGEST_FUNCTION
    long = {f: n for f, _, n in functions(path) if n > (70 if f == "fit" else most)}
    assert long == {}


def test_fit_has_few_parameters():
    tree = ast.parse((ROOT / "nanomed" / "training" / "loop.py").read_text(encoding="utf-8"))
    (fit,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "fit"]
    assert len(fit.args.posonlyargs + fit.args.args + fit.args.kwonlyargs) <= 7


def test_the_whole_is_not_larger_than_it_was():
    assert sum(map(lines, modules().values())) <= WHOLE


def test_modules_import_what_comes_before_them():
    # so nothing in the core imports the systems
    assert against_the_walk() == []


def test_modules_do_not_import_one_another_in_circles():
    assert circles() == []
