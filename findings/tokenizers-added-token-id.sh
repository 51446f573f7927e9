#!/usr/bin/env bash
# tokenizers 0.23.3. An added token in tokenizer.json has an "id", and one would expect it to have that id, or the file to be refused.
# It gets the next free number: a padding token with the id 500 behind a vocabulary of 37 is 37, and is written as 37 from then on.
# Seen: 37 of 500
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" tokenizers==0.23.3
PYTHONPATH=$d python3 - "$d" <<'E'
import json
import os
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

directory = sys.argv[1] + "/model"
os.mkdir(directory)
bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
bpe.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never")
bpe.decoder = decoders.Metaspace("▁", "never")
special = ["<unk>", "<s>", "</s>"]
trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False)
bpe.train_from_iterator(["aspirin lowers fever", "fever and aspirin"] * 20, trainer)
bpe.save(directory + "/tokenizer.json")

with open(directory + "/tokenizer.json") as f:
    spec = json.load(f)
flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
spec["added_tokens"].append({"id": 500, "content": "[PAD]", "special": True} | flags)
again = Tokenizer.from_str(json.dumps(spec))
written = json.loads(again.to_str())["added_tokens"][-1]["id"]
print(again.token_to_id("[PAD]"), written, "of 500; the vocabulary has", len(spec["model"]["vocab"]))
assert again.token_to_id("[PAD]") == written == len(spec["model"]["vocab"])
E
