#!/usr/bin/env bash
# bm25s 0.3.16. One would expect three questions about three diseases to be three questions. The default tokenizer drops words of one
# character, so hepatitis A, B and C (and vitamin D, factor V) are the same query; with a pattern that keeps them, the default stop
# words still take the A away.
# Seen: [['hepatitis'], ['hepatitis'], ['hepatitis']], then [['hepatitis'], ['hepatitis', 'b'], ['hepatitis', 'c']]
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" bm25s==0.3.16 numpy==2.4.6 scipy==1.17.1
PYTHONPATH=$d python3 - "$d" <<'E'
import bm25s

questions = ["hepatitis A", "hepatitis B", "hepatitis C"]
default = bm25s.tokenize(questions, return_ids=False, show_progress=False)
longer = bm25s.tokenize(questions, token_pattern=r"(?u)\b\w+\b", return_ids=False, show_progress=False)
print(default, longer)
assert default == [["hepatitis"]] * 3
assert longer == [["hepatitis"], ["hepatitis", "b"], ["hepatitis", "c"]]
E
