"""What a task can be done with before any language model: always the commonest answer, and a linear model
from a library.

Made with the instruction set and kept beside it (NAME.baselines.json), a prediction a test text, so that
every model is compared with the same ones. A linear model learns from all that may be trained on; where a
mixture holds less of it, a second one from that part."""

from pathlib import Path

import numpy as np

from nanomed.evaluation.baselines import majority_baseline, tfidf_baseline
from nanomed.files import write_json
from nanomed.optional import need
from nanomed.systems.tasks.cases import Case
from nanomed.systems.tasks.mixture import drawn
from nanomed.systems.tasks.sources import Task

MAJORITY, LINEAR, SAME = "majority", "linear", "linear, same rows"


def write(tasks: list[Task], seed: int, out: Path) -> None:
    """NAME.baselines.json of every task: {baseline: [labels or tags of each test text]}."""
    for task in tasks:
        if task.source.form != "options":
            print(f"fitting linear models: {task.source.name}, {len(task.train):,} texts ...", flush=True)
        write_json(predict(task, seed), out / f"{task.source.name}.baselines.json")


def predict(task: Task, seed: int) -> dict[str, list[list[str]]]:
    texts = [case.input for case in task.test]
    same = drawn(task, seed)
    sides = {LINEAR: task.train}
    if sorted(same) != list(range(len(task.train))):
        sides[SAME] = [task.train[k] for k in same]
    if task.form.tagged:
        nothing = [["O"] * len(text.split(" ")) for text in texts]
        return {MAJORITY: nothing} | {name: tag(side, texts) for name, side in sides.items()}
    majority = majority_baseline(targets(task.train, task), len(texts), len(task.labels))
    found = {MAJORITY: _labels(majority, task)}
    if task.source.form == "options":  # which letter is right does not hang on words
        return found
    for name, side in sides.items():
        try:
            probs = _linear([c.input for c in side], targets(side, task), texts, len(task.labels))
            found[name] = _labels(probs, task)
        except ValueError as e:  # scikit-learn's: not a single word, say
            print(f"{task.source.name}: no {name} model ({e})")
    return found


def _linear(train: list[str], y: np.ndarray, texts: list[str], k: int) -> np.ndarray:
    """tfidf_baseline()'s probabilities (N, k); a label that every training text has, or none, is not
    learnt."""
    if y.ndim == 1:
        return tfidf_baseline(train, y, texts, k) if len(set(y)) > 1 else majority_baseline(y, len(texts), k)
    out, varied = np.tile(y[0], (len(texts), 1)), y.min(0) < y.max(0)
    if varied.any():  # of one label alone, scikit-learn gives two columns: without it, and with it
        out[:, varied] = tfidf_baseline(train, y[:, varied], texts, k)[:, -varied.sum() :]
    return out


def targets(cases: list[Case], task: Task) -> np.ndarray:
    """Label numbers (N,), or of several labels a text zeros and ones (N, K)."""
    if task.source.form != "classes":
        return np.array([task.labels.index(case.gold[0]) for case in cases])
    return np.array([[label in case.gold for label in task.labels] for case in cases]).astype(float)


def _labels(probs: np.ndarray, task: Task) -> list[list[str]]:
    if task.source.form != "classes":
        return [[task.labels[k]] for k in probs.argmax(1)]
    return [[label for label, p in zip(task.labels, row, strict=True) if p >= 0.5] for row in probs]


# --- a tag a word -------------------------------------------------------------------------------------------


def tag(train: list[Case], texts: list[str]) -> list[list[str]]:
    """The tags that a linear support vector machine (scikit-learn's, its defaults) gives to each word by the
    word, its ends and its shape, and those of its neighbours."""
    extraction, svm = need("sklearn.feature_extraction.text"), need("sklearn.svm")
    vectorizer = extraction.CountVectorizer(analyzer=list, binary=True)
    x = vectorizer.fit_transform(features for case in train for features in _features(case.input.split(" ")))
    tags = [t for case in train for t in case.gold]
    if len(set(tags)) < 2:
        return [["O"] * len(text.split(" ")) for text in texts]
    model = svm.LinearSVC().fit(x, tags)
    features = vectorizer.transform(words for text in texts for words in _features(text.split(" ")))
    said = iter(model.predict(features).tolist())
    return [[next(said) for _ in text.split(" ")] for text in texts]


def _shape(word: str) -> str:
    """Its characters by kind, runs as one: `Xx-0` of `Mg-24`."""
    kinds = ["X" if c.isupper() else "x" if c.islower() else "0" if c.isdigit() else c for c in word]
    return "".join(kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before)


def _features(words: list[str]) -> list[list[str]]:
    padded, out = ["", "", *words, "", ""], []
    lower = [word.lower() for word in padded]
    for k in range(2, len(words) + 2):
        word = lower[k]
        named = [f"{n}:{lower[k + n]}" for n in range(-2, 3)]
        named += [f"{n}<{word[:n]}" for n in range(1, 5)] + [f">{n}{word[-n:]}" for n in range(1, 5)]
        named += [f"shape{n}:{_shape(padded[k + n])}" for n in (-1, 0, 1)]
        named += [f"{n}>{lower[k + n][-3:]}" for n in (-1, 1)]
        out.append([*named, f"{lower[k - 1]}_{word}", f"{word}_{lower[k + 1]}"])
    return out
