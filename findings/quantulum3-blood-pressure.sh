#!/usr/bin/env bash
# quantulum3 0.10.0. It reads quantities out of texts, one would expect as they are meant: a blood pressure is a fraction to it, a range
# its middle, a count by the litre the exponent of its power, and a unit of insulin an atomic mass unit.
# Seen: 1.5 millimeter of mercury of 120/80 mmHg; 7.5 milligram of 5-10 mg; 10 and 9 per litre of 10^9/L
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" quantulum3==0.10.0 inflect==7.6.0 num2words==0.5.14
PYTHONPATH=$d python3 -W ignore - <<'E'
from quantulum3 import parser

texts = ["blood pressure 120/80 mmHg", "5-10 mg", "platelets of 10^9/L", "10 U of insulin"]
found = [[(q.value, q.unit.name) for q in parser.parse(text)] for text in texts]
print(dict(zip(texts, found)))
assert found[0] == [(1.5, "millimeter of mercury")] and found[1] == [(7.5, "milligram")]
assert found[2] == [(10, "dimensionless"), (9, "per litre")] and found[3] == [(10, "atomic mass unit")]
E
