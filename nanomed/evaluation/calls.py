"""The commands of eval.py that measure answers, classes, questions with given answers, and texts that repeat
one another."""

import sys
from dataclasses import replace
from pathlib import Path

from nanomed import flags
from nanomed.errors import UserError
from nanomed.evaluation import choices, measure, pubmedqa, tables
from nanomed.evaluation.baselines import verdict
from nanomed.evaluation.trained import trained_with, training_texts
from nanomed.systems import retrieve
from nanomed.systems.overlap import describe, near_duplicates
from nanomed.text import instructions, labelled, special
from nanomed.text.labels import unnamed
from nanomed.text.ngrams import ngram_overlap
from nanomed.text.rows import Field, read_documents
from nanomed.text.templates import Template, load_template


def choose_template(args, o, otherwise: str | None = None) -> Template | None:
    """The template that was asked for, else the one that the model was instructed with, else `otherwise`;
    says which."""
    if args.template is None and o.template:
        args.template = "the model's own"
        return o.template
    args.template = args.template or otherwise
    chosen = load_template(args.template) if args.template else None
    if o.template and chosen != o.template:
        print(f"note: {o.name} was instructed with another template, which is the default", file=sys.stderr)
    return chosen


# --- answers and classes ------------------------------------------------------------------------------------


def answer(args) -> dict:
    """`eval.py qa`: print the figures and the first answers, and give all of them."""
    fields = instructions.Fields(args.instruction_field, args.input_field, args.response_field)
    items, bad, sha = instructions.read_instructions(args.data, fields, args.limit, args.skip_bad_rows)
    flags.check_retrieval_flags(args)
    o = measure.open_asked(args, writes=True)
    texts, retrieved = [item.text() for item in items], None
    if args.retrieve:
        asked = [f"{item.instruction} {item.input}" for item in items]
        retrieved = retrieve.look_up(args, o, asked, [None] * len(items))
        items = [
            replace(item, input="\n".join([*found, *([item.input] if item.input else [])]))
            for item, found in zip(items, retrieved.passages, strict=True)
        ]
    template = choose_template(args, o, "response")
    print(
        f"{o}; {len(items):,} questions"
        + (f"; {bad} bad rows left out" if bad else "")
        + f"; template {args.template}"
    )
    result = measure.measure_answers(
        o, items, template, flags.sampling(args), args.max_new_tokens, args.batch_size, args.seed
    )
    print(tables.text_table(tables.answers_table({args.model: result})))
    print(f"BLEU: {result['settings']['bleu']}\nROUGE: {result['settings']['rouge']}")
    if result["dropped"]:
        print(
            f"{result['dropped']} questions left out: their prompts fill the model's"
            f" {o.model.config.n_positions} positions"
        )
    special.say(result["special_tokens"])
    questions = {
        template.ask(item.instruction, item.input).text: item.input or item.instruction for item in items
    }
    show_answers(result["answers"], questions)
    result |= overlap_with_training(o, texts)
    how = {
        "data": args.data,
        "data_sha256": sha,
        "template": args.template,
        "bad_rows": bad,
        "seed": args.seed,
    }
    how["retrieval"] = retrieved.report if retrieved else None
    return result | how | {"sampling": vars(flags.sampling(args)), "max_new_tokens": args.max_new_tokens}


def show_answers(answers: list[dict], questions: dict[str, str], most: int = 3, width: int = 145) -> None:
    """The first few answers beside their references, each text cut to two lines. questions: by prompt."""
    for n, a in enumerate(answers[:most], 1):
        texts = {"question": questions[a["prompt"]], "reference": a["reference"], "answer": a["completion"]}
        print(f"\n{n} of {len(answers)}")
        for name, text in texts.items():
            text = " ".join(text.split()) or "(nothing)"
            print(f"  {name + ':':10} {text if len(text) <= width else text[: width - 3] + '...'}")
    print()


def label_names(labels: list[str], args, directory: Path) -> tuple[str, str]:
    """(negative, positive) as given; or as they were in training, if that was on --positives and --negatives
    too; or the labels 0 and 1 of a model that has no names for them."""
    given = args.negative_name, args.positive_name
    if set(given) <= set(labels):
        return given
    trained = trained_with(directory)
    if given == ("negative", "positive") and trained.get("positives"):
        return trained["negative_name"], trained["positive_name"]
    if given == ("negative", "positive") and len(labels) == 2 and unnamed(labels):
        return labels[0], labels[1]
    raise UserError(
        f"--negative-name and --positive-name must be two of the model's labels: {', '.join(labels)}"
    )


