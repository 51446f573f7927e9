#!/usr/bin/env bash
# bioc 2.1, PubTator. A mention whose line ends after its type, or in an empty concept id, is what many files hold that have not
# been normalised to a vocabulary. One would expect an annotation without an id. It becomes a relation between two things of which
# none is an id, and the annotations lack it; no error, no warning.
# Seen: annotations ['Aspirin'], relations ['1\t12\t17\tfever\tDisease'], with and without the last tab
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" bioc==2.1 lxml==6.1.3
PYTHONPATH=$d python3 - "$d" <<'E'
from bioc import pubtator

head = "1|t|Aspirin and fever.\n1|a|Aspirin lowers fever.\n1\t0\t7\tAspirin\tChemical\tD001241\n"
for ending in ("Disease", "Disease\t"):
    (document,) = pubtator.loads(head + f"1\t12\t17\tfever\t{ending}\n")
    mentions, relations = [a.text for a in document.annotations], [str(r) for r in document.relations]
    print(repr(ending), mentions, relations)
    assert mentions == ["Aspirin"] and relations == ["1\t12\t17\tfever\tDisease"]
E
