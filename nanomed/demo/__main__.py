"""make demo: the four phases on the bundled model and its own small world, in minutes on a CPU, offline.

python -m nanomed.demo --out runs/demo                  the table, report.html, demo.json
python -m nanomed.demo --out runs/demo-full --full      two more rows, on three seeds

Each training is a command of the scripts that everyone else uses; it is printed before it runs."""

import random
import re
import statistics
import textwrap
import time
from pathlib import Path

from nanomed import cli, flags, hub
from nanomed.commands import ROOT, run, shown
from nanomed.demo import page, render, table, texts
from nanomed.evaluation import baselines, measure
from nanomed.evaluation.generate import Sampling
from nanomed.files import read_json, write_json, write_text
from nanomed.models.classifier import predict
from nanomed.outputs import check_directory
from nanomed.text import labelled
from nanomed.text.templates import TEMPLATES

TEMPLATE = "response"
CONTEXT = 128  # attention to far more would be a third of a step's time on a CPU

# What is read in phase 2, as shares of the blocks: the small world, and with it, against forgetting
# everything else, real prose of the field, general English, and what the base model writes when it is asked
# for nothing. The shares of these follow their sizes: what is read too often is learnt by heart, and protects
# nothing.
MIXTURE = {"corpus": 0.56, "prose": 0.18, "general.mix": 0.08, "self": 0.18}
# Adam moves the embedding of a token that is hardly read as far as any other's; a slight pull leaves it where
# it was.
PULL = ["--l2-sp", 0.003, "--pull-on", "wte,wpe,embed_tokens"]
ALIKE = ["--context", CONTEXT, "--weight-decay", 0, *PULL]
ADAPT = [*ALIKE, "--batch-size", 8, "--max-steps", 2000, "--lr", "2e-3", "--eval-every", 500]
PROBE = [
    "--context",
    64,
    "--batch-size",
    16,
    "--epochs",
    10,
    "--lr",
    "2e-3",
    "--eval-every",
    210,
    "--balance",
    "none",
    "--freeze",
]
INSTRUCT = [*ALIKE, "--template", TEMPLATE, "--batch-size", 16, "--epochs", 2, "--lr", "5e-4"]
REPLAY_RATIO = 0.7
QUICK = " --quick: one update of everything, so these figures mean nothing."

# Validated on while reading: the first set is what is learnt, the others what is forgotten meanwhile. Recipes
# are chosen by these; the table measures other texts, of other sources.
WATCHED = ["--val-data", "own={biomedical}", "abstracts={abstracts.dev}", "general={general.dev}"]
# The rows of the table: how each model is made, from which other, in a directory of its name. `base` is there
# already. Names of texts in braces stand for their files.
ADAPTED = (
    "train_clm.py",
    "base",
    ["--data", *(f"{{{name}}}:{share}" for name, share in MIXTURE.items()), *WATCHED, *ADAPT],
)
QUESTIONS = ["--data", "{questions.train}", "--val-data", "{questions.val}", *INSTRUCT]
REPLAY = ["--replay", *(f"{{{name}}}" for name in MIXTURE), "--replay-ratio", REPLAY_RATIO]
MODELS = {
    "adapted": ADAPTED,
    "instructed_only": ("train_sft.py", "base", QUESTIONS),
    "adapted_instructed": ("train_sft.py", "adapted", [*QUESTIONS, *REPLAY]),
}
FULL = {
    "adapted_unmixed": ("train_clm.py", "base", ["--data", "{corpus}", *WATCHED, *ADAPT]),
    "adapted_instructed_no_replay": ("train_sft.py", "adapted", QUESTIONS),
}
BANNERS = {
    "base": "Phase 1, measure: what the bundled model knows; about 15 seconds on 2 cores",
    "adapted": (
        "Phase 2, adapt: reading about 160 conditions, and other texts beside them; about 4 minutes on 2"
        " cores"
    ),
    "instructed_only": (
        "Phase 4 without phase 2: questions and answers, nothing read; about 30 seconds on 2 cores"
    ),
    "adapted_instructed": (
        "Phase 4, instruct: questions and answers after reading; about 40 seconds on 2 cores"
    ),
    "adapted_unmixed": (
        "Phase 2 again, without the other texts: what it forgets then; about 2 minutes on 2 cores"
    ),
    "adapted_instructed_no_replay": "Phase 4 again, without replayed texts; about 30 seconds on 2 cores",
}
PROBE_BANNER = (
    "Phase 3, classify: a head on the frozen model, what kind of disease is it? about 10 seconds on 2 cores"
)
EXPLANATION = (
    "Perplexity: how surprised the model is by facts that it read, told in other words than it read them in"
    " (own); by the same kind of paragraphs about *unknown* conditions; by real abstracts; and by general"
    " English, of other publishers and works than any that is read or that this recipe was chosen by. Probe:"
    " the model is frozen, and a head on it says what kind of disease a condition is, from sentences that"
    " only name it; learnt on *taught* conditions. Cloze: a fact of a *read* condition completed from its"
    " plain statement. Exact match: the right value in the answer to a question, for conditions that were in"
    " the corpus and in the training questions (*taught*), in the corpus only (*read*), and in neither"
    " (*unknown*)."
)


