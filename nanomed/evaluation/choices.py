"""Questions with given answers: the model chooses the one that it finds likeliest after the prompt.

    Item (nanomed.evaluation.questions) -> encode -> loglikelihoods -> measure_choices

The log-likelihood of a choice is summed over its tokens (so a longer one is at a disadvantage), as in
lm-eval's `acc`; beside it stands the same per character, as in its `acc_norm`, and per UTF-8 byte, as in
its `acc_bytes`, which take the length out: the blank before a choice, which is lm-eval's delimiter, is scored
and is not counted."""

from dataclasses import dataclass

import numpy as np
import torch

from nanomed.errors import UserError
from nanomed.evaluation import metrics
from nanomed.evaluation.baselines import majority_baseline
from nanomed.evaluation.next_token import next_logits
from nanomed.evaluation.questions import Item
from nanomed.models.attention import CAUSAL, Mask
from nanomed.models.loss import token_nll
from nanomed.models.prepacked import head_of
from nanomed.precision import DTYPES, autocast, evaluating, mend
from nanomed.streams import progress_bar
from nanomed.text import special
from nanomed.text.special import written

TOKENS = 128  # whose logits are in memory at once
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
    return scored(o, encoded, batch_size)[0]


def scored(
    o, encoded: list[list[tuple[np.ndarray, int]]], batch_size: int, greedy=False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(loglikelihoods(); whether each choice is what the model would write after its prompt, token by token
    the likeliest: False, unless `greedy` asks for it)."""
    longest = o.model.config.n_positions + 1
    asked = {}  # a prompt's ids -> {the ids of a choice: [(item, choice)]}
    for k, choices in enumerate(encoded):
        for c, (ids, n) in enumerate(choices):
            prompt, choice = (part.tobytes() for part in np.split(ids[-longest:], [-n]))
            asked.setdefault(prompt, {}).setdefault(choice, []).append((k, c))
    rows = [row for prompt, choices in asked.items() for row in _lay(prompt, choices, longest - 1)]
    rows.sort(key=lambda row: -len(row.idx))  # longest first, so that batches pad little
    out, written = ([np.zeros(len(c), kind) for c in encoded] for kind in (float, bool))
    bar = progress_bar(total=len(rows), desc="choosing", unit=" prompts")
    with evaluating(o.model), bar:
        for i in range(0, len(rows), batch_size):
            batch = rows[i : i + batch_size]
            places = [same for row in batch for same in row.places]
            for same, (nll, is_written) in zip(places, _score(o, batch, greedy), strict=True):
                for k, c in same:
                    out[k][c], written[k][c] = -nll, is_written
            bar.update(len(batch))
    for k, values in enumerate(out):
        if not np.isfinite(values).all():
            what = f"question {k + 1} has a choice of non-finite likelihood"
            raise UserError(f"{what} in {o.dtype}; {mend(o.dtype)}")
    return out, written


@dataclass(frozen=True)
class _Row:
    """A prompt and, one after the other, its choices without their last tokens: each sees the prompt and
    itself, at the positions that it would have right behind the prompt, which so is read once for all."""

    idx: torch.Tensor
    pos: torch.Tensor
    branch: torch.Tensor  # which choice a token is of, from 1; 0: the prompt's
    before: list[torch.Tensor]  # of each choice, the places in the row before its tokens
    targets: list[torch.Tensor]  # of each choice, its tokens
    places: list[list[tuple[int, int]]]  # of each choice, the (item, choice) that it is


def _lay(prompt: bytes, choices: dict[bytes, list[tuple[int, int]]], most: int) -> list[_Row]:
    """As many of the choices in a row as it has room for: the model reads `most` tokens at once."""
    rows, n, size = [[]], len(prompt) // 8, 0
    for choice, places in choices.items():
        more = len(choice) // 8 - 1
        if n + size + more > most:
            rows, size = [*rows, []], 0
        rows[-1].append((choice, places))
        size += more
    return [_row(prompt, dict(row)) for row in rows]


def _row(prompt: bytes, choices: dict[bytes, list[tuple[int, int]]]) -> _Row:
    prompt, *targets = (torch.from_numpy(np.frombuffer(ids, np.int64).copy()) for ids in (prompt, *choices))
    parts, n = [prompt, *(ids[:-1] for ids in targets)], len(prompt)
    pos = torch.cat([torch.arange(n), *(torch.arange(n, n + len(part)) for part in parts[1:])])
    branch = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    own = [(branch == c).nonzero().flatten() for c in range(1, len(parts))]
    before = [torch.cat([torch.tensor([n - 1]), places]) for places in own]
    return _Row(torch.cat(parts), pos, branch, before, targets, list(choices.values()))


def _score(o, rows: list[_Row], greedy: bool) -> list[tuple[float, bool]]:
    """(the summed nll, whether all of its tokens are the likeliest ones) of each choice of each row."""

    def padded(name):  # on the right: no token looks at what stands behind it
        parts = [getattr(row, name) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(o.device)

    branch, pos, mask = padded("branch"), None, CAUSAL
    if int(branch.max()) > 1:
        pos, same = padded("pos"), branch[:, :, None] == branch[:, None, :]
        mask = Mask((same | (branch == 0)[:, None, :]).tril()[:, None], pos=pos)
    with autocast(o.device, o.dtype):
        x = o.model.backbone(padded("idx"), pos, mask)
    targets = [ids for row in rows for ids in row.targets]
    hidden = torch.cat([x[b, places] for b, row in enumerate(rows) for places in row.before])
    expected, dtype = torch.cat(targets).to(o.device), DTYPES[o.dtype]
    nll = token_nll(hidden, head_of(o.model), expected, dtype).double()
    likeliest = torch.zeros_like(expected, dtype=torch.bool)
    if greedy:
        parts = [next_logits(o.model, part, dtype).argmax(-1) for part in hidden.split(TOKENS)]
        likeliest = torch.cat(parts) == expected
    sizes = [len(ids) for ids in targets]
    pairs = zip(nll.cpu().split(sizes), likeliest.cpu().split(sizes), strict=True)
    return [(values.sum().item(), bool(right.all())) for values, right in pairs]


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
        "special_tokens": special.report(o.tokenizer, read),
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
    probs = majority_baseline(targets, len(targets), len(labels))
    found = metrics.classification(probs, targets, labels, seed)
    answer = labels[probs[0].argmax()]
    return {"answer": answer} | {k: found[k] for k in ("accuracy", "accuracy_ci95", "macro_f1")}