def classify(args) -> dict:
    """`eval.py cls`: print a classifier's figures beside the baselines', and give them."""
    o = measure.open_asked(args, classifier=True)
    how = labelled.spelling(args)
    measure.name_labels(o, how.names)
    if args.positives:
        args.negative_name, args.positive_name = label_names(o.model.labels, args, o.directory)
    sources = labelled.labelled_sources(args)
    found = measure.read_test_texts(
        o, sources, args.text_field, args.label_field, args.limit, args.skip_bad_rows, how
    )
    print(
        f"{o}; {len(found.items):,} texts, {len(o.model.labels)} labels"
        + (f"; {found.bad_rows} bad rows left out" if found.bad_rows else "")
    )
    result = measure.measure_classes(o, found.items, args.batch_size, args.seed)
    special.say(result["special_tokens"])
    print(tables.text_table(tables.classification_table(result["measures"])))
    if not result["multi_label"]:
        confusion = tables.confusion_table(result["measures"]["model"]["confusion"], result["labels"])
        print("", tables.text_table(confusion, turn=False), "", sep="\n")
    print(f"no baselines: {result['no_baseline']}" if result["no_baseline"] else verdict(result["measures"]))
    result |= overlap_with_training(o, [item.text for item in found.items])
    return result | {"data_sha256": found.sha256}


# --- questions with given answers ---------------------------------------------------------------------------


def choose(args) -> dict:
    """`eval.py choices`: print the figures, and give them with what they were measured on."""
    if args.all_rows and args.format == "rows":
        raise UserError("--all-rows is about PubMedQA's official split (--format pubmedqa)")
    if args.retrieve and args.format == "pubmedqa-closed":
        raise UserError(
            "--format pubmedqa-closed shows no passage; --format pubmedqa does, in the abstract's place"
        )
    flags.check_retrieval_flags(args)
    official = None if args.format == "rows" or args.all_rows else pubmedqa.official_ids()
    take = choices.from_row if args.format == "rows" else pubmedqa.taker(args.format, official)
    items, bad, sha = choices.read_choices(args.data, take, args.limit, args.skip_bad_rows)
    if not items:
        of = (
            "" if official is None else " of the 500 of PubMedQA's official test split (--all-rows takes all)"
        )
        raise UserError(f"{', '.join(args.data)}: no questions there{of}")
    template = load_template(args.template) if args.template else None
    o = measure.open_asked(args)
    of = f" of the official {len(official)}" if official else ""
    print(f"{o}; {len(items):,} questions{of}" + (f"; {bad} bad rows left out" if bad else ""))
    texts, report = [item.prompt for item in items], None
    if args.retrieve:
        asked = [item.question or item.prompt for item in items]
        retrieved = retrieve.look_up(args, o, asked, [item.gold for item in items])
        items = [
            pubmedqa.with_passages(item, found, args.format)
            for item, found in zip(items, retrieved.passages, strict=True)
        ]
        report = retrieved.report
        say_retrieved(report)
    result = choices.measure_choices(o, items, args.batch_size, args.seed, template)
    special.say(result["special_tokens"])
    if result["truncated"]:
        positions = o.model.config.n_positions
        print(
            f"{result['truncated']:,} prompts are longer than the model's {positions:,} positions, and lost"
            " their beginning"
        )
    print(tables.text_table(tables.choices_table(result)))
    how = {
        "data": args.data,
        "data_sha256": sha,
        "format": args.format,
        "template": args.template,
        "bad_rows": bad,
    }
    return result | how | {"retrieval": report} | overlap_with_training(o, texts)


def say_retrieved(report: dict) -> None:
    """How often the right passage is among the first k."""
    recall = report["recall"]
    found = f"{report['retriever']}, {report['passages']:,} passages"
    if recall is None:
        print(
            f"{found}; no row's own `context` is one of them, so that which is the right one is not known: no"
            " recall"
        )
        return
    cells = {
        k: tables.measure_cell({"r": r, "r_ci95": recall["recall_ci95"][k]}, "r")
        for k, r in recall["recall"].items()
    }
    shares = [f"@{k} {cell}" for k, cell in cells.items()]
    print(f"{found}; the right one (of {recall['questions']:,} questions) is found: " + ", ".join(shares))


# --- texts that repeat one another --------------------------------------------------------------------------


def overlap_with_training(o: measure.Opened, texts) -> dict:
    """{"overlap": ngram_overlap() of what is measured with what the model was trained on, or None,
    "no_overlap": why}; said in a line. It belongs to every figure: a model can have read the test."""
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
        texts = [
            t
            for name in names
            for t in read_documents(name, field, args.limit, args.skip_bad_rows)
            if t is not None
        ]
        if not texts:
            raise UserError(f"{', '.join(names)}: no texts there")
        return texts

    against_field = Field(args.against_field, "--against-field") if args.against_field else args.text_field
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
    return (
        names
        | {"threshold": args.threshold}
        | {k: getattr(found, k) for k in counts}
        | {"examples": examples, "ngrams": shared}
    )
