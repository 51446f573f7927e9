#!/usr/bin/env bash
# transformers 5.23.0. One would expect AutoTokenizer to read the tokenizer.model of a Llama as sentencepiece does, and to put <s> before a text.
# Where no tokenizer_config.json names a class (as in Meta's own release), the setting of the model that a text begins with a blank is
# passed over, and <s> is left out: a text has other ids than the model learnt. LlamaTokenizer of the same folder has the blank.
# Seen: ['▁aspirin', '▁lowers'] of sentencepiece and of LlamaTokenizer, ['a', 'sp', 'irin', '▁lowers'] of AutoTokenizer
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
PYTHONPATH=$d python3 - "$d" <<'P'
import json
import os
import sys

import sentencepiece
import transformers

directory = sys.argv[1] + "/model"
os.mkdir(directory)
with open(directory + "/texts.txt", "w") as f:
    f.write("aspirin lowers fever\nfever and aspirin\n" * 50)
how = {"vocab_size": 300, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
how |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
where = {"input": directory + "/texts.txt", "model_prefix": directory + "/tokenizer"}
sentencepiece.SentencePieceTrainer.train(**where, **how)
with open(directory + "/config.json", "w") as f:
    json.dump({"model_type": "llama"}, f)

theirs = sentencepiece.SentencePieceProcessor(directory + "/tokenizer.model").encode("aspirin lowers", out_type=str)
auto = transformers.AutoTokenizer.from_pretrained(directory)
named = transformers.LlamaTokenizer.from_pretrained(directory)
print("sentencepiece ", theirs)
print("AutoTokenizer ", auto.tokenize("aspirin lowers"), "begins with <s>:", auto("aspirin").input_ids[0] == 1)
print("LlamaTokenizer", named.tokenize("aspirin lowers"))
assert named.tokenize("aspirin lowers") == theirs == ["▁aspirin", "▁lowers"]
assert auto.tokenize("aspirin lowers") != theirs and auto("aspirin").input_ids[0] != 1
P
