"""What a reproduction found, as tables and pictures: before and after, and beside what was published."""

import csv
import io
from pathlib import Path

import numpy as np

from nanomed.evaluation.mistakes import PERPLEXITIES
from nanomed.evaluation.tables import markdown, text_table
from nanomed.files import read_json, write_text
from nanomed.systems.recipe import MODEL_OF, ROWS, Recipe
from nanomed.training.curves import VALIDATION, curves, read_metrics

COLOURS = (*VALIDATION, "#8a5a2b")  # of the mistakes
CLASSES = ("accuracy", "macro_f1")
# Measures of answers, and their keys.
ANSWERS = {
    "answer perplexity": "answer_ppl",
    "BLEU (0 to 100)": "bleu",
    "ROUGE-1 (0 to 1)": "rouge_1",
    "ROUGE-2 (0 to 1)": "rouge_2",
    "ROUGE-L (0 to 1)": "rouge_l",
    "token F1 (0 to 1)": "token_f1",
}


def look_up(results: dict, path: str) -> tuple[float | None, list[float] | None]:
    """(value, interval) at a dotted path, `adapted.corpus.ppl`, of the stages or the classifier; None where
    there is none."""
    place = results["stages"] | {"classifier": results.get("classifier", {})}
    *above, key = path.split(".")
    for step in above:
        place = place.get(step) or {}
    return place.get(key), place.get(f"{key}_ci95")


def mistakes_of(recipe: Recipe, stage: str, name: str) -> list[str]:
    """The mistakes that are measured beside a stage's perplexity on some of the data: those about the texts
    and the losses of its training only on what it was trained on."""
    trained_on = {"adapted": "corpus", "instructed": ROWS}.get(stage)
    mistakes = PERPLEXITIES if name == recipe.measured else ()
    return [m for m in mistakes if m not in ("train-set", "last-loss") or trained_on == name]


def beside_published(recipe: Recipe, results: dict) -> list[dict]:
    """Each published figure with ours, and with what ours would be under the mistake that may explain it."""
    rows = []
    for p in recipe.published:
        ours, bounds = look_up(results, p.ours)
        mistaken, _ = look_up(results, f"{p.ours.rpartition('.')[0]}.also.{p.mistake}")
        row = {"figure": p.figure, "published": p.value, "where": p.ours, "ours": ours, "ours_ci95": bounds}
        rows.append(row | {"why": p.why, "mistake": p.mistake, "with_mistake": mistaken})
    for row in rows:
        row["reproduced"] = _moves_alike(row, rows)
    return rows


def _moves_alike(after: dict, rows: list[dict]) -> bool | None:
    """Whether a figure that is explained by a mistake moved from the base's as it does here with the mistake:
    the same way, by half to twice as much in the logarithm. None where there is nothing to compare."""
    of_base = "base." + after["where"].partition(".")[2]
    before = next((r for r in rows if r["where"] == of_base and r["mistake"] == after["mistake"]), None)
    keys = ("published", "with_mistake")
    if before in (None, after) or not all((r[key] or 0) > 0 for r in (before, after) for key in keys):
        return None
    published, ours = (np.log(after[key] / before[key]) for key in keys)
    return bool(published * ours > 0 and 1 / 2 <= ours / published <= 2)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3f}"


def cell(value: float | None, bounds: list[float] | None) -> str:
    return number(value) + (f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else "")


def _published_rows(results: dict) -> list[list[str]]:
    head = ["", "published", "ours [95 %]", "ours, with the mistake", "what explains the difference"]
    rows = [head, ["---", "---:", "---:", "---:", "---"]]
    for r in results["published"]:
        mistaken = f"{number(r['with_mistake'])} ({r['mistake']})" if r["with_mistake"] is not None else ""
        ours = cell(r["ours"], r["ours_ci95"])
        why = "; ".join(["not reproduced here"] * (r["reproduced"] is False) + [r["why"]] * bool(r["why"]))
        rows.append([r["figure"], number(r["published"]), ours, mistaken, why])
    return rows


def stand_in_note(results: dict) -> str:
    """What is not the published set-up, in a sentence; empty if all of it is."""
    what = [f"{name}: {value}" for name, value in results["stand_in"].items()]
    what += [f"--{name.replace('_', '-')} {value}" for name, value in results["shortened"].items()]
    says = "A stand-in, so that these figures say how the recipe runs and not what it gives"
    return f"{says} ({', '.join(what)})." if what else ""


def published_text(results: dict) -> str:
    head = [results["title"], *filter(None, [stand_in_note(results)])]
    return "\n".join(["", *head, "", text_table(_published_rows(results), 110), ""])


def generations(out: Path, stages: list[str]) -> list[dict]:
    """[{prompt, base, adapted, ...}]: what each model wrote after each of the recipe's prompts."""
    written = {stage: read_json(out / "measured" / f"{stage}.generations.json") for stage in stages}
    prompts = [{"prompt": row["prompt"]} for row in written["base"]]
    for stage, rows in written.items():
        for prompt, row in zip(prompts, rows, strict=True):
            prompt[stage] = row["completion"].strip()
    return prompts


