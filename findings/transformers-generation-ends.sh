#!/usr/bin/env bash
# transformers 5.23.0. config.json names the tokens that end a text, and generate() stops there. One would expect that also where a
# generation_config.json gives a length and says nothing of ends. From the moment that such a file is there, the ends of
# config.json are forgotten and the model writes up to the limit; without the file they count.
# Seen: eos_token_id [0, 7] without the file, None with {"max_new_tokens": 64}
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" transformers==5.23.0 torch==2.13.0 safetensors==0.8.0
PYTHONPATH=$d python3 - "$d" <<'E'
import json
import os
import sys

import torch
import transformers

config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for p in model.parameters():
        p.normal_()
directory = sys.argv[1] + "/model"
model.save_pretrained(directory)

with open(directory + "/config.json") as f:
    settings = json.load(f) | {"eos_token_id": [0, 7]}
with open(directory + "/config.json", "w") as f:
    json.dump(settings, f)
os.remove(directory + "/generation_config.json")
without = transformers.AutoModelForCausalLM.from_pretrained(directory).generation_config.eos_token_id
with open(directory + "/generation_config.json", "w") as f:
    json.dump({"max_new_tokens": 64}, f)
beside = transformers.AutoModelForCausalLM.from_pretrained(directory).generation_config.eos_token_id
print("eos_token_id", without, "and, with a generation_config.json,", beside)
assert without == [0, 7] and beside is None
E
