#!/usr/bin/env bash
# safetensors 0.8.0, numpy. Its documentation asks for contiguous tensors; one would expect an array that is none to be refused, or
# to be written as it is. It is written in the order in which it lies in memory, under the shape that it shows: a weight that was transposed on the way (as GPT-2's are, and those of TensorFlow) comes back
# with its numbers shuffled; no error, no warning.
# Seen: [[0, 3], [1, 4], [2, 5]] comes back as [[0, 1], [2, 3], [4, 5]]; of a copy as it is
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" safetensors==0.8.0 numpy==2.4.6
PYTHONPATH=$d python3 -W error - "$d" <<'E'
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

weight = np.arange(6, dtype=np.float32).reshape(2, 3).T
found = []
for array in (weight, weight.copy(order="C")):
    save_file({"weight": array}, f"{sys.argv[1]}/a.safetensors")
    found.append(load_file(f"{sys.argv[1]}/a.safetensors")["weight"].tolist())
print(weight.tolist(), "->", found[0], "- of a copy", found[1])
assert weight.tolist() == [[0, 3], [1, 4], [2, 5]] == found[1]
assert found[0] == [[0, 1], [2, 3], [4, 5]]
E
