"""Figures of classifiers and of answers. Libraries compute what has a name (scikit-learn, sacrebleu,
rouge-score); each figure has an interval."""

import importlib.metadata
import re
import string
import unicodedata
from collections import Counter
from functools import partial
from itertools import chain, zip_longest

import numpy as np

from nanomed.evaluation.bootstrap import interval, wilson
from nanomed.evaluation.counts import Counts, difference, or_none
from nanomed.optional import need
from nanomed.text.nfkc import nfkc

# --- classification -----------------------------------------------------------------------------------------


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, section 2): the mean distance between confidence and
    accuracy over equal bins of confidence, weighted by how many texts fall into each."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    n = np.bincount(which, minlength=bins)
    gap = np.bincount(which, confidence, bins) - np.bincount(which, correct, bins)
    return float(np.abs(gap).sum() / n.sum())


def _decided(probs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, Counts]:
    """(what is predicted, in the targets' form; its Counts)."""
    multi = targets.ndim == 2
    predicted = (probs >= 0.5).astype(int) if multi else probs.argmax(1)
    right = (predicted == targets).all(1) if multi else predicted == targets
    true, said = (x if multi else np.eye(probs.shape[1], dtype=int)[x] for x in (targets, predicted))
    return predicted, Counts(true * said, said, true, right)


def classification(probs: np.ndarray, targets: np.ndarray, labels: list[str], seed: int = 0) -> dict:
    """Accuracy and macro-F1 with intervals, AUC, confusion matrix [true][predicted], calibration error, F1 of
    each label.

    probs (N, K); targets (N,). In a multi-label task targets are (N, K) and a label is predicted at 1/2 or
    more: accuracy is then the share of texts with exactly the right labels, micro-F1 stands beside macro-F1,
    and each label has a confusion matrix of its own. A label that is neither there nor predicted has no F1
    (None), and is left out of the mean."""
    sk = need("sklearn.metrics")
    n, multi = len(targets), targets.ndim == 2
    predicted, counts = _decided(probs, targets)  # sklearn's F1 takes milliseconds a draw
    out = {
        "texts": n,
        "accuracy": counts.value("accuracy"),
        "accuracy_ci95": wilson(counts.right),
        "macro_f1": or_none(counts.value("macro_f1")),
        "macro_f1_ci95": interval(partial(counts.value, "macro_f1"), n, samples=300, seed=seed),
        "auc": _auc(sk, probs, targets, len(labels)),
        "f1": {label: or_none(value) for label, value in zip(labels, counts.f1(), strict=True)},
    }
    if multi:
        out["micro_f1"] = or_none(counts.value("micro_f1"))
        confidence = np.where(predicted == 1, probs, 1 - probs)
        out["calibration_error"] = calibration_error(confidence.ravel(), (predicted == targets).ravel())
        out["confusion"] = sk.multilabel_confusion_matrix(targets, predicted).tolist()
    else:
        out["calibration_error"] = calibration_error(probs.max(1), counts.right)
        out["confusion"] = sk.confusion_matrix(targets, predicted, labels=range(len(labels))).tolist()
    return out


def _auc(sk, probs, targets, k) -> float | None:
    """Area under the ROC curve, one label against the rest, averaged over labels; None if some label never
    occurs."""
    one_hot = targets if targets.ndim == 2 else np.eye(k)[targets]
    if not (one_hot.sum(0) > 0).all() or not (one_hot.sum(0) < len(one_hot)).all():
        return None
    if k == 2 and targets.ndim == 1:
        return float(sk.roc_auc_score(targets, probs[:, 1]))
    return float(sk.roc_auc_score(one_hot, probs, average="macro"))


