"""What a reproduction found, as tables and pictures: before and after, and beside what was published."""

import csv
import io
import math
from pathlib import Path

from nanomed.errors import UserError
from nanomed.evaluation.named import MISTAKES
from nanomed.evaluation.tables import markdown, text_table
from nanomed.files import read_json, write_text
from nanomed.systems.recipe import PHASES, ROWS, Recipe
from nanomed.training.curves import VALIDATION, curves, read_metrics

COLOURS = (*VALIDATION, "#8a5a2b")  # of the mistakes
# The measures of one model: (name, where in a stage's results, its interval's key)
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


def check_published(recipe: Recipe) -> None:
    """Refuse, before anything is computed, a published figure beside which none of ours will stand. Raises
    UserError."""
    found = {
        f"{name}.{key}"
        for name in recipe.texts
        for key in ("ppl", "bits_per_byte", *(f"also.{m}" for m in MISTAKES))
    }
    found |= {f"answers.{key}" for key in (*ANSWERS.values(), "exact_match") if ROWS in recipe.data}
    found |= {f"choices.{key}" for key in ("accuracy", "macro_f1") if recipe.choices}
    stages = {"base": found} | {
        PHASES[p]: found if p != "classify" else {"accuracy", "macro_f1"} for p in recipe.phases
    }
    for p in recipe.published:
        stage, _, key = p.ours.partition(".")
        if key not in stages.get(stage, ()):
            there = (
                f"{stage} has {', '.join(sorted(stages[stage]))}"
                if stage in stages
                else f"begin with {' or '.join(stages)}"
            )
            raise UserError(f"{recipe.path} [[published]]: ours = {p.ours!r} is no figure; {there}")
        if p.mistake is not None and p.mistake not in MISTAKES:
            raise UserError(
                f"{recipe.path} [[published]]: mistake = {p.mistake!r}: there are {', '.join(MISTAKES)}"
            )


def beside_published(recipe: Recipe, results: dict) -> list[dict]:
    """Each published figure with ours, and with what ours would be under the mistake that may explain it."""
    rows = []
    for p in recipe.published:
        value, interval = look_up(results, p.ours)
        row = {
            "figure": p.figure,
            "published": p.value,
            "where": p.ours,
            "ours": value,
            "ours_ci95": interval,
            "why": p.why,
        }
        data = p.ours.rsplit(".", 1)[0]
        row["mistake"] = p.mistake
        row["with_mistake"] = look_up(results, f"{data}.also.{p.mistake}")[0] if p.mistake else None
        rows.append(row)
    return rows


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3f}"


def between(bounds: list[float] | None) -> str:
    return f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else ""


def _published_rows(results: dict) -> list[list[str]]:
    rows = [
        ["", "published", "ours [95 %]", "ours, with the mistake", "what explains the difference"],
        ["---", "---:", "---:", "---:", "---"],
    ]
    for r in results["published"]:
        mistaken = f"{number(r['with_mistake'])} ({r['mistake']})" if r["with_mistake"] is not None else ""
        rows.append(
            [
                r["figure"],
                number(r["published"]),
                number(r["ours"]) + between(r["ours_ci95"]),
                mistaken,
                r["why"],
            ]
        )
    return rows


def stand_in_note(results: dict) -> str:
    """What is not the published set-up, in a sentence; empty if all of it is."""
    what = [f"{name}: {value}" for name, value in results["stand_in"].items()]
    what += [f"--{name.replace('_', '-')} {value}" for name, value in results["shortened"].items()]
    return (
        "A stand-in, so that these figures say how the recipe runs and not what it gives"
        f" ({', '.join(what)})."
        if what
        else ""
    )


def published_text(results: dict) -> str:
    note = stand_in_note(results)
    return (
        f"\n{results['title']}\n"
        + (f"{note}\n" if note else "")
        + f"\n{text_table(_published_rows(results), 110)}\n"
    )


def generations(out: Path, stages: dict[str, str]) -> list[dict]:
    """[{prompt, base, adapted, ...}]: what each model wrote after each of the recipe's prompts."""
    written = {stage: read_json(out / "measured" / f"{stage}.generations.json") for stage in stages}
    return [
        {"prompt": rows[0]["prompt"]}
        | {s: r["completion"].strip() for s, r in zip(stages, rows, strict=True)}
        for rows in zip(*written.values(), strict=True)
    ]