def parse_args():
    p = cli.Parser(prog="nanomed.demo", description=cli.summary(__doc__))
    p.add_argument(
        "--out", required=True, metavar="DIR", help="where the texts, the models and the results go"
    )
    p.add_argument("--full", action="store_true", help="two more rows, and three seeds from --seed on")
    p.add_argument("--model", default="nano", metavar="M", help=f"what to start from: {flags.MODEL_HELP}")
    p.add_argument(
        "--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="of matrix products"
    )
    p.add_argument("--seed", type=flags.whole, default=0, help="of the groups, the texts and the trainings")
    p.add_argument(
        "--quick",
        action="store_true",
        help="one update of everything, on a few texts: shows that it runs, and nothing else",
    )
    return p.parse_args()


def models_of(args) -> dict:
    return MODELS | (FULL if args.full else {})


def _probe(name: str) -> str:
    return f"probe_{name}"


def banner(text: str) -> None:
    print(f"\n{'-' * 80}\n{textwrap.fill(text, 80)}", flush=True)


def train(out: Path, name: str, script: str, flags: list, seed: int, dtype: str, quick: bool) -> None:
    """One training, in the project's directory, as a command that can be typed there. {name} in a flag: a
    text's file."""
    flags = [re.sub(r"\{(.+?)\}", lambda m: shown(out / f"{m[1]}.jsonl"), str(flag)) for flag in flags]
    flags += ["--out", shown(out / name), "--seed", seed, "--dtype", dtype, "--resume", "--save-every", 0]
    if quick:
        flags += ["--max-steps", 1]
    run([script, *flags])


def probe(out: Path, name: str, model: str, seed: int, dtype: str, quick: bool) -> dict[str, float]:
    """Train a head on the frozen model; its accuracy on the conditions that it was not trained on, by
    group."""
    flags = ["--model", model, "--data", "{probe.train}", "--val-data", "{probe.read}", *PROBE]
    train(out, _probe(name), "train_cls.py", flags, seed, dtype, quick)
    o = measure.open_model(str(out / _probe(name)), dtype=dtype, classifier=True)
    accuracies = {}
    for group, items in probed(out).items():
        ids, _ = labelled.encode_texts([item.text for item in items], o.tokenizer, CONTEXT)
        logits = predict(o.model, ids, o.tokenizer.pad, 64, o.device, o.dtype)
        accuracies[group] = accuracy(logits.numpy(), items, o.model.labels)
    return accuracies


def probed(out: Path, groups=("read", "unknown")) -> dict[str, list[labelled.Labelled]]:
    return {
        g: labelled.read_labelled([(str(out / f"probe.{g}.jsonl"), None)], "text", "label", None, False).items
        for g in groups
    }


def accuracy(scores, items: list[labelled.Labelled], labels: list[str]) -> float:
    return float((scores.argmax(1) == labelled.targets_of(items, labels, False)).mean())


def probe_baselines(out: Path) -> dict[str, dict[str, float]]:
    """The accuracy that the probe's question allows without any model, by group."""
    train = probed(out, ["train"])["train"]
    labels = sorted(set(render.kinds().values()))
    targets, texts = labelled.targets_of(train, labels, False), [item.text for item in train]
    found = {}
    for group, items in probed(out).items():
        majority = baselines.majority_baseline(targets, len(items), len(labels))
        tfidf = baselines.tfidf_baseline(texts, targets, [item.text for item in items], len(labels))
        found[group] = {
            "majority": accuracy(majority, items, labels),
            baselines.TFIDF: accuracy(tfidf, items, labels),
        }
    return found


