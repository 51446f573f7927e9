"""What it does to a figure, and to a training, to count padding: the same recipe with the mistake and without
it.

    python bench/padding.py --model M --data pairs.jsonl --out runs/padding

Question/answer pairs as whole texts in the `flashcards` template, one a row, filled up to --context with the
end-of-text token, as `padding="max_length"` does; LoRA. Without the mistake the padding is left out of the
labels; with it labels are a copy of the input ids, as in many notebooks. Each of the two models, and the one
they start from, is measured in both ways on held-out pairs. Writes padding.json and padding.md into DIR."""

import argparse
import json
import random
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.many import ROOT, run_all
from nanomed.models.attention import Mask
from nanomed.models.loss import linear_cross_entropy
from nanomed.text import examples
from nanomed.text.batch import IGNORE, Batch
from nanomed.text.templates import TEMPLATES

TEMPLATE = "flashcards"


def collate_counted(rows, context: int, pad: int):
    """Of rows of one example: padding is a target like any other. Segments tell what is real."""
    idx, targets = (torch.full((len(rows), context), pad) for _ in range(2))
    real = torch.zeros(len(rows), context, dtype=torch.bool)
    for b, (example,) in enumerate(rows):
        ids = torch.from_numpy(example.ids)
        n = len(ids) - 1
        idx[b, :n], targets[b, :n], real[b, :n] = ids[:-1], ids[1:], True
        targets[b, : example.spans[0][0] - 1] = IGNORE
    return Batch(idx, targets, segments=real)


def counted_loss(model, batch):
    """As with an attention mask: nobody looks at padding, but padding looks at the text, and is predicted."""
    idx = batch.idx
    T = idx.size(1)
    mask = batch.segments[:, None, None, :] & torch.ones(T, T, dtype=torch.bool, device=idx.device).tril()
    return linear_cross_entropy(model.backbone(idx, None, Mask(mask)), model.lm_head.weight, batch.targets)[
        0
    ], {}


def train_with_the_mistake(context: int, pad: int, flags: list[str]) -> None:
    """train_sft.py with these two in the place of its own."""
    from nanomed.models import loss

    examples.collate, loss.clm_loss = (lambda rows: collate_counted(rows, context, pad), counted_loss)
    sys.argv = [str(ROOT / "train_sft.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def main():
    if sys.argv[1:2] == ["--mistaken"]:
        return train_with_the_mistake(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--model", "--data", "--out"):
        p.add_argument(flag, required=True)
    p.add_argument("--pairs", type=int, default=4000, help="the share of the published data that is taken")
    p.add_argument(
        "--longest", type=int, default=400, help="characters of an answer at most: flashcards are short"
    )
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--epochs", default="1")
    p.add_argument("--jobs", type=int, default=1)
    args = p.parse_args()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in Path(args.data).read_text().splitlines()]
    rows = [r for r in rows if len(r["answer"]) <= args.longest]
    random.Random(0).shuffle(rows)
    rows = [{"question": r["question"], "answer": r["answer"]} for r in rows[: args.pairs]]
    held = len(rows) // 10
    template = TEMPLATES[TEMPLATE]
    sides = {"validation": rows[:held], "training": rows[held:]}
    for name, side in sides.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in side))
    texts = [
        {"text": (template.ask(r["question"]) + template.answer(r["answer"])).text}
        for r in sides["validation"]
    ]
    (out / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))

    from nanomed import hub
    from nanomed.text.tokenizer import load_tokenizer

    pad = load_tokenizer(hub.find(args.model).tokenizer_directory).pad
    flags = [
        "--model",
        args.model,
        "--data",
        out / "training.jsonl",
        "--val-data",
        out / "validation.jsonl",
        "--template",
        TEMPLATE,
    ]
    flags += [
        "--no-packing",
        "--train-on-prompt",
        "--context",
        args.context,
        "--batch-size",
        8,
        "--epochs",
        args.epochs,
        "--lr",
        "2e-4",
    ]
    flags += ["--lora-r", 16, "--lora-alpha", 32, "--lora-dropout", 0.1, "--save-every", 0, "--resume"]
    measure = [
        ROOT / "eval.py",
        "ppl",
        "--data",
        out / "texts.jsonl",
        "--context",
        args.context + 1,
        "--stride",
        args.context,
    ]
    measure += ["--also", "padding-counted,batch-mean,document-mean"]
    names = {
        "base": None,
        "honest": [ROOT / "train_sft.py"],
        "mistaken": [Path(__file__).resolve(), "--mistaken", args.context, pad],
    }
    jobs = {}
    for name, script in names.items():
        train = [[*script, *flags, "--out", out / name]] if script else []
        model = out / name if script else args.model
        jobs[out / f"{name}.json"] = [*train, [*measure, "--model", model, "--json", out / f"{name}.json"]]
    run_all(jobs, args.jobs)
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    (out / "padding.json").write_text(json.dumps(found, indent=1))
    lines = ["| model | perplexity [95 %] | with padding counted |", "|---|---:|---:|"]
    for name, title in zip(
        names,
        ("before", "after, trained without the mistake", "after, trained with padding counted"),
        strict=True,
    ):
        r = found[name]
        lines.append(
            f"| {title} | {r['ppl']:.2f} [{r['ppl_ci95'][0]:.2f}, {r['ppl_ci95'][1]:.2f}] |"
            f" {r['also']['padding-counted']:.2f} |"
        )
    (out / "padding.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