def measures(results: dict) -> list[dict]:
    """One row a measure: {measure, <stage>, <stage>_low, <stage>_high, ...}."""
    stages, rows, paths = results["stages"], [], {}
    for data in dict.fromkeys(d for s in stages.values() for d in s if d not in ("answers", "choices")):
        paths |= {f"perplexity: {data}": f"{data}.ppl", f"bits per byte: {data}": f"{data}.bits_per_byte"}
        paths |= {f"not a perplexity ({m}): {data}": f"{data}.also.{m}" for m in PERPLEXITIES}
    paths |= {name: f"answers.{key}" for name, key in ANSWERS.items()}
    paths |= {f"yes/no/maybe: {key}": f"choices.{key}" for key in CLASSES}
    for name, path in paths.items():
        found = {stage: look_up(results, f"{stage}.{path}") for stage in stages}
        if any(value is not None for value, _ in found.values()):
            rows.append({"measure": name} | _with_bounds(found))
    for name, r in results.get("classifier", {}).get("beside", {}).items():
        for key in CLASSES:
            found = {"classifier": (r[key], r[f"{key}_ci95"])}
            rows.append({"measure": f"classifier's {key}: {name}"} | _with_bounds(found))
    return rows


def _with_bounds(found: dict[str, tuple]) -> dict:
    cells = {}
    for who, (value, bounds) in found.items():
        low, high = bounds or (None, None)
        cells |= {who: value, f"{who}_low": low, f"{who}_high": high}
    return cells


def write_tables(results: dict, out: Path) -> None:
    """model_performance_comparison.csv, generation_comparison.csv and published.md."""
    write_text(_csv(measures(results)), out / "model_performance_comparison.csv")
    write_text(_csv(results["generations"]), out / "generation_comparison.csv")
    parts = [f"# {results['title']}", stand_in_note(results), markdown(_published_rows(results))]
    write_text("\n\n".join(filter(None, parts)) + "\n", out / "published.md")


def _csv(rows: list[dict]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# --- pictures -----------------------------------------------------------------------------------------------


def draw_loss(recipe: Recipe, out: Path, path: Path) -> None:
    """The training and validation losses of all phases, side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(4.5 * len(recipe.phases), 3.6), layout="constrained")
    axes = figure.subplots(1, len(recipe.phases), squeeze=False)[0]
    for ax, phase in zip(axes, recipe.phases, strict=True):
        series = curves(read_metrics(out / MODEL_OF[phase]))
        for name, points in series["training"].items():
            marker = "." if len(points) < 3 else ""
            ax.plot(*zip(*points, strict=True), lw=1.3, color="#3f8fbd", marker=marker, label=name)
        for k, (name, points) in enumerate(series["validation"].items()):
            ax.plot(*zip(*points, strict=True), "o", ms=5, color=VALIDATION[k % len(VALIDATION)], label=name)
        ax.set_title(phase)
        ax.set_xlabel("texts" if phase == "classify" else "tokens trained on")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize="small")
    figure.axes[0].set_ylabel("loss")
    figure.savefig(path, dpi=144)


def draw_perplexity(recipe: Recipe, results: dict, path: Path) -> None:
    """Each model's perplexity with its interval, what the mistakes would give, and what was published, on a
    log scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    stages, stands_in = list(results["stages"]), bool(stand_in_note(results))
    figure = Figure(figsize=(1.6 * len(stages) + 4.5, 4.2), layout="constrained")
    ax, at = figure.subplots(), list(range(len(stages)))
    found = [results["stages"][stage][recipe.measured] for stage in stages]
    values = np.array([r["ppl"] for r in found], float)  # null in JSON, beyond all numbers: NaN
    bounds = np.array([r["ppl_ci95"] or (r["ppl"], r["ppl"]) for r in found], float)
    look = {"fmt": "o", "ms": 8, "capsize": 4, "color": "#1c2733", "label": "perplexity [95 %]", "zorder": 3}
    ax.errorbar(at, values, yerr=np.abs(bounds.T - values), **look)
    for k, mistake in enumerate(PERPLEXITIES):
        points = [(i + 0.08 * (k + 1), r["also"].get(mistake)) for i, r in zip(at, found, strict=True)]
        points = [(x, y) for x, y in points if y is not None]
        if points:
            look = {"marker": "sD^vP*"[k], "color": COLOURS[k], "label": mistake}
            ax.plot(*zip(*points, strict=True), ms=6, lw=0.8, ls=":", **look)
    for p in [] if stands_in else results["published"]:
        stage, *_, key = p["where"].split(".")
        if key == "ppl" and stage in stages:
            y, i = p["published"], stages.index(stage)
            ax.hlines(y, i - 0.3, i + 0.3, color="#b3372c", lw=1.5)
            ax.annotate(f"published {y:g}", (i + 0.3, y), color="#b3372c", fontsize=8)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("perplexity, log scale")
    ax.set_xticks(at, stages)
    ax.set_xlim(-0.5, len(stages) - 0.2)
    ax.set_title(f"{recipe.measured}, held out" + (" (a stand-in)" if stands_in else ""))
    ax.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=144)
