"""What a page says of several models that were measured alike: its claims, its table of perplexities, its
questions."""

from pathlib import Path

from nanomed.errors import UserError
from nanomed.evaluation import measure
from nanomed.evaluation.generate import Sampling
from nanomed.evaluation.metrics import normalise
from nanomed.evaluation.page import answers_of, mark_best, moved, ppl_page_cell, protocol
from nanomed.evaluation.tables import change, interval_cell, ppl_cell
from nanomed.evaluation.training_texts import say_overlap
from nanomed.text.rows import split_name
from nanomed.text.special import Written
from nanomed.text.templates import Template

# The topics whose samples the gpt2-lora-medical-terms recipe shows, and a question beside them.
PROMPTS = [
    "Paracetamol poisoning",
    "Congenital adrenal hyperplasia",
    "Anthrax",
    "Cachexia",
    "Botulism",
    "What is Cox proportional hazards regression?",
]
PENALTY = 1.2  # on repetition, which small models need
TABLE = (
    "Perplexity: how surprised a model is by each text; lower is better. Beneath it the change against the"
    " first row, and in brackets a 95 % bootstrap interval over documents. Bits per byte compare models with"
    " different tokenizers."
)


def columns_of(data: list[str]) -> dict[str, str]:
    """{column: file} of [NAME=]FILE. Raises UserError if two columns have one name."""
    columns = dict(_named(d) for d in data)
    if len(columns) < len(data):
        raise UserError("--data: two columns of the same name; NAME=D names them")
    return columns


def _named(data: str) -> tuple[str, str]:
    name, file = split_name(data)
    if data.startswith("hub:"):
        name = name or data.removeprefix("hub:").split(":")[0].rsplit("/", 1)[-1]
    return name or Path(data).stem, file


def short_names(models: list[str]) -> list[str]:
    """The last part of each path, or all of it where that is not unique."""
    short = [Path(m).name or m for m in models]
    return [s if short.count(s) == 1 else m for s, m in zip(short, models, strict=True)]


# --- questions ----------------------------------------------------------------------------------------------


def asked(prompts: list[str], template: Template | None) -> list[str | Written]:
    return [template.ask(prompt) if template else prompt for prompt in prompts]


def samples(o: measure.Opened, prompts: list[str], template, max_new_tokens: int, seed: int, penalty=PENALTY):
    """[{prompt, completion, stopped}], what a model writes after each prompt: greedily, with a penalty on
    repetition."""
    sampling, markers = Sampling(repetition_penalty=penalty), template.ends if template else ()
    return measure.complete(o, asked(prompts, template), sampling, markers, max_new_tokens, seed=seed)


def questions(prompts: list[str], expected: list[str | None] | None, written: dict[str, list[dict]]):
    """Of the page, each prompt with every model's answer; written: {model's name: its samples()}."""
    out = []
    for k, (prompt, answer) in enumerate(zip(prompts, expected or [None] * len(prompts), strict=True)):
        answers = answers_of(k, written, lambda text, answer=answer: stands_in(answer, text))
        out.append({"prompt": prompt, "expected": answer, "group": "", "answers": answers})
    return out


def stands_in(expected: str | None, text: str) -> bool | None:
    """Whether the words of the expected answer stand in the text, one after the other; case, articles and
    punctuation aside. None if no answer is known."""
    return None if expected is None else f" {normalise(expected)} " in f" {normalise(text)} "


# --- what the figures say -----------------------------------------------------------------------------------


def claims(models: list[dict]) -> list[str]:
    """A sentence for each model after the first: how its perplexities differ from the first's."""
    first, *others = models
    if not others:
        figures = [f"{c} {ppl_cell(r['ppl'], r.get('vocab_size'))}" for c, r in first["ppl"].items()]
        return [f"{first['name']}: perplexity on {', on '.join(figures)}."]
    return [
        f"{m['name']}: " + ", ".join(f"{c} {moved(first['ppl'][c], r)}" for c, r in m["ppl"].items()) + "."
        for m in others
    ]


def claim_of_answers(questions: list[dict]) -> list[str]:
    """How many questions with a known answer each model answered right; nothing if there are none."""
    known = [q["answers"] for q in questions if q["expected"] is not None]
    if not known:
        return []
    counts = [f"{a[0]['model']} {sum(x['right'] for x in a)}" for a in zip(*known, strict=True)]
    return [f"Right answers to the {len(known)} questions below whose answer is known: {', '.join(counts)}."]


def perplexity_table(models: list[dict]) -> dict:
    """The page's table of perplexities and bits per byte, a column a corpus. Where tokenizers differ, no
    perplexity is best."""
    first, columns = models[0]["ppl"], list(models[0]["ppl"])
    alike = {c: len({m["ppl"][c]["tokens_scored"] for m in models}) == 1 for c in columns}
    rows, values = [], []
    for m in models:
        cells, results = [], list(m["ppl"].items())
        for c, r in results:
            notes = [change(r, first[c])] if m is not models[0] else []
            notes += [interval_cell(r["ppl_ci95"])] if r["ppl_ci95"] else []
            cells.append(ppl_page_cell(r["ppl"], r.get("vocab_size"), "\n".join(notes)))
        bits = [r["bits_per_byte"] for _, r in results]
        rows.append([{"text": m["name"]}, *cells, *({"text": f"{b:.3f}"} for b in bits)])
        values.append([r["ppl"] if alike[c] else None for c, r in results] + bits)
    n = len(columns)
    mark_best(rows, values, [True] * 2 * n)
    groups = [("", 1), ("perplexity", n), ("bits per byte", n)]
    return {"groups": groups, "head": ["model", *columns, *columns], "rows": rows, "text": TABLE}


def how_measured(models: list[dict], columns: dict[str, str], o: measure.Opened, args, templates: bool):
    """[(what, how)] of the page's last section; o: one of the models, all being on one device."""
    first = models[0]["ppl"]
    facts = [(m["name"], m["model"]) for m in models if m["name"] != m["model"]]
    for column, file in columns.items():
        r = first[column]
        facts.append((f"text “{column}”", f"{file}: {r['documents']:,} documents, {r['bytes']:,} bytes"))
    asked = f", each put into the template “{args.template}”" if args.template else ""
    if templates and not args.template:
        asked = ", put into the template that a model was instructed with, if it was"
    answers = (
        f"the likeliest continuation of each prompt{asked}, with a penalty of {PENALTY} on repetition, up to "
        f"{args.max_new_tokens} tokens; right if the expected words stand in it"
    )
    facts += [
        (f"texts and what {m['name']} was trained on", say_overlap(m["overlap"]))
        for m in models
        if m["overlap"]
    ]
    return [*facts, ("answers", answers), *protocol(models, o)]
