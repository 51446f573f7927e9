"""Near duplicates: which training texts are the same as another text, or nearly the same. Writes nothing."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np

from nanomed.errors import UserError
from nanomed.optional import need
from nanomed.streams import progress_bar
from nanomed.text.heldout import digest
from nanomed.text.ngrams import hashes, words

PERMUTATIONS = 128
LOWEST = 0.05  # a threshold for which so many permutations still find a pair with a probability above 0.99
EXAMPLES = 5
# shingles of texts compared with that are kept, 64 MiB: those of a template come again and again
ROOM = 2**23
AT_ONCE = 2**14  # shingles of a text that are permuted at once: 8 MiB a temporary array


@dataclass
class Duplicates:
    """What near_duplicates found. Counts are of training texts, each counted once; removed: which are to be
    taken out, (N,) of bool; near_removed_held: those of them that equal a held text or are near one;
    examples: (Jaccard similarity in [0, 1], training text, the other text, the held set's name or
    "training"), the closest near ones, then at most one equal one."""

    exact_held: int
    near_held: int
    exact_within: int
    near_within: int
    removed: np.ndarray
    near_removed_held: np.ndarray
    examples: list[tuple[float, str, str, str]]

    def lines(self) -> list[str]:
        """For a terminal: the counts, then each example in two or three lines."""
        out = [
            f"{int(self.removed.sum())} of {len(self.removed)} training texts to be taken out:"
            f" {self.exact_held} equal to a held text, {self.near_held} near one, {self.exact_within} equal"
            f" to an earlier training text, {self.near_within} near one"
        ]
        for similarity, text, other, where in self.examples:
            how, shown = ("equal to", [text]) if text == other else ("near", [text, other])
            out.append(f"  {similarity:.2f}, {how} one of {where}")
            out += [f"    {beginning(t)}" for t in shown]
        return out


def finder(threshold: float, seed: int) -> Callable | None:
    """near_duplicates() as a run's settings have it, for nanomed.text.divide; None without a threshold."""
    return partial(near_duplicates, threshold=threshold, seed=seed % 2**32) if threshold else None


def near_duplicates(
    training: Sequence[str], held: Mapping[str, Sequence[str]], threshold=0.8, width=5, seed=0
) -> Duplicates:
    """The training texts that repeat a held text or an earlier training text that stays, exactly or nearly.

    Texts of equal bytes are exact. Near are those whose sets of shingles (`width` words in a row; all
    words of a shorter text) have a Jaccard similarity of at least `threshold` (Broder 1997, On the
    resemblance and containment of documents, section 2). A text without words is near nothing. Of
    training texts the first stays. Exact counts before near, held before within.

    Pairs are found by MinHash and banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
    sections 3.3 and 3.4) and then verified on the sets, as 64-bit hashes: none that is reported is below
    the threshold. A pair at the threshold is missed with a probability of about 0.0001 for 0.8, at most
    0.002 for any threshold. `seed` (of 32 bits) draws the permutations, so it decides only about what is
    missed.

    A text is read once, and again when it is compared with, unless its shingles are among the last that
    were (ROOM). Memory: about 10 KB a text for 0.8, whatever its length. Time: about 0.4 ms a text of
    250 words, and 20 µs a pair that is verified. Raises UserError for a threshold that cannot be, or
    without datasketch."""
    if not LOWEST <= threshold <= 1:
        raise UserError(f"a similarity threshold of {threshold:g}: give one between {LOWEST} and 1")
    sources = [(name, texts, k) for name, texts in held.items() for k in range(len(texts))]
    n_held = len(sources)
    sources += [("training", training, k) for k in range(len(training))]
    index = Index(sources, n_held, threshold, width, seed)
    first: dict[bytes, int] = {}  # where a text was met first, of those that are held or stay
    exact, near = [], []  # (similarity, place, place of the other)
    for place in progress_bar(range(len(sources)), desc="comparing", unit=" texts"):
        text = index.text(place)
        same = first.get(key := digest(text))
        if same is None:
            similarity, other = index.closest_or_add(place, text)
            if other is None:
                first[key] = place
            else:
                near.append((similarity, place, other))
        elif place >= n_held:
            exact.append((1.0, place, same))

    of_held = {place - n_held: other < n_held for _, place, other in exact + near}
    removed, near_removed_held = np.zeros((2, len(training)), bool)
    removed[list(of_held)], near_removed_held[list(of_held)] = True, list(of_held.values())
    shown = sorted(near, key=lambda pair: (-pair[0], pair[1]))[: EXAMPLES - bool(exact)] + exact[:1]
    exact_held, near_held = (sum(other < n_held for _, _, other in pairs) for pairs in (exact, near))
    counts = (exact_held, near_held, len(exact) - exact_held, len(near) - near_held)
    examples = [(alike, index.text(k), index.text(other), sources[other][0]) for alike, k, other in shown]
    return Duplicates(*counts, removed, near_removed_held, examples)


