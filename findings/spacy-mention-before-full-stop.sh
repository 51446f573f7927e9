#!/usr/bin/env bash
# spaCy 3.8.18. One would expect "hepatitis B." to end in a full stop, and a mention that is not found to cost recall. The English
# tokenizer keeps a single letter and its full stop together, as in a name's initials, so that no span of tokens is "hepatitis B" (or
# vitamin D, influenza A, protein S) at a sentence's end. Its tokens then count as not annotated: in training, as a warning says
# (W030), and in the evaluation too, where it is neither missed nor, if half of it is found, wrong.
# Seen: tokens 'hepatitis', 'B.'; char_span None; precision, recall and F1 1.0 with one of two mentions found, and with one cut short
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" spacy==3.8.18 numpy==2.4.6
PYTHONPATH=$d python3 -W ignore - <<'E'
import spacy
from spacy.scorer import Scorer
from spacy.training import Example

text = "Fever after hepatitis B."
gold = [(0, 5, "Disease"), (12, 23, "Disease")]
assert text[12:23] == "hepatitis B"
nlp = spacy.blank("en")
print([token.text for token in nlp(text)], nlp(text).char_span(12, 23))
assert [token.text for token in nlp(text)] == ["Fever", "after", "hepatitis", "B."]
assert nlp(text).char_span(12, 23) is None
for found in ([(0, 5)], [(0, 5), (12, 21)]):
    doc = nlp(text)
    doc.ents = [doc.char_span(start, end, label="Disease") for start, end in found]
    scores = Scorer().score([Example.from_dict(doc, {"entities": gold})])
    print([ent.text for ent in doc.ents], {name: scores[f"ents_{name}"] for name in "prf"})
    assert [scores[f"ents_{name}"] for name in "prf"] == [1, 1, 1]
E
