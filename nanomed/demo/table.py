"""The demo's table: its columns, and how it looks on a terminal, in Markdown, and over several seeds."""

import statistics

from nanomed.evaluation.tables import WORSE, worse_than_guessing
from nanomed.evaluation.tables import markdown as markdown_table

# The columns by key: the group that they stand in, their heading in full, then as it stands on a terminal,
# and its width there.
COLUMNS = {
    "biomedical_ppl": ("perplexity", "own corpus, unseen words", "own", 7),
    "unknown_ppl": ("perplexity", "unknown conditions", "unkn.", 7),
    "abstracts_ppl": ("perplexity", "real abstracts", "real", 7),
    "general_ppl": ("perplexity", "general English", "gen.", 7),
    "probe_read": ("probe", "read", "read", 5),
    "probe_unknown": ("probe", "unknown", "unkn.", 6),
    "cloze_read": ("cloze", "read", "read", 6),
    "em_taught": ("exact match", "taught", "taught", 7),
    "em_read": ("exact match", "read", "read", 5),
    "em_unknown": ("exact match", "unknown", "unkn.", 6),
}
GROUPS = list(dict.fromkeys(group for group, *_ in COLUMNS.values()))
NAMES = {
    "base": ("base", "base"),
    "adapted": ("adapted", "adapted"),
    "instructed_only": ("instructed only", "instructed only"),
    "adapted_instructed": ("adapted, then instructed", "adapted, instr."),
    "adapted_unmixed": ("adapted on the corpus alone", "adapted unmixed"),
    "adapted_instructed_no_replay": ("adapted, then instructed without replay", "instr. no replay"),
}
WIDTH = 16  # of the names on a terminal
SUMMARIES = {"mean": statistics.mean, "lowest": min, "highest": max}  # of several seeds


def cell(value: float, key: str, vocabulary: int | None, short: bool = False) -> str:
    """A figure of column `key`; a perplexity beyond `vocabulary` is marked. short: for a terminal."""
    if not key.endswith("_ppl"):
        return f"{value:.0%}"
    mark = "!" if worse_than_guessing(value, vocabulary) else ""
    if short and value >= 10_000:
        return f"{value / 1000:,.0f}k{mark}"
    return (f"{value:,.0f}" if value >= 1000 or (short and value >= 100) else f"{value:.1f}") + mark


def legend(rows: list[dict], vocabulary: int) -> str:
    """What the mark means, if there is one."""
    figures = [row[key] for row in rows for key in COLUMNS if key.endswith("_ppl")]
    marked = any(worse_than_guessing(figure, vocabulary) for figure in figures)
    return f"!: {WORSE}, beyond the {vocabulary:,} tokens of the vocabulary" if marked else ""


def terminal(rows: list[dict], vocabulary: int) -> str:
    """The rows in at most 80 columns."""
    widths = {name: sum(width for group, _, _, width in COLUMNS.values() if group == name) for name in GROUPS}
    lines = [(" " * WIDTH + "".join(name.center(width) for name, width in widths.items())).rstrip()]
    lines.append(" " * WIDTH + "".join(head.rjust(width) for _, _, head, width in COLUMNS.values()))
    for row in rows:
        line = NAMES[row["name"]][1].ljust(WIDTH)
        for key, (_, _, _, width) in COLUMNS.items():
            line += cell(row[key], key, vocabulary, short=True).rjust(width)
        lines.append(line)
    return "\n".join(filter(None, [*lines, legend(rows, vocabulary)]))


def markdown(rows: list[dict], vocabulary: int) -> str:
    return over_seeds([rows], vocabulary)


def over_seeds(tables: list[list[dict]], vocabulary: int) -> str:
    """The rows of several seeds in Markdown: mean, and the range in brackets; of one seed, its figures."""
    heads = [f"{group}: {name}" for group, name, _, _ in COLUMNS.values()]
    lines = [["", *heads], ["---", *["---:"] * len(COLUMNS)]]
    for same in zip(*(merged(tables, f) for f in SUMMARIES.values()), strict=True):
        line = [NAMES[same[0]["name"]][0]]
        for key in COLUMNS:
            mean, low, high = (cell(row[key], key, vocabulary) for row in same)
            line.append(f"{mean} [{low}, {high}]" if len(tables) > 1 else mean)
        lines.append(line)
    marks = legend([row for table in tables for row in table], vocabulary)
    return markdown_table(lines) + (f"\n\n{marks}" if marks else "")


def merged(tables: list[list[dict]], f) -> list[dict]:
    """One table of several seeds': f, a mean say, of each figure."""
    rows = []
    for same in zip(*tables, strict=True):
        rows.append({"name": same[0]["name"]} | {key: f([row[key] for row in same]) for key in COLUMNS})
    return rows


def summary(tables: list[list[dict]], vocabulary: int) -> str:
    """The rows of several seeds for a terminal: three tables, of the means, the lowest and the highest."""
    return "\n\n".join(f"{name}\n{terminal(merged(tables, f), vocabulary)}" for name, f in SUMMARIES.items())
