"""A setting is declared once; what is derived from it."""

import json
import re
import sys
from dataclasses import fields
from typing import Literal

import pytest

from nanomed.errors import UserError
from nanomed.flags import declared, flags_of, of_call, setting
from nanomed.limits import Share
from nanomed.training import directory, settings
from nanomed.training.settings import Adapt, Classify, Instruct, parse


@declared
class Larger(Adapt):
    """A training with three more settings."""

    mask_rate: Share = setting(0.1, "share of the tokens that are masked")
    kind: Literal["a", "b"] | None = setting("a", "one of two", flag=None)
    colour: str = of_call("red", "of the bar")


NEEDED = ("--model", "m", "--data", "d", "--out", "o")


@pytest.fixture
def given(monkeypatch):
    """The settings of a command line."""

    def parsed(*words, kind=Larger):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        return parse(kind, "A training.")

    return parsed


def test_a_field_is_a_flag_with_its_limits_and_its_help(given, capsys):
    s = given(*NEEDED, "--mask-rate", 0.3)
    assert (s.mask_rate, s.kind, s.colour) == (0.3, None, "red")
    with pytest.raises(UserError, match="--mask-rate: must be at least 0 and less than 1, not '1'"):
        given(*NEEDED, "--mask-rate", 1)
    with pytest.raises(UserError, match="--kind: invalid choice"):
        given(*NEEDED, "--kind", "c")
    with pytest.raises(SystemExit):
        given("--help")
    help = " ".join(capsys.readouterr().out.split())
    assert "--mask-rate X share of the tokens that are masked (default: 0.1)" in help
    assert "--kind {a,b} one of two --colour" in help


@pytest.mark.parametrize("written", [";", "semicolon"])
def test_a_separator_is_its_name_or_the_character(given, tmp_path, written):
    (tmp_path / "d.csv").write_text("id;text\n1;fever\n")
    (tmp_path / "recipe.toml").write_text(f'[adapt]\nseparator = "{written}"\n')
    need = ("--model", "m", "--data", tmp_path / "d.csv", "--out", "o")
    for said in (("--separator", written), ("--config", tmp_path / "recipe.toml")):
        assert given(*need, *said, kind=Adapt).data == [f"{tmp_path / 'd.csv'}#semicolon"]


def test_a_field_is_a_key_of_a_recipe(given, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[adapt]\nmask-rate = 0.2\ncolour = "blue"\n')
    s = given(*NEEDED, "--config", recipe)
    assert (s.mask_rate, s.colour) == (0.2, "blue")
    assert given(*NEEDED, "--config", recipe, "--mask-rate", 0).mask_rate == 0
    recipe.write_text("[adapt]\nmask-rate = 2\n")
    with pytest.raises(UserError, match="mask-rate: must be at least 0 and less than 1"):
        given(*NEEDED, "--config", recipe)


def test_run_json_holds_a_field_that_decides_the_weights_and_a_resumed_run_is_held_to_it(given, tmp_path):
    s = given(*NEEDED[:4], "--out", tmp_path, "--mask-rate", 0.3, "--colour", "blue")
    directory.record_start(s, {})
    path = tmp_path / "run.json"
    written = json.loads(path.read_text())["settings"]
    assert written["mask_rate"] == 0.3 and "colour" not in written and "out" not in written
    same = given(*NEEDED[:4], "--out", tmp_path, "--mask-rate", 0.3, "--colour", "green", "--save-every", 7)
    directory.check_same(same, {})
    with pytest.raises(UserError, match="started with mask_rate = 0.3, now it is mask_rate = 0.1"):
        directory.check_same(given(*NEEDED[:4], "--out", tmp_path), {})
    with pytest.raises(UserError, match="settings: mask_rate: expected float < 1"):
        Larger.read(written | {"mask_rate": 1}, path)
    assert Larger.read({k: v for k, v in written.items() if k != "mask_rate"}, path).mask_rate == 0.1
    with pytest.raises(UserError, match="another|not a run of this phase"):
        Adapt.read(written, path)


def test_what_earlier_versions_wrote_of_one_call_is_left_out():
    s = Adapt.read({"lr": 1e-3, "save_every": 7, "out": "o", "config": None}, "run.json")
    assert (s.lr, s.save_every) == (1e-3, settings.Settings().save_every)


@pytest.mark.parametrize("kind", [Adapt, Classify, Instruct])
def test_every_field_has_a_flag_of_its_own_or_is_of_other_phases(kind, given, capsys):
    with pytest.raises(SystemExit):
        given("--help", kind=kind)
    shown = capsys.readouterr().out
    for name, flag in flags_of(kind).items():
        is_shown = re.search(rf"^  --{name.replace('_', '-')}\b", shown, re.MULTILINE) is not None
        assert is_shown == (not flag.phases or kind.phase in flag.phases), name
    assert {*flags_of(kind)} == {f.name for f in fields(kind)} - {"command"}  # Python says it


def test_files_are_told_by_their_type():
    assert {*Instruct.of_files()} == {"data", "val_data", "exclude", "replay", "ewc_data"}
    assert {*Classify.of_files()} == {"data", "val_data", "exclude", "positives", "negatives", "ewc_data"}
