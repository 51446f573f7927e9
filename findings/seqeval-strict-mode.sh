#!/usr/bin/env bash
# seqeval 1.2.2. One would expect its strict mode to be the stricter one, and to call a type what the default mode calls it.
# An I- tag without its B- is no entity at all in strict mode and costs no precision, where the default mode counts a wrong entity; and
# strict mode takes hyphens off the ends of a type, so CD4- and CD4 are one.
# Seen: F1 1.0 strict and 0.67 by default of the same tags; F1 1.0 of CD4- against CD4
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" seqeval==1.2.2 numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1
PYTHONPATH=$d python3 - "$d" <<'E'
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

gold, found = [["B-Disease", "I-Disease", "O", "O"]], [["B-Disease", "I-Disease", "O", "I-Disease"]]
strict, default = f1_score(gold, found, mode="strict", scheme=IOB2), f1_score(gold, found)
hyphen = f1_score([["B-CD4-"]], [["B-CD4"]], mode="strict", scheme=IOB2)
print("strict", strict, "default", default, "CD4- against CD4, strict", hyphen)
assert strict == 1 and round(default, 2) == 0.67 and hyphen == 1
assert f1_score([["B-CD4-"]], [["B-CD4"]]) == 0
E
