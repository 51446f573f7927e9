"""Drift: do the texts that users send surprise a model as those do that it was made for?

    reference, what it was trained on -> nll of each text \\
                                                           ratio of perplexities, interval -> exit status
    incoming, what it is asked        -> nll of each text /

Perplexity is what a model can say of its input without labels. A shift either way is a change: everyday
questions are easier than medical ones for most models, so an alarm for harder text alone would sleep through
them. It is blind to another subject that is as hard as the old one."""

from dataclasses import dataclass

import numpy as np

from nanomed.errors import UserError
from nanomed.evaluation import measure
from nanomed.evaluation.bootstrap import interval_of_two
from nanomed.evaluation.perplexity import exp, figures, score_ids, window_sizes
from nanomed.text.corpus import Corpus, Selection

FEW = 30  # different texts, below which a bootstrap's interval is too narrow
SHOWN = 200  # characters of a text that the result quotes


@dataclass(frozen=True)
class Side:
    """What was scored of one side, each different text once: times, how often it came; tokens (n,) and nll
    (n,), float64, of one of them."""

    texts: Selection
    times: np.ndarray
    tokens: np.ndarray
    nll: np.ndarray

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """(nll, tokens) of each different text, all its times together: the same text again is no further
        evidence, so that a bootstrap must draw it as one."""
        return self.nll * self.times, self.tokens * self.times

    def loss(self) -> float:
        nll, tokens = self.totals()
        return float(nll.sum()) / int(tokens.sum())

    def median(self) -> float:
        """Tokens a text."""
        return float(np.median(np.repeat(self.tokens, self.times)))


def draw(corpus: Corpus, sample: int, seed: int) -> tuple[Selection, np.ndarray]:
    """(the different texts among up to `sample` of a corpus, at random (0: all), how often each came)."""
    indices = np.arange(len(corpus.documents))
    if 0 < sample < len(indices):
        indices = np.sort(np.random.default_rng(seed).permutation(indices)[:sample])
    digests = corpus.documents["digest"][indices].view("S16")
    _, first, times = np.unique(digests, return_index=True, return_counts=True)
    order = np.argsort(first)
    return Selection(corpus, indices[first[order]]), times[order]


def score(o: measure.Opened, names: list[str], field: str, args) -> Side:
    corpus = measure.encode(o, names, field, args.limit, args.skip_bad_rows)
    texts, times = draw(corpus, args.sample, args.seed)
    context, stride = window_sizes(o.model.config, args.context, args.stride)
    ids = [texts.ids(k)[: args.first + 1 if args.first else None] for k in range(len(times))]
    nll = score_ids(o.model, ids, context, stride, args.batch_size, o.device, o.dtype)
    return Side(texts, times, np.array([len(i) - 1 for i in ids]), nll)


def shift(reference: Side, incoming: Side, seed: int = 0) -> tuple[float, list[float]]:
    """(how many times the perplexity of the incoming texts is that of the reference, 95 % interval): exp of
    the difference of two losses, in nats a token; bootstrap over the different texts of both sides, each side
    drawn by itself. Raises UserError if a side has but one."""
    for name, side in (("--reference", reference), ("--incoming", incoming)):
        if len(side.times) < 2:
            raise UserError(f"{name}: one text, or the same again and again, gives no interval; give more")
    (nll, tokens), (nll_in, tokens_in) = reference.totals(), incoming.totals()

    def ratio(rows, rows_in):
        return exp(nll_in[rows_in].sum() / tokens_in[rows_in].sum() - nll[rows].sum() / tokens[rows].sum())

    return exp(incoming.loss() - reference.loss()), interval_of_two(ratio, len(nll), len(nll_in), seed=seed)


def describe(side: Side, seed: int) -> dict:
    """A side's figures, under the names that eval.py ppl gives them. of: texts that there were, empty ones
    included; data_sha256: of all of these."""
    corpus = side.texts.corpus
    return figures(*side.totals(), seed) | {
        "documents": int(side.times.sum()),
        "of": len(corpus.documents) + corpus.empty,
        "empty": corpus.empty,
        "different": len(side.times),
        "median_tokens": side.median(),
        "bad_rows": corpus.bad_rows,
        "special_tokens": corpus.special_tokens,
        "data_sha256": corpus.sha256,
    }


def judge(interval: list[float], threshold: float) -> tuple[bool, str]:
    """Whether all of the interval is beyond the threshold, a ratio of 1 or more that counts both ways; and
    that in words."""
    low, high = interval
    drift = "drift: what comes in is {} surprising, beyond {}{:g} with all of the interval"
    if low > threshold:
        return True, drift.format("more", "", threshold)
    if high < 1 / threshold:
        return True, drift.format("less", "1 / ", threshold)
    if low < 1 / threshold or high > threshold:
        reaches = f"the interval reaches beyond {threshold:g} either way; more texts would tell"
        return False, f"no drift shown, none excluded: {reaches}"
    return False, f"no drift: all of the interval is within {threshold:g} either way"


def doubts(sides: dict[str, Side], overlap: dict | None) -> list[str]:
    """What speaks against trusting the figure, a line each."""
    notes = []
    for name, side in sides.items():
        n, documents, corpus = len(side.times), int(side.times.sum()), side.texts.corpus
        for left_out, what in ((corpus.empty, "empty texts"), (corpus.bad_rows, "bad rows")):
            if left_out:
                notes.append(f"--{name}: {left_out:,} {what} left out")
        if n < FEW:
            but = f"with fewer than {FEW} the interval is narrower than it should be"
            notes.append(f"--{name}: only {n} different texts; {but}")
        if 2 * n < documents:
            only = f"of {documents:,} texts only {n:,} are different"
            notes.append(f"--{name}: {only}; is that the field which was meant?")
    medians = {name: side.median() for name, side in sides.items()}
    if max(medians.values()) > 2 * min(medians.values()):
        found = "a text has {reference:g} tokens in the reference and {incoming:g} in what comes in (median)"
        why = "short texts surprise more for want of context; give a reference of the same kind, or --first N"
        notes.append(f"{found.format_map(medians)}: {why}")
    if overlap and 2 * overlap["documents"] > overlap["of"]:
        why = "what a model knows by heart surprises it less than any new text does"
        mend = "better is a reference of the same kind that was held out"
        notes.append(f"most of the reference was trained on: {why}; {mend}")
    return notes


def most_moving(o: measure.Opened, loss: float, incoming: Side, top: int, up: bool) -> list[dict]:
    """The `top` incoming texts that move the shift most, up or down. Its logarithm is the sum of all texts'
    `excess` (nats above `loss` a token, all times together that a text came) divided by all tokens: so a long
    odd text comes before a short one."""
    nll, tokens = incoming.totals()
    excess = nll - loss * tokens
    toward = excess if up else -excess
    found = []
    for k in np.argsort(-toward, kind="stable")[:top].tolist():
        if toward[k] > 0:
            text = " ".join(o.tokenizer.decode(incoming.texts.ids(k)[1:]).split())[:SHOWN]
            moves = {"text": text, "ppl": exp(incoming.nll[k] / incoming.tokens[k])}
            moves |= {"tokens": int(incoming.tokens[k]), "times": int(incoming.times[k])}
            found.append(moves | {"excess": float(excess[k])})
    return found
