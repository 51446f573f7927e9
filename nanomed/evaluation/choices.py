"""Questions with given answers: the model chooses the one that it finds likeliest after the prompt.

    rows -> read_choices -> Item -> loglikelihoods -> measure_choices

The log-likelihood of a choice is summed over its tokens (so a longer one is at a disadvantage), as in
lm-eval's `acc`; beside it stands the same per UTF-8 byte, which takes the length out."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from nanomed.errors import UserError
from nanomed.evaluation import metrics
from nanomed.evaluation.bootstrap import share
from nanomed.models.loss import token_nll
from nanomed.models.prepacked import head_of
from nanomed.precision import DTYPES, autocast, evaluating, mend
from nanomed.text import special
from nanomed.text.rows import BadRow, NoField, get_text, get_value, read_rows
from nanomed.text.special import written


@dataclass(frozen=True)
class Item:
    """A prompt, the choices that may follow it (each as it stands after the prompt, its blank included), and
    which is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    given: str = "number"  # how its row gives the answer: by number, by text, or by text without its blanks
    question: str | None = None  # what is looked for in a corpus, if that is not the prompt
    gold: str | None = None  # the passage that answers it, where the row holds one


# --- rows ---------------------------------------------------------------------------------------------------


def from_row(row) -> Item:
    """An item of a row {prompt, choices, answer}: the answer is the number of a choice, counted from 0, or
    its text. Raises BadRow."""
    if get_value(row, "prompt") is None and get_value(row, "final_decision") is not None:
        raise NoField("no `prompt`, but PubMedQA's fields: --format pubmedqa reads them")
    prompt, choices, answer = (
        get_text(row, "prompt", "the file must have it"),
        get_value(row, "choices"),
        get_value(row, "answer"),
    )
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        kind = NoField if choices is None else BadRow
        raise kind(f"`choices` must be a list of two texts or more, not {choices!r}")
    for choice in choices:
        get_text({"choices": choice}, "choices")  # which may be no valid Unicode
    if len(set(choices)) < len(choices):
        raise BadRow(f"two of `choices` are the same: {choices!r}")
    if isinstance(answer, str):
        exact = [k for k, c in enumerate(choices) if c == answer]
        found = exact or [k for k, c in enumerate(choices) if c.strip() == answer.strip()]
        if len(found) != 1:
            raise BadRow(
                f"`answer` {answer!r} is {'more than one' if found else 'none'} of the choices {choices!r}"
            )
        number, given = found[0], "text" if exact else "stripped"
    elif isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        kind = NoField if answer is None else BadRow
        raise kind(
            f"`answer` must be one of the choices or its number, 0 to {len(choices) - 1}, not {answer!r}"
        )
    else:
        number, given = answer, "number"
    return Item(prompt, tuple(choices), number, given, _optional(row, "question"), _optional(row, GOLD))


GOLD = "context.contexts,context,contexts,CONTEXTS"  # where PubMedQA's rows keep their passage


def _optional(row, fields: str) -> str | None:
    try:
        return get_text(row, fields)
    except BadRow:
        return None


def read_choices(
    names: list[str], take: Callable, limit: int | None, skip_bad: bool
) -> tuple[list[Item], int, str]:
    """(items, rows left out, SHA-256 of prompts, choices and answers in order); take: from_row, or of another
    form of rows; what it gives None for is no item and no bad row, and there may be none at all. Raises
    UserError with file and row for a bad one."""
    items, bad = [], 0
    for name in names:
        kept = []
        for value in read_rows(name, lambda row: (take(row),), None, skip_bad):
            bad += value is None
            kept += [value[0]] if value and value[0] else []
            if limit and len(kept) == limit:
                break
        items += kept
    sha = hashlib.sha256()
    for item in items:
        for part in (item.prompt, *item.choices, str(item.answer)):
            sha.update(part.encode() + b"\0")
    return items, bad, sha.hexdigest()


# --- likelihoods --------------------------------------------------------------------------------------------


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
            raise UserError(
                f"the choice {choice[:60]!r} has {len(ids):,} tokens; the model has {positions:,} positions"
            )
        out.append((np.concatenate([prompt, ids]).astype(np.int64), len(ids)))
    return out


def loglikelihoods(o, items: list[Item], batch_size: int = 16, template=None) -> list[np.ndarray]:
    """Of each item the log-likelihood, in nats and float64, of each of its choices after its prompt, summed
    over the choice's tokens. o: an open model (measure.Opened). batch_size: sequences at once, which changes
    a result by rounding only. What is too long for the model loses the prompt's beginning. Raises UserError
    as encode() does, and for a likelihood that is not finite."""
    positions = o.model.config.n_positions
    return _loglikelihoods(o, [encode(item, o.tokenizer, positions, template) for item in items], batch_size)


