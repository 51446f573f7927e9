"""A chat model instructed on medical questions in its own chat template, against the same in another: what it
learns, and what it loses of general chat.

    make smollm2
    python bench/chat_experiment.py --data wikidoc_patient.jsonl --out runs/chat

--data has rows of a question and an answer. Short ones become conversations (`messages`): the first --rows
are trained on, the last --held-out are measured, and no question or answer is in both. Each training, a seed
of each template, takes the same rows in batches of the same size, an example a row, so that the supervised
tokens are the same. Measured, each model in its own template, and the base in both: the held-out answers, 200
general conversations and 116 general choices (bench/general_chat.py). Writes chat.json and chat.md (the
table) into --out; a run that is done is not done again."""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import general_chat
from bench.many import ROOT, run_all
from nanomed.evaluation import tables
from nanomed.text.rows import read_rows

OWN, OTHER = "its own", "response"
COLUMNS = {
    "held-out answers: perplexity": ("medical", "answer_ppl", "{:.2f}"),
    "ROUGE-L": ("medical", "rouge_l", "{:.3f}"),
    "general chat: perplexity": ("general", "answer_ppl", "{:.2f}"),
    "general ROUGE-L": ("general", "rouge_l", "{:.3f}"),
    "stops by itself": ("general", "stopped", "{:.0%}"),
    "choices": ("choices", "accuracy", "{:.3f}"),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=str(ROOT / "runs" / "models" / "smollm2-135m"))
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--rows", type=int, default=240)
    p.add_argument("--held-out", type=int, default=60)
    p.add_argument("--general", type=int, default=200, help="general conversations that are measured")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--lr", default="5e-4")
    p.add_argument("--jobs", type=int, default=1, help="runs at once")
    args = p.parse_args()
    out = args.out.resolve()
    general_chat.write(out)
    write_rows(args, out)
    jobs, named = {}, {"base": [out / "base.own"], f"base, {OTHER}": [out / "base.response"]}
    for template in (OWN, OTHER):
        named[f"instructed, {template}"] = [out / f"{template.split()[-1]}.{k}" for k in range(args.seeds)]
        for seed, directory in enumerate(named[f"instructed, {template}"]):
            measured = measurements(args, out, directory, directory, None)
            jobs[Path(f"{directory}.choices.json")] = [
                training(args, out, template, seed, directory),
                *measured,
            ]
    for directory, template in ((out / "base.own", None), (out / "base.response", OTHER)):
        jobs[Path(f"{directory}.choices.json")] = measurements(args, out, args.model, directory, template)
    run_all(jobs, args.jobs)
    found = {name: [results(directory) for directory in several] for name, several in named.items()}
    table = tables.markdown(as_table(found))
    (out / "chat.json").write_text(json.dumps(found, indent=1))
    (out / "chat.md").write_text(table + "\n")
    print(table)


def write_rows(args, out: Path) -> None:
    """train.jsonl and medical.jsonl."""
    rows = [(row["question"], row["answer"]) for row in read_rows(args.data, lambda row: row, None, False)]
    rows = [row for row in dict(rows).items() if 200 <= len(row[1]) <= 450]
    training, held_out = rows[: args.rows], rows[-args.held_out :]
    for k in (0, 1):
        assert not {row[k] for row in training} & {row[k] for row in held_out}
    for name, side in (("train", training), ("medical", held_out)):
        with open(out / f"{name}.jsonl", "w") as f:
            for question, answer in side:
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                f.write(json.dumps({"messages": turns}) + "\n")


def training(args, out: Path, template: str, seed: int, directory: Path) -> list:
    how = [] if template == OWN else ["--template", template]
    size = ["--no-packing", "--batch-size", 4, "--context", 256, "--epochs", 1, "--val-fraction", 0]
    lora = [
        "--lora-r",
        16,
        "--lora-targets",
        "all-linear",
        "--lr",
        args.lr,
        "--seed",
        seed,
        "--save-every",
        0,
    ]
    data = ["--model", args.model, "--data", out / "train.jsonl", "--out", directory, "--resume"]
    return [ROOT / "train_sft.py", *data, *how, *size, *lora]


def measurements(args, out: Path, model, name: Path, template: str | None) -> list[list]:
    how = ["--template", template] if template else []
    command = lambda *words: [ROOT / "eval.py", *words]  # noqa: E731
    written = {
        kind: ["--model", model, "--data", out / f"{kind}.jsonl", "--json", f"{name}.{kind}.json"]
        for kind in ("medical", "general", "choices")
    }
    return [
        command("qa", *written["medical"], *how, "--max-new-tokens", 48, "--batch-size", 32),
        command(
            "qa",
            *written["general"],
            *how,
            "--max-new-tokens",
            16,
            "--batch-size",
            32,
            "--limit",
            args.general,
        ),
        command("choices", *written["choices"]),
    ]


def results(name: Path) -> dict:
    """The figures of a model's measurements."""
    read = {kind: json.loads(Path(f"{name}.{kind}.json").read_text()) for kind, *_ in COLUMNS.values()}
    return {column: read[kind][key] for column, (kind, key, _) in COLUMNS.items()}


def as_table(found: dict) -> list[list[str]]:
    """Of several seeds the mean, and from where to where."""
    rows = [["SmolLM2-135M-Instruct", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    for name, several in found.items():
        cells = []
        for column, (*_, form) in COLUMNS.items():
            values = [figures[column] for figures in several]
            span = f" [{form.format(min(values))}, {form.format(max(values))}]" if len(values) > 1 else ""
            cells.append(form.format(statistics.mean(values)) + span)
        rows.append([name, *cells])
    return rows


if __name__ == "__main__":
    main()
