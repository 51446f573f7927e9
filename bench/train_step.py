"""Training and scoring a GPT-2-small-shaped model: nanomed against transformers' Trainer (and peft), in one run.

    python bench/train_step.py            prints a table; the last line is JSON

Every measurement is a process of its own, so that its peak memory is its own, and does one update to warm up before
those that count. Both sides train in bf16 autocast on 8 x 512 random tokens with AdamW and gradient clipping. The Trainer
runs as it comes (dropout 0.1 from GPT-2's config), and once more without dropout, as nanomed runs.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CASES = [
    "nanomed full",
    "trainer full",
    "trainer-nodropout full",
    "nanomed lora",
    "trainer lora",
    "nanomed score",
    "transformers score",
]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--updates", type=int, default=3, help="that count, a process")
    p.add_argument("--rounds", type=int, default=1, help="processes a case, taken in turn")
    p.add_argument("--cases", nargs="*", default=CASES)
    p.add_argument("--one", help=argparse.SUPPRESS)
    p.add_argument("--model", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as directory:
        from bench.random_gpt2 import write_random_gpt2

        write_random_gpt2(Path(directory))
        results = {case: [] for case in args.cases}
        for _ in range(args.rounds):
            for case in args.cases:
                flags = [f"--{k}={getattr(args, k.replace('-', '_'))}" for k in ("batch-size", "context", "updates")]
                out = subprocess.run(
                    [sys.executable, __file__, "--one", case, "--model", directory, *flags],
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                )
                if out.returncode:
                    sys.exit(f"{case}: {out.stderr[-2000:]}")
                results[case].append(json.loads(out.stdout.splitlines()[-1]))
                print(f"{case}: {results[case][-1]}", file=sys.stderr, flush=True)
    summary = {
        case: {
            "tokens_per_s": round(statistics.median(s for r in runs for s in r["tokens_per_s"]), 1),
            "peak_rss_gb": round(max(r["peak_rss_bytes"] for r in runs) / 1e9, 2),
        }
        for case, runs in results.items()
    }
    print("| case | tokens/s | peak memory (GB) |\n| --- | ---: | ---: |")
    for case, r in summary.items():
        print(f"| {case} | {r['tokens_per_s']:,.0f} | {r['peak_rss_gb']:.1f} |")
    import torch
    import transformers

    machine = {
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({"results": summary, "machine": machine, "updates": args.updates, "rounds": args.rounds}))


def measure(args) -> dict:
    import torch

    from nanomed.precision import peak_rss

    who, what = args.one.split()
    torch.manual_seed(0)
    size = (args.batch_size, args.context) if what != "score" else (4, 1024)
    ids = torch.randint(0, 50257, (args.updates + 1, *size))
    if what == "score":
        seconds = score(who, args.model, ids)
    elif who == "nanomed":
        seconds = ours(args, ids, what == "lora")
    else:
        seconds = trainer(args, ids, what == "lora", who.endswith("nodropout"))
    return {"tokens_per_s": [size[0] * size[1] / s for s in seconds[1:]], "peak_rss_bytes": peak_rss()}


def ours(args, ids, lora) -> list[float]:
    import torch

    from nanomed import hub
    from nanomed.loss import clm_loss
    from nanomed.models.lora import LoRAConfig, inject
    from nanomed.precision import store_frozen
    from nanomed.training.loop import Settings, fit

    class Data:
        windows_per_epoch = len(ids)

        def window(self, k):
            return [(ids[k], torch.roll(ids[k], -1, dims=1))]

    model = hub.load_model(hub.find(args.model), dropout=0.0)
    if lora:
        inject(model, LoRAConfig(8, 16.0, 0.0, model.family.LORA_TARGETS))
        store_frozen(model, "bf16", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as out:
        s = Settings(lr=1e-4, max_steps=len(ids), dtype="bf16", log_every=1, save_every=0)
        fit(model, Data(), clm_loss, None, s, Path(out))
        log = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [r["tokens"] / r["step"] / r["tokens_per_s"] for r in log]


def trainer(args, ids, lora, no_dropout) -> list[float]:
    import transformers

    transformers.logging.set_verbosity_error()
    off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} if no_dropout else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, **off)
    if lora:
        import peft

        config = peft.LoraConfig(r=8, lora_alpha=16, fan_in_fan_out=True, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    marks = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *a, **k):
            marks.append(time.perf_counter())

        on_step_end = on_step_begin

    rows = [{"input_ids": row, "labels": row} for row in ids.flatten(0, 1)]
    with tempfile.TemporaryDirectory() as out:
        settings = transformers.TrainingArguments(
            out,
            per_device_train_batch_size=args.batch_size,
            max_steps=len(ids),
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        transformers.Trainer(model, settings, train_dataset=rows, callbacks=[Clock()]).train()
    return [b - a for a, b in zip(marks[::2], marks[1::2], strict=True)]


def score(who, name, ids) -> list[float]:
    import numpy as np
    import torch

    from nanomed import hub
    from nanomed.evaluation.perplexity import perplexity
    from nanomed.precision import store_frozen
    from nanomed.text.corpus import DOCUMENT, Corpus

    if who == "nanomed":
        model = hub.load_model(hub.find(name)).requires_grad_(False)
        store_frozen(model, "bf16", torch.device("cpu"))

        def run(batch):
            B, T = batch.shape
            documents = np.array([(i * T, T, T, T, b"") for i in range(B)], DOCUMENT)
            corpus = Corpus("random", batch.flatten().numpy(), documents, "", 0)
            perplexity(model, [corpus.all()], 1024, 512, B, torch.device("cpu"), "bf16")
    else:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(name).eval()

        @torch.no_grad()
        def run(batch):
            with torch.autocast("cpu", torch.bfloat16):
                model(batch, labels=batch)

    seconds = []
    for batch in ids:
        start = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
