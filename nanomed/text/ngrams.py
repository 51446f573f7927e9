"""Runs of words that two sides of texts share: a passage that is in both is a reason to doubt a figure."""

import re
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np

from nanomed.streams import progress_bar
from nanomed.text.nfkc import nfkc

WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Its runs of letters and digits, in `nfkc` and lower case: what is left where case, punctuation, white
    space and which of two micro signs was typed do not count."""
    return WORD.findall(nfkc(text).lower())


def hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of each n ids in a row (uint64, as are they), none if there are fewer: a polynomial of
    the ids, each spread by the finalizer of MurmurHash3. Two of a million n-grams collide with a probability
    of about 3e-8."""
    if not 0 < n <= len(ids):
        return np.zeros(0, np.uint64)
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        ids = (ids ^ (ids >> np.uint64(33))) * np.uint64(multiplier)
    ids ^= ids >> np.uint64(33)
    total = np.zeros(len(ids) - n + 1, np.uint64)
    for k in range(n):
        total = total * np.uint64(0x9E3779B97F4A7C13) + ids[k : k + len(total)]
    return total


def ngram_overlap(evaluated: Sequence[str], training: Iterable[str], n: int = 13) -> dict:
    """How much of the evaluated texts stands in the training texts: n-grams of words that occur in both.

    After Brown et al. 2020 (Language Models are Few-Shot Learners, appendix C), where a text is dirty if it
    shares one n-gram; their n is between 8 and 13, by the task's shortest texts. Here an n-gram counts
    however often training texts repeat it.

    {"n", "documents": evaluated texts that share at least one n-gram, "of": evaluated texts, "too_short":
    those with fewer than n words, which have no n-gram, "share": of the evaluated side's distinct n-grams
    those that occur in training (0 where there is none), "training_documents": how many were read, "most": up
    to three {"document": index, "share": of its own distinct n-grams, "text": the first that is shared, as
    words}, the largest share first}.

    `training` is read once, `evaluated` twice; what is kept is the evaluated n-grams' hashes (8 bytes each)
    and vocabulary."""
    numbers: dict[str, int] = {}

    def grams(text: str) -> np.ndarray:
        """A word that no evaluated text has is 0, as are all others of that kind."""
        return hashes(np.fromiter(map(numbers.get, words(text), repeat(0)), np.uint64), n)

    per_text = []
    for k in range(len(evaluated)):
        for word in words(text := evaluated[k]):
            numbers.setdefault(word, len(numbers) + 1)
        per_text.append(np.unique(grams(text)))
    known = np.unique(np.concatenate([*per_text, np.zeros(0, np.uint64)]))
    found, n_training = np.zeros(len(known), bool), 0
    for text in progress_bar(training, desc="looking for n-grams", unit=" texts"):
        n_training += 1
        if len(known):
            own = grams(text)
            at = np.minimum(np.searchsorted(known, own), len(known) - 1)
            found[at[known[at] == own]] = True

    shared = known[found]
    shares = [float(np.isin(own, shared).mean()) if len(own) else 0.0 for own in per_text]
    most = []
    for k in sorted(range(len(shares)), key=lambda k: -shares[k])[:3]:
        if shares[k]:
            at = int(np.isin(grams(evaluated[k]), shared).argmax())
            text = " ".join(words(evaluated[k])[at : at + n])
            most.append({"document": k, "share": shares[k], "text": text})
    return {
        "n": n,
        "documents": sum(share > 0 for share in shares),
        "of": len(evaluated),
        "too_short": sum(len(own) == 0 for own in per_text),
        "share": float(found.mean()) if len(found) else 0.0,
        "training_documents": n_training,
        "most": most,
    }
