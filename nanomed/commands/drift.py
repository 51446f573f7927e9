"""eval.py drift: does what users ask surprise a model as what it was trained on does?"""

from nanomed import flags

HELP = "whether what users ask surprises a model as its training texts do; for cron"
DESCRIPTION = (
    "Does what users ask surprise the model as what it was trained on does? The perplexity of both, and the"
    " shift: their ratio, with a 95 % interval (bootstrap over the different texts of both sides). Exit"
    " status 0: no drift shown; 3: all of the interval is beyond --threshold, one way or the other; 2: it"
    " could not be measured, and one line says why. Both sides are read as plain texts, without a template."
    " They have to be of one kind: the first words of a text surprise most, so short questions have a higher"
    " perplexity than long documents, whatever they are about (a note says so where their lengths differ;"
    " --first N compares beginnings only). And a model knows what it was trained on: the best reference is"
    " held out, of the same source."
)
THRESHOLD_HELP = (
    "alarm if all of the interval is above this ratio of perplexities, or below 1 / R; 1: at any shift, even"
    " if it is too small to matter, and without one in one of twenty runs"
)
DRIFTED = 3  # the exit status then


# fmt: off
def add_flags(p) -> None:
    p.description = DESCRIPTION
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    like = "texts like those that the model was trained on: "
    flags.add_files_flag(p, "--reference", like + flags.DATA_HELP, required=True)
    flags.add_files_flag(p, "--incoming", "what users sent: a log, say", required=True)
    p.add_argument("--reference-field", metavar="FIELD", help="of --reference (default: --text-field)")
    p.add_argument("--threshold", type=flags.at_least_1, default=1.2, metavar="R", help=THRESHOLD_HELP)
    p.add_argument("--sample", type=flags.whole, default=1000, metavar="N",
                   help="texts of each side, drawn at random if there are more; 0: all")
    p.add_argument("--first", type=flags.count, metavar="N",
                   help="of each text only the first N tokens (default: all)")
    p.add_argument("--top", type=flags.whole, default=5, metavar="N",
                   help="show the N incoming texts that move the shift most; 0: no user's text is reported")
    flags.add_window_flags(p)
    flags.add_data_flags(p)
    p.set_defaults(text_field="text,question,prompt,instruction")
# fmt: on


def main(args) -> dict:
    from nanomed.evaluation import measure
    from nanomed.evaluation.perplexity import window_sizes
    from nanomed.evaluation.training_texts import overlap_with_training
    from nanomed.systems import drift
    from nanomed.text import special
    from nanomed.text.corpus import texts_of
    from nanomed.text.rows import Field

    o = measure.open_asked(args, scores=True)
    context, stride = window_sizes(o.model.config, args.context, args.stride)
    first = f", of each text the first {args.first} tokens" if args.first else ""
    print(f"{o}; windows of {context}, stride {stride}{first}")
    field = Field(args.reference_field, "--reference-field") if args.reference_field else args.text_field
    reference = drift.score(o, args.reference, field, args)
    incoming = drift.score(o, args.incoming, args.text_field, args)
    reports = (side.texts.corpus.special_tokens for side in (reference, incoming))
    special.say(special.report(o.tokenizer, reports=reports))
    vocab_size, sides = o.model.config.vocab_size, {"reference": reference, "incoming": incoming}
    value, interval = drift.shift(reference, incoming, args.seed)
    result = {name: drift.describe(side, args.seed) for name, side in sides.items()}
    show_sides(result, vocab_size)
    overlap = overlap_with_training(o, texts_of([reference.texts], o.tokenizer))
    notes = drift.doubts(sides, overlap["overlap"])
    for note in notes:
        print(f"note: {note}")
    drifted, verdict = drift.judge(interval, args.threshold)
    print(f"shift {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]; {verdict}")
    moving = drift.most_moving(o, reference.loss(), incoming, args.top, up=value >= 1)
    show_moving(moving, vocab_size)
    result["reference"] |= {"data": args.reference, "field": field} | overlap
    result["incoming"] |= {"data": args.incoming, "field": args.text_field}
    found = {"shift": value, "shift_ci95": interval, "threshold": args.threshold, "drifted": drifted}
    found |= {"verdict": verdict, "notes": notes, "most_moving": moving} | o.named()
    how = {"context": context, "stride": stride, "first": args.first, "sample": args.sample}
    return result | found | how | {"seed": args.seed, "vocab_size": vocab_size}


def show_sides(result: dict[str, dict], vocab_size: int) -> None:
    from nanomed.evaluation.tables import headed, interval_cell, ppl_cell, text_table

    head = ["", "texts", "different", "tokens", "tokens a text (median)", "perplexity [95 %]"]
    rows = []
    for name, r in result.items():
        texts = f"{r['documents']:,}" + (f" of {r['of']:,}" if r["of"] > r["documents"] else "")
        ppl = f"{ppl_cell(r['ppl'], vocab_size)} {interval_cell(r['ppl_ci95'])}"
        row = [f"{r['different']:,}", f"{r['tokens_scored']:,}", f"{r['median_tokens']:g}"]
        rows.append([name, texts, *row, ppl])
    print(text_table(headed(head, rows), width=100, turn=False))


def show_moving(moving: list[dict], vocab_size: int) -> None:
    from nanomed.evaluation.tables import ppl_cell

    if moving:
        how = "own perplexity; nats beside what the reference's loss would give"
        print(f"\nthe incoming texts that move it most ({how}):")
    for s in moving:
        times = f", {s['times']} times" if s["times"] > 1 else ""
        text = s["text"] if len(s["text"]) <= 110 else s["text"][:107] + "..."
        ppl = ppl_cell(s["ppl"], vocab_size)
        print(f"  {ppl}; {s['excess']:+,.0f} nats in {s['tokens']:,} tokens{times}: {text}")
