#!/usr/bin/env bash
# bconv 1.2.1 and bioc 2.1, BioC JSON. One would expect offsets of characters, as PubTator's are. BioC's DTD asks for bytes of UTF-8, and
# bconv writes and reads them so unless it is told byte_offsets=False; the library bioc, as NCBI's exports, counts characters. What bconv
# writes is read by bioc without a word, and each mention stands one character too far to the right for each Greek letter before it.
# Seen: where TNF-α, IL-1β and asthma are said to be, bioc has 'TNF-α ', 'L-1β i' and 'thma\n'
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" bconv==1.2.1 bioc==2.1 lxml==4.9.4
PYTHONPATH=$d python3 - "$d" <<'E'
import sys

import bconv
from bioc import biocjson

with open(f"{sys.argv[1]}/a.pubtator", "w", encoding="utf-8") as f:
    f.write("1|t|TNF-α and IL-1β in asthma\n1|a|None.\n1\t0\t5\tTNF-α\tGene\t7124\n")
    f.write("1\t10\t15\tIL-1β\tGene\t3553\n1\t19\t25\tasthma\tDisease\tD001249\n\n")
written = bconv.dumps(bconv.load(f.name, fmt="pubtator"), fmt="bioc_json")
(document,) = biocjson.loads(written).documents
title, said, found = document.passages[0], [], []
for mention in title.annotations:
    place = mention.total_span
    said.append(mention.text)
    found.append(title.text[place.offset : place.offset + place.length])
print("said", said, "found", found)
assert said == ["TNF-α", "IL-1β", "asthma"] and found == ["TNF-α ", "L-1β i", "thma\n"]
E
