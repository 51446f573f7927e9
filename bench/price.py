"""What a model learnt of the demo's small world against what it forgot: several ways of reading it, on one
picture.

    python bench/price.py --texts runs/demo --out runs/price base=nano "no pull"=runs/a "pull 0.01"=runs/b ...

--texts is a folder that `make demo` wrote: the facts of its seed are asked, its abstracts and its general
English measured. The first model is the base; the perplexity of each other one stands beside its ratio to the
base's, with the 95 % interval of a paired bootstrap over the texts. Writes price.json, price.md (the table)
and price.png (the picture: up is learnt, left is kept)."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.many import leave
from nanomed.demo.__main__ import CONTEXT, measure_row
from nanomed.evaluation import bootstrap, measure, tables
from nanomed.evaluation.perplexity import perplexity
from nanomed.files import read_json

TEXTS = {"abstracts": "real abstracts", "general": "general English"}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("models", nargs="+", metavar="NAME=M")
    p.add_argument("--texts", required=True, type=Path)
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--dev", action="store_true", help="measure the texts that recipes are chosen by")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seed, found, base = read_json(args.texts / "settings.json")["seed"], [], {}
    for given in args.models:
        name, _, model = given.partition("=")
        o = measure.open_model(model)
        row = measure_row(o, args.texts, seed, False)
        line = {"name": name, "dtype": o.dtype, "seed": seed} | {k: row[k] for k in ("cloze_read", "em_read")}
        for text in TEXTS:
            file = args.texts / f"{text}{'.dev' if args.dev else ''}.jsonl"
            documents = measure.encode(o, [str(file)]).all()
            nll = perplexity(
                o.model, [documents], CONTEXT, CONTEXT // 2, 8, o.device, o.dtype, per_document=True
            )["document_nll"]
            base.setdefault(text, nll)
            line[text] = against(nll, base[text], documents.table()["length"] - 1)
        found.append(line)
        print(line, flush=True)
    leave(args.out, "price", found, as_table(found), draw)


def against(nll: np.ndarray, base: np.ndarray, tokens: np.ndarray) -> dict:
    """A perplexity, its ratio to the base's on the same texts, and the ratio's paired interval."""

    def ratio(k):
        return float(np.exp((nll[k] - base[k]).sum() / tokens[k].sum()))

    ppl = float(np.exp(nll.sum() / tokens.sum()))
    return {"ppl": ppl, "ratio": ratio(slice(None)), "ratio_ci95": bootstrap.interval(ratio, len(nll))}


def as_table(found: list[dict]) -> str:
    rows = [
        [
            "",
            *(h for name in TEXTS.values() for h in (name, "ratio [95 %]")),
            "cloze: read",
            "exact match: read",
        ]
    ]
    rows.append(["---", *["---:"] * 6])
    for f in found:
        cells = [f["name"]]
        for text in TEXTS:
            low, high = f[text]["ratio_ci95"]
            cells += [tables.ppl_cell(f[text]["ppl"]), f"{f[text]['ratio']:.2f} [{low:.2f}, {high:.2f}]"]
        rows.append([*cells, f"{f['cloze_read']:.0%}", f"{f['em_read']:.0%}"])
    return tables.markdown(rows)


def draw(found: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    ax = figure.subplots()
    ax.axvline(2, color="0.8", lw=1)
    ax.axhline(90, color="0.8", lw=1)
    for f in found:
        x, y = f["general"]["ratio"], 100 * f["cloze_read"]
        ax.plot([x], [y], "o", ms=7, color="#2f9e6e" if f["abstracts"]["ratio_ci95"][1] < 1 else "#d9622b")
        label = f"{f['name']}\nabstracts {f['abstracts']['ratio'] - 1:+.0%}"
        below = y > 85 and "instructed" in f["name"]  # models that learnt all lie close together
        ax.annotate(label, (x, y), textcoords="offset points", xytext=(6, -24 if below else 4), fontsize=8)
    ax.margins(x=0.3, y=0.15)
    ax.set_xlabel("general English: perplexity, times the base's (right: forgotten)")
    ax.set_ylabel("facts completed (up: learnt)")
    ax.yaxis.set_major_formatter(PercentFormatter())
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
