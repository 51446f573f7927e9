"""Questions with given answers: the model chooses the one that it finds likeliest after the prompt.

    Item (nanomed.evaluation.questions) -> encode -> loglikelihoods -> measure_choices

The log-likelihood of a choice is summed over its tokens (so a longer one is at a disadvantage), as in
lm-eval's `acc`; beside it stands the same per character, as in its `acc_norm`, and per UTF-8 byte, as in
its `acc_bytes`, which take the length out: the blank before a choice, which is lm-eval's delimiter, is scored
and is not counted."""

import numpy as np
import torch

from nanomed.errors import UserError
from nanomed.evaluation import metrics
from nanomed.evaluation.questions import Item
from nanomed.models.loss import token_nll
from nanomed.models.prepacked import head_of
from nanomed.precision import DTYPES, autocast, evaluating, mend
from nanomed.streams import progress_bar
from nanomed.text import special
from nanomed.text.special import written

BYTES = "of a choice without the blank before it (lm-eval's acc_bytes)"  # results without this counted it


def encode(item: Item, tokenizer, positions: int, template=None) -> list[tuple[np.ndarray, int]]:
    """Of each choice (ids of prompt and choice, how many of them are the choice's): the prompt's ids, and
    those that the choice has behind it (Tokenizer.continuation). Blanks at the prompt's end go to the choice,
    where byte-level vocabularies have them. template: the prompt is its instruction, a choice its response,
    with the ids that a training on them has. Raises UserError for a choice that has no ids, or leaves no room
    for a prompt."""
    asked, blanks = (template.ask(item.prompt), "") if template else written(item.prompt).rstrip()
    prompt, out = tokenizer.prompt(asked), []
    prompt = prompt if len(prompt) else np.array([tokenizer.lead])
    for choice in item.choices:
        answer = template.answer(choice.strip()) if template else written(choice)
        ids = tokenizer.continuation(asked, written(blanks) + answer)
        if not 0 < len(ids) <= positions:
            what = f"the choice {choice[:60]!r} has {len(ids):,} tokens"
            raise UserError(f"{what}; the model has {positions:,} positions")
        out.append((np.concatenate([prompt, ids]).astype(np.int64), len(ids)))
    return out


def loglikelihoods(o, encoded: list[list[tuple[np.ndarray, int]]], batch_size: int) -> list[np.ndarray]:
    """Of each item, as encode() gives it, the log-likelihood, in nats and float64, of each of its choices
    after its prompt, summed over the choice's tokens. o: an open model (measure.Opened). batch_size:
    sequences at once, which changes a result by rounding only. What is too long for the model loses the
    prompt's beginning. Raises UserError for a likelihood that is not finite."""
    longest = o.model.config.n_positions + 1
    asked = {}  # inputs -> [(item, choice, its ids)]: choices of one token share their inputs
    for k, choices in enumerate(encoded):
        for c, (ids, n) in enumerate(choices):
            asked.setdefault(ids[-longest:-1].tobytes(), []).append((k, c, ids[-n:]))
    order = sorted(asked, key=lambda key: -len(key))  # longest first, so that batches pad little
    out = [np.zeros(len(choices)) for choices in encoded]
    bar = progress_bar(total=len(order), desc="choosing", unit=" prompts")
    with evaluating(o.model), bar:
        for i in range(0, len(order), batch_size):
            batch = order[i : i + batch_size]
            for (k, c, _), nll in _score(o, batch, [asked[key] for key in batch]):
                out[k][c] = -nll
            bar.update(len(batch))
    for k, values in enumerate(out):
        if not np.isfinite(values).all():
            what = f"question {k + 1} has a choice of non-finite likelihood"
            raise UserError(f"{what} in {o.dtype}; {mend(o.dtype)}")
    return out


