"""Instruction tuning on real question/answer pairs: nanomed against trl's SFTTrainer, all weights and LoRA,
in supervised tokens.

    python bench/sft.py --data pairs.jsonl [--model runs/models/smollm2-135m] [--chat]

trl runs as it comes (a pair a row, padded; gradient checkpointing and the config's dropout on), and at its
best setting here: packed, without gradient checkpointing, without dropout. Packed, its rows see each other:
its isolation needs a kernel that no CPU has. nanomed packs as it comes, and isolates. Both: the same pairs as
text, cut to the same length; a supervised token is one of an answer. The losses compared are those of the
first eight pairs before training.

--chat: every two pairs are a conversation of four turns in a chat template; trl gets them as `messages` with
assistant_only_loss and the template's {% generation %} blocks. Only conversations that fit are taken: what is
longer, the two cut differently. Besides, how fast they are encoded, in tokens of all that is said, against
pairs in the template `response`."""

import itertools
import json
import tempfile
import time
from pathlib import Path

import sides
import torch

WHAT = ("full", "lora")
SIDES = [f"{who} {what}" for what in WHAT for who in ("nanomed", "trl", "trl-packing")]
ENCODING = ["nanomed encoding", "pairs encoding"]
WARM_UP, LOOKED_AT = 2, 8
CHAT = """{%- for m in messages -%}{{- '### ' + m['role'] + ':\n' -}}
{%- if m['role'] == 'assistant' -%}{%- generation -%}{{- m['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}{{- m['content'] -}}{%- endif -%}{{- '\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### assistant:\n' -}}{%- endif -%}"""


def main():
    p = sides.parser(__doc__, SIDES + ENCODING)
    p.add_argument(
        "--data",
        required=True,
        help="rows with a question (or instruction) and an answer (or response, output)",
    )
    p.add_argument("--limit", type=int, default=400, help="rows (default: 400)")
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--chat", action="store_true", help="conversations in place of pairs")
    args = p.parse_args()
    args.sides = [side for side in args.sides if args.chat or side not in ENCODING]
    pairs = {
        f"{what}: nanomed against {peer}": (f"nanomed {what}", f"{peer} {what}")
        for what in WHAT
        for peer in ("trl", "trl-packing")
    } | {"encoding: conversations against pairs": tuple(ENCODING)}
    sides.execute("sft", "supervised tokens", args, measure, pairs, same_loss=2e-2)


def measure(side: str, args) -> dict:
    who, what = side.split()
    if what == "encoding":
        return encoding(who == "pairs", args)
    seconds, tokens, loss = (ours if who == "nanomed" else trl)(args, what == "lora", who.endswith("packing"))
    per_s = [n / s for n, s in zip(tokens, seconds, strict=True)]
    return {"per_s": per_s[WARM_UP:], "warm_up_s": sum(seconds[:WARM_UP]), "loss": loss}


def read(args, chat: bool):
    """(rows, the template that they are written in)."""
    from nanomed.text.chat import ChatTemplate
    from nanomed.text.conversations import Conversation
    from nanomed.text.instructions import Fields, read_instructions
    from nanomed.text.templates import TEMPLATES
    from nanomed.text.tokenizer import load_tokenizer

    pairs = read_instructions([args.data], Fields(), args.limit, True)[0]
    if not chat:
        return pairs, TEMPLATES["response"]
    tokenizer = load_tokenizer(Path(args.model))
    template = ChatTemplate(CHAT, "bench/sft.py", (("eos_token", tokenizer.name(tokenizer.eos)),))
    two = [Conversation(a.turns + b.turns) for a, b in zip(pairs[::2], pairs[1::2], strict=False)]
    return [c for c in two if len(tokenizer.encode(template.whole(c.turns))) <= args.context], template


def encoding(of_pairs: bool, args) -> dict:
    from nanomed.text.examples import encode_instructions
    from nanomed.text.tokenizer import load_tokenizer

    items, template = read(args, not of_pairs)
    tokenizer, per_s = load_tokenizer(Path(args.model)), []
    for _ in range(1 + args.repeats):
        start = time.perf_counter()
        found = encode_instructions(items, tokenizer, template, args.context).examples
        seconds = time.perf_counter() - start
        per_s.append(sum(len(example.ids) for example in found) / seconds)
    return {"per_s": per_s[1:], "warm_up_s": 0.0, "loss": None}


