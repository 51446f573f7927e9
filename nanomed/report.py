"""What a person looks at: the curves of a training run, and tables of measurements for a terminal or a file."""

import io
import json
import math
import os
import re
import sys
import textwrap
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import read_json

# Pictures here go into files. What a notebook left in the environment for its own pictures would fail matplotlib's import
# where that notebook's package is not installed.
os.environ.pop("MPLBACKEND", None)

# --- curves -----------------------------------------------------------------------------------------------------------

TRAINING = ("#3f8fbd", "#8f7fc4")
VALIDATION = ("#d9622b", "#2f9e6e", "#c2458f", "#b8901f", "#5566c8")


def plot_curves(directory: Path, unit: str = "tokens") -> Path | None:
    """Draw loss.png from metrics.jsonl; says so in one line and returns None if matplotlib is not installed."""
    try:
        image = draw_curves(directory, "png", "black", unit, title=directory.name)
    except ImportError:
        print("no loss.png: matplotlib is not installed (pip install 'nanomed[report]')", file=sys.stderr)
        return None
    (directory / "loss.png").write_bytes(image)
    return directory / "loss.png"


def read_metrics(directory: Path) -> list[dict]:
    """The records of metrics.jsonl. Raises UserError for a line that is none."""
    path, records = directory / "metrics.jsonl", []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}, line {number}: not valid JSON ({e})") from e
        if not isinstance(record, dict) or "tokens" not in record:
            raise UserError(f"{path}, line {number}: not what a training writes there (no `tokens`)")
        records.append(record)
    return records


