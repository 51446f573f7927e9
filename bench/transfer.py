"""Does phase 3 profit from phase 2? Classifiers on a base model and on an adapted one, several seeds, against
TF-IDF.

    python bench/transfer.py --models base=M adapted=DIR --out runs/transfer \
        --sets hallmarks=HoC/train.jsonl,HoC/dev.jsonl,HoC/test.jsonl \
        topics=Abstracts/train.jsonl,,Abstracts/test.jsonl

Of each set: the texts to train on, to validate on (empty: a share of the first), to test on; rows {text,
label or labels}. For every model and set the learning rate is the one of --rates that was best on the
validation (macro-F1, all texts, seed 0), so that nothing is chosen on the test. With it, classifiers are
trained on all texts and on --sizes of them, drawn by seed (each label at least once), one a seed; each is
measured on the test beside TF-IDF with logistic regression on the same texts. Writes transfer.json,
transfer.md and transfer.png (the curves) into DIR. Runs that are done are not done again. --frozen asks
instead what the models know as they are, in minutes on a CPU."""

import argparse
import json
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.many import ROOT, leave, run_all, without_weights
from nanomed.evaluation.baselines import TFIDF

COLOURS = ("#3f8fbd", "#d9622b", "#2f9e6e")
COPY = "import pathlib\npathlib.Path({1!r}).write_text(pathlib.Path({0!r}).read_text())"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--models", nargs="+", required=True, metavar="NAME=M")
    p.add_argument("--sets", nargs="+", required=True, metavar="NAME=TRAIN,VALIDATION,TEST")
    p.add_argument("--out", required=True)
    p.add_argument("--sizes", type=int, nargs="*", default=[32, 128, 512])
    p.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    p.add_argument("--rates", nargs="*", default=["2e-5", "5e-5", "1e-4"])
    p.add_argument(
        "--epochs",
        type=int,
        default=6,
        help="of all texts; smaller sizes get as many as make --least updates",
    )
    p.add_argument("--least", type=int, default=100)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--jobs", type=int, default=1, help="runs at once")
    p.add_argument(
        "--frozen",
        action="store_true",
        help="no classifier is trained: logistic regression on the frozen models' mean states",
    )
    p.add_argument("--strength", type=float, default=0.01, help="C of that regression (default 0.01)")
    p.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="flags for every train_cls.py")
    args = p.parse_args()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    models = dict(m.split("=", 1) for m in args.models)
    sets = {name: files.split(",") for name, files in (s.split("=", 1) for s in args.sets)}

    found = (frozen if args.frozen else fine_tuned)(args, out, models, sets)
    leave(out, "transfer", found, as_table(found), draw)


