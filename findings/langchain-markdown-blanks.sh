#!/usr/bin/env bash
# langchain-text-splitters 1.1.3. One would expect a splitter at headings to leave the text between them as it is, blanks perhaps joined.
# MarkdownHeaderTextSplitter takes out of each line whatever Python does not call printable: tabs, no-break and thin spaces among
# others. What they parted is one word, or one number.
# Seen: 'Creatinine12' of Creatinine, 1 and 2 with tabs between them; 'type2 diabetes' and '5mg' of no-break spaces
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" langchain-text-splitters==1.1.3 langchain-core==1.8.3
PYTHONPATH=$d python3 - <<'E'
from langchain_text_splitters import MarkdownHeaderTextSplitter

text = "# Labs\nCreatinine\t1\t2\nof type\u00a02 diabetes, on 5\u00a0mg\n"
(chunk,) = MarkdownHeaderTextSplitter([("#", "section")]).split_text(text)
print(repr(chunk.page_content))
assert chunk.page_content.split() == "Creatinine12 of type2 diabetes, on 5mg".split()
E
