#!/usr/bin/env bash
# datasets 5.2.0 (pandas 3.1.1 below it). One would expect the text of a CSV cell to be the text of the field. Cells that spell None, NA,
# null, NaN or n/a are null: a relation set loses its class "None", a text "NA" (noradrenaline) is gone; no warning.
# keep_default_na=False keeps them.
# Seen: [('No relation.', None), ('NA binds.', 'agonist'), (None, None)], and with keep_default_na=False the texts
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
PYTHONPATH=$d python3 - "$d" <<'E'
import sys

import datasets

datasets.disable_progress_bars()
path = f"{sys.argv[1]}/relations.csv"
with open(path, "w") as f:
    f.write("text,label\nNo relation.,None\nNA binds.,agonist\nNA,null\n")


def read(**how):
    rows = datasets.load_dataset("csv", data_files=path, split="train", cache_dir=f"{sys.argv[1]}/cache", **how)
    return [(row["text"], row["label"]) for row in rows]


print(read())
assert read() == [("No relation.", None), ("NA binds.", "agonist"), (None, None)]
print(read(keep_default_na=False))
assert read(keep_default_na=False) == [("No relation.", "None"), ("NA binds.", "agonist"), ("NA", "null")]
E
