"""Trainings side by side: in what their run.json files differ, and what came of each. Nothing is measured
here: what the trainings wrote down is read.

read(directories) -> [Run] -> differences(), results(), curve_table(), pictures(), claims()"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from nanomed.errors import UserError
from nanomed.evaluation.page import Measures, drawn, mark_best
from nanomed.evaluation.tables import headed, measure_cell, ppl_cell
from nanomed.evaluation.training_texts import Record, recorded
from nanomed.files import read_object, typed
from nanomed.text import heldout
from nanomed.training.curves import curves, read_metrics
from nanomed.training.settings import Classify, Settings

# Settings that decide what a validation loss is a loss of, besides phase, texts, template and tokenizer.
MEASURED_BY = "context special_tokens system last_turn_only train_on_prompt".split()
MEASURED_BY += "label_field label_separator label_columns label_lists".split()
ROWS = 12  # of the curves on a terminal
TEXT = "Loss: per token that is scored, of a classifier per text; beneath it the perplexity; lower is better."


@dataclass
class Summary:
    """Of summary.json, what is shown."""

    tokens_per_s: float | None = None
    classification: dict[str, Measures] = field(default_factory=dict)


@dataclass
class Run:
    name: str
    directory: Path
    settings: Settings
    record: Record
    metrics: list[dict]
    summary: Summary | None  # None: it is at work, or was stopped
    held: heldout.HeldOut

    @property
    def unit(self) -> str:
        return "texts" if isinstance(self.settings, Classify) else "tokens"

    @property
    def losses(self) -> dict[str, list[float]]:
        """{validation set: its losses}"""
        found = curves(self.metrics)["validation"]
        return {of.removeprefix("validation: "): [loss for _, loss in points] for of, points in found.items()}

    def cell(self, loss: float) -> dict:
        """Of the page's table."""
        perplexity = ppl_cell(math.exp(min(loss, 700))) if self.unit == "tokens" else ""
        return {"text": f"{loss:.4f}", "note": perplexity}

    def left(self, of: str) -> str:
        """The loss, on a set, of the weights that the run left; which are the best, the first set decides."""
        (first, *_), own = self.losses.values(), self.losses[of]
        best = min(zip(first, own, strict=False), key=lambda pair: pair[0])[1]
        cell = self.cell(best if self.settings.keep == "best" else own[-1])
        return cell["text"] + (f" (perplexity {cell['note']})" if cell["note"] else "")

    def measured(self, of: str) -> dict:
        """What the losses on a set are losses of: where all of it is the same, two runs' can be compared."""
        data, s = self.record.data, self.settings
        found = {key: getattr(s, key, None) for key in MEASURED_BY}
        found |= {"template": data.get("template", getattr(s, "template", None))}
        if getattr(s, "balance", None) == "weights":  # by the labels of what is trained on
            found["class weights"] = [sha for name, sha in data.items() if name.startswith("data: ")]
        given = [sha for name, sha in data.items() if f"{name}: ".startswith(f"val-data {of}: ")]
        return found | {"tokenizer": self.record.tokenizer, "validation texts": given or self.held.hash()}

    def unlike(self, other: "Run", of: str) -> list[str]:
        """What keeps losses on a set from being compared."""
        if self.record.phase != other.record.phase:
            return ["phase"]
        a, b = self.measured(of), other.measured(of)
        return [key for key in a | b if a.get(key) != b.get(key)]


def read(directories: list[str], names: list[str]) -> list[Run]:
    """The runs that made them, finished or not. Raises UserError for a directory of none, and for one that is
    there twice."""
    runs = []
    for name, directory in zip(names, map(Path, directories), strict=True):
        if any(directory.resolve() == run.directory.resolve() for run in runs):
            raise UserError(f"--runs: {directory} is there twice; give each run once")
        if not (directory / "run.json").exists():
            mend = "give directories of trainings (their --out)"
            raise UserError(f"--runs {directory}: no run.json there; {mend}")
        metrics = read_metrics(directory) if (directory / "metrics.jsonl").exists() else []
        file = directory / "summary.json"
        summary = typed(Summary, read_object(file), file) if file.exists() else None
        held = heldout.earlier(directory, own=True)
        runs.append(Run(name, directory, *recorded(directory), metrics, summary, held))
    return runs


