"""Several models under one protocol, on one page. report.html is one file that needs nothing else; report.json holds its figures.

What write_page() makes a page of, from eval.py compare or from the demo, is a dict:

    title      what the page is about
    claim      sentences made from the figures, the finding first
    table      {"groups": [(heading, columns it spans)], "head": [heading], "rows": [[cell]], "text": how to read it};
               a cell is {"text"} and perhaps "note" (beneath it), "best" (of its column) and "bad" (a warning, beneath it)
    questions  [{"prompt", "expected", "group", "answers": [{"model", "text", "stopped", "right"}]}]; expected and right are None
               where no answer is known, group names the heading that a question stands under, or is ""
    curves     [{"name", "light", "dark"}], pictures as data: addresses
    classifier what read_classifier() gives, or None
    models     [{"name", "model", "ppl": {column: result of measure_ppl}}], for report.json
    measured   [(what, how)], of how all this was measured
"""

import base64
import time
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

from nanomed import hub, measure, report
from nanomed.errors import UserError
from nanomed.files import read_json, read_object, write_json, write_text
from nanomed.generate import Sampling
from nanomed.metrics import need, normalise
from nanomed.rows import split_name
from nanomed.templates import Template, of_model
from nanomed.tokenizer import load_tokenizer

# The topics whose samples the gpt2-lora-medical-terms recipe shows, and a question beside them.
PROMPTS = [
    "Paracetamol poisoning",
    "Congenital adrenal hyperplasia",
    "Anthrax",
    "Cachexia",
    "Botulism",
    "What is Cox proportional hazards regression?",
]
TITLE = "<title>nanomed: "  # of every page, so that one of another program is never replaced
PENALTY = 1.2  # on repetition, which small models need
TABLE = (
    "Perplexity: how surprised a model is by each text; lower is better. Beneath it the change against the first row, and in "
    "brackets a 95 % bootstrap interval over documents. Bits per byte compare models with different tokenizers."
)


