"""eval.py compare: several models under one protocol, or several trainings, on one page."""

import textwrap
from pathlib import Path

from nanomed import flags
from nanomed.errors import UserError

HELP = "several models under one protocol, or several trainings, on one page: report.html"
RUNS_HELP = (
    "in place of models, directories of trainings, finished or not: in what they differ (settings, texts,"
    " versions, machine), their results beside each other, their curves over one another; without --out on"
    " the terminal alone"
)
# What --runs does without: nothing is measured.
OF_MODELS = "data classifier tasks benchmarks prompts template context stride limit".split()


# fmt: off
def add_flags(p) -> None:
    either = p.add_mutually_exclusive_group(required=True)
    flags.add_files_flag(either, "--models", flags.MODEL_HELP, metavar="M")
    flags.add_files_flag(either, "--runs", RUNS_HELP, metavar="DIR")
    columns = "documents, each D a column of perplexities (NAME=D names it): "
    flags.add_files_flag(p, "--data", columns + flags.DATA_HELP)
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
    p.add_argument("--out", metavar="DIR", help="where report.html and report.json go")
    flags.add_window_flags(p)
    flags.add_data_flags(p)
# fmt: on


def main(args) -> None:
    """Measure, print the table, then write report.html and report.json into --out. Raises UserError for
    whatever cannot be measured, before anything is: a model that is not there, a prompt that does not fit
    one."""
    if args.runs:
        return lay_side_by_side(args)
    if not args.data or not args.out:
        raise UserError("compare --models needs --data, what to measure on, and --out, where the page goes")
    from nanomed.evaluation import compare, measure, page, suite
    from nanomed.evaluation.prompts import read_prompts
    from nanomed.evaluation.tables import table, text_table
    from nanomed.optional import need
    from nanomed.systems.tasks import measure as of_tasks

    need("matplotlib")
    prompts, expected = compare.PROMPTS, None
    if args.prompts:
        prompts, expected = read_prompts(args.prompts, None, args.skip_bad_rows)
    page.open_out(Path(args.out))
    columns, names = compare.columns_of(args.data), compare.short_names(args.models)
    classifier = page.read_classifier(args.classifier) if args.classifier else None
    tasks = of_tasks.for_page(args.tasks) if args.tasks else None
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


def lay_side_by_side(args) -> None:
    """Of --runs: print what they differ in, their results and their curves; with --out as a page too. Raises
    UserError for what is no run, and for flags that are about measuring."""
    if given := [name for name in OF_MODELS if getattr(args, name) is not None]:
        flag = "--" + given[0].replace("_", "-")
        raise UserError(f"{flag} is for compare --models; --runs measures nothing, leave it out")
    from nanomed.evaluation import compare, page, runs
    from nanomed.evaluation.tables import text_table

    if args.out:
        page.open_out(Path(args.out))
    names = compare.short_names(args.runs)
    found = runs.read(args.runs, names)
    differ, results, claim = runs.differences(found), runs.results(found), runs.claims(found)
    shown = [differ] * bool(differ[2:]) + [page.as_text(results)]
    shown += map(runs.curve_table, runs.of_phases(found))
    print(*map(text_table, shown), *(textwrap.fill(line, 80) for line in claim), sep="\n\n")
    if not args.out:
        return
    content = {
        "title": " beside ".join(names),
        "claim": claim,
        "table": results,
        "questions": [],
        "curves": runs.pictures(found),
        "differences": {"head": differ[0], "rows": differ[2:]},
        "measured": [(run.name, run.record.command) for run in found],
    }
    print(f"\nresults in {page.write_page(content, Path(args.out))}")
