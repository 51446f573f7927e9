#!/usr/bin/env bash
# sacremoses 0.2.0. Normalising punctuation should leave numbers their value, one would expect, and in English above all, which has no
# decimal comma. Its rules take a no-break space between two digits for a decimal point; journals put one between thousands, so that
# ten thousand patients are ten.
# Seen: '10.000 patients on 1.200 mg' of ten thousand patients and 1200 mg; 'Figure 2.3 of 5 samples' of Figure 2, 3 of 5 samples
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" sacremoses==0.2.0
PYTHONPATH=$d python3 - <<'E'
from sacremoses import MosesPunctNormalizer

texts = ["10\u00a0000 patients on 1\u00a0200 mg", "Figure 2\u00a03 of 5 samples"]
found = [MosesPunctNormalizer(lang="en").normalize(text) for text in texts]
print(found)
assert found == ["10.000 patients on 1.200 mg", "Figure 2.3 of 5 samples"]
E
