"""What the scripts do, as functions of Python (docs/python.md): the scripts' own code, with parameters in
place of flags, and exceptions in place of an exit status.

    m = nanomed.load("gpt2")                          perplexity, generate, chat, choose, classify
    run = nanomed.adapt("gpt2", data, "runs/adapted", lora_r=8)      and classify, instruct

Data is named as --data names it, or is at hand (nanomed.text.at_hand)."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

import train_clm
import train_cls
import train_sft
from nanomed import cli, flags, outputs
from nanomed.calling import from_python, in_python, model_name, parsed, plain
from nanomed.errors import UserError  # noqa: F401 (nanomed.UserError)
from nanomed.files import read_object
from nanomed.text import at_hand
from nanomed.training.curves import read_metrics
from nanomed.training.settings import PHASES, Adapt, Classify, Instruct, Settings, parse

# --- training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A training that is complete. Its directory goes wherever a model's name goes; a notebook shows its
    curve."""

    out: Path

    def __fspath__(self) -> str:
        return str(self.out)

    @property
    def summary(self) -> dict:
        """What summary.json says."""
        return read_object(self.out / "summary.json")

    @property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl, one a logged update."""
        return read_metrics(self.out)

    def load(self, **how):
        """The model that it left: load() of its directory."""
        return load(self, **how)

    def _repr_png_(self) -> bytes | None:
        picture = self.out / "loss.png"
        return picture.read_bytes() if picture.exists() else None


def adapt(model, data, out, **settings) -> Run | None:
    """Phase 2: continue a model's training on texts, as train_clm.py does. None after dry_run=True."""
    return _train(train_clm.adapt, Adapt, model, data, out, settings)


def classify(model, data=None, out=None, **settings) -> Run | None:
    """Phase 3: put a classification head on a model and train it, as train_cls.py does; data: rows of text
    and label, or None beside positives= and negatives=. None after dry_run=True."""
    return _train(train_cls.classify, Classify, model, data, out, settings)


def instruct(model, data, out, **settings) -> Run | None:
    """Phase 4: fine-tune a model on conversations, or questions and answers, as train_sft.py does. None after
    dry_run=True."""
    return _train(train_sft.instruct, Instruct, model, data, out, settings)


def _train(train, kind: type[Settings], model, data, out, settings: dict) -> Run | None:
    given, kept = {"model": model_name(model), "data": data, "out": out, **settings}, {}
    with from_python(kept):
        presets = plain(given, kind.of_files(), kept)
        recipe = ["--config", str(presets.pop("config"))] if "config" in presets else []
        said = ", ".join(f"{n}={at_hand.in_short(value)}" for n, value in given.items() if value is not None)
        s = replace(parse(kind, None, recipe, presets), command=f"nanomed.{kind.phase}({said})")
        import torch

        gpu = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        for device in gpu:  # summary.json tells of this run's alone
            torch.cuda.reset_peak_memory_stats(device)
        try:
            with torch.random.fork_rng(gpu):  # a training has its own seed: the caller's numbers go on
                train(s)
        finally:
            outputs.release(s.out)  # another thread may be training too
    return None if s.dry_run else Run(s.out)


def _explain_settings(function) -> None:
    """The phase's settings into what help() and a notebook show of a function."""
    own = list(inspect.signature(function).parameters.values())[:3]
    flags.add_flags(p := cli.Parser(add_help=False), PHASES[function.__name__])
    known, said = [a for a in p._actions if a.dest not in ("model", "data", "out")], cli.Help("")._expand_help
    more = [inspect.Parameter(a.dest, inspect.Parameter.KEYWORD_ONLY, default=a.default) for a in known]
    function.__signature__ = inspect.Signature([*own, *more])
    function.__doc__ = f"{function.__doc__ or ''}\n\n    M is model, D data, DIR out.\n"
    for a in known:
        choices = f" ({', '.join(a.choices)})" if a.choices else ""
        function.__doc__ += f"\n    {a.dest}{choices}: {in_python(said(a))}"


# --- a model ------------------------------------------------------------------------------------------------


def load(model, device="auto", dtype="auto", quantize=None, special_tokens="text"):
    """A nanomed.asking.Model, language model or classifier: a Hub id (gpt2), a directory, an adapter's too, a
    Run, or nano, the bundled model; the rest as eval.py's flags have it."""
    given = {"device": device, "dtype": dtype, "quantize": quantize, "special_tokens": special_tokens}
    with from_python():
        how = parsed(lambda p: flags.add_flags(p, flags.Running, *given), "nanomed.load", given)
        from nanomed.asking import Model
        from nanomed.evaluation.measure import open_asked

        return Model(open_asked(how, model_name(model), classifier=None, writes=True))


for _function in (adapt, classify, instruct):
    _explain_settings(_function)
