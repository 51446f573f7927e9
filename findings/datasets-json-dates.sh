#!/usr/bin/env bash
# datasets 5.2.0 (pyarrow 26.0.1 below it). One would expect a JSON string to be a string. Where every string of a field looks like a
# date, the field becomes a timestamp; a single other string in the file and all stay strings. So an answer field changes its type
# with the rows that are in the file.
# Seen: datetime(2019, 3, 12, 0, 0) of "2019-03-12", and "2019-03-12" where another row says "in spring"
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
PYTHONPATH=$d python3 - "$d" <<'E'
import datetime
import json
import sys

import datasets

datasets.disable_progress_bars()


def read(name, *answers):
    path = f"{sys.argv[1]}/{name}.jsonl"
    with open(path, "w") as f:
        f.writelines(json.dumps({"question": "When was it approved?", "answer": a}) + "\n" for a in answers)
    return datasets.load_dataset("json", data_files=path, split="train", cache_dir=f"{sys.argv[1]}/cache")[0]["answer"]


alone, beside = read("dates", "2019-03-12", "2020-01-05"), read("mixed", "2019-03-12", "in spring")
print(repr(alone), repr(beside))
assert alone == datetime.datetime(2019, 3, 12) and beside == "2019-03-12"
E