def ours(args, lora, _):
    from nanomed import hub
    from nanomed.evaluation.perplexity import answer_perplexity
    from nanomed.models.lora import LoRAConfig, inject
    from nanomed.models.loss import clm_loss
    from nanomed.precision import store_frozen
    from nanomed.text.batch import Batches
    from nanomed.text.examples import collate, encode_instructions, pack
    from nanomed.text.tokenizer import load_tokenizer
    from nanomed.training.loop import Settings, fit

    items, template = read(args, args.chat)
    tokenizer = load_tokenizer(Path(args.model))
    examples = encode_instructions(items, tokenizer, template, args.context).examples
    device = torch.device(args.device)
    model = hub.load_model(hub.find(args.model), dropout=0.0)
    if lora:
        inject(model, LoRAConfig(8, 16.0, 0.0, model.family.LORA_TARGETS))
        store_frozen(model, args.dtype, device)
    model.to(device)
    loss = answer_perplexity(model, examples[:LOOKED_AT], LOOKED_AT, device, args.dtype)["loss"]
    batches = Batches(pack(examples, args.context), collate, args.batch_size, 1, 0)
    with tempfile.TemporaryDirectory() as out:
        s = Settings(lr=1e-5, max_steps=WARM_UP + args.repeats, dtype=args.dtype, log_every=1, save_every=0)
        fit(model, batches, clm_loss, s, Path(out))
        log = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    done = [0, *(line["tokens"] for line in log)]
    tokens = [b - a for a, b in itertools.pairwise(done)]
    return [n / line["tokens_per_s"] for n, line in zip(tokens, log, strict=True)], tokens, loss


def trl(args, lora, packing):
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    items, template = read(args, args.chat)
    if args.chat:
        rows = [{"messages": [{"role": t.role, "content": t.said} for t in item.turns]} for item in items]
    else:
        prompts = [template.ask(item.instruction, item.input).text for item in items]
        rows = [{"prompt": p, "completion": i.response} for p, i in zip(prompts, items, strict=True)]
    known = transformers.AutoConfig.from_pretrained(args.model).to_dict()
    off = (
        dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "attention_dropout"), 0.0)
        if packing
        else {}
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, **{k: v for k, v in off.items() if k in known}
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.chat_template = CHAT if args.chat else tokenizer.chat_template
    config = None
    if lora:
        import peft

        config = peft.LoraConfig(
            r=8, lora_alpha=16, fan_in_fan_out=known["model_type"] == "gpt2", task_type="CAUSAL_LM"
        )
    best = {"packing": True, "gradient_checkpointing": False} if packing else {}
    marks, tokens = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *a, **k):
            marks.append(time.perf_counter())

        on_step_end = on_step_begin

    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            out,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=LOOKED_AT,
            max_length=args.context,
            max_steps=WARM_UP + args.repeats,
            learning_rate=1e-5,
            bf16=args.dtype == "bf16",
            fp16=args.dtype == "fp16",
            use_cpu=args.device == "cpu",
            eval_packing=False,
            assistant_only_loss=args.chat,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **best,
        )
        data, first = datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows[:LOOKED_AT])
        trainer = SFTTrainer(
            model,
            settings,
            train_dataset=data,
            eval_dataset=first,
            processing_class=tokenizer,
            peft_config=config,
            callbacks=[Clock()],
        )
        loss = trainer.evaluate()["eval_loss"]
        collate = trainer.data_collator

        def counted(examples):
            batch = collate(examples)
            tokens.append(int((batch["labels"] != -100).sum()))
            return batch

        trainer.data_collator = counted
        trainer.train()
    seconds = [b - a for a, b in zip(marks[::2], marks[1::2], strict=True)]
    return seconds, tokens[: len(seconds)], loss  # one batch more may have been collated ahead


if __name__ == "__main__":
    main()