# --- what differs -------------------------------------------------------------------------------------------


def differences(runs: list[Run]) -> list[list[str]]:
    """A row for each thing that all runs say and in which they differ."""
    said = [_said(run) for run in runs]
    keys = [key for key in said[0] if all(key in words for words in said)]
    rows = [
        [key.replace("_", "-"), *(w[key] + _origin(run, key) for run, w in zip(runs, said, strict=True))]
        for key in keys
        if len({words[key] for words in said}) > 1
    ]
    return [["", *(run.name for run in runs)], ["---"] * (len(runs) + 1), *rows]


def _said(run: Run) -> dict[str, str]:
    """All that went into a run, in words; hashes by their beginnings."""
    r = run.record
    said = {"phase": r.phase} | {name: _word(value) for name, value in run.settings.recorded().items()}
    texts = {name: sha for name, sha in r.data.items() if name != "template"}
    said["texts (SHA-256)"] = ", ".join(f"{_file(name)} {sha[:8]}" for name, sha in texts.items())
    said |= {"model (SHA-256)": r.model[:8], "tokenizer (SHA-256)": r.tokenizer[:8]}
    held = [f"{len(digests):,} {kind}" for kind, digests in vars(run.held).items() if digests]
    said["held out"] = f"{', '.join(held) or 'nothing'} ({run.held.hash()[:8]})"
    return said | {name: _word(value) for name, value in (r.versions | r.machine).items()}


