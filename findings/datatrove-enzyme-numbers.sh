#!/usr/bin/env bash
# datatrove 0.10.1. PIIFormatter takes addresses of mail and of the network out of texts for training; one would expect it to leave
# an abstract's enzymes alone. Their EC numbers have four parts, as addresses have, and each is replaced by another
# address, without a word.
# Seen: 'Trypsin (EC 22.214.171.124), ALT (EC 126.96.36.199)' of EC 3.4.21.4 and EC 2.6.1.2
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" datatrove==0.10.1
PYTHONPATH=$d python3 - <<'E'
import re

from datatrove.pipeline.formatters import PIIFormatter

text = "Trypsin (EC 3.4.21.4), ALT (EC 2.6.1.2)"
found = PIIFormatter().format(text)
print(text, "->", found)
assert found != text and not set(re.findall(r"[\d.]+", text)) & set(re.findall(r"[\d.]+", found))
E