def paired(model: np.ndarray, tfidf: np.ndarray, targets: np.ndarray, seed=0, samples=1000) -> dict:
    """Two classifiers' probabilities (N, K) of the same texts: the difference() of their macro-F1; on how
    many texts only one of the two is right (only_model_right, only_tfidf_right), in a multi-label task about
    every label; p: of McNemar's exact test on these two counts."""
    (_, a), (_, b) = (_decided(probs, targets) for probs in (model, tfidf))
    only_model, only_tfidf = int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())
    n_only = only_model + only_tfidf
    return difference("macro_f1", a, b, seed, samples) | {
        "only_model_right": only_model,
        "only_tfidf_right": only_tfidf,
        "p": float(need("scipy.stats").binomtest(only_model, n_only).pvalue) if n_only else 1.0,
    }


# --- answers ------------------------------------------------------------------------------------------------


def normalise_squad(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and extra blanks (SQuAD's evaluation, Rajpurkar et al.
    2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


MEANS = re.compile(
    r"""[<>=+%]              # <10, HER2+, 5 %
                     | (?<=\d)[^\w\s](?=\d)  # 1.5, 5-10, 120/80, 1:1000
                     | (?<!\w)[.-](?=\.?\d)  # -5, .5
                     | (?<!\S)-(?=\s+\d)    # 5 - 10
                     | (?<=\w)-(?!\w)       # ER-
                     | (?<!\w)-(?=[^\W\d_]{1,2}(?!\w))  # -ve
                     | (?<=\de)-(?=\d)      # 1e-3
                     | (?<=\w)/(?=\w)       # A/B, T4/T3
                     | (?<!\w)(?:[^\W\d_]|[ivx]+)-(?=(?:[^\W\d_]|[ivx]+)(?!\w))  # A-B, I-II""",
    re.VERBOSE,
)
# No article stands before these: "vitamin a and zinc", "A is correct".
NO_NOUN = set("and or but is are was were in of to for with by on at as".split())


def normalise(text: str) -> str:
    """SQuAD's normalisation, except where a medical answer's meaning would change: punctuation stays where it
    is a sign or part of a number (a thousands comma does not), and articles go only where they stand before a
    word. A capital A is an article at the beginning of a sentence alone, so that hepatitis A stays; a small
    one within a sentence always is. Both micro signs are one, and whatever else `nfkc` makes one; in SQuAD's
    they are two.

    Whatever else goes here goes in SQuAD's too, so that texts which are the same here are the same there, if
    their characters are."""
    words, left = nfkc(text).split(), []
    for k, word in enumerate(words):
        following = words[k + 1].strip(string.punctuation) if k + 1 < len(words) else ""
        bare = word.lstrip("\"'([{")
        begins = k == 0 or words[k - 1].endswith((".", "!", "?"))
        if bare == "A" and begins and not (len(following) == 1 and following.isalpha()):
            bare = "a"
        is_a = bare == "a" and following.lower() not in NO_NOUN
        if not following or not (is_a or bare in ("the", "The", "THE", "an", "An")):
            left.append(word)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", " ".join(left).lower())
    meant = {m.end() - 1 for m in MEANS.finditer(text)}
    text = "".join(c for i, c in enumerate(text) if c not in string.punctuation or i in meant)
    text = re.sub(r"(?<!\S)([<>=+-]+)\s+(?=\d)", r"\1", text)  # "< 10" as "<10"
    text = re.sub(r"(?<=\d)\s+%(?!\S)", "%", text)
    return " ".join(text.split())


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that answer and reference share, normalised as in SQuAD; two empty ones agree (SQuAD
    2.0)."""
    a, b = normalise_squad(answer).split(), normalise_squad(reference).split()
    shared = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * shared / (len(a) + len(b))


# Scripts without blanks between words: Thai, Lao, Burmese, Khmer, kana, Han.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
UNSPACED += r"\uf900-\ufaff\U00020000-\U0003ffff"
# In a text of letters, digits and combining marks: a letter of theirs and its marks, or a run of others.
WORD = re.compile(rf"[{UNSPACED}][^\w\s]*|(?![{UNSPACED}])\w[^\s{UNSPACED}]*")


class UnicodeWords:
    """A tokenizer for rouge-score, whose own drops every letter but a-z and 0-9. ASCII words are left to that
    one and its Porter stemmer, so that English is measured as ever; others stay whole, in lower case; where a
    script has no blanks each character is a word. What `nfkc` makes one is one."""

    def __init__(self):
        self.ascii = need("rouge_score.tokenizers").DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        text = nfkc(text).lower()
        text = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
        words = (self.ascii.tokenize(word) if word.isascii() else [word] for word in WORD.findall(text))
        return [part for parts in words for part in parts]


def answers(completions: list[str], references: list, stopped: list[bool], seed: int = 0) -> dict:
    """How far answers agree with their references (a text each, or a list of them), each measure with its
    interval over questions, of shares Wilson's, else a bootstrap: exact match (0..1) by `normalise` and by
    SQuAD's rule, token F1 (SQuAD), BLEU (0..100), ROUGE-1/2/L F1 (0..1); words an answer and the share that
    stopped by itself; settings: which library, in which version, measured how. Of several references of a
    question the best counts, measure by measure, as in SQuAD's evaluation and in rouge-score's; BLEU counts
    the n-grams of any (Papineni et al. 2002, section 2.1)."""
    bleu, rouge_lib = need("sacrebleu.metrics").BLEU(), need("rouge_score.rouge_scorer")
    scorer = rouge_lib.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=UnicodeWords())
    references = [[r] if isinstance(r, str) else r for r in references]
    pairs, n = list(zip(completions, references, strict=True)), len(completions)
    rouge = [scorer.score_multi(refs, c) for c, refs in pairs]
    values = {
        "exact_match": [normalise(c) in map(normalise, refs) for c, refs in pairs],
        "exact_match_squad": [normalise_squad(c) in map(normalise_squad, refs) for c, refs in pairs],
        "token_f1": [max(token_f1(c, r) for r in refs) for c, refs in pairs],
        "rouge_1": [s["rouge1"].fmeasure for s in rouge],
        "rouge_2": [s["rouge2"].fmeasure for s in rouge],
        "rouge_l": [s["rougeL"].fmeasure for s in rouge],
        "words": [len(c.split()) for c in completions],
        "stopped": stopped,
    }
    out = {"questions": n}
    for key, value in values.items():
        value = np.array(value)
        out[key] = float(value.mean())
        of_mean = partial(interval, lambda rows, v=value: v[rows].mean(), n, seed=seed)
        out[key + "_ci95"] = wilson(value) if value.dtype == bool else of_mean()
    # of n-grams, a row an answer; None: a question with fewer references than another
    counts = np.array(bleu._extract_corpus_statistics(completions, list(zip_longest(*references))))

    def bleu_of(rows):
        return bleu._compute_score_from_stats(counts[rows].sum(0).tolist()).score

    out["bleu"], out["bleu_ci95"] = bleu_of(slice(None)), interval(bleu_of, n, seed=seed)
    how = f"sacrebleu {bleu.get_signature()}"
    if re.search(f"[{UNSPACED}]", " ".join(chain(completions, *references))):
        how += "; its 13a takes unspaced Chinese, Japanese or Thai for one word"
    if not counts[:, -1].any():  # of the longest n-grams
        longest = f"{bleu.max_ngram_order} tokens, its longest n-gram"
        how += f"; 0 because no answer has {longest}: read exact match and token F1"
    rouge_version = importlib.metadata.version("rouge-score")
    out["settings"] = {
        "exact_match": "punctuation and articles aside, unless they change the meaning; NFKC but for ², ₂, ½",
        "exact_match_squad": "SQuAD's normalisation",
        "token_f1": "SQuAD's normalisation",
        "bleu": how,
        "rouge": f"rouge-score {rouge_version}, F1, Porter stemmer, Unicode words",
    }
    return out
