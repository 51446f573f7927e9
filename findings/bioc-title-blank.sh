#!/usr/bin/env bash
# bioc 2.1, PubTator. A title may end in a blank, which the offsets of the abstract count, as they count the line end behind it.
# One would expect a document's text to be what the file has. Each line is stripped when it is read, so that every mention of the
# abstract stands one character too far to the right; a line separator (U+2028) within an abstract ends it (a
# line on stdout says that its rest cannot be parsed).
# Seen: at the offsets of 'Aspirin' the text has 'spirin '; an abstract 'One\u2028two' is 'One'
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" bioc==2.1 lxml==6.1.3
PYTHONPATH=$d python3 - "$d" <<'E'
from bioc import pubtator

title, abstract = "Fever after aspirin. ", "Aspirin lowers it."
at = len(title) + 1
(document,) = pubtator.loads(f"1|t|{title}\n1|a|{abstract}\n1\t{at}\t{at + 7}\tAspirin\tChemical\tD001241\n")
(mention,) = document.annotations
found = document.text[mention.start : mention.end]
(cut,) = pubtator.loads("1|t|Title\n1|a|One\u2028two\n")
print("at the place of", repr(mention.text), "stands", repr(found), "- abstract:", repr(cut.abstract))
assert f"{title}\n{abstract}"[at : at + 7] == "Aspirin" and found == "spirin " and cut.abstract == "One"
E
