#!/usr/bin/env bash
# lm-eval 0.4.13. loglikelihood_rolling scores a document after one beginning-of-text token, one would expect, whatever the tokenizer.
# Where a tokenizer adds a beginning by itself, as Llama 2's and 3's do, there are two, and the second is scored as if it were text.
# add_bos_token=False leaves one.
# Seen: with a tokenizer that adds <s> the sum is that of <s> <s> text; with add_bos_token=False that of <s> text
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" \
  lm-eval==0.4.13 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 safetensors==0.8.0
PYTHONPATH=$d python3 - <<'E'
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors

words = "<s> </s> the patients were given ten drugs".split()
tokens = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="</s>"))
tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
torch.manual_seed(0)
config = transformers.LlamaConfig(vocab_size=8, bos_token_id=0, eos_token_id=1, max_position_embeddings=32, **sizes)
model = transformers.LlamaForCausalLM(config).eval()
text = "the patients were given ten drugs"


def by_hand(ids):
    with torch.no_grad():
        log = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return log[range(len(ids) - 1), ids[1:]].sum().item()


def rolling(**how):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", max_length=32, **how)
    return lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)[0]


plain, one = rolling(), rolling(add_bos_token=False)
ids = list(range(2, 8))
print(f"lm-eval {plain:.4f}, with add_bos_token=False {one:.4f}")
print(f"by hand: <s> <s> text {by_hand([0, 0, *ids]):.4f}, <s> text {by_hand([0, *ids]):.4f}")
assert abs(plain - by_hand([0, 0, *ids])) < 1e-4 and abs(one - by_hand([0, *ids])) < 1e-4
E
