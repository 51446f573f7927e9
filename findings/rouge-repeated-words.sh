#!/usr/bin/env bash
# rouge 1.0.1, the package of that name (`from rouge import Rouge`). One would expect it to count a word of the answer as often as the
# reference has it, as ROUGE does, so that an answer that says the same over and over loses precision. It compares sets of words and
# of n-grams: a text that runs in circles has the score of the text that it repeats, in ROUGE-1 and ROUGE-L to the last digit.
# Seen: ROUGE-1 and ROUGE-L precision 1.0 of an answer that is repeated six times; rouge-score 0.1.2 has 0.17
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" rouge==1.0.1 rouge-score==0.1.2 nltk==3.10.4 numpy==2.4.6 absl-py==2.5.1 six==1.17.0
PYTHONPATH=$d python3 - "$d" <<'E'
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

reference = "the rash is caused by amoxicillin"
answer = " ".join([reference] * 6)
(here,) = Rouge().get_scores(answer, reference)
there = RougeScorer(["rouge1", "rougeL"]).score(reference, answer)
print("rouge", {name: score["p"] for name, score in here.items()})
print("rouge-score", {name: round(score.precision, 2) for name, score in there.items()})
assert here["rouge-1"]["p"] == here["rouge-l"]["p"] == 1
assert round(there["rouge1"].precision, 2) == round(there["rougeL"].precision, 2) == 0.17
E
