#!/usr/bin/env bash
# transformers 5.23.0. One would expect AutoTokenizer to run the tokenizer.json that lies in the directory, as the tokenizers library
# does, and as AutoTokenizer does for PreTrainedTokenizerFast. Where tokenizer_config.json says LlamaTokenizer, its vocabulary alone is taken: the
# pre-tokenizer is built anew, so a tokenizer that puts no blank before a text gets one, and the model sees other ids than it learnt.
# Seen: ['aspirin', '▁lowers'] of tokenizer.json and of PreTrainedTokenizerFast, ['▁aspirin', '▁lowers'] of LlamaTokenizer
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

print("tokenizers", bpe.encode("aspirin lowers").tokens)
found = {}
for name in ("PreTrainedTokenizerFast", "LlamaTokenizer"):
    with open(directory + "/tokenizer_config.json", "w") as f:
        json.dump({"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, f)
    found[name] = transformers.AutoTokenizer.from_pretrained(directory).tokenize("aspirin lowers")
    print(name, found[name])
assert bpe.encode("aspirin lowers").tokens == found["PreTrainedTokenizerFast"] == ["aspirin", "▁lowers"]
assert found["LlamaTokenizer"] == ["▁aspirin", "▁lowers"]
E
