"""What a classifier has to beat: the majority, and logistic regression on TF-IDF."""

import numpy as np

from nanomed.evaluation import metrics
from nanomed.evaluation.counts import beyond_chance
from nanomed.models.classifier import probabilities
from nanomed.optional import need
from nanomed.text.labelled import Labelled, Sides, targets_of

TFIDF = "TF-IDF + logistic regression"


def majority_baseline(train_targets: np.ndarray, n: int, k: int) -> np.ndarray:
    """Probabilities (n, k) of always giving the training side's commonest answer."""
    if train_targets.ndim == 2:
        return np.tile((train_targets.mean(0) >= 0.5).astype(float), (n, 1))
    return np.tile(np.eye(k)[np.bincount(train_targets, minlength=k).argmax()], (n, 1))


def tfidf_baseline(train_texts: list[str], train_targets: np.ndarray, texts: list[str], k: int) -> np.ndarray:
    """Probabilities (n, k) of logistic regression on TF-IDF of words and word pairs, scikit-learn's defaults
    otherwise."""
    names = ("feature_extraction.text", "linear_model", "multiclass")
    text, linear, multi = (need(f"sklearn.{name}") for name in names)
    least = 2 if len(train_texts) > 100 else 1
    vectorizer = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=least)
    x, y = vectorizer.fit_transform(train_texts), vectorizer.transform(texts)
    regression = linear.LogisticRegression(max_iter=1000, class_weight="balanced")
    if train_targets.ndim == 2:
        return multi.OneVsRestClassifier(regression).fit(x, train_targets).predict_proba(y)
    out = np.zeros((len(texts), k))
    out[:, np.unique(train_targets)] = regression.fit(x, train_targets).predict_proba(y)
    return out


def beside_baselines(logits, labels, sides: Sides | None, items: list[Labelled], targets, seed: int) -> dict:
    """{name: metrics.classification} of a model's logits and, if the training side is known, of two baselines
    made from it: the majority, and logistic regression on TF-IDF, which a fine-tuned model has to beat. The
    model's `against_tfidf` is metrics.paired of these two."""
    probs = probabilities(logits, targets.ndim == 2)
    out = {"model": metrics.classification(probs, targets, labels, seed)}
    if not sides:
        return out
    train_targets = targets_of(sides.training, labels, sides.multi_label)
    train_texts, texts = ([item.text for item in side] for side in (sides.training, items))
    majority = majority_baseline(train_targets, len(items), len(labels))
    out["majority"] = metrics.classification(majority, targets, labels, seed)
    try:
        tfidf = tfidf_baseline(train_texts, train_targets, texts, len(labels))
    except ValueError as e:  # scikit-learn's: no word occurs twice, say
        print(f"no TF-IDF baseline: {e}")
        return out
    out[TFIDF] = metrics.classification(tfidf, targets, labels, seed)
    out["model"]["against_tfidf"] = metrics.paired(probs, tfidf, targets, seed)
    return out


def verdict(measured: dict[str, dict]) -> str:
    """Two honest lines: whether the model beats the plain baseline, and what that rests on."""
    if TFIDF not in measured:
        return "no TF-IDF baseline to beat"
    r = measured["model"]["against_tfidf"]
    if r["difference_ci95"] is None:
        return "too few texts to tell whether the model beats the TF-IDF baseline"
    low, high = r["difference_ci95"]
    found = f"{'beats' if r['difference'] > 0 else 'does NOT beat'} the TF-IDF baseline"
    found = found if beyond_chance(r) else "does not beat the TF-IDF baseline beyond chance"
    ours, theirs = (measured[name]["macro_f1"] for name in ("model", TFIDF))
    return (
        f"the model {found}: macro-F1 {ours:.3f} and {theirs:.3f},\n"
        f"  difference {r['difference']:+.3f} [{low:+.3f}, {high:+.3f}], p {r['difference_p']:.3f}; only the"
        f" model is right on {r['only_model_right']:,} texts, only TF-IDF on {r['only_tfidf_right']:,}"
        f" (McNemar's p {r['p']:.3f})"
    )