def measures(results: dict) -> list[dict]:
    """One row a measure: {measure, <stage>, <stage>_low, <stage>_high, ...}."""
    stages, rows = results["stages"], []

    def row(name: str, path: str) -> None:
        found = {stage: look_up(results, f"{stage}.{path}") for stage in stages}
        if any(value is not None for value, _ in found.values()):
            cells = {}
            for stage, (value, interval) in found.items():
                low, high = interval or (None, None)
                cells |= {stage: value, f"{stage}_low": low, f"{stage}_high": high}
            rows.append({"measure": name} | cells)

    for data in dict.fromkeys(d for s in stages.values() for d in s if d not in ("answers", "choices")):
        row(f"perplexity: {data}", f"{data}.ppl")
        row(f"bits per byte: {data}", f"{data}.bits_per_byte")
        for mistake in MISTAKES:
            row(f"not a perplexity ({mistake}): {data}", f"{data}.also.{mistake}")
    for name, key in ANSWERS.items():
        row(name, f"answers.{key}")
    for key in ("accuracy", "macro_f1"):
        row(f"yes/no/maybe: {key}", f"choices.{key}")
    for name, r in results.get("classifier", {}).get("beside", {}).items():
        for key in ("accuracy", "macro_f1"):
            low, high = r[f"{key}_ci95"] or (None, None)
            rows.append(
                {
                    "measure": f"classifier's {key}: {name}",
                    "classifier": r[key],
                    "classifier_low": low,
                    "classifier_high": high,
                }
            )
    return rows


def write_tables(results: dict, out: Path) -> None:
    """model_performance_comparison.csv, generation_comparison.csv and published.md."""
    write_text(_csv(measures(results)), out / "model_performance_comparison.csv")
    write_text(_csv(results["generations"]), out / "generation_comparison.csv")
    note = stand_in_note(results)
    head = f"# {results['title']}\n\n" + (f"{note}\n\n" if note else "")
    write_text(head + markdown(_published_rows(results)) + "\n", out / "published.md")


def _csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# --- pictures -----------------------------------------------------------------------------------------------


def draw_loss(recipe: Recipe, out: Path, path: Path) -> None:
    """The training and validation losses of all phases, side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(4.5 * len(recipe.phases), 3.6), layout="constrained")
    for ax, phase in zip(
        figure.subplots(1, len(recipe.phases), squeeze=False)[0], recipe.phases, strict=True
    ):
        series = curves(read_metrics(out / PHASES[phase]))
        for name, points in series["training"].items():
            ax.plot(
                *zip(*points, strict=True),
                lw=1.3,
                color="#3f8fbd",
                marker="." if len(points) < 3 else "",
                label=name,
            )
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
    ax = figure.subplots()
    at, x = list(range(len(stages))), recipe.measured
    found = [results["stages"][s][x] for s in stages]
    values = [math.nan if r["ppl"] is None else r["ppl"] for r in found]  # null in JSON: beyond all numbers
    spread = [[math.nan if v is None else v for v in r["ppl_ci95"] or (r["ppl"], r["ppl"])] for r in found]
    error = [
        [v - low for v, (low, _) in zip(values, spread, strict=True)],
        [high - v for v, (_, high) in zip(values, spread, strict=True)],
    ]
    ax.errorbar(
        at, values, yerr=error, fmt="o", ms=8, capsize=4, color="#1c2733", label="perplexity [95 %]", zorder=3
    )
    for k, mistake in enumerate(MISTAKES):
        points = [(i + 0.08 * (k + 1), r["also"].get(mistake)) for i, r in zip(at, found, strict=True)]
        points = [(i, v) for i, v in points if v is not None]
        if points:
            ax.plot(
                *zip(*points, strict=True),
                marker="sD^vP*"[k],
                ms=6,
                lw=0.8,
                ls=":",
                color=COLOURS[k],
                label=mistake,
            )
    for p in [] if stands_in else results["published"]:
        stage, *_, key = p["where"].split(".")
        if key == "ppl" and stage in stages:
            ax.hlines(
                p["published"], stages.index(stage) - 0.3, stages.index(stage) + 0.3, color="#b3372c", lw=1.5
            )
            ax.annotate(
                f"published {p['published']:g}",
                (stages.index(stage) + 0.3, p["published"]),
                color="#b3372c",
                fontsize=8,
            )
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("perplexity, log scale")
    ax.set_xticks(at, stages)
    ax.set_xlim(-0.5, len(stages) - 0.2)
    ax.set_title(f"{x}, held out" + (" (a stand-in)" if stands_in else ""))
    ax.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=144)
