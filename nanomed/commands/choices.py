"""eval.py choices: which of given answers a model finds likeliest."""

from nanomed import flags
from nanomed.commands import retrieval
from nanomed.errors import UserError

FORMATS = ("rows", "pubmedqa", "pubmedqa-closed", "medqa", "medmcqa", "mmlu", "headqa")
HELP = "accuracy of the likeliest of given answers; PubMedQA, MedQA, MedMCQA, MMLU, HEAD-QA"
DATA_HELP = (
    "rows {prompt, choices, answer} (a choice stands as it is after the prompt; answer: its number, from 0,"
    " or its text), or those of a benchmark (--format); --limit N: N questions of each D, drawn by --seed: "
)
FORMAT_HELP = (
    "a benchmark's rows, as its authors or the Hub publish them, asked as lm-eval 0.4.13 asks;"
    " pubmedqa-closed: without the abstract"
)
COP_HELP = (
    "what MedMCQA's `cop` calls the first option: 0 on the Hub, 1 in the authors' release; asked for where a"
    " file has neither a 0 nor a 4, which shows it"
)
SHOTS_HELP = (
    "put N questions of --shots-from, with their answers, before each question, as lm-eval does: of MMLU the"
    " first of the subject, else drawn for each question by lm-eval's seed"
)


# fmt: off
def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_files_flag(p, "--data", DATA_HELP + flags.DATA_HELP, required=True)
    p.add_argument("--format", choices=FORMATS, default="rows", help=FORMAT_HELP)
    p.add_argument("--cop-from", type=int, choices=[0, 1], help=COP_HELP)
    p.add_argument("--shots", type=flags.count, metavar="N", help=SHOTS_HELP)
    flags.add_files_flag(p, "--shots-from", "the examples, in --format")
    p.add_argument("--all-rows", action="store_true",
                   help="of PubMedQA all rows, not only the 500 of the official test split")
    p.add_argument("--template", metavar="NAME",
                   help="put each prompt into this template as its instruction (default: none)")
    flags.add_batch_size_flag(p, "prompts")
    flags.add_data_flags(p, text_field=False)
    retrieval.add_flags(p)
# fmt: on


def main(args) -> dict:
    from nanomed.evaluation import benchmarks, measure, questions
    from nanomed.evaluation.choices import measure_choices
    from nanomed.evaluation.tables import against_chance, choices_table, text_table
    from nanomed.evaluation.training_texts import overlap_with_training
    from nanomed.text import special
    from nanomed.text.templates import load_template

    prompt = benchmarks.PROMPTS.get(args.format)
    official = questions.official_ids() if prompt and not args.all_rows else None
    how = {"cop_from": args.cop_from, "skip_bad": args.skip_bad_rows, "seed": args.seed}
    asked = benchmarks.read(args.data, args.format, official, limit=args.limit, **how)
    shots = benchmarks.read(args.shots_from, args.format, **how).items if args.shots else []
    items = benchmarks.with_shots(asked.items, shots, args.shots or 0, in_order=args.format == "mmlu")
    template = load_template(args.template) if args.template else None
    o = measure.open_asked(args)
    of = f" of the official {len(official)}" if official else ""
    print(f"{o}; {len(items):,} questions{of}{asked.left_out()}")
    rows = {name: [k for file, k in (item.place for item in items) if file == name] for name in args.data}
    if args.limit:
        print("drawn by --seed:", "; ".join(questions.say_rows(of, name) for name, of in rows.items()))
    queries, golds = [item.question or item.prompt for item in items], [item.gold for item in items]
    texts, found = [item.prompt for item in items], retrieval.look_up(args, o, queries, golds)
    if found:
        pairs = zip(items, found.passages, strict=True)
        items = [questions.with_passages(item, passages, prompt) for item, passages in pairs]
        say_retrieved(found.report)
    r = measure_choices(o, items, args.batch_size, args.seed, template)
    special.say(r["special_tokens"])
    if r["truncated"]:
        room = f"the model's {o.model.config.n_positions:,} positions"
        print(f"{r['truncated']:,} prompts are longer than {room}, and lost their beginning")
    print(text_table(choices_table(r)))
    print(f"chance: {r['chance']:.3f}" + (f"; {against_chance(r)}" if against_chance(r) else ""))
    how = {"data": args.data, "data_sha256": asked.sha256(), "format": args.format}
    how |= {"shots": args.shots or 0, "shots_from": args.shots_from, "template": args.template}
    how |= {"limit": args.limit, "seed": args.seed, "rows": rows}
    how |= {"bad_rows": asked.bad, "hidden": asked.hidden, "retrieval": found and found.report}
    return r | how | overlap_with_training(o, texts)


def check_flags(args) -> None:
    retrieval.check_flags(args)
    if args.all_rows and args.format == "rows":
        raise UserError("--all-rows is about PubMedQA's official split (--format pubmedqa)")
    if args.retrieve and args.format == "pubmedqa-closed":
        mend = "--format pubmedqa does, in the abstract's place"
        raise UserError(f"--format pubmedqa-closed shows no passage; {mend}")
    if args.cop_from is not None and args.format != "medmcqa":
        raise UserError("--cop-from is about MedMCQA (--format medmcqa)")
    if bool(args.shots) != bool(args.shots_from):
        raise UserError("--shots and --shots-from go together: how many examples, and of what")
    if args.shots and args.retrieve:
        raise UserError("--shots and --retrieve: leave one out; examples are shown without passages")


def say_retrieved(report: dict) -> None:
    """How often the right passage is among the first k."""
    from nanomed.evaluation.tables import measure_cell

    recall, found = report["recall"], f"{report['retriever']}, {report['passages']:,} passages"
    if recall is None:
        unknown = "no row's own `context` is one of them, so that which is the right one is not known"
        return print(f"{found}; {unknown}: no recall")
    shares = {k: {"r": r, "r_ci95": recall["recall_ci95"][k]} for k, r in recall["recall"].items()}
    cells = ", ".join(f"@{k} {measure_cell(share, 'r')}" for k, share in shares.items())
    print(f"{found}; the right one (of {recall['questions']:,} questions) is found: {cells}")
