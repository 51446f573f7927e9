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

from nanomed import cli, flags, hub, outputs
from nanomed.demo import page, render, table, texts
from nanomed.evaluation import baselines, measure
from nanomed.evaluation.generate import Sampling
from nanomed.evaluation.prompts import ask
from nanomed.files import read_json, write_json, write_text
from nanomed.models.classifier import predict
from nanomed.scripts import ROOT, run, shown
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
PROBE = ["--context", 64, "--batch-size", 16, "--epochs", 10, "--lr", "2e-3", "--eval-every", 210]
PROBE += ["--balance", "none", "--freeze"]
INSTRUCT = [*ALIKE, "--template", TEMPLATE, "--batch-size", 16, "--epochs", 2, "--lr", "5e-4"]
REPLAY_RATIO = 0.7
QUICK = "--quick: one update of everything, so these figures mean nothing."

# Validated on while reading: the first set is what is learnt, the others what is forgotten meanwhile. Recipes
# are chosen by these; the table measures other texts, of other sources.
WATCHED = ["--val-data", "own={biomedical}", "abstracts={abstracts.dev}", "general={general.dev}"]
# The rows of the table: how each model is made, from which other, in a directory of its name. `base` is there
# already. Names of texts in braces stand for their files.
MIXED = ["--data", *(f"{{{name}}}:{share}" for name, share in MIXTURE.items()), *WATCHED, *ADAPT]
QUESTIONS = ["--data", "{questions.train}", "--val-data", "{questions.val}", *INSTRUCT]
REPLAY = ["--replay", *(f"{{{name}}}" for name in MIXTURE), "--replay-ratio", REPLAY_RATIO]
MODELS = {
    "adapted": ("train_clm.py", "base", MIXED),
    "instructed_only": ("train_sft.py", "base", QUESTIONS),
    "adapted_instructed": ("train_sft.py", "adapted", [*QUESTIONS, *REPLAY]),
}
FULL = {
    "adapted_unmixed": ("train_clm.py", "base", ["--data", "{corpus}", *WATCHED, *ADAPT]),
    "adapted_instructed_no_replay": ("train_sft.py", "adapted", QUESTIONS),
}
# What is said before each, with the time that it takes on 2 cores.
BANNERS = {
    "base": ("Phase 1, measure: what the bundled model knows", "15 seconds"),
    "adapted": ("Phase 2, adapt: reading about 160 conditions, and other texts beside them", "4 minutes"),
    "probe": ("Phase 3, classify: a head on the frozen model, what kind of disease is it?", "10 seconds"),
    "instructed_only": ("Phase 4 without phase 2: questions and answers, nothing read", "30 seconds"),
    "adapted_instructed": ("Phase 4, instruct: questions and answers after reading", "40 seconds"),
    "adapted_unmixed": ("Phase 2 again, without the other texts: what it forgets then", "2 minutes"),
    "adapted_instructed_no_replay": ("Phase 4 again, without replayed texts", "30 seconds"),
}
EXPLANATION = """\
Conditions: taught ones are in the corpus that is read and in the training questions, read ones in the corpus
only, unknown ones in neither.

Perplexity: how surprised the model is, lower is better; by facts that it read, told in other words than it
read them in (own); by the same kind of paragraphs about unknown conditions; by real abstracts; by general
English. No measured text is of a publisher or a work that is read or that this recipe was chosen by.

Probe: the frozen model with a head on it says what kind of disease a condition is, from sentences that only
name it; learnt on taught conditions.

Cloze: a fact of a read condition is completed from its plain statement.

Exact match: the right value stands in the answer to a question."""


def parse_args():
    p = cli.Parser(prog="python -m nanomed.demo", description=cli.summary(__doc__))
    flag = p.add_argument
    dtypes = ["auto", "fp32", "bf16", "fp16"]
    flag("--out", required=True, metavar="DIR", help="where the texts, the models and the results go")
    flag("--full", action="store_true", help="two more rows, and three seeds from --seed on")
    flag("--model", default="nano", metavar="M", help=f"what to start from: {flags.MODEL_HELP}")
    flag("--dtype", choices=dtypes, default="auto", help="of matrix products")
    flag("--seed", type=flags.whole, default=0, help="of the groups, the texts and the trainings")
    quick = "one update of everything, on a few texts: shows that it runs, and nothing else"
    flag("--quick", action="store_true", help=quick)
    return p.parse_args()


def banner(name: str) -> None:
    what, takes = BANNERS[name]
    print(f"\n{'-' * 80}\n{textwrap.fill(f'{what}; about {takes} on 2 cores', 80)}", flush=True)


