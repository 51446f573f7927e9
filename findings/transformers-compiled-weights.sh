#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0. The tensors of a compiled model are called _orig_mod.NAME, those of a DataParallel one module.NAME.
# One would expect from_pretrained to find them, or to refuse a file in which it knows no tensor. It loads a model of random
# weights: a report in the log, no error, and figures that look like a bad model's.
# Seen: all 16 stored tensors (and the tied head) missing, and logits that are another model's
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" transformers==5.23.0 torch==2.13.0 safetensors==0.8.0
PYTHONPATH=$d python3 - "$d" <<'E'
import sys

import torch
import transformers
from safetensors.torch import save_file

config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0)
torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for p in model.parameters():
        p.normal_()
directory = sys.argv[1] + "/model"
model.save_pretrained(directory)

state = {k: v.clone() for k, v in torch.compile(model).state_dict().items() if "lm_head" not in k}
save_file(state, directory + "/model.safetensors", metadata={"format": "pt"})
again, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
x = torch.arange(8)[None]
difference = (again.eval()(x).logits - model(x).logits).abs().max().item()
print(len(info["missing_keys"]), "missing of", len(state), "and logits differ by", difference)
assert info["missing_keys"] >= {k.removeprefix("_orig_mod.") for k in state} and difference > 1
E