def fine_tuned(args, out: Path, models: dict, sets: dict) -> list[dict]:
    """A classifier a set, model, size and seed, all weights trained (or as --more says)."""

    def train(model, data, validation, test, where, rate, seed, n):
        updates = max(args.least, args.epochs * -(-n // args.batch_size))
        flags = [
            "--lr",
            rate,
            "--max-steps",
            updates,
            "--batch-size",
            args.batch_size,
            "--context",
            args.context,
        ]
        held = ["--exclude", Path(test).resolve()]
        val = (
            ["--val-data", Path(validation).resolve()]
            if validation
            else ["--val-fraction", 0.15 if seed is None else 0]
        )
        quiet = ["--seed", seed or 0, "--eval-every", 10**6, "--save-every", 0, "--resume", *args.more]
        return [
            ROOT / "train_cls.py",
            "--model",
            model,
            "--data",
            data,
            "--out",
            where,
            *flags,
            *held,
            *val,
            *quiet,
        ]

    rates, jobs = {}, {}
    for s, (data, validation, test) in sets.items():
        n = len(Path(data).read_text().splitlines())
        for m, model in models.items():
            for rate in args.rates:
                where = out / f"rate-{s}-{m}-{rate}"
                commands = [train(model, Path(data).resolve(), validation, test, where, rate, None, n)]
                copy = ["-c", COPY.format(str(where / "summary.json"), f"{where}.json")]
                jobs[out / f"rate-{s}-{m}-{rate}.json"] = [*commands, copy, without_weights(where)]
    run_all(jobs, args.jobs)
    for s in sets:
        for m in models:
            found = {
                r: json.loads((out / f"rate-{s}-{m}-{r}.json").read_text())["classification"]["model"][
                    "macro_f1"
                ]
                for r in args.rates
            }
            rates[s, m] = max(found, key=found.get)
            print(
                f"{s}, {m}: validation macro-F1 {', '.join(f'{r} {v:.3f}' for r, v in found.items())}; chosen"
                f" {rates[s, m]}",
                flush=True,
            )
    jobs, points = {}, []
    for s, (data, _, test) in sets.items():
        for size in [*args.sizes, 0]:
            for seed in args.seeds:
                part = (
                    subset(Path(data), size, seed, out / f"{s}-{size}-{seed}.jsonl")
                    if size
                    else Path(data).resolve()
                )
                n = len(part.read_text().splitlines())
                for m, model in models.items():
                    where = out / f"{s}-{m}-{size or 'all'}-{seed}"
                    result = Path(f"{where}.json")
                    measured = [
                        ROOT / "eval.py",
                        "cls",
                        "--model",
                        where,
                        "--data",
                        Path(test).resolve(),
                        "--json",
                        result,
                    ]
                    commands = [
                        train(model, part, "", test, where, rates[s, m], seed, n),
                        measured,
                        without_weights(where),
                    ]
                    jobs[result] = commands
                    points.append((s, m, n, seed, result))
    run_all(jobs, args.jobs)
    found = []
    for s, m, n, seed, result in points:
        r = json.loads(result.read_text())["measures"]
        kept = {"set": s, "model": m, "texts": n, "seed": seed, "rate": rates[s, m]}
        kept |= {
            "macro_f1": r["model"]["macro_f1"],
            "macro_f1_ci95": r["model"]["macro_f1_ci95"],
            "against_tfidf": r["model"]["against_tfidf"],
        }
        found.append(kept | {"tfidf": r[TFIDF]["macro_f1"], "tfidf_ci95": r[TFIDF]["macro_f1_ci95"]})
    return found


def frozen(args, out: Path, models: dict, sets: dict) -> list[dict]:
    """What the models know before anything is trained: logistic regression on their mean states,
    standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from nanomed.evaluation import baselines, metrics
    from nanomed.evaluation.measure import open_model
    from nanomed.systems.retrieve import passage_embeddings
    from nanomed.text.labelled import read_labelled, targets_of

    found = []
    for m, model in models.items():
        o = open_model(model)
        for s, (data, _, test) in sets.items():
            whole, tested = (
                read_labelled([(f, None)], "text", "label,labels", None, False) for f in (data, test)
            )
            held = {item.text for item in tested.items}
            items = [item for item in whole.items if item.text not in held]
            labels, multi = whole.names(), whole.multi_label
            x, y = (
                passage_embeddings(o, [i.text for i in side], args.context, 16)
                for side in (items, tested.items)
            )
            targets, right = (targets_of(side, labels, multi) for side in (items, tested.items))
            texts = [item.text for item in tested.items]
            for size in [*args.sizes, 0]:
                for seed in args.seeds if size else args.seeds[:1]:  # with all texts nothing is drawn
                    rows = [*range(len(items))]
                    random.Random(seed).shuffle(rows)
                    rows = each_label_first(rows, lambda k, items=items: set(items[k].labels))[: size or None]
                    regression = LogisticRegression(max_iter=2000, C=args.strength, class_weight="balanced")
                    head = make_pipeline(
                        StandardScaler(), OneVsRestClassifier(regression) if multi else regression
                    )
                    probs = head.fit(x[rows], targets[rows]).predict_proba(y)
                    tfidf = baselines.tfidf_baseline(
                        [items[k].text for k in rows], targets[rows], texts, len(labels)
                    )
                    a, b = (metrics.classification(p, right, labels) for p in (probs, tfidf))
                    kept = {"set": s, "model": m, "texts": len(rows), "seed": seed, "rate": "frozen"}
                    kept |= {
                        "macro_f1": a["macro_f1"],
                        "macro_f1_ci95": a["macro_f1_ci95"],
                        "tfidf": b["macro_f1"],
                    }
                    kept |= {
                        "tfidf_ci95": b["macro_f1_ci95"],
                        "against_tfidf": metrics.paired(probs, tfidf, right),
                    }
                    found.append(kept)
                    print(
                        f"{s}, {m}, {len(rows)} texts, seed {seed}: {a['macro_f1']:.3f}, TF-IDF"
                        f" {b['macro_f1']:.3f}",
                        flush=True,
                    )
    return found


def each_label_first(rows: list, labels_of) -> list:
    """The same rows, those first that bring a label which none before them has."""
    seen, first, rest = set(), [], []
    for row in rows:
        (rest if labels_of(row) <= seen else first).append(row)
        seen |= labels_of(row)
    return first + rest


def subset(data: Path, size: int, seed: int, path: Path) -> Path:
    """`size` rows drawn at random, each label at least once: rows are taken in a random order, those first
    that bring a new one."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    random.Random(seed).shuffle(rows)

    def labels_of(row) -> set:
        labels = row.get("labels", row.get("label"))
        return set(labels) if isinstance(labels, list) else {labels}

    rows = each_label_first(rows, labels_of)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:size]))
    return path