def curves(records: list[dict]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The points (tokens, value) of every series there is, {"training", "validation", "lr", "grad_norm": {name: points}}:
    answers and replayed text apart where both were trained on, each validation set under its own name."""
    both = any(r.get("replay_loss") is not None for r in records)
    training = {"answer_loss": "answers", "replay_loss": "replayed text"} if both else {"loss": "training"}
    named = list(dict.fromkeys(name for r in records for name in r.get("val") or {}))

    def points(value_of) -> list[tuple[int, float]]:
        found = [(r["tokens"], value_of(r)) for r in records]
        return [(x, y) for x, y in found if y is not None and math.isfinite(y)]

    series = {
        "training": {name: points(lambda r, key=key: r.get(key)) for key, name in training.items()},
        "validation": {
            f"validation: {name}": points(lambda r, name=name: ((r.get("val") or {}).get(name) or {}).get("loss")) for name in named
        }
        or {"validation": points(lambda r: r.get("val_loss"))},
        "lr": {"learning rate": points(lambda r: r.get("lr"))},
        "grad_norm": {"gradient norm": points(lambda r: r.get("grad_norm"))},
    }
    return {kind: {name: p for name, p in found.items() if p} for kind, found in series.items()}


def draw_curves(directory: Path, format: str, ink: str, unit: str, title: str) -> bytes:
    """A run as a picture: its losses over the tokens (`unit`) it saw, validation as points, and beneath them the learning
    rate and the gradient's norm; ink: of text and axes. An SVG is transparent and small, for a page of any colour."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot, which would look for a window
    from matplotlib.ticker import EngFormatter

    series = curves(read_metrics(directory))
    small = format == "svg"
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with rc_context(dict.fromkeys(colours, ink) | {"svg.hashsalt": "nanomed"}):
        figure = Figure(figsize=(4.5, 3.6) if small else (7, 5), layout="constrained")
        losses, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        lines = []
        for (name, points), colour in zip(series["training"].items(), TRAINING, strict=False):
            lines += losses.plot(*zip(*points, strict=True), color=colour, lw=1.3, marker=_dot(points), label=name)
        for k, (name, points) in enumerate(series["validation"].items()):
            marker = {"marker": "osD^v"[k % 5], "ms": 5, "ls": "none", "color": VALIDATION[k % len(VALIDATION)]}
            lines += losses.plot(*zip(*points, strict=True), **marker, zorder=3, label=name)
        if lines:
            labels = [line.get_label() for line in lines]
            legend = figure.legend(lines, labels, loc="outside upper center", ncols=2, frameon=False, fontsize="small")
            for text in legend.get_texts():
                text.set_parse_math(False)
        losses.set_ylabel("loss")
        losses.set_title(title, parse_math=False)  # a name with $ is a name
        for ax, kind, colour in ((below, "lr", "#2f9e6e"), (below.twinx(), "grad_norm", "#b07a2a")):
            for name, points in series[kind].items():
                ax.plot(*zip(*points, strict=True), color=colour, lw=1, marker=_dot(points))
                ax.set_ylabel(name.replace(" ", "\n"), color=colour, fontsize="small")
            ax.set_ylim(0, 1.1 * max((y for points in series[kind].values() for _, y in points), default=0) or 1)
            ax.tick_params("y", labelsize="small", labelcolor=colour)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_visible(bool(series[kind]))
        below.set_xlabel(f"{unit} trained on")
        below.xaxis.set_major_formatter(EngFormatter(sep=""))
        for ax in (losses, below):
            ax.grid(alpha=0.3)
        out = io.BytesIO()
        figure.savefig(out, format=format, dpi=144, transparent=small, metadata={"Date": None} if small else None)
    return out.getvalue()


def _dot(points: list) -> str:
    return "." if len(points) == 1 else ""  # a line of one point would not be seen


# --- tables: rows of cells, of which the second is the rule under the head and says how each column is aligned ---------


def markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def text_table(rows: list[list[str]], width: int = 80, turn: bool = True) -> str:
    """The same rows for a terminal: aligned, with cells wrapped so that no line is longer than `width`. Where whole words
    do not fit, columns become rows (turn); where these do not fit either, the table is cut into several."""
    cells = [[_unbroken(cell) for cell in row] for row in (rows[0], *rows[2:])]
    right = [rule.endswith(":") for rule in rows[1]]
    widths = _widths(cells, width)
    if widths is None and turn:
        turned = [list(column) for column in zip(*cells, strict=True)]
        widths = _widths(turned, width)
        if widths is not None:
            cells, right = turned, [False] + [True] * (len(turned[0]) - 1)
    if widths is None and len(right) > 2:
        half = len(right) // 2 + 1
        parts = [[row[:half] for row in rows], [[row[0], *row[half:]] for row in rows]]
        return "\n\n".join(text_table(part, width, turn) for part in parts)
    widths = widths or _widths(cells, width, least=4)
    lines = []
    for k, row in enumerate(cells):
        parts = [textwrap.wrap(cell, w, break_on_hyphens=False) for cell, w in zip(row, widths, strict=True)]
        for n in range(max(map(len, parts))):
            line = [p[n] if n < len(p) else "" for p in parts]
            line = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
            lines.append("  ".join(line).rstrip().replace("\xa0", " "))
        if k == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _unbroken(cell: str) -> str:
    """An interval in brackets stays on one line."""
    return re.sub(r"\[[^]]*\]", lambda m: m[0].replace(" ", "\xa0"), cell)


def _widths(cells: list[list[str]], width: int, least: int | None = None) -> list[int] | None:
    """Widths of columns two blanks apart, none narrower than its longest word (or `least`); None if that is too wide."""
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    floors = [max(len(word) for cell in column for word in cell.split(" ")) for column in columns]
    floors = [min(floor, least or floor) for floor in floors]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        wide = [k for k, w in enumerate(widths) if w > max(1, floors[k])]
        if not wide:
            return None
        widths[max(wide, key=lambda k: widths[k])] -= 1
    return [max(w, 1) for w in widths]


WORSE = "worse than guessing"


def worse_than_guessing(ppl: float, vocab_size: int | None) -> bool:
    """Whether a perplexity is beyond the vocabulary's size: that of giving every token the same probability."""
    return bool(vocab_size) and ppl > vocab_size


def ppl_cell(ppl: float, vocab_size: int | None = None) -> str:
    """A perplexity as it is printed everywhere, marked if it is worse than guessing."""
    figure = f"{ppl:.2f}" if ppl < 100 else f"{ppl:.1f}" if ppl < 1000 else f"{ppl:,.0f}"
    return f"{figure} ({WORSE})" if worse_than_guessing(ppl, vocab_size) else figure


def interval_cell(bounds: list[float]) -> str:
    return f"[{', '.join(map(ppl_cell, bounds))}]"


def change(r: dict, first: dict) -> str:
    """How much smaller a perplexity is than another on the same text; tokens of different tokenizers are not comparable,
    bits per byte are."""
    if r["tokens_scored"] == first["tokens_scored"]:
        return f"{r['ppl'] / first['ppl'] - 1:+.1%}"
    return f"{r['bits_per_byte'] / first['bits_per_byte'] - 1:+.1%} bits/byte"


def table(results: dict[tuple[str, str], dict]) -> list[list[str]]:
    """The table of eval.py ppl's results, {(model, data): result}: a row a model, for each data its perplexity with its
    interval and bits per byte, and how much smaller the perplexity is than in the first row.

    Raises UserError where a result is missing, and where two of a column differ in context, stride or data: a change
    between these would say nothing about the models."""
    models = list(dict.fromkeys(model for model, _ in results))
    columns = list(dict.fromkeys(data for _, data in results))
    head = ["model", *(h for data in columns for h in (f"{data}: perplexity [95 %]", "bits/byte", "change"))]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for model in models:
        row = [model]
        for data in columns:
            for m in (model, models[0]):
                if (m, data) not in results:
                    raise UserError(f"no result of {m} on {data}; each model must be measured on each data")
            r, first = results[model, data], results[models[0], data]
            differ = [
                f"{key} {str(r.get(key))[:12]} and {str(first.get(key))[:12]}"
                for key in ("context", "stride", "data_sha256")
                if r.get(key) != first.get(key)
            ]
            if differ:
                raise UserError(
                    f"{model} and {models[0]} were not measured alike on {data} ({', '.join(differ)}), so a change "
                    "says nothing; give both the same --context, --stride, --data and --limit"
                )
            cell = ppl_cell(r["ppl"], r.get("vocab_size"))
            if r["ppl_ci95"]:
                cell += f" {interval_cell(r['ppl_ci95'])}"
            row += [cell, f"{r['bits_per_byte']:.3f}", change(r, first) if model != models[0] else ""]
        rows.append(row)
    return rows


# Shares, ROUGE and BLEU are all printed from 0 to 100, as BLEU is published: (factor, digits, name).
ANSWERS = {
    "exact_match": (100, 1, "exact match"),
    "exact_match_squad": (100, 1, "exact match (SQuAD's)"),
    "token_f1": (100, 1, "token F1 (SQuAD's)"),
    "bleu": (1, 1, "BLEU"),
    "rouge_1": (100, 1, "ROUGE-1 F1"),
    "rouge_2": (100, 1, "ROUGE-2 F1"),
    "rouge_l": (100, 1, "ROUGE-L F1"),
    "stopped": (100, 1, "stopped by itself, of 100 answers"),
    "words": (1, 1, "words an answer"),
    "answer_ppl": (1, 2, "answer perplexity, from 1 up"),
}


def _cell(r: dict, key: str, factor=1, digits=3) -> str:
    """A measure with its interval, if it has one; empty if there is none."""
    if r.get(key) is None:
        return ""
    value, *interval = (f"{factor * x:.{digits}f}" for x in (r[key], *(r.get(key + "_ci95") or ())))
    return f"{value} [{', '.join(interval)}]" if interval else value


def answers_table(results: dict[str, dict]) -> list[list[str]]:
    """The table of measure.measure_answers' results: a row a measure, a column a model."""
    rows = [["overlap with the reference, 0 to 100", *results], ["---", *["---:"] * len(results)]]
    rows += [[name, *(_cell(r, key, factor, digits) for r in results.values())] for key, (factor, digits, name) in ANSWERS.items()]
    return rows


def classification_table(results: dict[str, dict]) -> list[list[str]]:
    """The table of metrics.classification's results, a row a classifier or baseline."""
    rows = [["", "accuracy [95 %]", "macro-F1 [95 %]", "AUC", "calibration error"], ["---", *["---:"] * 4]]
    for name, r in results.items():
        rows.append([name, *(_cell(r, key) for key in ("accuracy", "macro_f1", "auc", "calibration_error"))])
    return rows


def confusion_table(confusion: list[list[int]], labels: list[str]) -> list[list[str]]:
    """A confusion matrix: a row a true label, a column a predicted one."""
    rows = [["true \\ predicted", *labels], ["---", *["---:"] * len(labels)]]
    return rows + [[label, *map(str, row)] for label, row in zip(labels, confusion, strict=True)]


def main() -> None:
    """python -m nanomed.report FILE.json ...: the table of files named MODEL.DATA.json, as `make study` writes them."""
    from nanomed import cli

    p = cli.Parser(prog="nanomed.report", description=main.__doc__.split(": ", 1)[1])
    p.add_argument("files", nargs="+", metavar="MODEL.DATA.json", help="what eval.py ppl --json wrote")
    p.add_argument("--markdown", action="store_true", help="for a file, not for a terminal")
    args = p.parse_args()
    results = {}
    for name in args.files:
        parts = Path(name).name.split(".")
        if len(parts) != 3:
            raise UserError(f"{name}: must be named MODEL.DATA.json")
        result = read_json(Path(name))
        if not isinstance(result, dict) or not {"ppl", "bits_per_byte", "tokens_scored", "ppl_ci95"} <= result.keys():
            raise UserError(f"{name}: not what eval.py ppl --json writes")
        if result["ppl"] is None:
            raise UserError(f"{name}: the perplexity is beyond what a number can hold; nothing to compare")
        results[parts[0], parts[1]] = result
    print((markdown if args.markdown else text_table)(table(results)))


if __name__ == "__main__":
    from nanomed import cli

    cli.run(main, "nanomed.report")
