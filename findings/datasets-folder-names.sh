#!/usr/bin/env bash
# datasets 5.2.0. load_dataset of a folder takes all its files for train, or reads the splits off their names. One would expect the files
# whose names say nothing to be train, or an error. As soon as one name has test, dev, eval or train for a word, all others are
# left out, without a warning: of three kinds of notes the blood tests are the test split, and the rest is gone.
# Seen: {'test': ['blood-test']} of blood-test, history and notes; {'validation': ['abstracts.dev']} of abstracts and abstracts.dev
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
PYTHONPATH=$d HF_HUB_OFFLINE=1 python3 -W error - "$d" <<'E'
import sys
from pathlib import Path

import datasets

datasets.disable_progress_bars()


def read(*names):
    folder = Path(sys.argv[1], f"{len(names)} files")
    folder.mkdir()
    for name in names:
        (folder / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    return {split: rows["text"][:] for split, rows in datasets.load_dataset(str(folder), cache_dir=f"{sys.argv[1]}/c").items()}


found = [read("blood-test", "history", "notes"), read("abstracts", "abstracts.dev"), read("history")]
print(found)
assert found == [{"test": ["blood-test"]}, {"validation": ["abstracts.dev"]}, {"train": ["history"]}]
E
