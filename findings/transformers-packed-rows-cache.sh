#!/usr/bin/env bash
# transformers 5.23.0. position_ids that begin again within a row tell a model that another example begins there; one would expect
# that whoever gives them gets the same logits in every call. Only without a cache (in training, or with use_cache=False) are the
# examples kept apart. A plain call makes a cache, and then each example looks at those before it, without a word.
# Seen: the second of two packed examples differs from itself alone by 0.06 (GPT-2) and 0.19 (Llama); with use_cache=False by 1e-7
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" transformers==5.23.0 torch==2.13.0 safetensors==0.8.0
PYTHONPATH=$d python3 - <<'E'
import torch
import transformers

small = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0}
gpt2 = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, **small)
llama = transformers.LlamaConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32, **small
)
for kind, config in ((transformers.GPT2LMHeadModel, gpt2), (transformers.LlamaForCausalLM, llama)):
    torch.manual_seed(0)
    model = kind(config).eval()
    first, second = torch.randint(100, (1, 5)), torch.randint(100, (1, 6))
    ids = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(5), torch.arange(6)])[None]
    with torch.no_grad():
        alone = model(second).logits[0]
        plain = model(ids, position_ids=positions).logits[0, 5:]
        without = model(ids, position_ids=positions, use_cache=False).logits[0, 5:]
    differ = [(logits - alone).abs().max().item() for logits in (plain, without)]
    print(kind.__name__, "plain call %.2g, use_cache=False %.2g" % tuple(differ))
    assert differ[0] > 0.01 and differ[1] < 1e-5
E
