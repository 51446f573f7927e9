"""eval.py drift: does what users send still look like what the model was trained on?

The figure is a shift: the perplexity of the incoming texts over that of the reference. Perplexities of single texts say little
(hard ones are in both), and short texts surprise more than long ones, whose later tokens have more before them; so both sides are
cut to the same number of tokens from their beginning, the incoming texts' median length unless --first says otherwise.
"""

import math

import numpy as np

from nanomed.errors import UserError
from nanomed.evaluation import measure, tables
from nanomed.evaluation.bootstrap import difference
from nanomed.evaluation.perplexity import exp, ppl_interval, score_ids
from nanomed.text.corpus import Corpus

SIDES = ("reference", "incoming")
DRIFTED = 3  # the exit status of an alarm: 1 is a bug, 2 is what the user can mend
FEW = 30  # texts of a side below which an interval should not be trusted much
SHORTEST = 8  # tokens: less than that says nothing


def run(args) -> dict:
    """`eval.py drift`: print both perplexities, the shift and what surprises most, and give all of it; `drifted` is the verdict."""
    if args.first is not None and args.first < SHORTEST:
        raise UserError(f"--first {args.first}: at least {SHORTEST} tokens of a text are needed to say anything")
    o = measure.open_model(args.model, args.device, args.dtype, quantize=args.quantize)
    sides = {name: measure.encode(o, getattr(args, name), args.text_field, args.limit, args.skip_bad_rows) for name in SIDES}
    ids = {name: _drawn(corpus, args.sample, args.seed) for name, corpus in sides.items()}
    lengths = {name: int(np.median([len(x) - 1 for x in found])) for name, found in ids.items()}
    context = o.model.config.n_positions
    first = min(args.first or max(SHORTEST, lengths["incoming"]), context - 1)
    print(f"{o}; {len(ids['incoming']):,} incoming texts, {len(ids['reference']):,} of reference, {first} tokens of each at most")
    measured, nll, tokens = {}, {}, {}
    for name, found in ids.items():
        cut = [x[: first + 1] for x in found]
        tokens[name] = np.array([len(x) - 1 for x in cut])
        nll[name] = score_ids(o.model, cut, context, context // 2, args.batch_size, o.device, o.dtype)
        measured[name] = {
            "ppl": exp(nll[name].sum() / tokens[name].sum()),
            "ppl_ci95": ppl_interval(nll[name], tokens[name], seed=args.seed),
            "documents": len(found),
            "tokens_scored": int(tokens[name].sum()),
            "median_tokens": lengths[name],
            "data_sha256": sides[name].sha256,
            "bad_rows": sides[name].bad_rows,
        }
    result = shift(nll, tokens, args.threshold, args.seed) | {"first": first} | measured
    result["surprising"] = most_surprising(o, ids["incoming"], nll["incoming"], tokens["incoming"])
    say(result)
    how = {"model": o.name, "dtype": o.dtype, "seed": args.seed, "data": {name: getattr(args, name) for name in SIDES}}
    return result | how


def _drawn(corpus: Corpus, most: int, seed: int) -> list[np.ndarray]:
    """The ids of up to `most` documents, drawn by the seed, the leading token first; empty ones are left out."""
    everything = corpus.all()
    there = np.flatnonzero(corpus.documents["length"] > 1)
    if not len(there):
        raise UserError(f"{corpus.name}: no tokens to score; every text is empty")
    chosen = np.sort(np.random.default_rng(seed).permutation(there)[:most])
    return [np.asarray(everything.ids(k)) for k in chosen.tolist()]


def shift(nll: dict, tokens: dict, threshold: float, seed: int = 0) -> dict:
    """{"shift": perplexity of the incoming texts over that of the reference, "shift_ci95": 95 % bootstrap interval, both sides
    drawn anew by whole texts, "threshold", "drifted": whether all of the interval is above the threshold}. nll, tokens: of each
    text of each side, {"reference": (N,), "incoming": (M,)}."""

    def loss(side):
        return lambda rows: nll[side][rows].sum() / tokens[side][rows].sum()

    everything = [np.arange(len(nll[side])) for side in SIDES]
    value = loss("incoming")(everything[1]) - loss("reference")(everything[0])
    bounds = difference(loss("incoming"), len(nll["incoming"]), loss("reference"), len(nll["reference"]), seed=seed)
    out = {"shift": exp(value), "shift_ci95": bounds and [exp(b) for b in bounds], "threshold": threshold}
    return out | {"drifted": bool(bounds) and bounds[0] > math.log(threshold)}


def most_surprising(o, ids: list[np.ndarray], nll: np.ndarray, tokens: np.ndarray, most: int = 5) -> list[dict]:
    """The incoming texts of the highest perplexity: where an operator looks first."""
    order = np.argsort(-nll / tokens)[:most].tolist()
    texts = [" ".join(o.tokenizer.decode(ids[k][1:].tolist()).split()) for k in order]
    return [{"ppl": exp(nll[k] / tokens[k]), "text": text[:200]} for k, text in zip(order, texts, strict=True)]


def say(result: dict) -> None:
    for name in SIDES:
        r = result[name]
        interval = tables.interval_cell(r["ppl_ci95"]) if r["ppl_ci95"] else "(one text: no interval)"
        counts = f"{r['documents']:,} texts, median {r['median_tokens']} tokens"
        print(f"{name:9} perplexity {tables.ppl_cell(r['ppl'])} {interval}; {counts}")
    bounds = result["shift_ci95"]
    print(f"shift     x {result['shift']:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""))
    few = [name for name in SIDES if result[name]["documents"] < FEW]
    if few:
        print(f"note: {' and '.join(few)}: fewer than {FEW} texts; the interval is too narrow then")
    a, b = (result[name]["median_tokens"] for name in SIDES)
    if max(a, b) > 4 * min(a, b):
        print("note: the sides differ much in length, so perhaps in kind: compare questions with questions, articles with articles")
    print("most surprising of what came in:")
    for s in result["surprising"]:
        print(f"  {tables.ppl_cell(s['ppl']):>8}  {s['text'][:110]!r}")
    above = f"more than {result['threshold']:g} times as surprising as the reference"
    if not bounds:
        print("too few texts to tell")
    else:
        print(f"DRIFT: what comes in is {above}" if result["drifted"] else f"no drift: not surely {above}")
