#!/usr/bin/env bash
# rouge-score 0.1.2, the usual ROUGE. One would expect two answers that differ in a Greek letter to score below 1, and equal answers to
# score 1. Its tokenizer keeps a-z and 0-9 alone: TNF-alpha and TNF-beta are one when they are spelled with letters, and an answer of
# one Greek letter scores 0 against itself.
# Seen: 1.0 for "TNF-α induces IL-1β" against "TNF-β induces IL-1α"; 0.0 for "α" against "α"
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" rouge-score==0.1.2 nltk==3.10.4 numpy==2.4.6 absl-py==2.5.1 six==1.17.0
PYTHONPATH=$d python3 - "$d" <<'E'
from rouge_score.rouge_scorer import RougeScorer

scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
for reference, answer, expected in (("TNF-α induces IL-1β", "TNF-β induces IL-1α", 1.0), ("α", "α", 0.0)):
    scores = {name: score.fmeasure for name, score in scorer.score(reference, answer).items()}
    print(reference, "/", answer, scores)
    assert set(scores.values()) == {expected}
E
