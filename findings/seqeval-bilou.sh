#!/usr/bin/env bash
# seqeval 1.2.2. Its scheme module has BILOU, so that one would expect its default mode to take L- and U- for what they are, as it
# takes E- and S-. It warns that "U-D seems not to be NE tag", counts it all the same, and takes two entities of one word side by
# side for one.
# Seen: U-D U-D is one entity where S-D S-D is two; F1 1.0 of U-D L-D against U-D U-D, 0.67 in strict mode
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" seqeval==1.2.2 numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1
PYTHONPATH=$d python3 - "$d" <<'E'
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU

bilou, bioes = get_entities(["U-D", "U-D"]), get_entities(["S-D", "S-D"])
gold, found = [["U-D", "U-D", "O"]], [["U-D", "L-D", "O"]]
default, strict = f1_score(gold, found), f1_score(gold, found, mode="strict", scheme=BILOU)
print(bilou, bioes, default, strict)
assert bilou == [("D", 0, 1)] and len(bioes) == 2 and default == 1 and round(strict, 2) == 0.67
E