def _loglikelihoods(o, encoded: list[list[tuple[np.ndarray, int]]], batch_size: int) -> list[np.ndarray]:
    longest, asked = (
        o.model.config.n_positions + 1,
        {},
    )  # inputs -> [(item, choice, its ids)]: choices of one token share their inputs
    for k, choices in enumerate(encoded):
        for c, (ids, n) in enumerate(choices):
            asked.setdefault(ids[-longest:-1].tobytes(), []).append((k, c, ids[-n:]))
    order = sorted(asked, key=lambda key: -len(key))  # longest first, so that batches pad little
    out = [np.zeros(len(choices)) for choices in encoded]
    with (
        evaluating(o.model),
        tqdm(total=len(order), desc="choosing", unit=" prompts", leave=False, disable=None) as bar,
    ):
        for i in range(0, len(order), batch_size):
            batch = order[i : i + batch_size]
            for (k, c, _), nll in _score(o, batch, [asked[key] for key in batch]):
                out[k][c] = -nll
            bar.update(len(batch))
    for k, values in enumerate(out):
        if not np.isfinite(values).all():
            raise UserError(
                f"question {k + 1} has a choice of non-finite likelihood in {o.dtype}; {mend(o.dtype)}"
            )
    return out


def _score(o, inputs: list[bytes], asked: list[list[tuple]]):
    """(request, summed nll) of each request (item, choice, ids) of each of the inputs."""
    rows = [torch.from_numpy(np.frombuffer(i, np.int64).copy()) for i in inputs]
    idx = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(o.device)
    with autocast(
        o.device, o.dtype
    ):  # padding on the right is behind every query, where causal attention does not look
        x = o.model.backbone(idx)
    requests = [(b, len(rows[b]), request) for b, requests in enumerate(asked) for request in requests]
    hidden = torch.cat([x[b, length - len(request[2]) : length] for b, length, request in requests])
    targets = torch.from_numpy(np.concatenate([request[2] for _, _, request in requests])).to(o.device)
    nll = token_nll(hidden, head_of(o.model), targets, DTYPES[o.dtype]).double().cpu().numpy()
    ends = np.cumsum([len(request[2]) for _, _, request in requests])
    return [
        (request, part.sum())
        for (_, _, request), part in zip(requests, np.split(nll, ends[:-1]), strict=True)
    ]


# --- what it chose ------------------------------------------------------------------------------------------


def measure_choices(o, items: list[Item], batch_size: int = 16, seed: int = 0, template=None) -> dict:
    """Accuracy and macro-F1 with intervals of the likeliest choice, its confusion matrix, and the same of the
    likeliest per byte; what always giving the commonest answer would reach; predictions (in the form in which
    rows give their answers) and the log-likelihoods of all choices. Macro-F1 is over the texts of the choices
    where all rows have the same ones, else over their places."""
    positions = o.model.config.n_positions
    encoded = [encode(item, o.tokenizer, positions, template) for item in items]
    summed = _loglikelihoods(o, encoded, batch_size)
    said = [[template.answer(c.strip()).text if template else c for c in item.choices] for item in items]
    lengths = [np.array([len(text.encode()) for text in choices]) for choices in said]
    per_byte = [values / n for values, n in zip(summed, lengths, strict=True)]
    most = max(len(item.choices) for item in items)
    alike = all(item.choices == items[0].choices for item in items)
    labels = [c.strip() for c in items[0].choices] if alike else [str(k) for k in range(most)]
    targets = np.array([item.answer for item in items])
    result = _figures(summed, targets, labels, seed)
    commonest = int(np.bincount(targets, minlength=most).argmax())
    right = targets == commonest
    return result | {
        "predictions": [
            _as_given(item, int(values.argmax())) for item, values in zip(items, summed, strict=True)
        ],
        "per_byte": _figures(per_byte, targets, labels, seed),
        "majority": {
            "answer": labels[commonest],
            "accuracy": float(right.mean()),
            "accuracy_ci95": share(right),
            "macro_f1": metrics.classification(np.eye(most)[[commonest] * len(items)], targets, labels, seed)[
                "macro_f1"
            ],
        },
        "truncated": sum(any(len(ids) > positions + 1 for ids, _ in choices) for choices in encoded),
        "special_tokens": special.report_of(o.tokenizer, map(_all_of, items)),
        "labels": labels,
        "loglikelihoods": [values.tolist() for values in summed],
        "loglikelihoods_per_byte": [values.tolist() for values in per_byte],
        "model": o.name,
        "quantize": o.quantize,
        "dtype": o.dtype,
    }


def _all_of(item: Item) -> str:
    return "\n".join((item.prompt, *item.choices))


def _figures(scores: list[np.ndarray], targets: np.ndarray, labels: list[str], seed: int) -> dict:
    probs = np.zeros((len(scores), len(labels)))
    for row, values in zip(probs, scores, strict=True):
        row[: len(values)] = np.exp(values - values.max())
    found = metrics.classification(probs / probs.sum(1, keepdims=True), targets, labels, seed)
    kept = ("texts", "accuracy", "accuracy_ci95", "macro_f1", "macro_f1_ci95", "f1", "confusion")
    return {("questions" if key == "texts" else key): found[key] for key in kept}


def _as_given(item: Item, choice: int) -> int | str:
    text = item.choices[choice]
    return {"number": choice, "text": text, "stripped": text.strip()}[item.given]