def train(out: Path, name: str, script: str, flags: list, seed: int, dtype: str, quick: bool) -> None:
    """One training, in the project's directory, as a command that can be typed there. {name} in a flag: a
    text's file."""
    flags = [re.sub(r"\{(.+?)\}", lambda m: shown(out / f"{m[1]}.jsonl"), str(flag)) for flag in flags]
    flags += ["--out", shown(out / name), "--seed", seed, "--dtype", dtype, "--resume", "--save-every", 0]
    flags += ["--save-dtype", "fp32"]  # nano is stored in fp16; nothing is rounded between two phases
    run([script, *flags, *(["--max-steps", 1] if quick else [])])


def probe(out: Path, name: str, model: str, seed: int, dtype: str, quick: bool) -> dict[str, float]:
    """Train a head on the frozen model; its accuracy on the conditions that it was not trained on, by
    group."""
    flags = ["--model", model, "--data", "{probe.train}", "--val-data", "{probe.read}", *PROBE]
    train(out, f"probe_{name}", "train_cls.py", flags, seed, dtype, quick)
    o = measure.open_model(str(out / f"probe_{name}"), dtype=dtype, classifier=True)
    accuracies = {}
    for group in ("read", "unknown"):
        items = probed(out, group)
        ids, _ = labelled.encode_texts([item.text for item in items], o.tokenizer, CONTEXT)
        logits = predict(o.model, ids, o.tokenizer.pad, 64, o.device, o.dtype)
        accuracies[group] = accuracy(logits.numpy(), items, o.model.labels)
    return accuracies


def probed(out: Path, part: str) -> list[labelled.Labelled]:
    sources = [(str(out / f"probe.{part}.jsonl"), None)]
    return labelled.read_labelled(sources, "text", "label", None, False).items


def accuracy(scores, items: list[labelled.Labelled], labels: list[str]) -> float:
    return float((scores.argmax(1) == labelled.targets_of(items, labels, False)).mean())


def probe_baselines(out: Path) -> dict[str, dict[str, float]]:
    """The accuracy that the probe's question allows without any model, by group."""
    train, labels = probed(out, "train"), sorted(set(render.kinds().values()))
    targets, texts = labelled.targets_of(train, labels, False), [item.text for item in train]
    found = {}
    for group in ("read", "unknown"):
        items, k = probed(out, group), len(labels)
        majority = baselines.majority_baseline(targets, len(items), k)
        tfidf = baselines.tfidf_baseline(texts, targets, [item.text for item in items], k)
        scores = {"majority": majority, baselines.TFIDF: tfidf}
        found[group] = {name: accuracy(probs, items, labels) for name, probs in scores.items()}
    return found


def measure_row(o: measure.Opened, out: Path, seed: int, quick: bool) -> dict:
    """One row of the table, except for the probe; `_ppl`: all that was measured of its perplexities."""
    names = ("biomedical", "unknown", "abstracts", "general")
    corpora = {name: measure.encode(o, [str(out / f"{name}.jsonl")]) for name in names}
    ppl = {name: measure.measure_ppl(o, corpus, CONTEXT) for name, corpus in corpora.items()}
    asked = {group: render.facts_of(conditions) for group, conditions in render.groups(seed).items()}
    asked["taught"] = random.Random(f"measured {seed}").sample(asked["taught"], len(asked["read"]))
    if quick:
        asked = {group: facts[:8] for group, facts in asked.items()}
    longest = max(len(o.tokenizer.encode(f" {f.told()}")) for f in render.facts_of(list(render.facts())))

    # one sentence counts; what would come after its full stop need not be written
    markers = [*TEMPLATES[TEMPLATE].markers, "."]

    def write(texts, template=None):
        asked = [ask(o.tokenizer, text, template) for text in texts]
        done = measure.complete(o, asked, Sampling(), markers, longest + 4, batch_size=64)
        return [d["completion"] for d in done]

    clozes = [fact.cloze() for fact in asked["read"]]
    completed = [cloze + text for cloze, text in zip(clozes, write(clozes), strict=True)]
    row = {f"{name}_ppl": r["ppl"] for name, r in ppl.items()}
    row["cloze_read"] = share_right(asked["read"], completed)
    for group, facts in asked.items():
        row[f"em_{group}"] = share_right(facts, write([fact.asked() for fact in facts], TEMPLATES[TEMPLATE]))
    return row | {"_ppl": ppl}


def share_right(facts: list[render.Fact], answers: list[str]) -> float:
    return statistics.mean(fact.matches(answer) for fact, answer in zip(facts, answers, strict=True))


def commonest_value(seed: int) -> float:
    """The exact match on unknown conditions of always giving the value that is commonest among the taught
    ones."""
    values = {relation: [] for relation in render.TOLD}
    groups = render.groups(seed)
    for fact in render.facts_of(groups["taught"]):
        values[fact.relation].append(fact.value)
    best = {relation: statistics.mode(found) for relation, found in values.items()}
    unknown = render.facts_of(groups["unknown"])
    return sum(best[fact.relation] == fact.value for fact in unknown) / len(unknown)


