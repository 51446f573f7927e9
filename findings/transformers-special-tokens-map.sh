#!/usr/bin/env bash
# transformers 5.23.0 writes no special_tokens_map.json any more: tokenizer_config.json names the tokens. One would expect an old one
# beside it to be passed over, or to fill gaps. It wins: whoever changes the end of text in tokenizer_config.json changes nothing as
# long as the old file lies there.
# Seen: eos_token <unk>, of special_tokens_map.json, where tokenizer_config.json says </s>
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" transformers==5.23.0 tokenizers==0.23.3
PYTHONPATH=$d python3 - "$d" <<'E'
import json
import os
import sys

import transformers

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

with open(directory + "/tokenizer_config.json", "w") as f:
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    json.dump({"tokenizer_class": "PreTrainedTokenizerFast"} | named, f)
before = transformers.AutoTokenizer.from_pretrained(directory).eos_token
with open(directory + "/special_tokens_map.json", "w") as f:
    json.dump({"eos_token": "<unk>"}, f)
after = transformers.AutoTokenizer.from_pretrained(directory).eos_token
print("eos_token", before, "and, with a special_tokens_map.json,", after)
assert (before, after) == ("</s>", "<unk>")
transformers.AutoTokenizer.from_pretrained(directory).save_pretrained(directory + "/saved")
assert not os.path.exists(directory + "/saved/special_tokens_map.json")
E
