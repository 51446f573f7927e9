"""Questions about conditions that differ from another one only in words of one character (hepatitis B and C):
does BM25 find the right condition first?

    python bench/one_letter.py --data medquad.jsonl

Rows of MedQuAD: {question, answer, focus (the condition)}; all conditions with their answers are the
passages. Prints the share of these questions whose best passage is about the condition that is asked about.
"""

import argparse
import re
from collections import defaultdict

import numpy as np

from nanomed.systems.retrieve import bm25
from nanomed.text.rows import read_rows


def words(condition: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", condition.lower()))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True)
    args = p.parse_args()
    rows, alike = list(read_rows(args.data, lambda row: row, None, False)), defaultdict(set)
    for row in rows:
        alike[tuple(w for w in words(row["focus"]) if len(w) > 1)].add(words(row["focus"]))
    twins = [r for r in rows if len(alike[tuple(w for w in words(r["focus"]) if len(w) > 1)]) > 1]
    asked = [r for r in twins if any(len(w) == 1 for w in words(r["focus"]))]
    best = bm25([f"{r['focus']}\n{r['answer']}" for r in rows], [r["question"] for r in asked], 1)[:, 0]
    right = [words(rows[b]["focus"]) == words(r["focus"]) for b, r in zip(best, asked, strict=True)]
    print(f"{np.mean(right):.3f} of {len(asked):,} questions")


if __name__ == "__main__":
    main()