def _word(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_file, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def _file(name: str) -> str:
    """Without its folder: `own=dev.jsonl` of `own=texts/dev.jsonl`."""
    return re.sub(r"(^|[=\s])(?!hub:)[^=\s]*/", r"\1", name)


def _origin(run: Run, key: str) -> str:
    """Whether a setting was given, which a script's command shows unless a recipe gave more."""
    if key not in run.settings.recorded():
        return ""
    if key not in run.record.settings:
        return " (not recorded)"
    script, *words = run.record.command.split() or [""]
    name, given = key.replace("_", "-"), {word.partition("=")[0] for word in words}
    known = Path(script).name.startswith("train_") and not given & {"--config", f"--{name}", f"--no-{name}"}
    return " (default)" if known else ""


# --- results ------------------------------------------------------------------------------------------------


def results(runs: list[Run]) -> dict:
    """The page's table: losses on each validation set, and what the training took. Of losses that cannot be
    compared none is best."""
    sets, took, rows, values = _with_sets(runs), [_took(run) for run in runs], [], []
    heads = list(dict.fromkeys(head for found in took for head in found))
    alike = {of: not any(run.unlike(first, of) for run in others) for of, (first, *others) in sets.items()}
    for run, found in zip(runs, took, strict=True):
        losses = {of: _three(run.losses.get(of)) for of in sets}
        cells = [{"text": "–"} if loss is None else run.cell(loss) for of in sets for loss in losses[of]]
        rows.append([{"text": run.name}, *cells, *({"text": found.get(head, "–")} for head in heads)])
        values.append([loss if alike[of] else None for of in sets for loss in losses[of]])
    mark_best(rows, values, [True] * 3 * len(sets))
    groups = [("", 1), *((f"loss on {of}", 3) for of in sets), ("training", len(heads))]
    head = ["run", *["first", "best", "last"] * len(sets), *heads]
    return {"groups": groups, "head": head, "rows": rows, "text": TEXT}


def _with_sets(runs: list[Run]) -> dict[str, list[Run]]:
    """{validation set: the runs that have losses on it}"""
    sets = dict.fromkeys(of for run in runs for of in run.losses)
    return {of: [run for run in runs if of in run.losses] for of in sets}


def _three(losses: list[float] | None) -> list[float | None]:
    return [losses[0], min(losses), losses[-1]] if losses else [None] * 3


def _took(run: Run) -> dict[str, str]:
    """{heading: what the training did}"""
    last = next((line for line in reversed(run.metrics) if line.get("loss") is not None), {})
    updates, tokens = (f"{last.get(key, 0):,}" for key in ("step", "tokens"))
    found = {"updates": updates if run.summary else f"{updates}, unfinished", run.unit: tokens}
    found |= {"loss": f"{last['loss']:.4f}"} if last else {}
    summary = run.summary or Summary()
    if summary.tokens_per_s:
        found[f"{run.unit}/s"] = f"{summary.tokens_per_s:,.0f}"
    if measured := summary.classification.get("model"):
        found["accuracy"] = measure_cell(vars(measured), "accuracy")
        found["macro-F1"] = measure_cell(vars(measured), "macro_f1")
    return found


def of_phases(runs: list[Run]) -> list[list[Run]]:
    """The runs of each phase, whose losses alone can stand side by side."""
    phases = dict.fromkeys(run.record.phase for run in runs)
    return [[run for run in runs if run.record.phase == phase] for phase in phases]


def curve_table(runs: list[Run]) -> list[list[str]]:
    """The losses of runs of one phase, by updates: on the first validation set that all runs with any have,
    else of training."""
    n = sum(bool(run.losses) for run in runs)
    of = next((of for of, having in _with_sets(runs).items() if len(having) == n), None)

    def loss(line: dict) -> float | None:
        validation = line.get("val") or {"validation": {"loss": line.get("val_loss")}}
        return line.get("loss") if of is None else validation.get(of, {}).get("loss")

    found = [{r.get("step", 0): loss(r) for r in run.metrics if loss(r) is not None} for run in runs]
    steps = sorted(set().union(*found))
    shown = sorted({*steps[:: -(-len(steps) // ROWS) or 1], *steps[-1:]})
    rows = [[f"{step:,}", *(f"{f[step]:.4f}" if step in f else "" for f in found)] for step in shown]
    what = "training loss" if of is None else f"loss on {of}"
    return headed([f"{what} after update", *(run.name for run in runs)], rows)


def pictures(runs: list[Run]) -> list[dict]:
    """For the page, the curves of the runs of each phase over one another."""
    found = []
    for begun in of_phases([run for run in runs if run.metrics]):
        these = {run.name: run.directory for run in begun}
        found += drawn(", ".join(these), these, begun[0].unit)
    return found


def claims(runs: list[Run]) -> list[str]:
    """Of each validation set a sentence for each run after the first that has it, and what all differ in."""
    if len(runs) == 1:
        return [f"{runs[0].name} is the only run: give others to see in what they differ."]
    said, apart = [], {}
    for of, (first, *others) in _with_sets(runs).items():
        for run in others:
            both = f"{run.name} and {first.name}"
            if why := run.unlike(first, of):
                apart.setdefault((both, ", ".join(why).replace("_", "-")), []).append(of)
            else:
                left = f"{run.left(of)}, {first.name} of {first.left(of)}"
                said.append(f"On {of}, {run.name} has a loss of {left}.")
    for (both, why), sets in apart.items():
        losses = f"The losses of {both} on {' and '.join(sets)}"
        said.append(f"{losses} cannot be compared: they differ in {why}.")
    for run in runs[1:]:
        if not run.losses.keys() & runs[0].losses.keys():
            said.append(f"{run.name} and {runs[0].name} have no validation set in common.")
    keys = [row[0] for row in differences(runs)[2:]]
    return [*said, f"They differ in {', '.join(keys) or 'nothing that run.json holds'}."]
