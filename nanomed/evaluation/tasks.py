"""The commands of eval.py that are more than one call: questions with given answers, and how far texts repeat one another."""

from nanomed import flags
from nanomed.errors import UserError
from nanomed.evaluation import choices, measure, pubmedqa, retrieve, tables
from nanomed.evaluation.trained import training_texts
from nanomed.text.overlap import describe, near_duplicates, ngram_overlap
from nanomed.text.rows import read_documents
from nanomed.text.templates import load_template


def choose(args) -> dict:
    """`eval.py choices`: print the figures, and give them with what they were measured on."""
    if args.all_rows and args.format == "rows":
        raise UserError("--all-rows is about PubMedQA's official split (--format pubmedqa)")
    if args.retrieve and args.format == "pubmedqa-closed":
        raise UserError("--format pubmedqa-closed shows no passage; --format pubmedqa does, in the abstract's place")
    flags.check_retrieval_flags(args)
    official = None if args.format == "rows" or args.all_rows else pubmedqa.official_ids()
    take = choices.from_row if args.format == "rows" else pubmedqa.taker(args.format, official)
    items, bad, sha = choices.read_choices(args.data, take, args.limit, args.skip_bad_rows)
    if not items:
        of = "" if official is None else " of the 500 of PubMedQA's official test split (--all-rows takes all)"
        raise UserError(f"{', '.join(args.data)}: no questions there{of}")
    template = load_template(args.template) if args.template else None
    o = measure.open_model(args.model, args.device, args.dtype)
    of = f" of the official {len(official)}" if official else ""
    print(f"{o}; {len(items):,} questions{of}" + (f"; {bad} bad rows left out" if bad else ""))
    texts, report = [item.prompt for item in items], None
    if args.retrieve:
        asked = [item.question or item.prompt for item in items]
        retrieved = retrieve.look_up(args, o, asked, [item.gold for item in items])
        items = [pubmedqa.with_passages(item, found, args.format) for item, found in zip(items, retrieved.passages, strict=True)]
        report = retrieved.report
        say_retrieved(report)
    if template:
        items = [choices.in_template(item, template) for item in items]
    result = choices.measure_choices(o, items, args.batch_size, args.seed)
    if result["truncated"]:
        positions = o.model.config.n_positions
        print(f"{result['truncated']:,} prompts are longer than the model's {positions:,} positions, and lost their beginning")
    print(tables.text_table(tables.choices_table(result)))
    how = {"data": args.data, "data_sha256": sha, "format": args.format, "template": args.template, "bad_rows": bad}
    return result | how | {"retrieval": report} | overlap_with_training(o, texts)


def say_retrieved(report: dict) -> None:
    """How often the right passage is among the first k."""
    recall = report["recall"]
    found = f"{report['retriever']}, {report['passages']:,} passages"
    if recall is None:
        print(f"{found}; no row's own `context` is one of them, so that which is the right one is not known: no recall")
        return
    cells = {k: tables.measure_cell({"r": r, "r_ci95": recall["recall_ci95"][k]}, "r") for k, r in recall["recall"].items()}
    shares = [f"@{k} {cell}" for k, cell in cells.items()]
    print(f"{found}; the right one (of {recall['questions']:,} questions) is found: " + ", ".join(shares))


# --- texts that repeat one another ------------------------------------------------------------------------------------


def overlap_with_training(o: measure.Opened, texts) -> dict:
    """{"overlap": ngram_overlap() of what is measured with what the model was trained on, or None, "no_overlap": why}; said in a
    line. It belongs to every figure: a model can have read the test."""
    try:
        found = ngram_overlap(texts, training_texts(o.directory))
    except UserError as e:
        print(f"overlap with its training texts: unknown ({e})")
        return {"overlap": None, "no_overlap": str(e)}
    print(f"overlap with its {found['training_documents']:,} training texts: {say_overlap(found)}")
    return {"overlap": found, "no_overlap": None}


def say_overlap(found: dict) -> str:
    runs = f"{found['n']} words in a row with them, {found['share']:.2%} of all such runs"
    return f"{found['documents']:,} of {found['of']:,} texts share {runs}"


def repeats(args) -> dict:
    """`eval.py overlap`: how far one side's texts repeat another's, by texts and by runs of words."""

    def read(names, field):
        texts = [t for name in names for t in read_documents(name, field, args.limit, args.skip_bad_rows) if t is not None]
        if not texts:
            raise UserError(f"{', '.join(names)}: no texts there")
        return texts

    against_field = args.against_field or args.text_field
    texts, against = read(args.data, args.text_field), read(args.against, against_field)
    print(f"{len(texts):,} texts, against {len(against):,} of {', '.join(args.against)}")
    found = near_duplicates(texts, {"--against": against}, args.threshold, seed=args.seed % 2**32)
    print(*describe(found), sep="\n")
    shared = ngram_overlap(against, texts, args.ngram)
    print(f"of --against, {say_overlap(shared)}")
    for m in shared["most"]:
        print(f"  {m['share']:.0%} of text {m['document'] + 1}: … {m['text']} …")
    counts = ("exact_held", "near_held", "exact_within", "near_within")
    names = {"data": args.data, "against": args.against, "texts": len(texts), "against_texts": len(against)}
    examples = [dict(zip(("similarity", "text", "other", "where"), e, strict=True)) for e in found.examples]
    return names | {"threshold": args.threshold} | {k: getattr(found, k) for k in counts} | {"examples": examples, "ngrams": shared}
