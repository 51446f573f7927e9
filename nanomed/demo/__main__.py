"""make demo: the four phases on the bundled model and its own small world, in minutes on a CPU, offline.

python -m nanomed.demo --out runs/demo                  the table, report.html, demo.json
python -m nanomed.demo --out runs/demo-full --full      two more rows, on three seeds

Each training is a command of the scripts that everyone else uses; it is printed before it runs.
"""

import hashlib
import json
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from nanomed import cli, hub, measure, report
from nanomed.demo import page, render
from nanomed.errors import Interrupted, UserError
from nanomed.files import read_json, write_json, write_text
from nanomed.generate import Sampling
from nanomed.metrics import need
from nanomed.templates import TEMPLATES

ROOT = Path(__file__).parent.parent.parent
TEMPLATE = "response"
GO_ON = "the same command goes on from there"
PER_CONDITION = 16  # paragraphs in the corpus about each condition
CONTEXT = 128  # attention to far more would be a third of a step's time on a CPU

# Twice the batch at twice the rate learns as much and forgets half as much again.
ADAPT = ["--context", CONTEXT, "--batch-size", 8, "--epochs", 3, "--lr", "1e-3"]
CLASSIFY = ["--data", "classes.train.jsonl", "--val-data", "classes.test.jsonl", "--context", 64, "--batch-size", 16,
            "--epochs", 2, "--lr", "3e-4"]  # fmt: skip
INSTRUCT = ["--data", "questions.train.jsonl", "--val-data", "questions.val.jsonl", "--template", TEMPLATE, "--context", CONTEXT,
            "--batch-size", 16, "--epochs", 2, "--lr", "6e-4"]  # fmt: skip
REPLAY = ["--replay", "corpus.jsonl", "--replay-ratio", 0.3]
MIXED = {"corpus.jsonl": 0.8, "general.mix.jsonl": 0.2}  # shares of the blocks

# The rows of the table: how each model is made, from which other, in a directory of its name. `base` is there already.
MODELS = {
    "adapted": ("train_clm.py", "base", ["--data", "corpus.jsonl", "--val-data", "biomedical.jsonl", *ADAPT]),
    "instructed_only": ("train_sft.py", "base", INSTRUCT),
    "adapted_instructed": ("train_sft.py", "adapted", [*INSTRUCT, *REPLAY]),
}
FULL = {
    "adapted_instructed_no_replay": ("train_sft.py", "adapted", INSTRUCT),
    "adapted_mixed": (
        "train_clm.py",
        "base",
        ["--data", *(f"{f}:{share}" for f, share in MIXED.items()), "--val-data", "biomedical.jsonl", *ADAPT],
    ),
}
NAMES = {
    "base": "base",
    "adapted": "adapted",
    "instructed_only": "instructed only",
    "adapted_instructed": "adapted, then instructed",
    "adapted_instructed_no_replay": "the same without replay",
    "adapted_mixed": "adapted with general text",
}
QUICK = " --quick: two updates of everything, so these figures mean nothing."
COLUMNS = {
    "biomedical_ppl": "biomedical perplexity",
    "general_ppl": "general perplexity",
    "classifier_accuracy": "classifier accuracy",
    "cloze_read": "cloze on read",
    "em_taught": "exact match: taught",
    "em_read": "read",
    "em_unknown": "unknown",
}
EXPLANATION = (
    "Perplexity: how surprised the model is by facts that it read, told in other words than it read them in, and by general "
    "paragraphs. Classifier: single sentences, biomedical or not, about conditions that it was not trained on. Cloze: a fact of "
    "a *read* condition completed from its plain statement. Exact match: the right value in the answer to a question, for "
    "conditions that were in the corpus and in the training questions (taught), in the corpus only (read), and in neither "
    "(unknown). After adapting, instruction tuning has some of the corpus mixed in (replay)."
)


def parse_args():
    p = cli.Parser(prog="nanomed.demo", description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True, metavar="DIR", help="where the texts, the models and the results go")
    p.add_argument("--full", action="store_true", help="two more rows, and three seeds from --seed on")
    p.add_argument("--model", default="nano", metavar="M", help=f"what to start from: {cli.MODEL_HELP}")
    p.add_argument("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="of matrix products")
    p.add_argument("--seed", type=cli.whole, default=0, help="of the groups, the texts and the trainings")
    p.add_argument(
        "--quick",
        action="store_true",
        help="two updates of everything, on a few texts: shows that it runs, and nothing else",
    )
    return p.parse_args()


def make_texts(seed: int, most: int | None = None) -> dict[str, str]:
    """Everything that is trained and measured on, as the lines of files that the scripts read; `most`: lines of each."""
    groups = render.groups(seed)
    told = groups["taught"] + groups["read"]
    mix, measured = render.general_paragraphs()
    ways = [0, 1, 2, 3]
    rng = random.Random(f"order {seed}")
    train = render.questions(groups["taught"], ways, seed, per_fact=2)
    rng.shuffle(train)
    rows = {
        "corpus": _documents(render.corpus(told, PER_CONDITION, seed)),
        "biomedical": _documents(render.retold(told, seed)),
        "general": _documents(measured),
        "general.mix": _documents(mix),
        "questions.train": train,
        "questions.val": rng.sample(render.questions(groups["read"], [0], seed), 60),
        "classes.train": render.labelled(groups["taught"], False, seed),
        "classes.test": render.labelled(groups["read"], True, seed),
    }
    return {
        f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in r[:most])
        for name, r in rows.items()
    }


