"""Several models, measured alike, and what a page says of them: claims, table and questions."""

from pathlib import Path

from nanomed import hub
from nanomed.errors import UserError, naming
from nanomed.evaluation import measure
from nanomed.evaluation.generate import Sampling, room
from nanomed.evaluation.metrics import normalise
from nanomed.evaluation.page import answers_of, mark_best, moved, ppl_page_cell, protocol
from nanomed.evaluation.perplexity import window_sizes
from nanomed.evaluation.prompts import Said, ask, shown
from nanomed.evaluation.tables import change, interval_cell, ppl_cell
from nanomed.evaluation.training_texts import overlap_with_training, say_overlap
from nanomed.text import special
from nanomed.text.corpus import texts_of
from nanomed.text.names import split_name
from nanomed.text.templates import choose, of_model
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


# --- measuring ----------------------------------------------------------------------------------------------


def check_models(args, prompts: list[Said]) -> tuple[list, int, int]:
    """(each model's template, context, stride). What is wrong with the last model should not wait until the
    others have been measured: so here, before any is opened, a prompt must fit all, and so must the context.
    """
    sources = [hub.find(model) for model in args.models]
    places, configs, templates = [s.home.resolve() for s in sources], {}, []
    if again := [model for k, model in enumerate(args.models) if places[k] in places[:k]]:
        raise UserError(f"--models: {again[0]} is there twice; give each model once")
    for model, source in zip(args.models, sources, strict=True):
        if hub.is_classifier(source):
            raise UserError(f"--models: {model} is a classifier, which has no words; --classifier shows one")
        if (source.home / "metrics.jsonl").exists():
            read_metrics(source.home)  # its curves are drawn in the end
        configs[model] = hub.read_config(source.directory)[1]
        own = choose(args.template, *source.places)[0] if args.template else of_model(*source.places)
        templates.append(own)
        tokenizer = load_tokenizer(source.tokenizer_directory, source.directory, args.special_tokens)
        for prompt in prompts:
            with naming(f"{model}: {shown(prompt)[:60]!r}"):
                room(configs[model], ask(tokenizer, prompt, own).ids, args.max_new_tokens)
    least = min(configs, key=lambda model: configs[model].n_positions)
    with naming(least):
        return templates, *window_sizes(configs[least], args.context, args.stride)


def measure_columns(o, columns: dict[str, str], prompts: list[Said], context: int, stride: int, args) -> dict:
    """{"ppl": {column: result of measure_ppl}}, and how far the texts overlap with those that the model was
    trained on. All texts are read, and so found to be fit, before any is measured."""
    how = (args.text_field, args.limit, args.skip_bad_rows)
    corpora = {column: measure.encode(o, [file], *how) for column, file in columns.items()}
    reports = (corpus.special_tokens for corpus in corpora.values())
    special.say(special.report(o.tokenizer, map(shown, prompts), reports))
    how = (context, stride, args.batch_size, args.seed)
    ppl = {column: measure.measure_ppl(o, corpus, *how) for column, corpus in corpora.items()}
    texts = texts_of([corpus.all() for corpus in corpora.values()], o.tokenizer)
    return {"ppl": ppl} | overlap_with_training(o, texts)


# --- questions ----------------------------------------------------------------------------------------------


def samples(o, prompts: list[Said], template, max_new_tokens: int, seed: int, penalty=PENALTY):
    """[{prompt, completion, stopped}], what a model writes after each prompt: greedily, with a penalty on
    repetition."""
    sampling, markers = Sampling(repetition_penalty=penalty), template.ends if template else ()
    asked = [ask(o.tokenizer, prompt, template) for prompt in prompts]
    return measure.complete(o, asked, sampling, markers, max_new_tokens, seed=seed)


def questions(prompts: list[Said], expected: list[str | None] | None, written: dict[str, list[dict]]):
    """Of the page, each prompt with every model's answer; written: {model's name: its samples()}."""
    out = []
    for k, (prompt, answer) in enumerate(zip(prompts, expected or [None] * len(prompts), strict=True)):
        answers = answers_of(k, written, lambda text, answer=answer: stands_in(answer, text))
        out.append({"prompt": shown(prompt), "expected": answer, "group": "", "answers": answers})
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
    out = []
    for m in others:
        figures = [f"{column} {moved(first['ppl'][column], r)}" for column, r in m["ppl"].items()]
        out.append(f"{m['name']}: {', '.join(figures)}.")
    return out


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
    for column, r in first.items():
        size = f"{r['documents']:,} documents, {r['bytes']:,} bytes"
        facts.append((f"text “{column}”", f"{columns[column]}: {size}"))
    asked = f", each put into the template “{args.template}”" if args.template else ""
    if templates and not args.template:
        asked = ", put into the template that a model was instructed with, if it was"
    answers = (
        f"the likeliest continuation of each prompt{asked}, with a penalty of {PENALTY} on repetition, up to "
        f"{args.max_new_tokens} tokens; right if the expected words stand in it"
    )
    for m in models:
        if m["overlap"]:
            facts.append((f"texts and what {m['name']} was trained on", say_overlap(m["overlap"])))
    return [*facts, ("answers", answers), *protocol(models, o)]
