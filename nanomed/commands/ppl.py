"""eval.py ppl: how surprised a model is by documents."""

import argparse

from nanomed import flags

HELP = "perplexity, bits per byte and word perplexity of documents"
# What nanomed.evaluation.mistakes measures, in words.
MISTAKES = {
    "batch-mean": (
        "exp of the mean of the batches' mean losses: a batch of few tokens counts as much as one of many"
    ),
    "document-mean": "the mean of the documents' own perplexities: short, odd ones decide",
    "padding-counted": "documents filled up to the context with padding, and the padding counted",
    "train-set": (
        "texts that the model was trained on, the first of them, as many as there are documents here"
    ),
    "truncated": "only the first `context` tokens of each document",
    "last-loss": "exp of the last training loss that was logged",
}


def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_files_flag(p, "--data", flags.DATA_HELP, required=True)
    add_measuring_flags(p)


def add_measuring_flags(p) -> None:
    """How it is measured, whatever model and data."""
    also = f"what common mistakes would give beside it: {', '.join(MISTAKES)}, or all"
    flags.add_window_flags(p)
    flags.add_data_flags(p)
    help = f"{also} (docs/measuring-perplexity.md)"
    p.add_argument("--also", type=mistake_names, default=(), metavar="NAMES", help=help)


def mistake_names(text: str) -> tuple[str, ...]:
    """The names in a list that is separated by commas; `all`: every one."""
    names = tuple(MISTAKES) if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in MISTAKES:
            raise argparse.ArgumentTypeError(f"unknown: {name!r}; known: {', '.join(MISTAKES)}")
    return names


def main(args) -> dict:
    from nanomed.evaluation import measure
    from nanomed.evaluation.perplexity import window_sizes
    from nanomed.evaluation.tables import interval_cell, ppl_cell
    from nanomed.evaluation.training_texts import overlap_with_training
    from nanomed.text import special
    from nanomed.text.corpus import texts_of

    o = measure.open_asked(args, scores=True)
    window_sizes(o.model.config, args.context, args.stride)  # before texts are read for minutes
    corpus = measure.encode(o, args.data, args.text_field, args.limit, args.skip_bad_rows)
    tokens = int(corpus.documents["length"].sum()) - len(corpus.documents)
    left_out = f"; {corpus.bad_rows} bad rows left out" if corpus.bad_rows else ""
    print(f"{o}; {len(corpus.documents):,} documents, {tokens:,} tokens{left_out}")
    special.say(corpus.special_tokens)
    r = measure.measure_ppl(o, corpus, args.context, args.stride, args.batch_size, args.seed, args.also)
    interval = interval_cell(r["ppl_ci95"]) if r["ppl_ci95"] else "(one document: no interval)"
    print(
        f"perplexity {ppl_cell(r['ppl'], r['vocab_size'])} {interval}, loss {r['loss']:.4f} nats a token,"
        f" {r['bits_per_byte']:.4f} bits a byte; {r['tokens_scored']:,} tokens in windows of {r['context']},"
        f" stride {r['stride']}, each document after {r['begins_with']},"
        f" {r['tokens_per_s']:,.0f} scored tokens/s"
    )
    overlap = overlap_with_training(o, texts_of([corpus.all()], o.tokenizer))
    if args.also:
        print("\nwhat common mistakes would give on the same model and texts:")
        for name, value in r["also"].items():
            cell = "-" if value is None else ppl_cell(value, r["vocab_size"])
            print(f"  {name:16} {cell:>8}   {r['also_missing'].get(name, MISTAKES[name])}")
    return r | {"data": args.data} | overlap
