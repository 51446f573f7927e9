#!/usr/bin/env bash
# transformers 5.23.0. Entities are tagged on words (is_split_into_words=True), and one would expect the model to read them as in a text,
# with blanks between them, or an error. They are glued together: the model is given hepatitisBandfever.
# Seen: 'hepatitis', 'B', 'and', 'fever' of the words, 'hepatitis', 'ĠB', 'Ġand', 'Ġfever' of the text, in each of the three
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" transformers==5.23.0 tokenizers==0.23.3
PYTHONPATH=$d python3 - <<'E'
import json

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

transformers.logging.set_verbosity_error()
words = ["hepatitis", "B", "and", "fever"]
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
special, letters = ["<s>", "</s>", "<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
bpe.train_from_iterator(["and fever and hepatitis B", *words] * 20, trainer)
model = json.loads(bpe.to_str())["model"]
for kind in (transformers.GPT2Tokenizer, transformers.RobertaTokenizer, transformers.Qwen2Tokenizer):
    tokenizer = kind(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    of_words = tokenizer(words, is_split_into_words=True, add_special_tokens=False).tokens()
    of_text = tokenizer(" ".join(words), add_special_tokens=False).tokens()
    print(kind.__name__, of_words, of_text, "->", tokenizer.decode(tokenizer.convert_tokens_to_ids(of_words)))
    assert of_words == words and of_text == ["hepatitis", "ĠB", "Ġand", "Ġfever"]
E