def measure_row(o: measure.Opened, out: Path, seed: int, quick: bool) -> dict:
    """One row of the table, except for the probe."""
    groups = render.groups(seed)
    rng = random.Random(f"measured {seed}")
    ppl = {
        name: measure.measure_ppl(o, measure.encode(o, [str(out / f"{name}.jsonl")]), CONTEXT)
        for name in ("biomedical", "unknown", "abstracts", "general")
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
    """The exact match on unknown conditions of always giving the value that is commonest among the taught
    ones."""
    groups = render.groups(seed)
    best = {}
    for relation in render.TOLD:
        values = [f.value for f in render.facts_of(groups["taught"]) if f.relation == relation]
        best[relation] = statistics.mode(values)
    unknown = render.facts_of(groups["unknown"])
    return sum(best[f.relation] == f.value for f in unknown) / len(unknown)


def one_seed(args, out: Path, seed: int) -> dict:
    """All phases with one seed: {rows, seconds, ...}; writes demo.json, table.md, report.json and report.html
    into `out`."""
    began = time.perf_counter()
    results = [
        "demo.json",
        "table.md",
        "report.html",
        "report.json",
        *models_of(args),
        *map(_probe, table.NAMES),
    ]
    texts.start(args, out, seed, results)
    resumed = any(out.glob("*/run.json"))  # then `seconds` are not the whole
    models = models_of(args)
    is_path = args.model not in hub.BUNDLED and Path(args.model).exists()
    names = {"base": shown(Path(args.model)) if is_path else args.model}
    rows, opened = [], {}
    print(f"Texts in {out}. The commands below work as they stand in {ROOT}.")
    for name in ["base", *models]:
        banner(BANNERS[name])
        if name != "base":
            script, start_from, flags = models[name]
            if name == "adapted_unmixed":  # as many blocks of the corpus as with the real texts among them
                flags = [
                    *flags,
                    "--max-steps",
                    round(MIXTURE["corpus"] * read_json(out / "adapted" / "summary.json")["steps"]),
                ]
            train(out, name, script, ["--model", names[start_from], *flags], seed, args.dtype, args.quick)
            names[name] = shown(out / name)
        opened[name] = measure.open_model(args.model if name == "base" else str(out / name), dtype=args.dtype)
        row = {"name": name} | measure_row(opened[name], out, seed, args.quick)
        banner(PROBE_BANNER)
        right = probe(out, name, names[name], seed, args.dtype, args.quick)
        row |= {f"probe_{group}": value for group, value in right.items()}
        rows.append(row)
        print(f"\n{table.terminal(rows, vocabulary(opened['base']))}", flush=True)
    html = page.write(out, rows, opened, seed, EXPLANATION + QUICK * args.quick, TEMPLATE)
    figures = [{k: row[k] for k in ("name", *table.COLUMNS)} for row in rows]
    done_before = out / "demo.json"
    seconds = read_json(done_before)["seconds"] if done_before.exists() else time.perf_counter() - began
    beside = probe_baselines(out)
    result = {
        "seconds": seconds,
        "resumed": resumed,
        "rows": figures,
        "seed": seed,
        "model": args.model,
        "quick": args.quick,
        "vocabulary": vocabulary(opened["base"]),
        "probe_baselines": beside,
        "dtype": opened["base"].dtype,
        "unknown_commonest_value": commonest_value(seed),
        "conditions": {g: len(n) for g, n in render.groups(seed).items()},
    }
    write_json(result, done_before)
    write_text(table.markdown(figures, result["vocabulary"]) + "\n", out / "table.md")
    earlier = ", going on from an earlier call" if resumed else ""
    plain = "; ".join(
        f"{kind} {beside['read'][kind]:.0%} on read, {beside['unknown'][kind]:.0%} on unknown"
        for kind in beside["read"]
    )
    notes = (
        f"{EXPLANATION} Without any model the probe's question is answered by {plain}. Always giving the"
        f" commonest value would be an exact match on {result['unknown_commonest_value']:.0%} of"
        f" them.{QUICK * args.quick}"
    )
    print(
        f"\n{textwrap.fill(notes, 80)}\n\n{result['seconds'] / 60:.1f} minutes{earlier}; results in {out}:"
        f" demo.json, table.md, {html.name} (open it in a browser)"
    )
    return result


def vocabulary(o: measure.Opened) -> int:
    return o.model.config.vocab_size


def main():
    args = parse_args()
    out = Path(args.out)
    check_directory(args.out)
    if not args.full:
        one_seed(args, out, args.seed)
        return
    if not any(out.glob("seed-*/settings.json")):
        texts.refuse_foreign(out, ["demo.json", "table.md"])
    results = [one_seed(args, out / f"seed-{seed}", seed) for seed in range(args.seed, args.seed + 3)]
    seconds = sum(r["seconds"] for r in results)
    write_json({"seconds": seconds, "seeds": results}, out / "demo.json")
    tables = [r["rows"] for r in results]
    write_text(table.over_seeds(tables, results[0]["vocabulary"]) + "\n", out / "table.md")
    print(
        f"\nThree seeds\n\n{table.summary(tables, results[0]['vocabulary'])}\n\n{seconds / 60:.0f} minutes;"
        f" results in {out}: demo.json, table.md (mean [lowest, highest])"
    )


if __name__ == "__main__":
    cli.execute(main, "nanomed.demo")
