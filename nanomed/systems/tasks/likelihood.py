"""Which of its few labels a model finds likeliest as the answer to a text, in place of what it would write.

An answer is a label and its end, token for token as a training on it has them. So no label is the beginning
of another: `no` is not `no entailment` that breaks off.

A model likes some labels better than others whatever the text is. Zhao et al. 2021 ("Calibrate before use",
section 4) measure that on inputs without content, and divide it out: W = diag(p_cf)^-1, where p_cf is the
mean over these inputs of the labels' probabilities, which are made to sum to 1."""

import numpy as np

from nanomed.errors import UserError
from nanomed.evaluation.choices import scored
from nanomed.evaluation.generate import Ending
from nanomed.evaluation.measure import Opened
from nanomed.systems.tasks.options import options_of
from nanomed.systems.tasks.sources import ONE_LABEL
from nanomed.text.conversations import Conversation
from nanomed.text.templates import Template

WRITTEN, LIKELIHOOD, CALIBRATED = WAYS = ("written", "likelihood", "calibrated")
CONTENT_FREE = ("N/A", "", "[MASK]")
FEW = 32  # labels


def ways_of(task: dict, asked) -> tuple[str, ...]:
    """In which of the ways a task's texts are asked about; the first is the one that counts. Where a text has
    several labels, no likelihood of one alone is what a model was trained on, and their sets are too many."""
    few = task["form"] in ONE_LABEL and len(task["labels"]) <= FEW
    return tuple(way for way in asked if few or way == WRITTEN) or (WRITTEN,)


def ask(o: Opened, rows: list[dict], task: dict, template: Template, batch_size: int, greedy=False):
    """[{"loglikelihoods", "content_free"}] of each row, in nats by label: of the label as its answer, and of
    the label as the answer to no content at all, log p_cf. greedy: where these show that the model would
    write one of the labels, also its "answer", "stopped" and "room". What is too long for the model loses its
    beginning. Raises UserError for a label that is."""
    labels = [tuple(options_of(row["input"]) or task["labels"]) for row in rows]
    questions = [(row["instruction"], row["input"], own) for row, own in zip(rows, labels, strict=True)]
    kinds = {(instruction, own): None for instruction, _, own in questions}
    free = [(instruction, text, own) for instruction, own in kinds for text in CONTENT_FREE]
    asked = list(dict.fromkeys([*questions, *free]))
    encoded = [[_encode(o, template, *said, label) for label in own] for *said, own in asked]
    values, written = scored(o, encoded, batch_size, greedy)
    found, answers = dict(zip(asked, values, strict=True)), {}
    for question, choices, likeliest in zip(asked, encoded, written, strict=True):
        answers[question] = _written(o, template, question, choices, likeliest)
    prior = {kind: log_mean([found[kind[0], text, kind[1]] for text in CONTENT_FREE]) for kind in kinds}
    out = []
    for question in questions:
        instruction, _, own = question
        of_labels = {"loglikelihoods": found[question], "content_free": prior[instruction, own]}
        named = {key: dict(zip(own, of_each.tolist(), strict=True)) for key, of_each in of_labels.items()}
        out.append(named | answers[question])
    return out


def _encode(o: Opened, template: Template, instruction: str, input: str, label: str):
    """(the ids of a question and its answer, how many of them are the answer's)."""
    ids, spans = template.encode(Conversation.of(instruction, input, label), o.tokenizer)[-1]
    start, end = spans[-1]
    if end - start > o.model.config.n_positions:
        positions = f"the model has {o.model.config.n_positions:,} positions"
        raise UserError(f"the label {label[:60]!r} has {end - start:,} tokens; {positions}")
    return np.asarray(ids[:end], np.int64), end - start


def _written(o: Opened, template: Template, question, choices, likeliest) -> dict:
    """The answer that the model would write, if it is one of the choices; else {}."""
    instruction, input, _ = question
    for ids, n in (choice for choice, so in zip(choices, likeliest, strict=True) if so):
        prompt = o.tokenizer.prompt(template.ask(instruction, input))
        done = Ending(o.tokenizer, template.ends).completion(ids[-n:].tolist(), last=False)
        if done and len(ids) <= o.model.config.n_positions and np.array_equal(prompt, ids[:-n]):
            return {"answer": done.text, "stopped": True, "room": True}
    return {}


def log_mean(loglikelihoods: list[np.ndarray]) -> np.ndarray:
    """log p_cf of each label: of every input its labels' probabilities sum to 1, then their mean is taken."""
    values = np.stack(loglikelihoods)
    shares = values - np.logaddexp.reduce(values, axis=1, keepdims=True)
    return np.logaddexp.reduce(shares) - np.log(len(values))


def likeliest(answer: dict, way: str) -> str:
    """The label; of several that are as likely as one another, the first."""
    values = answer["loglikelihoods"]
    if way == CALIBRATED:
        values = {label: value - answer["content_free"][label] for label, value in values.items()}
    return max(values, key=values.get)
