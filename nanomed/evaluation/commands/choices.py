"""eval.py choices: which of given answers a model finds likeliest."""

from nanomed import flags
from nanomed.errors import UserError
from nanomed.text import reading

# How a row of PubMedQA is asked. The first is lm-eval's prompt (its task `pubmedqa`).
FORMATS = {
    "pubmedqa": "Abstract: {context}\nQuestion: {question}\nAnswer:",
    "pubmedqa-closed": "Question: {question}\nAnswer:",
}
HELP = "accuracy of the likeliest of given answers; PubMedQA's yes, no or maybe"
DATA_HELP = (
    "rows {prompt, choices, answer} (a choice stands as it is after the prompt; answer: its number, from 0,"
    " or its text), or PubMedQA's (--limit N: N questions of each D, drawn by --seed): "
)


# fmt: off
def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(p, DATA_HELP + flags.DATA_HELP)
    p.add_argument("--format", choices=["rows", *FORMATS], default="rows",
                   help="pubmedqa: PubMedQA's fields, as lm-eval asks; pubmedqa-closed: without the abstract")
    p.add_argument("--all-rows", action="store_true",
                   help="of PubMedQA all rows, not only the 500 of the official test split")
    p.add_argument("--template", metavar="NAME",
                   help="put each prompt into this template as its instruction (default: none)")
    flags.add_batch_size_flag(p, "prompts")
    reading.add_flags(p)
# fmt: on


def main(args, look_up) -> dict:
    """look_up: as in nanomed.evaluation.commands.qa."""
    if args.all_rows and args.format == "rows":
        raise UserError("--all-rows is about PubMedQA's official split (--format pubmedqa)")
    if args.retrieve and args.format == "pubmedqa-closed":
        raise UserError(
            "--format pubmedqa-closed shows no passage; --format pubmedqa does, in the abstract's place"
        )

    from nanomed.evaluation import measure, questions
    from nanomed.evaluation.choices import measure_choices
    from nanomed.evaluation.tables import choices_table, text_table
    from nanomed.evaluation.training_texts import overlap_with_training
    from nanomed.text import special
    from nanomed.text.templates import load_template

    official = None if args.format == "rows" or args.all_rows else questions.official_ids()
    prompt = FORMATS.get(args.format)
    asked_of = args.data, prompt, official, args.limit, args.skip_bad_rows, args.seed
    items, bad, sha = questions.read_questions(*asked_of)
    template = load_template(args.template) if args.template else None
    o = measure.open_asked(args)
    of = f" of the official {len(official)}" if official else ""
    print(f"{o}; {len(items):,} questions{of}" + (f"; {bad} bad rows left out" if bad else ""))
    rows = {name: [k for file, k in (item.place for item in items) if file == name] for name in args.data}
    if args.limit:
        print("drawn by --seed:", "; ".join(questions.say_rows(of, name) for name, of in rows.items()))
    asked, golds = [item.question or item.prompt for item in items], [item.gold for item in items]
    texts, found = [item.prompt for item in items], look_up(args, o, asked, golds)
    if found:
        pairs = zip(items, found.passages, strict=True)
        items = [questions.with_passages(item, passages, prompt) for item, passages in pairs]
        say_retrieved(found.report)
    r = measure_choices(o, items, args.batch_size, args.seed, template)
    special.say(r["special_tokens"])
    if r["truncated"]:
        positions = o.model.config.n_positions
        print(
            f"{r['truncated']:,} prompts are longer than the model's {positions:,} positions, and lost their"
            " beginning"
        )
    print(text_table(choices_table(r)))
    how = {"data": args.data, "data_sha256": sha, "format": args.format, "template": args.template}
    how |= {"limit": args.limit, "seed": args.seed, "rows": rows, "bad_rows": bad}
    how |= {"retrieval": found and found.report}
    return r | how | overlap_with_training(o, texts)


def say_retrieved(report: dict) -> None:
    """How often the right passage is among the first k."""
    from nanomed.evaluation.tables import measure_cell

    recall, found = report["recall"], f"{report['retriever']}, {report['passages']:,} passages"
    if recall is None:
        print(
            f"{found}; no row's own `context` is one of them, so that which is the right one is not known: no"
            " recall"
        )
        return
    cells = [
        f"@{k} {measure_cell({'r': r, 'r_ci95': recall['recall_ci95'][k]}, 'r')}"
        for k, r in recall["recall"].items()
    ]
    print(f"{found}; the right one (of {recall['questions']:,} questions) is found: {', '.join(cells)}")
