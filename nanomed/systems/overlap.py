"""Data hygiene on plain texts: which training texts are the same as another text, or nearly the same. It
writes nothing, and reads one text at a time."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from tqdm import tqdm

from nanomed.errors import UserError
from nanomed.optional import need
from nanomed.text.heldout import HeldOut, digest
from nanomed.text.ngrams import hashes, words

PERMUTATIONS = 128
LOWEST = 0.05  # a threshold for which so many permutations still find a pair with a probability above 0.99
EXAMPLES = 5
ROOM = (
    2**23
    # shingles of texts compared with that are kept, 64 MiB: texts from one template are compared again and
    # again
)
AT_ONCE = (
    2**14
)  # shingles of a text that are permuted at once: 8 MiB a temporary array, however long the text


@dataclass
class Duplicates:
    """What near_duplicates found. Counts are of training texts, each counted once; examples: (Jaccard
    similarity in [0, 1], training text, the other text, the held set's name or "training"), the closest near
    ones, then at most one equal one."""

    exact_held: int
    near_held: int
    exact_within: int
    near_within: int
    removed: np.ndarray  # of bool, over the training texts: to be taken out
    near_removed_held: np.ndarray  # those of `removed` that equal a held text or are near one
    examples: list[tuple[float, str, str, str]]


def near_duplicates(
    training: Sequence[str],
    held: Mapping[str, Sequence[str]],
    threshold: float = 0.8,
    width: int = 5,
    seed: int = 0,
) -> Duplicates:
    """The training texts that repeat a held text or an earlier training text that stays, exactly or nearly.

    Texts of equal bytes are exact. Near are those whose sets of shingles (`width` words in a row; all words
    of a shorter text) have a Jaccard similarity of at least `threshold` (Broder 1997, On the resemblance and
    containment of documents, section 2). A text without words is near nothing. Of training texts the first
    stays. Exact counts before near, held before within.

    Pairs are found by MinHash and banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
    sections 3.3 and 3.4) and then verified on the sets, as 64-bit hashes: none that is reported is below the
    threshold. A pair at the threshold is missed with a probability of about 0.0001 for 0.8, at most 0.002 for
    any threshold, one above it with less. `seed` (of 32 bits) draws the permutations, so it decides only
    about what is missed.

    A text is read once, and again when it is compared with, unless its shingles are among the last that were
    (ROOM). Memory: about 10 KB a text for 0.8, whatever its length, most of it the index. Time: about 0.4 ms
    a text of 250 words, and 20 µs a pair that is verified, of which texts from one template make many. Raises
    UserError for a threshold or a width that cannot be, or without datasketch."""
    if not LOWEST <= threshold <= 1:
        raise UserError(f"a similarity threshold of {threshold:g}: give one between {LOWEST} and 1")
    if width < 1:
        raise UserError(f"shingles of {width} words: give 1 or more")
    datasketch = need("datasketch")
    sketch = datasketch.MinHash(PERMUTATIONS, seed=seed, hashfunc=int)
    index = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
    sources = [(name, texts, k) for name, texts in held.items() for k in range(len(texts))]
    n_held = len(sources)
    sources += [("training", training, k) for k in range(len(training))]
    numbers: defaultdict[str, int] = defaultdict(
        count(1).__next__
    )  # of words, in the order in which they are met
    signatures = np.zeros((len(sources), PERMUTATIONS), np.uint32)
    # Not verified are those whose signatures agree less than four standard deviations of a pair's at the
    # threshold would.
    agree = threshold - 4 * math.sqrt(threshold * (1 - threshold) / PERMUTATIONS)

    def shingles(text: str) -> np.ndarray:
        ids = np.fromiter(map(numbers.__getitem__, words(text)), np.uint64)
        return np.unique(hashes(ids, min(width, len(ids))))

    recent: dict[int, np.ndarray] = {}  # the oldest first
    room = ROOM

    def shingles_of(place: int) -> np.ndarray:
        nonlocal room
        own = recent.get(place)
        if own is None:
            _, texts, k = sources[place]
            own = recent[place] = shingles(texts[k])
            room -= len(own)
            while room < 0:
                room += len(recent.pop(next(iter(recent))))
        return own

    def closest(own: np.ndarray, signature: np.ndarray) -> tuple[float, int | None]:
        """The similarity and place of the most similar text in the index, a held one where there is one that
        is near."""
        found = np.sort(np.array(index.query(sketch), int))
        found = found[(signatures[found] == signature).mean(1) >= agree]
        best: tuple[float, int | None] = (0.0, None)
        for other in found.tolist():
            if other >= n_held and best[0] >= threshold and best[1] < n_held:
                break
            best = max(best, (jaccard(own, shingles_of(other)), other), key=lambda pair: pair[0])
        return best

    first: dict[bytes, int] = {}  # where a text was met first, of those that are held or stay
    exact, near = [], []  # (similarity, place, place of the other)
    for place in tqdm(range(len(sources)), desc="comparing", unit=" texts", leave=False, disable=None):
        _, texts, k = sources[place]
        text = texts[k]
        same = first.get(key := digest(text))
        if same is not None:
            exact += [(1.0, place, same)] if place >= n_held else []
            continue
        own = shingles(text)
        if len(own):
            sketch.clear()
            for start in range(0, len(own), AT_ONCE):
                sketch.update_batch((own[start : start + AT_ONCE] >> np.uint64(32)).tolist())
            if place >= n_held:
                similarity, other = closest(own, sketch.hashvalues)
                if similarity >= threshold:
                    near.append((similarity, place, other))
                    continue
            signatures[place] = sketch.hashvalues
            index.insert(place, sketch)
        first[key] = place

    removed, near_removed_held = np.zeros((2, len(training)), bool)
    for _, place, other in exact + near:
        removed[place - n_held] = True
        near_removed_held[place - n_held] = other < n_held
    shown = sorted(near, key=lambda pair: (-pair[0], pair[1]))[: EXAMPLES - bool(exact)] + exact[:1]
    return Duplicates(
        exact_held=sum(other < n_held for _, _, other in exact),
        near_held=sum(other < n_held for _, _, other in near),
        exact_within=sum(other >= n_held for _, _, other in exact),
        near_within=sum(other >= n_held for _, _, other in near),
        removed=removed,
        near_removed_held=near_removed_held,
        examples=[
            (similarity, training[place - n_held], sources[other][1][sources[other][2]], sources[other][0])
            for similarity, place, other in shown
        ],
    )


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


def repeated(
    plan, held: HeldOut, training: Sequence[str], sides: Mapping[str, Sequence[str]], quiet=False
) -> Duplicates:
    """near_duplicates() of a plan's training texts and its held-out ones, the sides that it validates on and
    --exclude; said unless quiet."""
    texts = {**sides, "--exclude": held.excluded}
    found = near_duplicates(training, texts, plan.near_duplicates, seed=plan.seed % 2**32)
    if not quiet:
        print(*describe(found), sep="\n")
    return found


def describe(d: Duplicates) -> list[str]:
    """Lines for a terminal: the counts, then each example in two or three."""
    lines = [
        f"{int(d.removed.sum())} of {len(d.removed)} training texts to be taken out: {d.exact_held} equal to"
        f" a held text, {d.near_held} near one, {d.exact_within} equal to an earlier training text,"
        f" {d.near_within} near one"
    ]
    for similarity, text, other, where in d.examples:
        if text == other:
            lines += [f"  {similarity:.2f}, equal to one of {where}", f"    {beginning(text)}"]
        else:
            lines += [
                f"  {similarity:.2f}, near one of {where}",
                f"    {beginning(text)}",
                f"    {beginning(other)}",
            ]
    return lines


def beginning(text: str, length: int = 100) -> str:
    """Of a text, in one line, `length` characters; those that are no mark on a terminal, or act on it, as
    U+FFFD."""
    line = " ".join(text.lstrip()[: 10 * length].split())
    line = line if len(line) <= length else line[: length - 1] + "…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
