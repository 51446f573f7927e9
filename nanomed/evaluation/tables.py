"""Tables of measurements, for a terminal and in Markdown: rows of cells, of which the second is the rule
under the head and says how each column is aligned.

python -m nanomed.evaluation.tables MODEL.DATA.json ...      the table of what eval.py ppl --json wrote"""

import re
import textwrap
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import read_object, typed


@dataclass
class Measured:
    """What tables read of eval.py ppl's result."""

    ppl: float
    bits_per_byte: float
    tokens_scored: int
    ppl_ci95: tuple[float, float] | None
    vocab_size: int | None = None


def markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def text_table(rows: list[list[str]], width: int = 80, turn: bool = True) -> str:
    """The same rows for a terminal: aligned, with cells wrapped so that no line is longer than `width`. Where
    whole words do not fit, columns become rows (turn); where these do not fit either, the table is cut into
    several."""
    cells = [[_unbroken(cell) for cell in row] for row in (rows[0], *rows[2:])]
    right = [rule.endswith(":") for rule in rows[1]]
    widths = _widths(cells, width)
    if widths is None and turn:
        turned = list(zip(*cells, strict=True))
        widths = _widths(turned, width)
        if widths is not None:
            cells, right = turned, [False] + [True] * (len(cells) - 1)
    if widths is None and len(right) > 2:
        half = len(right) // 2 + 1
        parts = [[row[:half] for row in rows], [[row[0], *row[half:]] for row in rows]]
        return "\n\n".join(text_table(part, width, turn) for part in parts)
    widths = widths or _widths(cells, width, least=4)
    lines = []
    for row in cells:
        parts = [textwrap.wrap(cell, w, break_on_hyphens=False) for cell, w in zip(row, widths, strict=True)]
        for line in zip_longest(*parts, fillvalue=""):
            line = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
            lines.append("  ".join(line).rstrip().replace("\xa0", " "))
        if row is cells[0]:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _unbroken(cell: str) -> str:
    """An interval in brackets stays on one line."""
    return re.sub(r"\[[^]]*\]", lambda m: m[0].replace(" ", "\xa0"), cell)


def _widths(cells, width: int, least: int | None = None) -> list[int] | None:
    """Widths of columns two blanks apart, none narrower than its longest word (or `least`); None if that is
    too wide."""
    columns = list(zip(*cells, strict=True))
    widths = [max(1, *map(len, column)) for column in columns]
    floors = [max(1, *(len(word) for cell in column for word in cell.split(" "))) for column in columns]
    floors = [min(floor, least or floor) for floor in floors]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        wide = [k for k, w in enumerate(widths) if w > floors[k]]
        if not wide:
            return None
        widths[max(wide, key=lambda k: widths[k])] -= 1
    return widths


WORSE = "worse than guessing"


def worse_than_guessing(ppl: float, vocab_size: int | None) -> bool:
    """Whether a perplexity is beyond the vocabulary's size: that of giving every token the same
    probability."""
    return bool(vocab_size) and ppl > vocab_size


def ppl_cell(ppl: float, vocab_size: int | None = None) -> str:
    """A perplexity as it is printed everywhere, marked if it is worse than guessing."""
    figure = f"{ppl:.2f}" if ppl < 100 else f"{ppl:.1f}" if ppl < 1000 else f"{ppl:,.0f}"
    return f"{figure} ({WORSE})" if worse_than_guessing(ppl, vocab_size) else figure


def interval_cell(bounds: list[float]) -> str:
    return f"[{', '.join(map(ppl_cell, bounds))}]"


def change(r: dict, first: dict) -> str:
    """How much smaller a perplexity is than another on the same text; tokens of different tokenizers are not
    comparable, bits per byte are."""
    if r["tokens_scored"] == first["tokens_scored"]:
        return f"{r['ppl'] / first['ppl'] - 1:+.1%}"
    return f"{r['bits_per_byte'] / first['bits_per_byte'] - 1:+.1%} bits/byte"


def headed(head: list[str], rows: list[list[str]]) -> list[list[str]]:
    """A table whose first column is of words, and whose others are of numbers."""
    return [head, ["---", *["---:"] * (len(head) - 1)], *rows]


def table(results: dict[tuple[str, str], dict]) -> list[list[str]]:
    """The table of eval.py ppl's results, {(model, data): result}: a row a model, for each data its
    perplexity with its interval and bits per byte, and how much smaller the perplexity is than in the first
    row.

    Raises UserError where a result is missing, and where two of a column differ in context, stride or data: a
    change between these would say nothing about the models."""
    models, columns = (list(dict.fromkeys(names)) for names in zip(*results, strict=True))
    head, rows = ["model"], []
    for data in columns:
        head += [f"{data}: perplexity [95 %]", "bits/byte", "change"]
    for model in models:
        row = [model]
        for data in columns:
            if (model, data) not in results:
                raise UserError(f"no result of {model} on {data}; each model must be measured on each data")
            r, first = results[model, data], results.get((models[0], data))
            check_alike(r, first, f"{model} and {models[0]} were not measured alike on {data}")
            interval = f" {interval_cell(r['ppl_ci95'])}" if r["ppl_ci95"] else ""
            row += [ppl_cell(r["ppl"], r.get("vocab_size")) + interval, f"{r['bits_per_byte']:.3f}"]
            row.append(change(r, first) if model != models[0] else "")
        rows.append(row)
    return headed(head, rows)


