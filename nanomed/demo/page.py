"""The demo's page: its finding in sentences, its table, and questions on each group of conditions."""

import random
from pathlib import Path

from nanomed.demo import render
from nanomed.demo.table import COLUMNS, NAMES
from nanomed.demo.table import GROUPS as HEADINGS
from nanomed.evaluation import compare, page
from nanomed.evaluation.tables import WORSE, worse_than_guessing
from nanomed.text.templates import TEMPLATES

GROUPS = {
    "read": "About conditions that were read about, never asked about",
    "unknown": "About conditions that were neither read nor asked about",
    "taught": "About conditions that were read and asked about",
}


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def claims(rows: list[dict], vocab_size: int | None) -> list[str]:
    """What the table says, good or bad, the finding first."""
    by = {row["name"]: row for row in rows}
    base, adapted, alone, both = (by[n] for n in ("base", "adapted", "instructed_only", "adapted_instructed"))
    before, after = base["em_read"], both["em_read"]
    only = "only " if before < after < 0.5 else ""
    more = "before" if after > before else "no more than before"
    times = both["general_ppl"] / base["general_ppl"]
    first = f"""After reading and instruction, the model answers {only}{percent(after)} of the questions about
        conditions it only read about ({more}, {percent(before)}), and general English surprises it
        {times:.1f} times as much."""
    second = f"""With instruction alone it answers {percent(alone["em_read"])} of them; about conditions
        that it never met, {percent(both["em_unknown"])} after both."""
    prices = []
    for key in ("abstracts_ppl", "general_ppl"):
        moved = "".join(_moved(base[key], row[key], vocab_size) for row in (adapted, both))
        prices.append(f"{COLUMNS[key][1]} {page.short(base[key])}{moved}")
    third = f"Perplexity before, after reading, and after both: {', '.join(prices)}."
    return [" ".join(sentence.split()) for sentence in (first, second, third)]


def _moved(before: float, after: float, vocab_size: int | None) -> str:
    mark = f", {WORSE}" if worse_than_guessing(after, vocab_size) else ""
    return f" → {page.short(after)} ({100 * (after / before - 1):+,.0f} %{mark})"


def table(rows: list[dict], names: dict[str, str], vocab_size: int | None, text: str) -> dict:
    """The page's table (nanomed.evaluation.page)."""
    cells, values = [], [[row[key] for key in COLUMNS] for row in rows]
    for row in rows:
        figures = [
            page.ppl_page_cell(row[key], vocab_size) if key.endswith("_ppl") else {"text": percent(row[key])}
            for key in COLUMNS
        ]
        cells.append([{"text": names[row["name"]]}, *figures])
    page.mark_best(cells, values, [key.endswith("_ppl") for key in COLUMNS])
    headings = [group for group, *_ in COLUMNS.values()]
    groups = [("", 1), *((group, headings.count(group)) for group in HEADINGS)]
    head = ["model", *(head for _, head, _, _ in COLUMNS.values())]
    return {"groups": groups, "head": head, "rows": cells, "text": text}


def questions(opened: dict, names: dict[str, str], seed: int, template: str) -> list[dict]:
    """Two facts of each group asked of every model, then what has no known answer: [{prompt, expected, group,
    answers}]."""
    groups, rng = render.groups(seed), random.Random(f"samples {seed}")
    asked = {g: rng.sample(render.facts_of(members), 2) for g, members in groups.items()}
    asked = [(GROUPS[g], fact) for g in GROUPS for fact in asked[g]]
    facts, others = {}, {}
    for name, o in opened.items():  # facts as they were measured, without a penalty on repetition
        prompts = [fact.asked() for _, fact in asked]
        facts[names[name]] = compare.samples(o, prompts, TEMPLATES[template], 40, seed, penalty=1.0)
        others[names[name]] = compare.samples(o, compare.PROMPTS, TEMPLATES[template], 40, seed)
    out = []
    for k, (group, fact) in enumerate(asked):
        answers = page.answers_of(k, facts, fact.matches)
        out.append({"prompt": fact.asked(), "expected": fact.value, "group": group, "answers": answers})
    group = "About anything else, with a penalty on repetition"
    return out + [q | {"group": group} for q in compare.questions(compare.PROMPTS, None, others)]


def write(out: Path, rows: list[dict], opened: dict, seed: int, notes: list[str], template: str) -> Path:
    """report.html and report.json of one seed; rows: those of demo.json, with `_ppl`, what was measured;
    opened: {name: measure.Opened}; notes: how to read them, the first, if any, before all else."""
    names, base = {key: full for key, (full, _) in NAMES.items()}, opened["base"]
    probe = out / "probe_adapted"
    trained = {names[name]: o.directory for name, o in opened.items() if name != "base"}
    curves = [curve for name, directory in trained.items() for curve in page.curves_of(name, directory)]
    models = [{"name": names[r["name"]], "model": opened[r["name"]].name, "ppl": r["_ppl"]} for r in rows]
    vocab_size = base.model.config.vocab_size
    answers = (
        f"the likeliest continuation of each question, put into the template “{template}”; right if the value"
        " that the condition has stands in the sentence"
    )
    how = [("base", base.name), ("seed", str(seed)), ("answers", answers)]
    content = {
        "title": "nanomed's demo: read, then answer",
        "claim": [*filter(None, notes[:1]), *claims(rows, vocab_size)],
        "table": table(rows, names, vocab_size, "\n".join(notes[1:])),
        "questions": questions(opened, names, seed, template),
        "curves": curves + page.curves_of("the probe on adapted", probe, "texts"),
        "classifier": page.read_classifier(str(probe)),
        "models": models,
        "measured": [*how, *page.protocol(models, base)],
    }
    return page.write_page(content, out)
