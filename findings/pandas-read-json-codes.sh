#!/usr/bin/env bash
# pandas 3.1.1. A JSON string is a string, one would expect, since JSON has numbers of its own. read_json makes numbers of a column whose
# strings all look like some, and dates of one whose name ends in _at; dtype=False, which a file of records does not ask for, keeps them.
# What to_json wrote does not come back: of ICD-9 codes 250.00 and 250.0 are one, and the clone 1E5 is 100000.
# Seen: [250.0, 250.0, 100000.0] of "250.00", "250.0", "1E5"; [123, 456, 789] of "00123", "00456", "00789"
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" pandas==3.1.1 numpy==2.4.6
PYTHONPATH=$d python3 - <<'E'
from io import StringIO

import pandas as pd

rows = pd.DataFrame({"code": ["250.00", "250.0", "1E5"], "id": ["00123", "00456", "00789"], "text": ["a", "b", "5"]})
back = pd.read_json(StringIO(rows.to_json(orient="records"))).to_dict("list")
print(back)
assert back == {"code": [250, 250, 1e5], "id": [123, 456, 789], "text": ["a", "b", "5"]}
assert pd.read_json(StringIO(rows.to_json(orient="records")), dtype=False).equals(rows)
E
