"""`eval.py compare`: several models under one protocol, on one page."""

from functools import partial
from pathlib import Path

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation import calls, measure
from nanomed.evaluation.generate import Sampling
from nanomed.evaluation.metrics import normalise
from nanomed.evaluation.page import (
    answers_of,
    begins,
    curves_of,
    machine,
    mark_best,
    moved,
    open_out,
    ppl_page_cell,
    read_classifier,
    windows,
    write_page,
)
from nanomed.evaluation.tables import change, interval_cell, ppl_cell, table, text_table
from nanomed.optional import need
from nanomed.systems.tasks.measure import for_page
from nanomed.text import special
from nanomed.text.corpus import Texts
from nanomed.text.rows import split_name
from nanomed.text.special import Written
from nanomed.text.templates import Template, of_model
from nanomed.text.tokenizer import load_tokenizer
from nanomed.training.curves import read_metrics

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


def make_page(args, prompts: list[str], template=None, expected: list[str | None] | None = None) -> Path:
    """`eval.py compare`: measure, print the table, then write report.html and report.json into args.out;
    expected: what the answer to each prompt should be, where that is known. Raises UserError for whatever
    cannot be measured, before anything is: for a model that is not there, or a prompt that does not fit one.
    """
    need("jinja2"), need("matplotlib")
    out = Path(args.out)
    open_out(out)
    columns = dict(_named(d) for d in args.data)
    if len(columns) < len(args.data):
        raise UserError("--data: two columns of the same name; NAME=D names them")
    names = short_names(args.models)
    classifier = read_classifier(args.classifier) if args.classifier else None
    tasks = for_page(args.tasks) if args.tasks else None
    sources = [hub.find(model) for model in args.models]
    places = [(s.adapter or s.directory).resolve() for s in sources]
    for k, model in enumerate(args.models):
        if places[k] in places[:k]:
            raise UserError(f"--models: {model} is there twice; give each model once")
        if (places[k] / "metrics.jsonl").exists():
            read_metrics(places[k])  # its curves are drawn in the end
    positions, templates = {}, []
    # what is wrong with the last should not wait until the others have been measured
    for model, source in zip(args.models, sources, strict=True):
        positions[model], own = check_model(model, source, prompts, template, args)
        templates.append(template or own)
    least = min(positions, key=positions.get)
    if (args.context or 0) > positions[least]:
        raise UserError(f"--context {args.context} is more than the {positions[least]} positions of {least}")
    context = args.context or min(1024, positions[least])
    stride = args.stride or max(1, context // 2)
    models, written, curves = [], {}, []
    for name, model, asked in zip(names, args.models, templates, strict=True):
        o = measure.open_asked(args, model, writes=True)
        print(f"{o}; {len(columns)} corpora in windows of {context}, stride {stride}; {len(prompts)} prompts")
        curves += curves_of(name, o.directory)
        # all are read, and so found fit to be, before anything is measured
        corpora, ppl = {}, {}
        for column, file in columns.items():
            corpora[column] = measure.encode(o, [file], args.text_field, args.limit, args.skip_bad_rows)
        rows = special.rows_of(corpus.special_tokens for corpus in corpora.values())
        special.say(special.report(o.tokenizer, rows + special.count(o.tokenizer, prompts)))
        for column, corpus in corpora.items():
            ppl[column] = measure.measure_ppl(o, corpus, context, stride, args.batch_size, args.seed)
        shared = calls.overlap_with_training(o, Texts([c.all() for c in corpora.values()], o.tokenizer))
        written[name] = samples(o, prompts, asked, args.max_new_tokens, args.seed)
        models.append({"name": name, "model": model, "ppl": ppl} | shared)
    if args.classifier and Path(args.classifier).is_dir():
        curves += curves_of(Path(args.classifier).name, Path(args.classifier), "texts")
    questions = []
    for k, (prompt, answer) in enumerate(zip(prompts, expected or [None] * len(prompts), strict=True)):
        answers = answers_of(k, written, partial(stands_in, answer))
        questions.append({"prompt": prompt, "expected": answer, "group": "", "answers": answers})
    rows = table({(m["name"], c): r for m in models for c, r in m["ppl"].items()})
    claim = claims(models) + claim_of_answers(questions)
    print("", text_table(rows), "", *claim, sep="\n")
    content = {
        "title": " → ".join(names),
        "claim": claim,
        "table": perplexity_table(models),
        "questions": questions,
        "curves": curves,
        "classifier": classifier,
        "tasks": tasks,
        "models": models,
        "columns": list(columns),
        "measured": how_measured(models, columns, o, args, any(templates)),
    }
    return write_page(content, out)


def check_model(
    model: str, source: hub.Source, prompts: list[str], template: Template | None, args
) -> tuple[int, Template | None]:
    """The positions of a model, and the template that it was instructed with. Raises UserError if a prompt,
    in `template` or its own, and the answer do not fit."""
    positions, own = (
        hub.read_config(source.directory)[1].n_positions,
        of_model(source.adapter, source.directory),
    )
    tokenizer = load_tokenizer(source.tokenizer_directory, source.directory, args.special_tokens)
    for prompt, text in zip(prompts, _asked(prompts, template or own), strict=True):
        if len(tokenizer.prompt(text)) + args.max_new_tokens > positions:
            raise UserError(
                f"{prompt[:60]!r} and {args.max_new_tokens} new tokens do not fit {model}'s {positions}"
                " positions; lower --max-new-tokens"
            )
    return positions, own


# --- questions ----------------------------------------------------------------------------------------------


def stands_in(expected: str | None, text: str) -> bool | None:
    """Whether the words of the expected answer stand in the text, one after the other; case, articles and
    punctuation aside. None if no answer is known."""
    return None if expected is None else f" {normalise(expected)} " in f" {normalise(text)} "


def samples(o: measure.Opened, prompts: list[str], template, max_new_tokens: int, seed: int, penalty=PENALTY):
    """[{prompt, completion, stopped}], what a model writes after each prompt: greedily, with a penalty on
    repetition."""
    markers, texts = template.ends if template else (), _asked(prompts, template)
    return measure.complete(
        o, texts, Sampling(repetition_penalty=penalty), markers, max_new_tokens, seed=seed
    )


def _asked(prompts: list[str], template: Template | None) -> list[str | Written]:
    return [template.ask(prompt) if template else prompt for prompt in prompts]


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


# --- the table ----------------------------------------------------------------------------------------------


def perplexity_table(models: list[dict]) -> dict:
    """The page's table of perplexities and bits per byte, a column a corpus. Where tokenizers differ, no
    perplexity is best."""
    first, columns = models[0], list(models[0]["ppl"])
    alike = {c: len({m["ppl"][c]["tokens_scored"] for m in models}) == 1 for c in columns}
    rows, values = [], []
    for m in models:
        cells = []
        for c, r in m["ppl"].items():
            notes = [change(r, first["ppl"][c])] if m is not first else []
            notes += [interval_cell(r["ppl_ci95"])] if r["ppl_ci95"] else []
            cells.append(ppl_page_cell(r["ppl"], r.get("vocab_size"), "\n".join(notes)))
        rows.append(
            [{"text": m["name"]}, *cells, *({"text": f"{r['bits_per_byte']:.3f}"} for r in m["ppl"].values())]
        )
        results = m["ppl"].items()
        values.append(
            [r["ppl"] if alike[c] else None for c, r in results] + [r["bits_per_byte"] for _, r in results]
        )
    n = len(columns)
    mark_best(rows, values, [True] * 2 * n)
    groups = [("", 1), ("perplexity", n), ("bits per byte", n)]
    return {"groups": groups, "head": ["model", *columns, *columns], "rows": rows, "text": TABLE}


# --- the rest -----------------------------------------------------------------------------------------------


def how_measured(
    models: list[dict], columns: dict[str, str], o: measure.Opened, args, templates: bool
) -> list[tuple[str, str]]:
    """Facts of the page's last section; o: one of the models, all being on one device."""
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
    for m in models:
        if m["overlap"]:
            facts.append((f"texts and what {m['name']} was trained on", calls.say_overlap(m["overlap"])))
    return [*facts, windows(first), begins(models), ("answers", answers), *machine(o)]


def _named(data: str) -> tuple[str, str]:
    name, file = split_name(data)
    if data.startswith("hub:"):
        name = name or data.removeprefix("hub:").split(":")[0].rsplit("/", 1)[-1]
    return name or Path(data).stem, file


def short_names(models: list[str]) -> list[str]:
    """The last part of each path, or all of it where that is not unique."""
    short = [Path(m).name or m for m in models]
    return [s if short.count(s) == 1 else m for s, m in zip(short, models, strict=True)]
