#!/usr/bin/env bash
# contractions 0.1.73. One would expect it to write out what stands before or behind an apostrophe (don't, I'm) and to leave the rest.
# It also writes out what could have lost one, and chat's shorthand: IM is I am, shed is she would, U is you.
# Seen: '5 mg I AM', 'he she would the virus', '5 YOU of insulin'
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" contractions==0.1.73 textsearch==0.0.24 anyascii==0.3.3
PYTHONPATH=$d python3 - <<'E'
import contractions

texts = ["5 mg IM", "he shed the virus", "5 U of insulin"]
found = [contractions.fix(text) for text in texts]
print(found)
assert found == ["5 mg I AM", "he she would the virus", "5 YOU of insulin"]
E
