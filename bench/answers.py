"""Answers to the first texts of an instruction set's test sides: this build against an earlier checkout,
which must give the same ones, row for row.

    python bench/answers.py --earlier DIR [--model runs/models/smollm2-135m] [--tasks runs/tasks]

Greedy, in the prompts of MedTuned's template. The model need not be tuned: every answer is written to the
length of the row's own (its end token counted), which is how long a tuned model's answers are, whatever the
tokens. Each round is a process a side that loads the model once and times `generate`, task by task; every
other round begins with the other side. `read`: tokens of prompts that went through the model, padding
counted; `stepped`: rows times steps after them."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = "task,answers,tokens wanted,read before,now,stepped before,now,answers/s before,now,times,same answers"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--earlier", required=True, metavar="DIR", help="another checkout of this repository")
    p.add_argument("--model", default="runs/models/smollm2-135m")
    p.add_argument("--tasks", default="runs/tasks", metavar="DIR", help="what python -m nanomed.tasks made")
    p.add_argument("--only", nargs="+", metavar="NAME", help="these tasks alone")
    p.add_argument("--limit", type=int, default=200, help="texts a task, the first ones")
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--dtype", default="fp32")
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        Path(args.one).write_text(json.dumps(measure(args)))
        return
    rounds = {"before": [], "now": []}
    for k in range(args.rounds):
        for side in ("before", "now") if k % 2 == 0 else ("now", "before"):
            rounds[side].append(process(args.earlier if side == "before" else ROOT))
    rows = [row(name, rounds) for name in rounds["now"][0]]
    rows.append(row("all", {side: [together(found) for found in of] for side, of in rounds.items()}))
    from nanomed.evaluation import tables

    print(tables.markdown([HEAD.split(","), ["---"] + ["---:"] * (len(rows[0]) - 1), *rows]))
    if args.json:
        Path(args.json).write_text(json.dumps(vars(args) | rounds))


def process(checkout) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "found.json"
        env = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", file], env=env, check=True)
        return json.loads(file.read_text())


def measure(args) -> dict:
    """{task: figures and answers} of the nanomed that PYTHONPATH names."""
    from nanomed.evaluation.generate import Completion, Sampling, generate
    from nanomed.evaluation.measure import open_model
    from nanomed.text.templates import load_template

    class AtLength:
        def completion(self, ids, last):
            return Completion(ids, "", True) if last else None

    o, template, out = open_model(args.model, "auto", args.dtype), load_template("medtuned"), {}
    read = {True: 0, False: 0}  # {whether one token a row: how many}
    o.model.backbone.register_forward_pre_hook(
        lambda _, given: read.update({given[0].size(1) == 1: read[given[0].size(1) == 1] + given[0].numel()})
    )
    files = {f.name.removesuffix(".test.jsonl"): f for f in sorted(Path(args.tasks).glob("*.test.jsonl"))}
    for name in args.only or files:
        rows = [json.loads(line) for line in files[name].read_text().splitlines()[: args.limit]]
        texts = [template.ask(row["instruction"], row["input"]) for row in rows]
        prompts = [o.tokenizer.prompt(text).tolist() for text in texts]
        lengths = [len(o.tokenizer.encode(row["output"])) + 1 for row in rows]
        how = Sampling(), AtLength(), o.device, o.dtype, 0, args.batch_size
        read.update({True: 0, False: 0})
        start = time.perf_counter()
        done = generate(o.model, prompts, lengths, *how)
        seconds = time.perf_counter() - start
        found = {"seconds": seconds, "wanted": sum(lengths), "answers": [c.ids for c in done]}
        out[name] = found | {"read": read[False], "stepped": read[True]}
        print(f"{name}: {len(rows) / seconds:.2f} answers/s", file=sys.stderr, flush=True)
    return out


def together(found: dict) -> dict:
    keys = found[next(iter(found))].keys()
    return {key: sum((task[key] for task in found.values()), [] if key == "answers" else 0) for key in keys}


def row(name: str, rounds: dict) -> list[str]:
    before, now = ([found.get(name, found) for found in rounds[side]] for side in ("before", "now"))
    times = statistics.median(b["seconds"] / n["seconds"] for b, n in zip(before, now, strict=True))
    pairs = list(zip(before[0]["answers"], now[0]["answers"], strict=True))
    speeds = [len(pairs) / statistics.median(f["seconds"] for f in side) for side in (before, now)]
    counts = [side[0][key] for key in ("read", "stepped") for side in (before, now)]
    figures = [f"{n:,}" for n in (len(pairs), now[0]["wanted"], *counts)]
    return [
        name,
        *figures,
        *(f"{s:.2f}" for s in speeds),
        f"{times:.2f}",
        f"{sum(a == b for a, b in pairs):,}",
    ]


if __name__ == "__main__":
    main()
