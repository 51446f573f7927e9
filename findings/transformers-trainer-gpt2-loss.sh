#!/usr/bin/env bash
# transformers 5.23.0. Trainer.evaluate()'s eval_loss is the mean over the predicted tokens, one would expect, as the model's own loss
# is. Of LlamaForCausalLM it is, within a batch; of several batches it is their means, weighted by rows. Of GPT2LMHeadModel the summed
# loss is divided by all labels, each row's first included, which nothing predicts: so exp(eval_loss) is too good, the more the shorter
# the rows.
# 4.57.1 and 5.0.0 do so with LlamaForCausalLM too.
# Seen: rows of 3 and 9 tokens: GPT-2's eval_loss is 10/12 of the mean over the 10 predicted tokens, Llama's is the mean; in batches
# of one row Llama's is 0.991 of it, the mean of the two rows' means
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" \
  transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 safetensors==0.8.0
PYTHONPATH=$d python3 - "$d" <<'E'
import sys

import torch
import transformers

small = {"vocab_size": 100, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 0}
gpt2 = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, **small)
llama = transformers.LlamaConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32, **small
)
torch.manual_seed(0)
rows = [torch.randint(100, (n,)).tolist() for n in (3, 9)]


def collate(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    padded = [(row["input_ids"], longest - len(row["input_ids"])) for row in batch]
    return {
        "input_ids": torch.tensor([ids + [0] * n for ids, n in padded]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * n for ids, n in padded]),
        "labels": torch.tensor([ids + [-100] * n for ids, n in padded]),
    }


ratios = []
for kind, config in ((transformers.GPT2LMHeadModel, gpt2), (transformers.LlamaForCausalLM, llama)):
    model = kind(config).eval()
    with torch.no_grad():
        logs = [model(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in rows]
    losses = [-log[range(len(row) - 1), row[1:]] for log, row in zip(logs, rows, strict=True)]
    data = [{"input_ids": row} for row in rows]
    for size in (2, 1):
        how = transformers.TrainingArguments(
            sys.argv[1] + "/out", per_device_eval_batch_size=size, report_to=[], use_cpu=True, disable_tqdm=True
        )
        got = transformers.Trainer(model, how, eval_dataset=data, data_collator=collate).evaluate()["eval_loss"]
        ratios.append(got / torch.cat(losses).mean().item())
of_rows = sum(loss.mean() for loss in losses).item() / 2 / torch.cat(losses).mean().item()
print("eval_loss / mean: GPT-2 %.4f, a row a batch %.4f, Llama %.4f, a row a batch %.4f" % tuple(ratios), f"(of rows {of_rows:.4f})")
assert abs(ratios[0] - 10 / 12) < 1e-3 and abs(ratios[2] - 1) < 1e-3
assert abs(ratios[3] - of_rows) < 1e-3 and abs(of_rows - 1) > 2e-3
E