def make_page(args, prompts: list[str], template=None, expected: list[str | None] | None = None) -> Path:
    """`eval.py compare`: measure, print the table, then write report.html and report.json into args.out; expected: what
    the answer to each prompt should be, where that is known. Raises UserError for whatever cannot be measured, before
    anything is: for a model that is not there, or a prompt that does not fit one."""
    need("jinja2"), need("matplotlib")
    out = open_out(Path(args.out))
    columns = dict(_named(d) for d in args.data)
    if len(columns) < len(args.data):
        raise UserError("--data: two columns of the same name; NAME=D names them")
    names = short_names(args.models)
    classifier = read_classifier(args.classifier) if args.classifier else None
    sources = [hub.find(model) for model in args.models]
    places = [(s.adapter or s.directory).resolve() for s in sources]
    for k, model in enumerate(args.models):
        if places[k] in places[:k]:
            raise UserError(f"--models: {model} is there twice; give each model once")
    positions, templates = {}, []
    # what is wrong with the last should not wait until the others have been measured
    for model, source in zip(args.models, sources, strict=True):
        positions[model], own = check_model(model, source, prompts, template, args.max_new_tokens)
        templates.append(template or own)
    least = min(positions, key=positions.get)
    if (args.context or 0) > positions[least]:
        raise UserError(f"--context {args.context} is more than the {positions[least]} positions of {least}")
    context = args.context or min(1024, positions[least])
    stride = args.stride or max(1, context // 2)
    models, written, curves = [], {}, []
    for name, model, asked in zip(names, args.models, templates, strict=True):
        o = measure.open_model(model, args.device, args.dtype)
        print(f"{o}; {len(columns)} corpora in windows of {context}, stride {stride}; {len(prompts)} prompts")
        curves += curves_of(name, o.directory)
        # all are read, and so found fit to be, before anything is measured
        corpora, ppl = {}, {}
        for column, file in columns.items():
            corpora[column] = measure.encode(o, [file], args.text_field, args.limit, args.skip_bad_rows)
        for column, corpus in corpora.items():
            ppl[column] = measure.measure_ppl(o, corpus, context, stride, args.batch_size, args.seed)
        written[name] = samples(o, prompts, asked, args.max_new_tokens, args.seed)
        models.append({"name": name, "model": model, "ppl": ppl})
    if args.classifier and Path(args.classifier).is_dir():
        curves += curves_of(Path(args.classifier).name, Path(args.classifier), "texts")
    questions = []
    for k, (prompt, answer) in enumerate(zip(prompts, expected or [None] * len(prompts), strict=True)):
        answers = answers_of(k, written, partial(stands_in, answer))
        questions.append({"prompt": prompt, "expected": answer, "group": "", "answers": answers})
    rows = report.table({(m["name"], c): r for m in models for c, r in m["ppl"].items()})
    claim = claims(models) + claim_of_answers(questions)
    print("", report.text_table(rows), "", *claim, sep="\n")
    content = {
        "title": " → ".join(names),
        "claim": claim,
        "table": perplexity_table(models),
        "questions": questions,
        "curves": curves,
        "classifier": classifier,
        "models": models,
        "columns": list(columns),
        "measured": how_measured(models, columns, o, args, any(templates)),
    }
    return write_page(content, out)


def open_out(out: Path) -> Path:
    """Make the directory of a page. Raises UserError if there is a page that nanomed did not make."""
    html, figures = out / "report.html", out / "report.json"
    foreign = html.exists() and not (html.is_file() and TITLE in html.read_text(encoding="utf-8", errors="replace"))
    if figures.exists():
        held = read_json(figures) if figures.is_file() else None
        foreign = foreign or not (isinstance(held, dict) and "torch" in held and "made" in held)
    if foreign:
        raise UserError(f"--out {out}: holds a report.html or report.json of something else; choose another directory")
    out.mkdir(parents=True, exist_ok=True)
    return out


def check_model(
    model: str, source: hub.Source, prompts: list[str], template: Template | None, max_new_tokens: int
) -> tuple[int, Template | None]:
    """The positions of a model, and the template that it was instructed with. Raises UserError if a prompt, in `template` or
    its own, and the answer do not fit."""
    positions, own = hub.read_config(source.directory)[1].n_positions, of_model(source.adapter, source.directory)
    tokenizer = load_tokenizer(source.tokenizer_directory)
    for prompt, text in zip(prompts, _asked(prompts, template or own), strict=True):
        if len(tokenizer.encode(text)) + max_new_tokens > positions:
            raise UserError(
                f"{prompt[:60]!r} and {max_new_tokens} new tokens do not fit {model}'s {positions} positions; "
                "lower --max-new-tokens"
            )
    return positions, own


# --- questions --------------------------------------------------------------------------------------------------------


def stands_in(expected: str | None, text: str) -> bool | None:
    """Whether the words of the expected answer stand in the text, one after the other; case, articles and punctuation
    aside. None if no answer is known."""
    return None if expected is None else f" {normalise(expected)} " in f" {normalise(text)} "


def samples(o: measure.Opened, prompts: list[str], template, max_new_tokens: int, seed: int, penalty=PENALTY):
    """[{prompt, completion, stopped}], what a model writes after each prompt: greedily, with a penalty on repetition."""
    markers, texts = template.markers if template else (), _asked(prompts, template)
    return measure.complete(o, texts, Sampling(repetition_penalty=penalty), markers, max_new_tokens, seed=seed)


def _asked(prompts: list[str], template: Template | None) -> list[str]:
    return [template.ask(prompt) if template else prompt for prompt in prompts]


def answers_of(k: int, written: dict[str, list[dict]], is_right) -> list[dict]:
    """What each model wrote after the k-th prompt, for the page; written: {model's name: [{completion, stopped}]}."""
    found = [(name, done[k]["completion"].strip(), done[k]["stopped"]) for name, done in written.items()]
    return [{"model": name, "text": text, "stopped": stopped, "right": is_right(text)} for name, text, stopped in found]


# --- what the figures say ---------------------------------------------------------------------------------------------


def short(ppl: float) -> str:
    return f"{ppl:.2f}" if ppl < 10 else f"{ppl:.1f}" if ppl < 100 else f"{ppl:,.0f}"


def moved(first: dict, r: dict) -> str:
    """From one result of measure_ppl to another on the same texts: `perplexity 31.9 → 16.8 (-47 %, intervals apart)`."""
    if r["tokens_scored"] != first["tokens_scored"]:  # perplexities of other tokens cannot be compared
        before, after = first["bits_per_byte"], r["bits_per_byte"]
        return f"bits a byte {before:.3f} → {after:.3f} ({100 * (after / before - 1):+.0f} %, another tokenizer)"
    said = [f"{100 * (r['ppl'] / first['ppl'] - 1):+,.0f} %"]
    if first["ppl_ci95"] and r["ppl_ci95"]:
        (a, b), (c, d) = first["ppl_ci95"], r["ppl_ci95"]
        said.append("intervals apart" if b < c or d < a else "intervals overlap")
    if report.worse_than_guessing(r["ppl"], r.get("vocab_size")):
        said.append(report.WORSE)
    return f"perplexity {short(first['ppl'])} → {short(r['ppl'])} ({', '.join(said)})"


def claims(models: list[dict]) -> list[str]:
    """A sentence for each model after the first: how its perplexities differ from the first's."""
    first, *others = models
    if not others:
        figures = [f"{c} {report.ppl_cell(r['ppl'], r.get('vocab_size'))}" for c, r in first["ppl"].items()]
        return [f"{first['name']}: perplexity on {', on '.join(figures)}."]
    return [f"{m['name']}: " + ", ".join(f"{c} {moved(first['ppl'][c], r)}" for c, r in m["ppl"].items()) + "." for m in others]


def claim_of_answers(questions: list[dict]) -> list[str]:
    """How many questions with a known answer each model answered right; nothing if there are none."""
    known = [q["answers"] for q in questions if q["expected"] is not None]
    if not known:
        return []
    counts = [f"{a[0]['model']} {sum(x['right'] for x in a)}" for a in zip(*known, strict=True)]
    return [f"Right answers to the {len(known)} questions below whose answer is known: {', '.join(counts)}."]


# --- the table --------------------------------------------------------------------------------------------------------


def mark_best(rows: list[list[dict]], values: list[list[float | None]], lowest: list[bool]) -> None:
    """Mark the best cells of each column but the first; values: the figures of those columns, row by row. Cells that read
    the same are equally good, and where all do, none is best."""
    for k, low in enumerate(lowest):
        column = [(v[k], row[k + 1]) for v, row in zip(values, rows, strict=True) if v[k] is not None]
        if len({cell["text"] for _, cell in column}) < 2:
            continue
        best = (min if low else max)(column, key=lambda pair: pair[0])[1]["text"]
        for _, cell in column:
            cell["best"] = cell["text"] == best


def ppl_page_cell(ppl: float, vocab_size: int | None, note: str = "") -> dict:
    bad = report.WORSE if report.worse_than_guessing(ppl, vocab_size) else ""
    return {"text": report.ppl_cell(ppl), "note": note, "bad": bad}


def perplexity_table(models: list[dict]) -> dict:
    """The page's table of perplexities and bits per byte, a column a corpus. Where tokenizers differ, no perplexity is best."""
    first, columns = models[0], list(models[0]["ppl"])
    alike = {c: len({m["ppl"][c]["tokens_scored"] for m in models}) == 1 for c in columns}
    rows, values = [], []
    for m in models:
        cells = []
        for c, r in m["ppl"].items():
            notes = [report.change(r, first["ppl"][c])] if m is not first else []
            notes += [report.interval_cell(r["ppl_ci95"])] if r["ppl_ci95"] else []
            cells.append(ppl_page_cell(r["ppl"], r.get("vocab_size"), "\n".join(notes)))
        rows.append([{"text": m["name"]}, *cells, *({"text": f"{r['bits_per_byte']:.3f}"} for r in m["ppl"].values())])
        results = m["ppl"].items()
        values.append([r["ppl"] if alike[c] else None for c, r in results] + [r["bits_per_byte"] for _, r in results])
    n = len(columns)
    mark_best(rows, values, [True] * 2 * n)
    groups = [("", 1), ("perplexity", n), ("bits per byte", n)]
    return {"groups": groups, "head": ["model", *columns, *columns], "rows": rows, "text": TABLE}


# --- the rest ---------------------------------------------------------------------------------------------------------


def how_measured(models: list[dict], columns: dict[str, str], o: measure.Opened, args, templates: bool) -> list[tuple[str, str]]:
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
    return [*facts, windows(first), ("answers", answers), *machine(o)]


def windows(ppl: dict[str, dict]) -> tuple[str, str]:
    """How every text was cut for every model; ppl: one model's results."""
    r = next(iter(ppl.values()))
    return "windows", f"{r['context']} tokens, stride {r['stride']}, the same for every model and text"


def machine(o: measure.Opened) -> list[tuple[str, str]]:
    return [("computed", f"{o.device}, {o.dtype}, torch {version('torch').split('+')[0]}")]


def _named(data: str) -> tuple[str, str]:
    name, file = split_name(data)
    if data.startswith("hub:"):
        name = name or data.removeprefix("hub:").split(":")[0].rsplit("/", 1)[-1]
    return name or Path(data).stem, file


def short_names(models: list[str]) -> list[str]:
    """The last part of each path, or all of it where that is not unique."""
    short = [Path(m).name or m for m in models]
    return [s if short.count(s) == 1 else m for s, m in zip(short, models, strict=True)]


def read_classifier(name: str) -> dict:
    """{labels, multi_label, measures, on}: what summary.json in train_cls.py's directory says of the validation texts, or
    what `eval.py cls --json` wrote of others."""
    path = Path(name)
    found = read_object(path / "summary.json" if path.is_dir() else path)
    try:
        measures, labels = found.get("classification") or found["measures"], found["labels"]
        multi_label = not isinstance(measures["model"]["confusion"][0][0], int)
    except (KeyError, TypeError, IndexError) as e:
        raise UserError(
            f"{path}: no measures of a classifier there (train_cls.py with validation texts, eval.py cls --json)"
        ) from e
    on = "its validation texts" if path.is_dir() else "test texts"
    return {"labels": labels, "multi_label": multi_label, "measures": measures, "on": on, "name": path.name}


def curves_of(name: str, directory: Path, unit: str = "tokens") -> list[dict]:
    """The curves of the run that made a directory, drawn for a light and a dark page; none for a model from elsewhere."""
    if not (directory / "metrics.jsonl").exists():
        return []
    images = {}
    for theme, ink in (("light", "#1c2733"), ("dark", "#dfe7ee")):
        image = report.draw_curves(directory, "svg", ink, unit, title="")
        images[theme] = "data:image/svg+xml;base64," + base64.b64encode(image).decode()
    return [{"name": name, **images}]


def write_page(content: dict, out: Path) -> Path:
    """Write report.json and report.html from the dict that is described above."""
    jinja2 = need("jinja2")
    content = content | {"made": time.strftime("%Y-%m-%d"), "torch": version("torch").split("+")[0]}
    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = env.from_string((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    starts = set(accumulate(span for _, span in content["table"]["groups"]))  # columns where a group begins
    html = page.render(**content, starts=starts)
    write_json({k: v for k, v in content.items() if k != "curves"}, out / "report.json")
    write_text(html, out / "report.html")
    return out / "report.html"