def as_table(found: list[dict]) -> str:
    """A row a set, size and model: macro-F1 on the test, mean over seeds [lowest, highest], beside
    TF-IDF's."""
    lines = [
        (
            "| set | texts | model | rate | macro-F1, mean [lowest, highest] | TF-IDF | difference [95 %] of"
            " each seed |"
        ),
        "|---|---:|---|---|---:|---:|---|",
    ]
    for key in dict.fromkeys((f["set"], f["texts"], f["model"]) for f in found):
        runs = [f for f in found if (f["set"], f["texts"], f["model"]) == key]
        values, tfidf = [f["macro_f1"] for f in runs], [f["tfidf"] for f in runs]
        pairs = [f["against_tfidf"] for f in runs]
        differences = "; ".join(
            f"{d['difference']:+.3f} [{d['difference_ci95'][0]:+.3f}, {d['difference_ci95'][1]:+.3f}]"
            for d in pairs
        )
        s, n, m = key
        mean = f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
        lines.append(
            f"| {s} | {n:,} | {m} | {runs[0]['rate']} | {mean} | {statistics.mean(tfidf):.3f} |"
            f" {differences} |"
        )
    return "\n".join(lines)


def draw(found: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(f["set"] for f in found))
    figure = Figure(figsize=(5 * len(sets), 4), layout="constrained")
    for ax, s in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        here = [f for f in found if f["set"] == s]
        curves = {m: "macro_f1" for m in dict.fromkeys(f["model"] for f in here)} | {"TF-IDF": "tfidf"}
        for colour, (name, key) in zip(COLOURS, curves.items(), strict=False):
            mine = [f for f in here if name in (f["model"], "TF-IDF")]
            sizes = sorted({f["texts"] for f in mine})
            values = [[f[key] for f in mine if f["texts"] == n] for n in sizes]
            ax.plot(sizes, [statistics.mean(v) for v in values], "o-", color=colour, label=name, ms=4)
            ax.fill_between(
                sizes, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0
            )
        ax.set_xscale("log")
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.minorticks_off()
        ax.set_xlabel("texts trained on")
        ax.set_title(s)
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("macro-F1 on the test")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=144)


if __name__ == "__main__":
    main()
