"""The demo's page: its finding in sentences, its table, and questions on each group of conditions."""

import random
from pathlib import Path

from nanomed.demo import render
from nanomed.demo.table import COLUMNS, NAMES
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
    more = f"before, {percent(before)}" if after > before else f"no more than before, {percent(before)}"
    first = (
        f"After reading and instruction, the model answers {only}{percent(after)} of the questions about"
        f" conditions it only read about ({more}), and general English surprises it"
        f" {both['general_ppl'] / base['general_ppl']:.1f} times as much."
    )
    second = (
        f"With instruction alone it answers {percent(alone['em_read'])} of them; about conditions that it"
        f" never met, {percent(both['em_unknown'])} after both."
    )
    prices = [
        f"{COLUMNS[key][1]} {page.short(base[key])}{_moved(base[key], adapted[key], vocab_size)}"
        f"{_moved(base[key], both[key], vocab_size)}"
        for key in ("abstracts_ppl", "general_ppl")
    ]
    return [first, second, f"Perplexity before, after reading, and after both: {', '.join(prices)}."]


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
    return {
        "groups": [("", 1), *((group, headings.count(group)) for group in dict.fromkeys(headings))],
        "head": ["model", *(head for _, head, _, _ in COLUMNS.values())],
        "rows": cells,
        "text": text,
    }


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
    out = [
        {
            "prompt": fact.asked(),
            "expected": fact.value,
            "group": group,
            "answers": page.answers_of(k, facts, fact.matches),
        }
        for k, (group, fact) in enumerate(asked)
    ]
    return out + [
        {
            "prompt": prompt,
            "expected": None,
            "group": "About anything else, with a penalty on repetition",
            "answers": page.answers_of(k, others, lambda text: None),
        }
        for k, prompt in enumerate(compare.PROMPTS)
    ]


def write(out: Path, rows: list[dict], opened: dict, seed: int, explanation: str, template: str) -> Path:
    """report.html and report.json of one seed; rows: those of demo.json, with `_ppl`, what was measured;
    opened: {name: measure.Opened}."""
    names = {key: full for key, (full, _) in NAMES.items()}
    base = opened["base"]
    vocab_size = base.model.config.vocab_size
    curves = [
        c for name, o in opened.items() if name != "base" for c in page.curves_of(names[name], o.directory)
    ]
    probe = out / "probe_adapted"
    models = [
        {"name": names[row["name"]], "model": opened[row["name"]].name, "ppl": row["_ppl"]} for row in rows
    ]
    content = {
        "title": "nanomed's demo: read, then answer",
        "claim": claims(rows, vocab_size),
        "table": table(rows, names, vocab_size, explanation.replace("*", "")),
        "questions": questions(opened, names, seed, template),
        "curves": curves + page.curves_of("the probe on adapted", probe, "texts"),
        "classifier": page.read_classifier(str(probe)),
        "models": models,
        "measured": [
            ("base", base.name),
            ("seed", str(seed)),
            (
                "answers",
                (
                    f"the likeliest continuation of each question, put into the template “{template}”; right"
                    " if the value that the condition has stands in the sentence"
                ),
            ),
            page.windows(rows[0]["_ppl"]),
            page.begins(models),
            *page.machine(base),
        ],
    }
    return page.write_page(content, out)
