"""eval.py compare: several models under one protocol, on one page."""

from pathlib import Path

from nanomed import flags
from nanomed.cli import Several

HELP = "several models under one protocol, on one page: report.html"


# fmt: off
def add_flags(p) -> None:
    p.add_argument("--models", required=True, nargs="+", action=Several, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(p, "documents, each D a column of perplexities (NAME=D names it): " + flags.DATA_HELP)
    p.add_argument("--classifier", metavar="DIR",
                   help="directory of the third phase, measured on its validation texts")
    p.add_argument("--tasks", nargs="+", metavar="FILE",
                   help="what eval.py tasks --json wrote, of one or several models")
    p.add_argument("--benchmarks", nargs="+", metavar="FILE",
                   help="what eval.py benchmarks --json wrote, of one or several models")
    p.add_argument("--prompts", metavar="FILE",
                   help=f"{flags.PROMPTS_HELP}; right answers are marked, where rows hold one (default: six)")
    p.add_argument("--template", metavar="NAME", help=flags.OWN_TEMPLATE_HELP)
    p.add_argument("--max-new-tokens", type=flags.count, default=80, metavar="N", help="tokens a completion")
    p.add_argument("--out", required=True, metavar="DIR", help="where report.html and report.json go")
    flags.add_window_flags(p)
    flags.add_data_flags(p)
# fmt: on


def main(args, read_tasks) -> None:
    """Measure, print the table, then write report.html and report.json into --out. read_tasks(files): what
    the page shows of eval.py tasks' results. Raises UserError for whatever cannot be measured, before
    anything is: a model that is not there, a prompt that does not fit one."""
    from nanomed.evaluation import compare, measure, page, suite
    from nanomed.evaluation.prompts import read_prompts
    from nanomed.evaluation.tables import table, text_table
    from nanomed.optional import need

    need("matplotlib")
    prompts, expected = compare.PROMPTS, None
    if args.prompts:
        prompts, expected = read_prompts(args.prompts, None, args.skip_bad_rows)
    page.open_out(Path(args.out))
    columns, names = compare.columns_of(args.data), compare.short_names(args.models)
    classifier = page.read_classifier(args.classifier) if args.classifier else None
    tasks = read_tasks(args.tasks) if args.tasks else None
    benchmarks = suite.for_page(args.benchmarks) if args.benchmarks else None
    templates, context, stride = compare.check_models(args, prompts)
    models, written, curves = [], {}, []
    for name, model, asked in zip(names, args.models, templates, strict=True):
        o = measure.open_asked(args, model, writes=True)
        print(f"{o}; {len(columns)} corpora in windows of {context}, stride {stride}; {len(prompts)} prompts")
        curves += page.curves_of(name, o.directory)
        measured = compare.measure_columns(o, columns, prompts, context, stride, args)
        written[name] = compare.samples(o, prompts, asked, args.max_new_tokens, args.seed)
        models.append({"name": name, "model": model} | measured)
    if args.classifier and Path(args.classifier).is_dir():
        curves += page.curves_of(Path(args.classifier).name, Path(args.classifier), "texts")
    questions = compare.questions(prompts, expected, written)
    claim = compare.claims(models) + compare.claim_of_answers(questions)
    rows = table({(m["name"], column): r for m in models for column, r in m["ppl"].items()})
    print("", text_table(rows), "", *claim, sep="\n")
    content = {
        "title": " → ".join(names),
        "claim": claim,
        "table": compare.perplexity_table(models),
        "questions": questions,
        "curves": curves,
        "classifier": classifier,
        "tasks": tasks,
        "benchmarks": benchmarks,
        "models": models,
        "columns": list(columns),
        "measured": compare.how_measured(models, columns, o, args, any(templates)),
    }
    print(f"results in {page.write_page(content, Path(args.out))}")
