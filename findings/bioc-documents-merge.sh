#!/usr/bin/env bash
# bioc 2.1, PubTator. Each line names its document, so that one would expect the blank lines between documents to be for the eye.
# Without them all documents are one: the last id and text, and the mentions of all. The seventh column of a composite mention
# (what its concepts are called) is read and gone; a brat event with two arguments of one role has the second alone.
# Seen: 1 document, C, with the mentions A and C; the columns behind the sixth: []; {'Theme': 'T3'}
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" bioc==2.1 lxml==6.1.3
PYTHONPATH=$d python3 - "$d" <<'E'
from bioc import brat, pubtator

found = pubtator.loads("1|t|A\n1|a|\n1\t0\t1\tA\tGene\t7\n2|t|C\n2|a|\n2\t0\t1\tC\tGene\t9\n")
mentions = [a.text for a in found[0].annotations]
print(len(found), "document,", found[0].title, mentions)
both = "breast and ovarian cancer"
line = f"1\t0\t25\t{both}\tDisease\tD001943|D010051\tbreast cancer|ovarian cancer"
(composite,) = pubtator.loads(f"1|t|{both}\n{line}\n")[0].annotations
event = "T1\tCause 0 5\tcause\nT2\tGene 6 7\tA\nT3\tGene 8 9\tB\nE1\tCause:T1 Theme:T2 Theme:T3\n"
arguments = brat.loads("cause A B", event, "1").events[0].arguments
print(composite.others, arguments)
assert len(found) == 1 and found[0].title == "C" and mentions == ["A", "C"]
assert composite.others == [] and arguments == {"Theme": "T3"}
E
