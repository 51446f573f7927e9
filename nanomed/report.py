"""What a person looks at: the curve of a training run, and a table of measurements."""

import io
import json
import sys
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import read_json


def plot_curves(directory: Path, unit: str = "tokens") -> Path | None:
    """Draw loss.png from metrics.jsonl; says so in one line and returns None if matplotlib is not installed."""
    try:
        image = draw_curves(directory, "png", "black", unit, title=directory.name)
    except ImportError:
        print("no loss.png: matplotlib is not installed (pip install 'nanomed[report]')", file=sys.stderr)
        return None
    (directory / "loss.png").write_bytes(image)
    return directory / "loss.png"


def draw_curves(directory: Path, format: str, ink: str, unit: str, title: str) -> bytes:
    """Training and validation loss of a run over the tokens (`unit`) it saw, as a picture; ink: of text and axes. An SVG is
    transparent and small, for a page of any colour."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    train = [(r["tokens"], r["loss"]) for r in records if "loss" in r]
    val = [(r["tokens"], r["val_loss"]) for r in records if "val_loss" in r]
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context(dict.fromkeys(colours, ink) | {"svg.hashsalt": "nanomed"}):
        figure, ax = plt.subplots(figsize=(5, 3.2) if format == "svg" else (7, 4), layout="constrained")
        ax.plot(*zip(*train, strict=True), color="#3f8fbd", label="training") if train else None
        ax.plot(*zip(*val, strict=True), color="#d9622b", marker="o", label="validation") if val else None
        ax.set(xlabel=f"{unit} trained on", ylabel="loss", title=title)
        ax.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        out = io.BytesIO()
        transparent = format == "svg"
        figure.savefig(
            out, format=format, dpi=144, transparent=transparent, metadata={"Date": None} if transparent else None
        )
        plt.close(figure)
    return out.getvalue()


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table; the second is the rule under the head."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


WORSE = "worse than guessing"


def worse_than_guessing(ppl: float, vocab_size: int | None) -> bool:
    """Whether a perplexity is beyond the vocabulary's size: that of giving every token the same probability."""
    return bool(vocab_size) and ppl > vocab_size


def table(results: dict[tuple[str, str], dict]) -> str:
    """A Markdown table of eval.py ppl's results, {(model, data): result}: a row a model, for each data its perplexity
    with its interval and bits per byte, and how much smaller the perplexity is than in the first row."""
    models = list(dict.fromkeys(model for model, _ in results))
    columns = list(dict.fromkeys(data for _, data in results))
    head = ["model", *(h for data in columns for h in (f"{data}: perplexity [95 %]", "bits/byte", "change"))]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for model in models:
        row = [model]
        for data in columns:
            r, first = results[model, data], results[models[0], data]
            low, high = r["ppl_ci95"] or (float("nan"), float("nan"))
            change = f"{r['ppl'] / first['ppl'] - 1:+.1%}" if model != models[0] else ""
            row += [f"{r['ppl']:.2f} [{low:.2f}, {high:.2f}]", f"{r['bits_per_byte']:.3f}", change]
        rows.append(row)
    return markdown(rows)


ANSWERS = {"exact_match": "exact match", "token_f1": "token F1", "bleu": "BLEU", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2",
           "rouge_l": "ROUGE-L", "words": "words", "stopped": "stopped", "answer_ppl": "answer perplexity"}  # fmt: skip


def answers_table(results: dict[str, dict]) -> str:
    """A Markdown table of measure.measure_answers' results: a row a measure, a column a model."""
    rows = [["", *results], ["---", *["---:"] * len(results)]]
    for key, name in ANSWERS.items():
        cells = [f"{r[key]:.3f}" + (" [{:.3f}, {:.3f}]".format(*r[key + "_ci95"]) if r[key + "_ci95"] else "")
                 for r in results.values() if key in r]  # fmt: skip
        rows.append([name, *cells])
    return markdown(rows)


def classification_table(results: dict[str, dict]) -> str:
    """A Markdown table of metrics.classification's results, a row a classifier or baseline."""
    rows = [["", "accuracy [95 %]", "macro-F1 [95 %]", "AUC", "calibration error"], ["---", *["---:"] * 4]]
    for name, r in results.items():
        cells = [f"{r[key]:.3f}" + ("" if r[key + "_ci95"] is None else " [{:.3f}, {:.3f}]".format(*r[key + "_ci95"]))
                 for key in ("accuracy", "macro_f1")]  # fmt: skip
        rows.append([name, *cells, "" if r["auc"] is None else f"{r['auc']:.3f}", f"{r['calibration_error']:.3f}"])
    return markdown(rows)


def confusion_table(confusion: list[list[int]], labels: list[str]) -> str:
    """A confusion matrix in Markdown: a row a true label, a column a predicted one."""
    rows = [["true \\ predicted", *labels], ["---", *["---:"] * len(labels)]]
    rows += [[label, *map(str, row)] for label, row in zip(labels, confusion, strict=True)]
    return markdown(rows)


def main() -> None:
    """python -m nanomed.report FILE.json ...: the table of files named MODEL.DATA.json, as `make study` writes them."""
    results = {}
    for name in sys.argv[1:]:
        parts = Path(name).name.split(".")
        if len(parts) != 3:
            raise UserError(f"{name}: must be named MODEL.DATA.json")
        results[parts[0], parts[1]] = read_json(Path(name))
    print(table(results))


if __name__ == "__main__":
    from nanomed import cli

    cli.run(main)
