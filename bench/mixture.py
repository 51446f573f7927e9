"""What each form of task gives the others: an instruction set, and the same without each form once, on equal
tokens.

    python bench/mixture.py --model M --tasks runs/tasks --out runs/mixture

Every training is LoRA from M, with the same number of updates of the same size; what is left out is replaced
by more of the rest. Then each model is asked about the same --limit test texts of every task. `--quantize nf4
int8` adds the whole set over a quantised M, with equal updates. Writes mixture.json, mixture.md (the table: a
figure for the whole set, for the others the paired difference from it with its 95 % interval) and mixture.png
into DIR. Runs that are done are not done again; trained weights are removed once they are measured."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.many import ROOT, leave, run_all, size_of, without_weights
from nanomed.evaluation import tables
from nanomed.systems.tasks import measure, score, sets
from nanomed.systems.tasks.forms import FORMS

LINEARS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
GROUPS = {
    "entities": ("entities", "tags"),
    "relations": ("relation",),
    "inference": ("inference",),
    "classes": ("class", "classes"),
    "questions": ("decision", "options"),
}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    p.add_argument("--tasks", required=True, help="what python -m nanomed.tasks made")
    p.add_argument("--out", required=True)
    p.add_argument("--updates", type=int, default=100)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--batch-size", type=int, default=4)
    p.add_argument("--lr", default="1e-3")
    p.add_argument("--lora-targets", default=LINEARS)
    p.add_argument("--limit", type=int, default=150, help="test texts of each task")
    p.add_argument(
        "--quantize", nargs="*", default=[], help="nf4, int8: the whole set over a quantised base too"
    )
    p.add_argument("--only-whole", action="store_true", help="leave out no form: for --quantize alone")
    args = p.parse_args()
    out, tasks = Path(args.out).resolve(), Path(args.tasks).resolve()
    out.mkdir(parents=True, exist_ok=True)
    made = sets.read_set(tasks)
    there = {
        name: forms for name, forms in GROUPS.items() if any(task["form"] in forms for task in made.values())
    }
    mixtures = {
        "all": (),
        **({} if args.only_whole else {f"without {name}": forms for name, forms in there.items()}),
    }
    lines = (tasks / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    runs = {}
    for name, left_out in mixtures.items():
        data = out / f"{name.replace(' ', '-')}.jsonl"
        data.write_text(
            "".join(line for line in lines if made[json.loads(line)["source"]]["form"] not in left_out),
            encoding="utf-8",
        )
        runs[name] = ["--data", data]
    runs |= {f"all, {kind}": [*runs["all"], "--quantize", kind] for kind in args.quantize}
    lora = ["--lora-r", 16, "--lora-targets", args.lora_targets, "--lr", args.lr, "--template", "medtuned"]
    jobs, files = {}, {}
    for name, flags in runs.items():
        directory = out / "".join(c if c.isalnum() else "-" for c in name)
        files[name] = Path(f"{directory}.json")
        asked = ["--limit", args.limit, *(flag for flag in flags if flag in ("--quantize", *args.quantize))]
        jobs[files[name]] = [
            [
                ROOT / "train_sft.py",
                "--model",
                args.model,
                *flags,
                *size_of(args),
                *lora,
                "--save-every",
                0,
                "--resume",
                "--out",
                directory,
            ],
            [
                ROOT / "eval.py",
                "tasks",
                "--model",
                directory,
                "--tasks",
                tasks,
                *asked,
                "--ask",
                "written",
                "--json",
                files[name],
            ],
            without_weights(directory),
        ]
    run_all(jobs, 1)
    found = {name: json.loads(file.read_text()) for name, file in files.items()}
    differences = compared(tasks, made, found)
    leave(
        out,
        "mixture",
        [differences | {"settings": vars(args)}],
        as_table(found, differences),
        lambda _, path: draw(differences, path),
    )


def compared(tasks: Path, made: dict, found: dict[str, dict]) -> dict:
    """{run: {task: score.against() of it and the whole set}}; of the whole set its own results."""
    whole, out = found["all"], {}
    counts = {run: {} for run in found}
    for name, task in made.items():
        rows, _ = sets.chosen(tasks, name, task, whole["limit"], whole["seed"])
        gold, tagged = [row["gold"] for row in rows], FORMS[task["form"]].tagged
        for run, result in found.items():
            said, _ = measure.read_back(task, rows, result["tasks"][name]["answers"])
            counts[run][name] = score.count(tagged, task["labels"], gold, said)
    for run in found:
        if run != "all":
            out[run] = {n: score.against(made[n]["measure"], counts[run][n], counts["all"][n]) for n in made}
    return out


def as_table(found: dict[str, dict], differences: dict) -> str:
    whole = found["all"]["tasks"]
    rows = [["task", "measure", "all", *differences], ["---", "---", *["---:"] * (1 + len(differences))]]
    for name, task in whole.items():
        cells = []
        for run in differences:
            d = differences[run][name]
            mark = "" if d["verdict"] == score.CHANCE else " *"
            low, high = d["difference_ci95"] or (None, None)
            cells.append("" if low is None else f"{d['difference']:+.3f} [{low:+.3f}, {high:+.3f}]{mark}")
        rows.append(
            [name, task["measure"].replace("_", "-"), tables.measure_cell(task, task["measure"]), *cells]
        )
    return (
        tables.markdown(rows)
        + "\n\n*: the paired 95 % interval of the difference from `all` does not hold 0."
    )


def draw(differences: dict, path: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    runs, names = list(differences), list(next(iter(differences.values()), {}))
    values = np.array([[differences[r][n]["difference"] or 0.0 for r in runs] for n in names]).reshape(
        len(names), len(runs)
    )
    figure = Figure(figsize=(2.5 + 1.1 * len(runs), 1.2 + 0.4 * len(names)), layout="constrained")
    ax = figure.subplots()
    largest = max(0.05, np.abs(values).max(initial=0))
    image = ax.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for k, n in enumerate(names):
        for j, r in enumerate(runs):
            beyond = differences[r][n]["verdict"] != score.CHANCE
            dark = abs(values[k, j]) > 0.6 * largest
            ax.text(
                j,
                k,
                f"{values[k, j]:+.2f}{'*' if beyond else ''}",
                ha="center",
                va="center",
                color="w" if dark else "0.2",
                fontsize=8,
            )
    ax.set_xticks(range(len(runs)), runs, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    figure.colorbar(image, label="difference from the whole set")
    figure.savefig(path, dpi=144)


if __name__ == "__main__":
    main()
