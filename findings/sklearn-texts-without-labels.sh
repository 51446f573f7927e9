#!/usr/bin/env bash
# scikit-learn 1.9.1, texts with any number of labels, of which many have none (as in HoC or of diagnosis codes). One would expect
# the metrics of rankings to leave out texts without a label, or all of them to count these alike. Each is 1.0 in
# label_ranking_average_precision_score, however its labels are ranked, and 0.0 in ndcg_score.
# Seen: of four texts, one of them with a label, the worst ranking has LRAP 0.83 and the best one NDCG 0.25; no warning
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
PYTHONPATH=$d python3 -W error - <<'E'
import numpy as np
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

gold = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
best, worst = np.array([[0.9, 0.2, 0.1]] * 4), np.array([[0.1, 0.2, 0.9]] * 4)
lrap = [round(float(label_ranking_average_precision_score(gold, scores)), 2) for scores in (best, worst)]
ndcg = [round(float(ndcg_score(gold, scores)), 2) for scores in (best, worst)]
print("LRAP of the best and the worst ranking", lrap, "- NDCG", ndcg)
assert lrap == [1.0, 0.83] and ndcg == [0.25, 0.12]
E
