#!/usr/bin/env bash
# polars 2.1.0. A DataFrame of rows takes its columns from the first 100 (infer_schema_length). What does not fit later is an error, one
# would expect, as strict=True, its default, promises. A number loses its fraction, and a field that comes
# first after them is gone; so in from_dicts and, for the number, in read_json.
# Seen: {'patient': 100, 'dose': 2} of the 101st row {'patient': 100, 'dose': 2.5, 'note': 'allergic'}; whole with infer_schema_length=None
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" polars==2.1.0
PYTHONPATH=$d python3 -W error - <<'E'
import io
import json

import polars as pl

rows = [{"patient": i, "dose": 5} for i in range(100)] + [{"patient": 100, "dose": 2.5, "note": "allergic"}]
found = [pl.DataFrame(rows).row(-1, named=True), pl.from_dicts(rows).row(-1, named=True)]
whole = pl.DataFrame(rows, infer_schema_length=None).row(-1, named=True)
written = json.dumps([{"dose": row["dose"]} for row in rows]).encode()
print(found, "whole:", whole, "read_json:", pl.read_json(io.BytesIO(written))["dose"][-1])
assert found == [{"patient": 100, "dose": 2}] * 2 and whole == rows[-1]
assert pl.read_json(io.BytesIO(written))["dose"][-1] == 2
E
