#!/usr/bin/env bash
# Unidecode 1.4.0. One would expect ASCII for 5 μg to be 5 ug. It is for the micro sign (U+00B5); of the Greek letter (U+03BC), which
# looks the same, it makes m, so that micrograms become milligrams. NFKC makes the letter of the sign, so that a text that was
# normalised before has none but these.
# Seen: '5 ug' and '5 mg' of the two; '5 mg' and '40 mmol/L' after NFKC
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" Unidecode==1.4.0
PYTHONPATH=$d python3 - <<'E'
from unicodedata import normalize

from unidecode import unidecode

sign, letter = "5 \u00b5g", "5 \u03bcg"
normalised = [unidecode(normalize("NFKC", text)) for text in (sign, "40 \u00b5mol/L")]
print(unidecode(sign), unidecode(letter), normalised)
assert (unidecode(sign), unidecode(letter)) == ("5 ug", "5 mg")
assert normalised == ["5 mg", "40 mmol/L"]
E
