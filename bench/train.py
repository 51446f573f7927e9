"""Training: nanomed against transformers' Trainer (and peft), all weights and LoRA.

    python bench/train.py                          GPT-2 small's shape, 8 x 512 random tokens an update
    python bench/train.py --model runs/models/smollm2-135m
    python bench/train.py --shape gemma3-270m --batch-size 4       a shape of fits.py, with random weights

The Trainer runs as it comes (with the dropout of the model's config) and without dropout, as nanomed does;
nanomed eager and with --compile. Both sides: the same weights, tokens and dtype, AdamW, clipping. An update
is the loop's own: nanomed's fit(), Trainer's train(). Two updates warm up (the second because memory is first
taken in the first), compilation is in them."""

import json
import tempfile
import time
from pathlib import Path

import sides
import torch

WHAT = ("full", "lora")
SIDES = [
    f"{who} {what}" for what in WHAT for who in ("nanomed", "nanomed-compile", "trainer", "trainer-nodropout")
]
WARM_UP = 2


def main():
    p = sides.parser(__doc__, SIDES)
    p.add_argument("--shape", help="in place of GPT-2 small's: one of bench/fits.py")
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--context", type=int, default=512)
    args = p.parse_args()
    pairs = {}
    for what in WHAT:
        for who in ("nanomed", "nanomed-compile"):
            for peer in ("trainer", "trainer-nodropout"):
                pairs[f"{what}: {who} against {peer}"] = (f"{who} {what}", f"{peer} {what}")
    sides.execute("train", "supervised tokens", args, measure, pairs, same_loss=2e-3, cost=cost)


def measure(side: str, args) -> dict:
    who, what = side.split()
    ids = torch.randint(
        0,
        sides.on_meta(args.model).config.vocab_size,
        (WARM_UP + args.repeats, args.batch_size, args.context),
    )
    run = trainer if who.startswith("trainer") else ours
    seconds, loss = run(who, args, ids, what == "lora")
    comparable = None if who == "trainer" else loss  # dropout makes it another loss
    tokens = args.batch_size * args.context
    return {
        "per_s": [tokens / s for s in seconds[WARM_UP:]],
        "warm_up_s": sum(seconds[:WARM_UP]),
        "loss": comparable,
    }


def cost(side: str, args, result) -> dict:
    from nanomed.training.compiling import flops_a_token

    return {"flops": flops_a_token(sides.on_meta(args.model), side.endswith("full"), args.context)}


def ours(who, args, ids, lora):
    from nanomed import hub
    from nanomed.models.lora import LoRAConfig, inject
    from nanomed.models.loss import clm_loss
    from nanomed.precision import store_frozen
    from nanomed.text.batch import IGNORE, Batch
    from nanomed.training.loop import Settings, fit
    from nanomed.training.model import compile_backbone

    class Data:
        windows_per_epoch, unit = len(ids), "tokens"

        def window(self, k):
            targets = torch.nn.functional.pad(ids[k, :, 1:], (0, 1), value=IGNORE)
            return [Batch(ids[k], targets)]

    model, device = hub.load_model(hub.find(args.model), dropout=0.0), torch.device(args.device)
    if lora:
        inject(model, LoRAConfig(8, 16.0, 0.0, model.family.LORA_TARGETS))
        store_frozen(model, args.dtype, device)
    model.to(device)
    if who == "nanomed-compile":
        compile_backbone(model)
    with tempfile.TemporaryDirectory() as out:
        s = Settings(lr=1e-4, max_steps=len(ids), dtype=args.dtype, log_every=1, save_every=0)
        fit(model, Data(), clm_loss, s, Path(out))
        log = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [line["tokens"] / line["step"] / line["tokens_per_s"] for line in log], log[0]["loss"]


def trainer(who, args, ids, lora):
    import transformers

    transformers.logging.set_verbosity_error()
    off = (
        {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "attention_dropout": 0.0}
        if who == "trainer-nodropout"
        else {}
    )
    known = transformers.AutoConfig.from_pretrained(args.model).to_dict()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, **{k: v for k, v in off.items() if k in known}
    )
    if lora:
        import peft

        gpt2 = known["model_type"] == "gpt2"
        config = peft.LoraConfig(r=8, lora_alpha=16, fan_in_fan_out=gpt2, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    marks, losses = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *a, **k):
            marks.append(time.perf_counter())

        on_step_end = on_step_begin

        def on_log(self, args, state, control, logs=None, **k):
            losses.append(logs.get("loss"))

    labels = ids.clone()
    labels[..., 0] = -100  # nothing predicts it, but the Trainer divides by all labels that it is given
    rows = [
        {"input_ids": row, "labels": row_labels}
        for row, row_labels in zip(ids.flatten(0, 1), labels.flatten(0, 1), strict=True)
    ]
    with tempfile.TemporaryDirectory() as out:
        settings = transformers.TrainingArguments(
            out,
            per_device_train_batch_size=args.batch_size,
            max_steps=len(ids),
            learning_rate=1e-4,
            bf16=args.dtype == "bf16",
            fp16=args.dtype == "fp16",
            use_cpu=args.device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        )
        transformers.Trainer(model, settings, train_dataset=rows, callbacks=[Clock()]).train()
    return [b - a for a, b in zip(marks[::2], marks[1::2], strict=True)], losses[0]


if __name__ == "__main__":
    main()