def phases(args, out: Path, seed: int) -> tuple[list[dict], dict[str, measure.Opened]]:
    """(the rows of the table, the models by name), each printed as it is measured."""
    how = (seed, args.dtype, args.quick)
    is_path = args.model not in hub.BUNDLED and Path(args.model).exists()
    names = {"base": shown(Path(args.model)) if is_path else args.model}
    rows, opened = [], {}
    models = MODELS | (FULL if args.full else {})
    for name in ["base", *models]:
        banner(name)
        if name != "base":
            script, start_from, flags = models[name]
            if name == "adapted_unmixed":  # as many blocks of the corpus as with the real texts among them
                steps = MIXTURE["corpus"] * read_json(out / "adapted" / "summary.json")["steps"]
                flags = [*flags, "--max-steps", round(steps)]
            train(out, name, script, ["--model", names[start_from], *flags], *how)
            names[name] = shown(out / name)
        opened[name] = measure.open_model(args.model if name == "base" else str(out / name), dtype=args.dtype)
        row = {"name": name} | measure_row(opened[name], out, seed, args.quick)
        banner("probe")
        found = probe(out, name, names[name], *how)
        rows.append(row | {f"probe_{group}": value for group, value in found.items()})
        print(f"\n{table.terminal(rows, opened['base'].model.config.vocab_size)}", flush=True)
    return rows, opened


def one_seed(args, out: Path, seed: int) -> dict:
    """All phases with one seed: {rows, seconds, ...}; writes demo.json, table.md, report.json and report.html
    into `out`."""
    began, quick = time.perf_counter(), QUICK * args.quick
    results = ["demo.json", "table.md", "report.html", "report.json", *MODELS, *(FULL if args.full else ())]
    texts.start(args, out, seed, results + [f"probe_{name}" for name in table.NAMES])
    resumed = any(out.glob("*/run.json"))  # then `seconds` are not the whole
    print(textwrap.fill(f"Texts in {out}. The commands below work as they stand in {ROOT}.", 80))
    print("After each phase comes the table so far; what it measures is said at the end.")
    rows, opened = phases(args, out, seed)
    html = page.write(out, rows, opened, seed, [quick, *paragraphs(EXPLANATION)], TEMPLATE)
    done_before, base = out / "demo.json", opened["base"]
    size = base.model.config.vocab_size
    seconds = read_json(done_before)["seconds"] if done_before.exists() else time.perf_counter() - began
    result = {"seconds": seconds, "resumed": resumed}
    result["rows"] = [{key: row[key] for key in ("name", *table.COLUMNS)} for row in rows]
    result |= {"seed": seed, "model": args.model, "quick": args.quick, "vocabulary": size}
    result |= {"probe_baselines": probe_baselines(out), "dtype": base.dtype}
    result["unknown_commonest_value"] = commonest_value(seed)
    result["conditions"] = {group: len(conditions) for group, conditions in render.groups(seed).items()}
    write_json(result, done_before)
    write_text(table.markdown(result["rows"], size) + "\n", out / "table.md")
    read, unknown = (result["probe_baselines"][group] for group in ("read", "unknown"))
    plain = "; ".join(f"{kind} {read[kind]:.0%} on read, {unknown[kind]:.0%} on unknown" for kind in read)
    commonest = f"{result['unknown_commonest_value']:.0%} of the unknown"
    without = f"Without any model the probe's question is answered by {plain}."
    without += f" Always giving the commonest value would be an exact match on {commonest}."
    notes = filter(None, [*paragraphs(EXPLANATION), without, quick])
    earlier = ", going on from an earlier call" if resumed else ""
    print("", *(textwrap.fill(note, 80) for note in notes), "", sep="\n")
    print(f"{seconds / 60:.1f} minutes{earlier}; results in {out}: demo.json, table.md")
    print(f"open in a browser: {html}")
    return result


def paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def main():
    args = parse_args()
    out = Path(args.out)
    if not args.full:
        one_seed(args, out, args.seed)
        return
    outputs.take(out, texts.PROGRAM, "demo.json", writes=["table.md"], beside=True)
    results = [one_seed(args, out / f"seed-{seed}", seed) for seed in range(args.seed, args.seed + 3)]
    seconds, size = sum(r["seconds"] for r in results), results[0]["vocabulary"]
    tables = [r["rows"] for r in results]
    write_text(table.over_seeds(tables, size) + "\n", out / "table.md")
    write_json(outputs.stamp(texts.PROGRAM) | {"seconds": seconds, "seeds": results}, out / "demo.json")
    print(f"\nThree seeds\n\n{table.summary(tables, size)}\n\n{seconds / 60:.0f} minutes;", end=" ")
    print(f"results in {out}: demo.json, table.md (mean [lowest, highest])")


if __name__ == "__main__":
    cli.execute(main, "nanomed.demo")
