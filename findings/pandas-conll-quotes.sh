#!/usr/bin/env bash
# pandas 3.1.1. A CoNLL file is a word, a tab and a tag a line: one would expect read_csv(sep="\t") to give a row a line. A word that
# is a quotation mark opens a field that ends at the next one, sentences later; blank lines, which part sentences, are left out;
# the words NA and null are missing values. `datasets` reads CSV by pandas, and does the same. (quoting=csv.QUOTE_NONE,
# keep_default_na=False and skip_blank_lines=False give the lines.)
# Seen: of 8 words 4 rows, the second of them 6 lines long, the last two without a word
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" pandas==3.1.1
PYTHONPATH=$d python3 - "$d" <<'E'
import io

import pandas

lines = 'The\tO\n"\tO\nfever\tB-Disease\nis\tO\n\nIt\tO\n"\tO\nNA\tB-Gene\nnull\tO\n'
words = pandas.read_csv(io.StringIO(lines), sep="\t", header=None)[0].tolist()
print(words)
assert len(words) == 4 and words[0] == "The" and words[1].startswith("\tO\nfever") and words[2] != words[2] and words[3] != words[3]
E