def _documents(texts: list[str]) -> list[dict]:
    return [{"text": text} for text in texts]


def start(args, out: Path, seed: int) -> None:
    """Write the texts into `out`. Raises UserError, before anything is touched, if a demo with other settings lives there,
    or if something is missing that would be missed only at the end."""
    for module in ("matplotlib", "jinja2", "sklearn"):
        need(module)
    hub.find(args.model)
    texts = make_texts(seed, 60 if args.quick else None)
    settings = {"seed": seed, "model": args.model, "dtype": args.dtype, "quick": args.quick, "full": args.full,
                "texts": hashlib.sha256("".join(texts.values()).encode()).hexdigest()}  # fmt: skip
    path = out / "settings.json"
    before = read_json(path) if path.exists() else settings
    changed = [k for k, v in settings.items() if v != before.get(k)]
    if changed:
        raise UserError(
            f"{out}: holds a demo with other settings ({', '.join(changed)}); give another --out, or delete it "
            "(with make: RUNS=...)"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(settings, path)
    for name, text in texts.items():
        write_text(text, out / name)


def run(out: Path, name: str, script: str, flags: list, seed: int, dtype: str, quick: bool) -> None:
    """One training, in `out`, as a command that can be typed."""
    flags = [*flags, "--out", name, "--seed", seed, "--dtype", dtype, "--resume", "--save-every", 0]
    if quick:
        flags += ["--max-steps", 2]
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    print(f"\n$ cd {shlex.quote(str(out))} && {shlex.join(command)}", flush=True)
    process = subprocess.Popen(command, cwd=out)
    try:
        process.wait()
    except KeyboardInterrupt:  # it reaches the training too, which saves before it ends
        process.wait()
        raise Interrupted(signal.SIGINT, GO_ON) from None
    except Interrupted as e:
        process.terminate()
        process.wait()
        raise Interrupted(e.signum, GO_ON) from None
    if process.returncode > 128:
        raise Interrupted(process.returncode - 128, GO_ON)
    if process.returncode < 0:
        raise UserError(f"{script} was killed by signal {-process.returncode}; if that was for want of memory, close other "
                        f"programs; {GO_ON}")  # fmt: skip
    if process.returncode:
        raise UserError(f"{script} ended with status {process.returncode}: see above")
    shutil.rmtree(out / name / "state", ignore_errors=True)  # of a finished training, three times the size of its model


def measure_row(o: measure.Opened, out: Path, seed: int, quick: bool) -> dict:
    """One row of the table, except for the classifier."""
    groups = render.groups(seed)
    rng = random.Random(f"measured {seed}")
    ppl = {
        name: measure.measure_ppl(o, measure.encode(o, [str(out / f"{name}.jsonl")]), CONTEXT)
        for name in ("biomedical", "general")
    }
    read = render.facts_of(groups["read"])
    asked = {g: render.facts_of(names) for g, names in groups.items()}
    asked["taught"] = rng.sample(asked["taught"], len(read))
    if quick:
        read, asked = read[:8], {g: f[:8] for g, f in asked.items()}
    longest = max(len(o.tokenizer.encode(f" {f.told()}")) for f in render.facts_of(list(render.facts())))

    def write(prompts):  # one sentence counts; what would come after its full stop need not be written
        markers = [*TEMPLATES[TEMPLATE].markers, "."]
        done = measure.complete(o, prompts, Sampling(), markers, longest + 4, batch_size=64)
        return [d["completion"] for d in done]

    row = {f"{name}_ppl": r["ppl"] for name, r in ppl.items()}
    clozes = [f.cloze() for f in read]
    completed = [cloze + text for cloze, text in zip(clozes, write(clozes), strict=True)]
    row["cloze_read"] = share_right(read, completed)
    for group, facts in asked.items():
        answers = write([TEMPLATES[TEMPLATE].ask(f.asked()) for f in facts])
        row[f"em_{group}"] = share_right(facts, answers)
    return row | {"_ppl": ppl}


def share_right(facts: list[render.Fact], answers: list[str]) -> float:
    return statistics.mean(fact.matches(answer) for fact, answer in zip(facts, answers, strict=True))


def commonest_value(seed: int) -> float:
    """The exact match on unknown conditions of always giving the value that is commonest among the taught ones."""
    groups = render.groups(seed)
    best = {}
    for relation in render.TOLD:
        values = [f.value for f in render.facts_of(groups["taught"]) if f.relation == relation]
        best[relation] = statistics.mode(values)
    unknown = render.facts_of(groups["unknown"])
    return sum(best[f.relation] == f.value for f in unknown) / len(unknown)


def one_seed(args, out: Path, seed: int) -> dict:
    """All phases with one seed: {rows, seconds, ...}; writes demo.json, report.json and report.html into `out`."""
    began = time.perf_counter()
    start(args, out, seed)
    resumed = any(out.glob("*/run.json"))  # then `seconds` are not the whole
    models = MODELS | (FULL if args.full else {})
    is_path = args.model not in hub.BUNDLED and Path(args.model).exists()
    names = {"base": str(Path(args.model).resolve()) if is_path else args.model}
    rows, opened = [], {}
    for name in ["base", *models]:
        if name != "base":
            script, start_from, flags = models[name]
            if name == "adapted_mixed":  # as many blocks of the corpus as without the general ones among them
                steps = read_json(out / "adapted" / "summary.json")["steps"] / MIXED["corpus.jsonl"]
                flags = [*flags, "--max-steps", round(steps)]
            run(out, name, script, ["--model", names[start_from], *flags], seed, args.dtype, args.quick)
            names[name] = name
        run(
            out, f"classifier_{name}", "train_cls.py", ["--model", names[name], *CLASSIFY], seed, args.dtype, args.quick
        )
        where = names[name] if name == "base" else str(out / name)
        opened[name] = measure.open_model(where, dtype=args.dtype)
        row = {"name": name} | measure_row(opened[name], out, seed, args.quick)
        summary = read_json(out / f"classifier_{name}" / "summary.json")
        row["classifier_accuracy"] = summary["classification"]["model"]["accuracy"]
        tfidf = summary["classification"]["TF-IDF + logistic regression"]["accuracy"]  # the same beside every model
        rows.append(row)
        print(f"{NAMES[name]}: " + ", ".join(f"{c} {_cell(row, k)}" for k, c in COLUMNS.items()))
    page = write_page(out, rows, opened, seed, EXPLANATION + QUICK * args.quick)
    table = [{k: row[k] for k in ("name", *COLUMNS)} for row in rows]
    done_before = out / "demo.json"
    seconds = read_json(done_before)["seconds"] if done_before.exists() else time.perf_counter() - began
    result = {"seconds": seconds, "resumed": resumed, "rows": table, "seed": seed, "model": args.model, "quick": args.quick,
              "classifier_tfidf": tfidf, "dtype": opened["base"].dtype, "unknown_commonest_value": commonest_value(seed),
              "conditions": {g: len(n) for g, n in render.groups(seed).items()}}  # fmt: skip
    write_json(result, out / "demo.json")
    earlier = ", going on from an earlier call" if resumed else ""
    print(f"\n{one_seed_table(rows)}\n\n{EXPLANATION}\nAlways giving the commonest value would be right for "
          f"{result['unknown_commonest_value']:.0%} of the unknown; TF-IDF with logistic regression classifies {tfidf:.0%} right."
          f"{QUICK * args.quick}\n{result['seconds'] / 60:.1f} minutes{earlier}; "
          f"results in {out}: demo.json, {page.name} (open it in a browser)")  # fmt: skip
    return result


def write_page(out: Path, rows: list[dict], opened: dict, seed: int, explanation: str) -> Path:
    """report.html: what a reader should see first, the table, and what each model answers."""
    return page.write(out, rows, opened, seed, explanation, NAMES, TEMPLATE)


def _cell(row: dict, key: str) -> str:
    return f"{row[key]:,.1f}" if key.endswith("ppl") else f"{row[key]:.0%}"


def one_seed_table(rows: list[dict]) -> str:
    lines = [["", *COLUMNS.values()], ["---", *["---:"] * len(COLUMNS)]]
    lines += [[NAMES[row["name"]], *(_cell(row, key) for key in COLUMNS)] for row in rows]
    return report.markdown(lines)


def over_seeds(results: list[dict]) -> str:
    """The table of several seeds: mean, and the range in brackets."""
    lines = [["", *COLUMNS.values()], ["---", *["---:"] * len(COLUMNS)]]
    for k, row in enumerate(results[0]["rows"]):
        cells = []
        for key in COLUMNS:
            values = [r["rows"][k][key] for r in results]
            mean, low, high = (_cell({key: v}, key) for v in (statistics.mean(values), min(values), max(values)))
            cells.append(f"{mean} [{low}, {high}]")
        lines.append([NAMES[row["name"]], *cells])
    return report.markdown(lines)


def main():
    args = parse_args()
    out = Path(args.out)
    if not args.full:
        one_seed(args, out, args.seed)
        return
    results = [one_seed(args, out / f"seed-{seed}", seed) for seed in range(args.seed, args.seed + 3)]
    seconds = sum(r["seconds"] for r in results)
    write_json({"seconds": seconds, "seeds": results}, out / "demo.json")
    (out / "table.md").write_text(over_seeds(results) + "\n", encoding="utf-8")
    print(
        f"\nThree seeds, mean [lowest, highest]:\n\n{over_seeds(results)}\n\n{seconds / 60:.0f} minutes; results in {out}"
    )


if __name__ == "__main__":
    cli.run(main, "nanomed.demo")