def check_alike(r: dict, first: dict, wrong: str) -> None:
    """Raises UserError, which begins with `wrong`, for results between which a change says nothing."""
    if differ := [key for key in ("context", "stride", "data_sha256") if r.get(key) != first.get(key)]:
        what = ", ".join(f"{key} {str(r.get(key))[:12]} and {str(first.get(key))[:12]}" for key in differ)
        mend = "so a change says nothing; give both the same --context, --stride, --data and --limit"
        raise UserError(f"{wrong} ({what}), {mend}")


# Shares, ROUGE and BLEU are all printed from 0 to 100, as BLEU is published: (factor, digits, name).
ANSWERS = {
    "exact_match": (100, 1, "exact match, %"),
    "exact_match_squad": (100, 1, "exact match (SQuAD's), %"),
    "token_f1": (100, 1, "token F1 (SQuAD's)"),
    "bleu": (1, 1, "BLEU"),
    "rouge_1": (100, 1, "ROUGE-1 F1"),
    "rouge_2": (100, 1, "ROUGE-2 F1"),
    "rouge_l": (100, 1, "ROUGE-L F1"),
    "stopped": (100, 1, "stopped by itself, %"),
    "words": (1, 1, "words an answer"),
    "answer_ppl": (1, 2, "answer perplexity, from 1 up"),
}


def measure_cell(r: dict, key: str, factor=1, digits=3) -> str:
    """A measure with its interval, if it has one; empty if there is none."""
    if r.get(key) is None:
        return ""
    value, *interval = (f"{factor * x:.{digits}f}" for x in (r[key], *(r.get(key + "_ci95") or ())))
    return f"{value} [{', '.join(interval)}]" if interval else value


def answers_table(results: dict[str, dict]) -> list[list[str]]:
    """The table of measure.measure_answers' results: a row a measure, a column a model."""
    rows = [
        [name, *(measure_cell(r, key, factor, digits) for r in results.values())]
        for key, (factor, digits, name) in ANSWERS.items()
    ]
    return headed(["overlap with the reference, 0 to 100", *results], rows)


def classification_table(results: dict[str, dict]) -> list[list[str]]:
    """The table of metrics.classification's results, a row a classifier or baseline."""
    keys = ("accuracy", "macro_f1", "auc", "calibration_error")
    rows = [[name, *(measure_cell(r, key) for key in keys)] for name, r in results.items()]
    return headed(["", "accuracy [95 %]", "macro-F1 [95 %]", "AUC", "calibration error"], rows)


def choices_table(r: dict) -> list[list[str]]:
    """The table of choices.measure_choices' result: the likeliest choice, the likeliest per byte, always the
    commonest answer."""
    ways = {"likeliest (lm-eval's acc)": r, "likeliest per character (acc_norm)": r["per_character"]}
    ways |= {"likeliest per byte (acc_bytes)": r["per_byte"]}
    ways |= {f"always {r['majority']['answer']!r}": r["majority"]}
    rows = [[name, measure_cell(of, "accuracy"), measure_cell(of, "macro_f1")] for name, of in ways.items()]
    return headed(["", "accuracy [95 %]", "macro-F1 [95 %]"], rows)


def against_chance(r: dict) -> str:
    """Of choices.measure_choices' likeliest choice; empty where all of its interval is above chance."""
    interval = r["accuracy_ci95"]  # none of a single question
    return "" if interval and interval[0] > r["chance"] else "not above chance"


def confusion_table(confusion: list[list[int]], labels: list[str]) -> list[list[str]]:
    """A confusion matrix: a row a true label, a column a predicted one."""
    rows = [[label, *map(str, row)] for label, row in zip(labels, confusion, strict=True)]
    return headed(["true \\ predicted", *labels], rows)


def main() -> None:
    """python -m nanomed.evaluation.tables FILE.json ...: the table of files named MODEL.DATA.json, as `make
    study` writes them."""
    from nanomed import cli

    p = cli.Parser(prog="nanomed.evaluation.tables", description=cli.summary(main.__doc__).partition(": ")[2])
    p.add_argument("files", nargs="+", metavar="MODEL.DATA.json", help="what eval.py ppl --json wrote")
    p.add_argument("--markdown", action="store_true", help="for a file, not for a terminal")
    args = p.parse_args()
    print((markdown if args.markdown else text_table)(table(read_results(args.files))))


def read_results(files: list[str]) -> dict[tuple[str, str], dict]:
    """{(MODEL, DATA): what eval.py ppl --json wrote into MODEL.DATA.json}. Raises UserError for a file that
    is none."""
    results = {}
    for name in files:
        parts = Path(name).name.split(".")
        if len(parts) != 3:
            raise UserError(f"{name}: must be named MODEL.DATA.json")
        result = read_object(Path(name))
        if "ppl" in result and result["ppl"] is None:
            raise UserError(f"{name}: the perplexity is beyond what a number can hold; nothing to compare")
        checked = typed(Measured, result, f"{name}: not what eval.py ppl --json writes")
        results[parts[0], parts[1]] = result | vars(checked)
    return results


if __name__ == "__main__":
    from nanomed import cli

    cli.execute(main, "nanomed.evaluation.tables")
