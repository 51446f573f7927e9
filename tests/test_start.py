"""What starting costs: --help loads no library, and a command none that it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "numpy",
    "datasets",
    "pyarrow",
    "transformers",
    "huggingface_hub",
    "matplotlib",
    "sklearn",
    "tiktoken",
    "safetensors",
)


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after this code."""
    end = "\nimport sys; print('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize(
    "command", ["train_clm", "train_cls", "train_sft", "eval", "eval ppl", "eval generate", "eval tasks"]
)
def test_help_loads_no_library(command):
    script, *rest = command.split()
    code = f"""
import contextlib, io, runpy, sys
sys.argv = [{script + ".py"!r}, *{rest!r}, "--help"]
shown = io.StringIO()
with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
    runpy.run_path({script + ".py"!r}, run_name="__main__")
assert "--" in shown.getvalue()
"""
    assert not loaded(code) & {*HEAVY}


def test_importing_the_package_loads_no_library():
    assert not loaded("import nanomed; assert 'adapt' in dir(nanomed)") & {*HEAVY}
    assert "torch" not in loaded("import nanomed; help(nanomed.adapt)")


def test_commands_load_only_what_they_use():
    code = (
        "import nanomed.training.run, nanomed.evaluation.measure, nanomed.commands.results, nanomed.text.corpus, nanomed.hub,"
        " nanomed.models.classifier"
    )
    assert not loaded(code) & {
        "datasets",
        "pyarrow",
        "transformers",
        "matplotlib",
        "sklearn",
        "jinja2",
        "torch._dynamo",
        "scipy",
    }
