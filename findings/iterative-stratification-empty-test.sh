#!/usr/bin/env bash
# iterative-stratification 0.1.9. One would expect a test side of about test_size, as scikit-learn's own splitters give it. Labels with
# few rows each (codes, MeSH headings) get none: with 250 labels of four rows and test_size 0.1 the test side is empty, whatever the
# seed; no error, no warning.
# Seen: 1000 rows: 1000 train, 0 test, for seeds 0 to 4
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" iterative-stratification==0.1.9 scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
PYTHONPATH=$d python3 - "$d" <<'E'
import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

labels = np.kron(np.eye(250, dtype=int), np.ones((4, 1), dtype=int))  # (1000, 250), four rows a label
for seed in range(5):
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=0.1, random_state=seed)
    train, test = next(splitter.split(np.zeros(len(labels)), labels))
    print(len(labels), "rows:", len(train), "train,", len(test), "test")
    assert len(test) == 0 and len(train) == 1000
E
