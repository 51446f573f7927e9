#!/usr/bin/env bash
# peft 0.21.2. A model's vocabulary is resized and LoRA trained; one would expect the new embedding in the adapter's file, where
# `save_embedding_layers="auto"` puts it for other models. Of a model that sees pictures too, whose vocab_size stands in text_config,
# it is left out, without a word: the rows of the new tokens are gone.
# Seen: of gemma3_text embed_tokens and lm_head are saved (and a warning says so), of gemma3 neither
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" peft==0.21.2 transformers==5.23.0 torch==2.13.0
PYTHONPATH=$d python3 - <<'E'
import tempfile

import peft
import transformers
from safetensors.torch import load_file

text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
configs = (transformers.Gemma3TextConfig(**text), transformers.Gemma3Config(text_config=text, vision_config=eyes | {"patch_size": 14}))
for config in configs:
    with tempfile.TemporaryDirectory() as directory:
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        model = transformers.AutoModelForCausalLM.from_pretrained(directory)
        model.resize_token_embeddings(66)
        lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(model, lora).save_pretrained(f"{directory}/adapter")
        saved = [name for name in load_file(f"{directory}/adapter/adapter_model.safetensors") if "lora" not in name]
    print(config.model_type, saved)
    assert len(saved) == (2 if config.model_type == "gemma3_text" else 0)
E
