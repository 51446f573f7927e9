"""What is learnt against what is forgotten: the ways that hold a model back, each at several strengths, on
equal tokens.

    python bench/forgetting.py --model M --data pubmed.jsonl --general general.jsonl --test contexts.jsonl \
        --general-test val.jsonl --out runs/forgetting

Every training starts from M and takes the same number of updates of the same size; then its perplexity is
measured on biomedical text that it has not read (--test) and on general text (--general-test). Writes
forgetting.json, forgetting.md (the table) and forgetting.png (the picture: down is learnt, left is kept) into
DIR. Runs that are done are not done again; trained weights are removed once they are measured (--keep-weights
keeps them)."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.many import ROOT, leave, run_all, size_of, without_weights
from nanomed.evaluation import tables

LINEARS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
NAMES = ("biomedical", "general")
PICTURE = ("#3f8fbd", "#d9622b", "#2f9e6e", "#8f7fc4", "#b8901f", "#c2458f")


def ways(args) -> dict[str, list[tuple[str, list]]]:
    """{the way: [(its strength, the flags that make it)]}; all of one way together draw a line."""
    data, lr = ["--data", args.data], ["--lr", args.lr]
    held = lambda flag, value, *more: [*data, *lr, flag, value, "--weight-decay", 0, *more]  # noqa: E731
    ewc = ["--ewc-data", args.general, "--ewc-blocks", args.ewc_blocks]
    lora = ["--lora-r", 16, "--lora-targets", args.lora_targets]

    def mixed(share):
        return ["--data", f"{args.data}:{1 - share:g}", f"{args.general}:{share:g}", *lr]

    every = {
        "all weights, by rate": [(f"{r:g}", [*data, "--lr", r]) for r in (1e-5, 3e-5, 1e-4, 3e-4)],
        "LoRA r 16, by rate": [(f"{r:g}", [*data, *lora, "--lr", r]) for r in (1e-4, 3e-4, 1e-3)],
        "general text mixed in": [(f"{s:.0%}", mixed(s)) for s in (0.1, 0.25, 0.5)],
        "L2-SP": [(f"{a:g}", held("--l2-sp", a)) for a in (1e-2, 1e-1, 1)],
        "EWC": [(f"{a:g}", held("--ewc", a, *ewc)) for a in (30, 1000, 30000)],
    }
    return {way: strengths[1:] for way, strengths in every.items()} if args.few else every


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    for flag in ("--data", "--general", "--test", "--general-test", "--out"):
        p.add_argument(flag, required=True)
    p.add_argument("--updates", type=int, default=250)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--lr", default="1e-4", help="of the ways that are no rate (default 1e-4)")
    p.add_argument("--lora-targets", default=LINEARS)
    p.add_argument("--limit", type=int, default=500, help="documents of each measurement")
    p.add_argument("--ewc-blocks", type=int, default=200)
    p.add_argument("--few", action="store_true", help="without the weakest strength of each way")
    p.add_argument("--jobs", type=int, default=1, help="runs at once")
    p.add_argument("--keep-weights", action="store_true")
    args = p.parse_args()
    out = Path(args.out).resolve()
    for flag in ("data", "general", "test", "general_test"):
        setattr(args, flag, str(Path(getattr(args, flag)).resolve()))
    points = [("base", "", out / "base", None)]
    for way, strengths in ways(args).items():
        for label, flags in strengths:
            name = "".join(c if c.isalnum() else "-" for c in f"{way} {label}")
            points.append((way, label, out / name, flags))
    jobs = {}
    for *_, directory, flags in points:
        model, commands = directory if flags else args.model, []
        if flags:
            held = ["--exclude", args.test, args.general_test, "--save-every", 0, "--resume"]
            commands.append(
                [
                    ROOT / "train_clm.py",
                    "--model",
                    args.model,
                    *flags,
                    *size_of(args),
                    *held,
                    "--out",
                    directory,
                ]
            )
        for name, data in (("biomedical", args.test), ("general", args.general_test)):
            measure = ["--context", args.context, "--limit", args.limit, "--json", f"{directory}.{name}.json"]
            commands.append([ROOT / "eval.py", "ppl", "--model", model, "--data", data, *measure])
        if flags and not args.keep_weights:
            commands.append(without_weights(directory))
        jobs[Path(f"{directory}.general.json")] = commands
    run_all(jobs, args.jobs)
    read = lambda d, name: json.loads(Path(f"{d}.{name}.json").read_text())  # noqa: E731
    found = [
        {"way": way, "strength": label, "command": " ".join(map(str, flags or []))}
        | {name: {k: read(d, name)[k] for k in ("ppl", "ppl_ci95", "dtype", "device")} for name in NAMES}
        for way, label, d, flags in points
    ]
    leave(out, "forgetting", found, as_table(found), draw)


def as_table(found: list[dict]) -> str:
    rows = [
        ["", "strength", *(h for name in NAMES for h in (f"{name}: perplexity [95 %]", "change"))],
        ["---", "---", *["---:"] * 4],
    ]
    for f in found:
        cells = []
        for name in NAMES:
            r, base = f[name], found[0][name]
            cells.append(f"{tables.ppl_cell(r['ppl'])} {tables.interval_cell(r['ppl_ci95'])}")
            cells.append("" if f is found[0] else f"{r['ppl'] / base['ppl'] - 1:+.1%}")
        rows.append([f["way"], f["strength"], *cells])
    return tables.markdown(rows)


def draw(found: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    ax = figure.subplots()
    base = found[0]

    def change(f, name):
        return 100 * (f[name]["ppl"] / base[name]["ppl"] - 1)

    ax.axvline(0, color="0.8", lw=1)
    ax.axhline(0, color="0.8", lw=1)
    ax.plot([0], [0], "*", ms=14, color="0.3", label="base")
    for colour, way in zip(PICTURE, dict.fromkeys(f["way"] for f in found[1:]), strict=False):
        points = [f for f in found if f["way"] == way]
        x, y = ([change(f, name) for f in points] for name in ("general", "biomedical"))
        ax.plot(x, y, "o-", color=colour, ms=6, lw=1.2, label=way)
        for f, a, b in zip(points, x, y, strict=True):
            ax.annotate(
                f["strength"], (a, b), textcoords="offset points", xytext=(5, 5), fontsize=8, color=colour
            )
    ax.set_xlabel("general text: change of perplexity (right: forgotten)")
    ax.set_ylabel("biomedical text: change of perplexity (down: learnt)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter())
    ax.legend(frameon=False)
    figure.savefig(path, dpi=144)


if __name__ == "__main__":
    main()
