"""Measures of classifiers and of answers. Libraries compute what has a name (scikit-learn, sacrebleu, rouge-score); the
bootstrap says how far each figure can be trusted."""

import re
import string
from collections import Counter

import numpy as np

from nanomed.errors import UserError


def need(module: str):
    """Import an optional library, or say in one line how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(f"{module.split('.')[0]} is not installed: pip install 'nanomed[report]'") from e


def interval(statistic, n: int, samples: int = 1000, seed: int = 0) -> list[float] | None:
    """95 % percentile bootstrap of statistic(indices) over n items drawn with replacement (Efron 1979)."""
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = [statistic(rng.integers(n, size=n)) for _ in range(samples)]
    return [float(q) for q in np.nanpercentile(draws, [2.5, 97.5])]


# --- classification ---------------------------------------------------------------------------------------------------


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, section 2): the mean distance between confidence and accuracy over
    equal bins of confidence, weighted by how many texts fall into each."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    n = np.bincount(which, minlength=bins)
    gap = np.bincount(which, confidence, bins) - np.bincount(which, correct, bins)
    return float(np.abs(gap).sum() / n.sum())


def classification(probs: np.ndarray, targets: np.ndarray, labels: list[str], seed: int = 0) -> dict:
    """Accuracy and macro-F1 with intervals, AUC, confusion matrix [true][predicted], calibration error, F1 of each label.

    probs (N, K); targets (N,). In a multi-label task targets are (N, K) and a label is predicted at 1/2 or more: accuracy is
    then the share of texts with exactly the right labels, micro-F1 stands beside macro-F1, and each label has a confusion
    matrix of its own. A label that is neither there nor predicted has no F1, and is left out of the mean."""
    sk = need("sklearn.metrics")
    n, multi = len(targets), targets.ndim == 2
    predicted = (probs >= 0.5).astype(int) if multi else probs.argmax(1)
    right = (predicted == targets).all(1) if multi else predicted == targets
    known = list(range(len(labels)))

    def macro_f1(rows):
        return sk.f1_score(targets[rows], predicted[rows], labels=known, average="macro", zero_division=np.nan)

    everything = np.arange(n)
    per_label = sk.f1_score(targets, predicted, labels=known, average=None, zero_division=np.nan)
    out = {
        "texts": n,
        "accuracy": float(right.mean()),
        "accuracy_ci95": interval(lambda rows: right[rows].mean(), n, seed=seed),
        "macro_f1": float(macro_f1(everything)),
        "macro_f1_ci95": interval(macro_f1, n, samples=300, seed=seed),
        "auc": _auc(sk, probs, targets, len(labels)),
        "f1": {label: None if np.isnan(f1) else float(f1) for label, f1 in zip(labels, per_label, strict=True)},
    }  # fmt: skip
    if multi:
        out["micro_f1"] = float(sk.f1_score(targets, predicted, average="micro", zero_division=np.nan))
        confidence = np.where(predicted == 1, probs, 1 - probs)
        out["calibration_error"] = calibration_error(confidence.ravel(), (predicted == targets).ravel())
        out["confusion"] = sk.multilabel_confusion_matrix(targets, predicted).tolist()
    else:
        out["calibration_error"] = calibration_error(probs.max(1), right)
        out["confusion"] = sk.confusion_matrix(targets, predicted, labels=known).tolist()
    return out


def _auc(sk, probs, targets, k) -> float | None:
    """Area under the ROC curve, one label against the rest, averaged over labels; None if some label never occurs."""
    one_hot = targets if targets.ndim == 2 else np.eye(k)[targets]
    if not (one_hot.sum(0) > 0).all() or not (one_hot.sum(0) < len(one_hot)).all():
        return None
    if k == 2 and targets.ndim == 1:
        return float(sk.roc_auc_score(targets, probs[:, 1]))
    return float(sk.roc_auc_score(one_hot, probs, average="macro"))


def majority_baseline(train_targets: np.ndarray, n: int, k: int) -> np.ndarray:
    """Probabilities (n, k) of always giving the training side's commonest answer."""
    if train_targets.ndim == 2:
        return np.tile((train_targets.mean(0) >= 0.5).astype(float), (n, 1))
    return np.tile(np.eye(k)[np.bincount(train_targets, minlength=k).argmax()], (n, 1))


def tfidf_baseline(train_texts: list[str], train_targets: np.ndarray, texts: list[str], k: int) -> np.ndarray:
    """Probabilities (n, k) of logistic regression on TF-IDF of words and word pairs, scikit-learn's defaults otherwise."""
    text, linear, multi = (need("sklearn." + m) for m in ("feature_extraction.text", "linear_model", "multiclass"))
    vectorizer = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(train_texts) > 100 else 1)
    x, y = vectorizer.fit_transform(train_texts), vectorizer.transform(texts)
    regression = linear.LogisticRegression(max_iter=1000, class_weight="balanced")
    if train_targets.ndim == 2:
        return multi.OneVsRestClassifier(regression).fit(x, train_targets).predict_proba(y)
    out = np.zeros((len(texts), k))
    out[:, np.unique(train_targets)] = regression.fit(x, train_targets).predict_proba(y)
    return out


# --- answers ----------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks (SQuAD's evaluation, Rajpurkar et al. 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that answer and reference share (SQuAD); two empty ones agree."""
    a, b = normalise(answer).split(), normalise(reference).split()
    shared = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * shared / (len(a) + len(b))


def answers(completions: list[str], references: list[str], stopped: list[bool], seed: int = 0) -> dict:
    """Exact match, token F1, BLEU (0..100), ROUGE-1/2/L F1, words an answer, share that stopped by itself: each with its
    bootstrap interval over questions."""
    bleu_lib, rouge_lib = need("sacrebleu.metrics"), need("rouge_score.rouge_scorer")
    scorer = rouge_lib.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rouge = [scorer.score(r, c) for c, r in zip(completions, references, strict=True)]
    values = {
        "exact_match": [normalise(c) == normalise(r) for c, r in zip(completions, references, strict=True)],
        "token_f1": [token_f1(c, r) for c, r in zip(completions, references, strict=True)],
        **{key: [s[name].fmeasure for s in rouge]
           for key, name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL"))},
        "words": [len(c.split()) for c in completions],
        "stopped": stopped,
    }  # fmt: skip
    out = {"questions": len(completions)}
    for key, value in values.items():
        value = np.array(value, dtype=float)
        out[key] = float(value.mean())
        out[key + "_ci95"] = interval(lambda rows, v=value: v[rows].mean(), len(value), seed=seed)
    bleu = bleu_lib.BLEU()
    statistics = np.array(
        bleu._extract_corpus_statistics(completions, [references])
    )  # what BLEU adds up, a row an answer
    out["bleu"] = bleu.corpus_score(completions, [references]).score
    out["bleu_ci95"] = interval(
        lambda rows: bleu._compute_score_from_stats(statistics[rows].sum(0).tolist()).score, len(completions), seed=seed
    )
    return out
