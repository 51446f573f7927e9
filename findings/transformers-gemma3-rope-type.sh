#!/usr/bin/env bash
# transformers 5.23.0. A rope_scaling names its kind by `rope_type`, and by `type` in older files, which transformers still reads
# for Llama; one would expect the same of Gemma 3, or an error. There `type` is passed over: the kind is "default", and a model
# that was stretched eight times is loaded unstretched; a line in the log calls the key `factor` unrecognised.
# Seen: linear of a Llama by either key; of Gemma 3 linear by `rope_type`, and default by `type`
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" transformers==5.23.0
PYTHONPATH=$d python3 - <<'E'
import transformers

for key in ("rope_type", "type"):
    scaling = {key: "linear", "factor": 8.0}
    llama = transformers.LlamaConfig(rope_scaling=dict(scaling)).rope_parameters
    gemma = transformers.Gemma3TextConfig(rope_scaling=dict(scaling)).rope_parameters["full_attention"]
    print(key, "llama:", llama["rope_type"], "gemma3_text:", gemma["rope_type"])
    assert (llama["rope_type"], gemma["rope_type"]) == ("linear", "linear" if key == "rope_type" else "default")
E