class Index:
    """The texts that a new one is compared with, by their places in `sources`: (name, texts, number in
    these), of which the first n_held are held out."""

    def __init__(self, sources: list, n_held: int, threshold: float, width: int, seed: int):
        self.sources, self.n_held, self.threshold, self.width = sources, n_held, threshold, width
        datasketch = need("datasketch")
        self.sketch = datasketch.MinHash(PERMUTATIONS, seed=seed, hashfunc=int)
        self.bands = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
        self.signatures = np.zeros((len(sources), PERMUTATIONS), np.uint32)
        # Not verified are those whose signatures agree less than four standard deviations of a pair's at the
        # threshold would.
        self.agree = threshold - 4 * math.sqrt(threshold * (1 - threshold) / PERMUTATIONS)
        self.numbers = defaultdict(count(1).__next__)  # of words, in the order in which they are met
        self.recent: dict[int, np.ndarray] = {}  # shingles by place, the oldest first
        self.room = ROOM

    def text(self, place: int) -> str:
        _, texts, k = self.sources[place]
        return texts[k]

    def shingles(self, text: str) -> np.ndarray:
        ids = np.fromiter(map(self.numbers.__getitem__, words(text)), np.uint64)
        return np.unique(hashes(ids, min(self.width, len(ids))))

    def shingles_at(self, place: int) -> np.ndarray:
        own = self.recent.get(place)
        if own is None:
            own = self.recent[place] = self.shingles(self.text(place))
            self.room -= len(own)
            while self.room < 0:
                self.room += len(self.recent.pop(next(iter(self.recent))))
        return own

    def closest_or_add(self, place: int, text: str) -> tuple[float, int | None]:
        """(similarity, place) of what a training text is near; else (0, None), and the text is compared with
        from now on, as a held one is."""
        own = self.shingles(text)
        if not len(own):
            return 0.0, None
        self.sketch.clear()
        for start in range(0, len(own), AT_ONCE):
            self.sketch.update_batch((own[start : start + AT_ONCE] >> np.uint64(32)).tolist())
        if place >= self.n_held:
            similarity, other = self.closest(own)
            if similarity >= self.threshold:
                return similarity, other
        self.signatures[place] = self.sketch.hashvalues
        self.bands.insert(place, self.sketch)
        return 0.0, None

    def closest(self, own: np.ndarray) -> tuple[float, int | None]:
        """The similarity and place of the most similar text, a held one where there is one that is near."""
        found = np.sort(np.array(self.bands.query(self.sketch), int))
        found = found[(self.signatures[found] == self.sketch.hashvalues).mean(1) >= self.agree]
        best: tuple[float, int | None] = (0.0, None)
        for other in found.tolist():
            if other >= self.n_held and best[0] >= self.threshold and best[1] < self.n_held:
                break
            best = max(best, (jaccard(own, self.shingles_at(other)), other), key=lambda pair: pair[0])
        return best


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows of a band) for PERMUTATIONS: the longest bands, so the fewest candidates, with which a
    pair at the threshold agrees in none with a probability of at most 0.001, (1 - threshold^rows)^bands; else
    bands of one row."""
    fits = [(PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS // 2, 0, -1)]
    return next(((b, r) for b, r in fits if (1 - threshold**r) ** b <= 0.001), fits[-1])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The share of two sets' common elements in all of theirs; both sorted, without repetitions, and not both
    empty."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def beginning(text: str, length: int = 100) -> str:
    """Of a text, in one line, `length` characters; those that are no mark on a terminal, or act on it, as
    U+FFFD."""
    line = " ".join(text.lstrip()[: 10 * length].split())
    line = line if len(line) <= length else line[: length - 1] + "…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
