#!/usr/bin/env bash
# gensim 4.4.0. One would expect simple_preprocess to give the words of a sentence in lower case. It leaves out those of more than 15
# letters (max_len), as many of this field's are, so that an index or an embedding made of its words has no such drug at all; and of
# names with digits it keeps the letters (HER2 is her).
# Seen: of "Hydroxychloroquine and carbamazepine, immunohistochemistry of HER2 and IL-6" are left and, carbamazepine, of, her, and, il
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" gensim==4.4.0
PYTHONPATH=$d python3 - <<'E'
from gensim.utils import simple_preprocess

words = simple_preprocess("Hydroxychloroquine and carbamazepine, immunohistochemistry of HER2 and IL-6")
print(words)
assert words == ["and", "carbamazepine", "of", "her", "and", "il"]
assert "hydroxychloroquine" in simple_preprocess("Hydroxychloroquine", max_len=30)
E