def _score(o, inputs: list[bytes], asked: list[list[tuple]]):
    """(request, summed nll) of each request (item, choice, ids) of each of the inputs."""
    rows = [torch.from_numpy(np.frombuffer(i, np.int64).copy()) for i in inputs]
    idx = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(o.device)
    with autocast(o.device, o.dtype):  # padding on the right: no causal query looks at it
        x = o.model.backbone(idx)
    requests = [request for of_one in asked for request in of_one]
    ids = [ids for _, _, ids in requests]
    hidden = [x[b, len(rows[b]) - len(r[2]) : len(rows[b])] for b, of_one in enumerate(asked) for r in of_one]
    targets = torch.from_numpy(np.concatenate(ids)).to(o.device)
    nll = token_nll(torch.cat(hidden), head_of(o.model), targets, DTYPES[o.dtype]).double().cpu().numpy()
    parts = np.split(nll, np.cumsum([len(i) for i in ids])[:-1])
    return [(request, part.sum()) for request, part in zip(requests, parts, strict=True)]


def measure_choices(o, items: list[Item], batch_size: int = 16, seed: int = 0, template=None) -> dict:
    """Accuracy and macro-F1 with intervals of the likeliest choice, its confusion matrix, and the same of the
    likeliest per character and per byte; what chance would reach, and always giving the commonest answer;
    predictions (in the form in which rows give their answers) and the log-likelihoods of all choices.
    Macro-F1 is over the texts of the choices where all rows have the same ones, else over their places."""
    positions = o.model.config.n_positions
    encoded = [encode(item, o.tokenizer, positions, template) for item in items]
    summed = loglikelihoods(o, encoded, batch_size)
    said = [[template.answer(c.strip()).text if template else c for c in item.choices] for item in items]
    counted = [[text.removeprefix(" ") or text for text in choices] for choices in said]
    per_character, per_byte = (
        [values / [*map(length, choices)] for values, choices in zip(summed, counted, strict=True)]
        for length in (len, lambda text: len(text.encode()))
    )
    most = max(len(item.choices) for item in items)
    alike = all(item.choices == items[0].choices for item in items)
    labels = [c.strip() for c in items[0].choices] if alike else [str(k) for k in range(most)]
    targets = np.array([item.answer for item in items])
    pairs = zip(items, summed, strict=True)
    read = ("\n".join((item.prompt, *item.choices)) for item in items)
    return _figures(summed, targets, labels, seed) | {
        "predictions": [item.as_given(int(values.argmax())) for item, values in pairs],
        "per_byte": _figures(per_byte, targets, labels, seed) | {"bytes": BYTES},
        "per_character": _figures(per_character, targets, labels, seed),
        "chance": float(np.mean([1 / len(item.choices) for item in items])),
        "majority": _majority(targets, labels, seed),
        "truncated": sum(any(len(ids) > positions + 1 for ids, _ in choices) for choices in encoded),
        "special_tokens": special.report_of(o.tokenizer, read),
        "labels": labels,
        "loglikelihoods": [values.tolist() for values in summed],
        "loglikelihoods_per_byte": [values.tolist() for values in per_byte],
        **o.named(),
    }


def _figures(scores: list[np.ndarray], targets: np.ndarray, labels: list[str], seed: int) -> dict:
    probs = np.zeros((len(scores), len(labels)))
    for row, values in zip(probs, scores, strict=True):
        row[: len(values)] = np.exp(values - values.max())
    found = metrics.classification(probs / probs.sum(1, keepdims=True), targets, labels, seed)
    names = ("accuracy", "accuracy_ci95", "macro_f1", "macro_f1_ci95", "f1", "confusion")
    return {"questions": found["texts"]} | {name: found[name] for name in names}


def _majority(targets: np.ndarray, labels: list[str], seed: int) -> dict:
    """What always giving the commonest answer reaches."""
    commonest = int(np.bincount(targets, minlength=len(labels)).argmax())
    probs = np.eye(len(labels))[[commonest] * len(targets)]
    found = metrics.classification(probs, targets, labels, seed)
    return {"answer": labels[commonest]} | {k: found[k] for k in ("accuracy", "accuracy_ci95", "macro_f1")}
