"""make reproduce: a published system, from its recipe to a table of its figures beside ours.

python -m nanomed.reproduce --recipe gpt-neo-flashcards --out runs/reproduce/gpt-neo-flashcards
python -m nanomed.reproduce --recipe gpt-neo-flashcards --model nano --data pairs.jsonl --limit 200 \
    --context 256 --out runs/small

Each step is a command of the scripts that everyone else uses; it is printed before it runs. Stopped? The same
command goes on."""

import shutil
import subprocess
import sys
from pathlib import Path

from nanomed import cli, flags, hub, outputs
from nanomed.commands import ROOT, run, shown
from nanomed.errors import UserError
from nanomed.evaluation.named import MISTAKES
from nanomed.evaluation.page import is_there
from nanomed.files import make_temporary, read_json, read_object, write_json, write_text
from nanomed.optional import need
from nanomed.systems import card, figures
from nanomed.systems.recipe import CLASSIFIED, PHASES, ROWS, Recipe, prepare, read_recipe, stand_in
from nanomed.text.rows import split_name

ASKED = (
    "field",
    "limit",
    "max_steps",
    "context",
    "batch_size",
    "answers",
    "max_new_tokens",
    "dtype",
    "device",
)
PROMPTS = "prompts.txt"
WEIGHTS = "content of the model"
PROGRAM, RECORD = (
    "nanomed.reproduce",
    "reproduce.json",
)  # which says what was asked for: a folder is one run of one recipe
SCRIPTS = {"adapt": "train_clm.py", "classify": "train_cls.py", "instruct": "train_sft.py"}


def parse_args():
    p = cli.Parser(prog=PROGRAM, description=cli.summary(__doc__))
    p.add_argument("--recipe", required=True, metavar="NAME", help="of recipes/, or a .toml file")
    p.add_argument("--out", required=True, metavar="DIR", help="where texts, models and results go")
    p.add_argument("--model", metavar="M", help="in place of the recipe's: " + flags.MODEL_HELP)
    p.add_argument(
        "--data",
        nargs="+",
        action=cli.Several,
        default=[],
        metavar="[NAME=]D",
        help="in place of the recipe's data of that name; without a name, of what it is measured on",
    )
    p.add_argument(
        "--field",
        metavar="FIELD",
        help="where documents that stand in keep their text (default: as in the recipe)",
    )
    p.add_argument(
        "--limit",
        type=flags.count,
        metavar="N",
        help="at most N texts of each side: a stand-in that runs in minutes",
    )
    p.add_argument(
        "--max-steps",
        type=flags.count,
        metavar="N",
        help="N updates a phase, in place of the recipe's epochs",
    )
    p.add_argument("--context", type=flags.count, metavar="N", help="in place of the recipe's")
    p.add_argument(
        "--batch-size",
        type=flags.count,
        metavar="N",
        help="in place of the recipe's: rows at once, in training and measuring",
    )
    p.add_argument(
        "--answers", type=flags.count, default=100, metavar="N", help="questions that are answered and scored"
    )
    p.add_argument("--max-new-tokens", type=flags.count, default=128, metavar="N", help="of an answer")
    p.add_argument(
        "--dtype",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="in place of the recipe's, unless auto",
    )
    p.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: CUDA if there is one"
    )
    return p.parse_args()


def main():
    args = parse_args()
    for library in ("matplotlib", "jinja2", "sacrebleu", "rouge_score", "sklearn", "datasketch"):
        need(library)  # now, and not when hours have been computed
    recipe = read_recipe(args.recipe)
    given = {}
    for name, file in map(split_name, args.data):
        given.setdefault(name or recipe.measured, []).append(file)
    recipe = stand_in(recipe, args.model, given, args.field)
    figures.check_published(recipe)
    check_flags(recipe)
    out = Path(args.out)
    begin(out, recipe, args)
    if not (out / "data").exists():  # of one moment, all of it or none
        texts = make_temporary(out) / "data"
        prepare(recipe, texts, args.limit)
        texts.rename(out / "data")
    prepare(recipe, out / "data", args.limit)  # what an earlier version left half made
    stages = {"base": shown(Path(recipe.model)) if Path(recipe.model).exists() else recipe.model}
    results = {
        "recipe": recipe.name,
        "title": recipe.title,
        "model": recipe.model,
        "stand_in": recipe.instead,
        "shortened": shortened(args),
        "stages": {},
    }
    results["stages"]["base"] = measure(recipe, out, "base", stages["base"], args)
    for phase in recipe.phases:
        name = PHASES[phase]
        train(recipe, phase, out, stages, args)
        if phase == "classify":
            results["classifier"] = classified(out / name)
            continue
        stages[name] = shown(out / name)
        results["stages"][name] = measure(recipe, out, name, stages[name], args)
    results["phases"] = {p: read_json(out / PHASES[p] / "summary.json") for p in recipe.phases}
    results["published"] = figures.beside_published(recipe, results)
    results["generations"] = figures.generations(out, stages)
    figures.write_tables(results, out)
    figures.draw_loss(recipe, out, out / "loss.png")
    figures.draw_perplexity(recipe, results, out / "perplexity.png")
    for phase in recipe.phases:
        directory = out / PHASES[phase]
        write_text(
            card.model_card(recipe, results, phase, directory, read_object(directory / "run.json")),
            directory / "README.md",
        )
    page(recipe, out, stages, args)
    write_json(results, out / "results.json")  # after all else: it says that the run is complete
    print(figures.published_text(results))
    print(
        f"results in {out}: results.json, model_performance_comparison.csv, generation_comparison.csv,"
        " published.md, loss.png, perplexity.png, report.html; the models' cards:"
        f" {', '.join(str(out / PHASES[p] / 'README.md') for p in recipe.phases)}"
    )


def check_flags(recipe: Recipe) -> None:
    """Raises UserError for a key of a phase's section that is no flag of its script, or a value that the flag
    does not take: now and not when the phases before it are done. How flags go together, the script alone
    knows."""
    for phase in recipe.phases:
        command = [sys.executable, str(ROOT / SCRIPTS[phase]), "--config", str(recipe.path), "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or f"it ended with status {done.returncode}").splitlines()[-1]
            raise UserError(last.removeprefix(f"{SCRIPTS[phase]}: "))


def begin(out: Path, recipe: Recipe, args) -> None:
    """Make DIR this run's, or go on with it; what was begun and has trained nothing yet is begun anew. Raises
    UserError if DIR is another run's, or holds anything else, and for a context that the model has not."""
    held, source = outputs.take(out, PROGRAM, RECORD, older=of_earlier), hub.find(recipe.model)
    positions = hub.read_config(source.directory)[1].n_positions
    wanted = (
        [args.context]
        if args.context
        else [recipe.context, *(section.get("context") for section in recipe.phases.values())]
    )
    if (largest := max(n or 0 for n in wanted)) > positions:
        raise UserError(
            f"a context of {largest} is more than the {positions} positions of {recipe.model}; give --context"
            f" {positions}"
        )
    asked = {"the recipe": recipe.path.read_text(encoding="utf-8")}
    asked |= {
        "--model" if name == "model" else f"--data {name}": value for name, value in recipe.instead.items()
    }
    asked |= {f"--{k.replace('_', '-')}": getattr(args, k) for k in ASKED} | {
        WEIGHTS: hub.fingerprint(source)
    }
    was = {WEIGHTS: asked[WEIGHTS]} | held.get("asked", {})  # which an earlier version did not write down
    changed = [k for k in was | asked if was.get(k) != asked.get(k)] if held else []
    if changed and any((out / name / "run.json").exists() for name in PHASES.values()):
        k = changed[0]
        values = "" if k in ("the recipe", WEIGHTS) else f" {was.get(k)}, now {asked.get(k)}"
        raise UserError(
            f"--out {out}: was made with another {k}{values}; choose another directory (make: RUNS=...)"
        )
    if changed:  # nothing was trained yet
        begin_anew(out)
    write_json(outputs.stamp(PROGRAM) | {"asked": asked}, out / RECORD)


def of_earlier(held: dict) -> dict | None:
    return {"asked": held} if held.keys() >= {"the recipe", "--limit", "--max-steps"} else None


def begin_anew(out: Path) -> None:
    """Remove the texts and what was measured. Raises UserError, with nothing touched, if there is any other
    file among them."""
    ours = {"data": (".train.jsonl", ".test.jsonl", ".test.texts.jsonl"), "measured": (".json",)}
    for name, ends in ours.items():
        if odd := [n for n in outputs.names_in(out / name) if not n.endswith(ends)]:
            raise UserError(
                f"--out {out}: {name}/{min(odd)} is no part of a run; move it away, or choose another"
                " directory"
            )
    for name in ours:
        shutil.rmtree(out / name, ignore_errors=True)
    (out / PROMPTS).unlink(missing_ok=True)


def shortened(args) -> dict:
    """What makes the run smaller than the recipe's, by the names of the flags."""
    return {k: v for k in ("limit", "max_steps", "context", "batch_size") if (v := getattr(args, k))}


# --- the steps ----------------------------------------------------------------------------------------------


def texts_measured(recipe: Recipe, out: Path) -> dict[str, str]:
    """The held-out texts that perplexities are of, by the names of their data: rows as whole texts, and no
    negatives."""
    ends = {ROWS: "test.texts.jsonl"}
    return {name: shown(out / "data" / f"{name}.{ends.get(name, 'test.jsonl')}") for name in recipe.texts}


def windows(recipe: Recipe, args) -> list:
    context = args.context or recipe.context
    return ["--context", context] if context else []


def common(args, training: bool) -> list:
    """The flags of every command: a training has its dtype and its sizes from the recipe, where nothing
    stands in for them."""
    if training:
        given = ("dtype", "max_steps", "context", "batch_size")
        sizes = [
            word
            for k in given
            if getattr(args, k) not in (None, "auto")
            for word in (f"--{k.replace('_', '-')}", getattr(args, k))
        ]
        return ["--device", args.device, *sizes]
    size = ["--batch-size", args.batch_size] if args.batch_size else []
    return ["--device", args.device, "--dtype", args.dtype, *size]


def train(recipe: Recipe, phase: str, out: Path, stages: dict[str, str], args) -> None:
    """One phase, from the model that the phase before left; what is measured on is held out of it."""
    data = {
        name: tuple(shown(out / "data" / f"{name}.{side}.jsonl") for side in ("train", "test"))
        for name in recipe.data
    }
    command = [
        SCRIPTS[phase],
        "--config",
        shown(recipe.path),
        "--model",
        list(stages.values())[-1],
        "--resume",
    ]
    if phase == "adapt":
        command += ["--data", data["corpus"][0], "--val-data", f"corpus={data['corpus'][1]}"]
    elif phase == "instruct":
        command += ["--data", data[ROWS][0], "--val-data", f"pairs={data[ROWS][1]}"]
        replayed = {data[name][0]: d.ratio for name, d in recipe.data.items() if d.ratio}
        command += ["--replay", *replayed, "--replay-ratio", sum(replayed.values())] if replayed else []
    else:
        command += ["--positives", data["corpus"][0], "--negatives", data["negatives"][0]]
        command += [
            "--positive-name",
            "biomedical",
            "--negative-name",
            "general",
            "--val-data",
            shown(out / "data" / CLASSIFIED),
        ]
    tests = [
        test for name, (_, test) in data.items() if Path(out / "data" / f"{name}.test.jsonl").stat().st_size
    ]
    watched = {"adapt": ["corpus"], "classify": ["corpus", "negatives"], "instruct": [ROWS]}[
        phase
    ]  # held out already
    held = [test for test in tests if test not in [data[name][1] for name in watched]]
    command += ["--exclude", *held, "--text-field", "text,context.contexts,context"] if held else []
    run([*command, "--out", shown(out / PHASES[phase]), *common(args, training=True)])


def measure(recipe: Recipe, out: Path, stage: str, model: str, args) -> dict:
    """Everything that the recipe measures of one model: {data: result of eval.py ppl, "answers": of qa,
    "choices": of choices}."""
    found, where = {}, out / "measured"
    where.mkdir(exist_ok=True)

    def measured(name: str, *command):
        file = where / f"{stage}.{name}.json"
        if not file.exists():
            run(["eval.py", *command, "--model", model, "--json", shown(file), *common(args, training=False)])
        return read_json(file)

    for name, file in texts_measured(recipe, out).items():
        trained_on = {"adapted": "corpus", "instructed": ROWS}.get(
            stage
        )  # the last losses, and the training texts, are of these
        mistakes = [m for m in MISTAKES if m not in ("train-set", "last-loss") or trained_on == name]
        also = ["--also", ",".join(mistakes)] if name == recipe.measured else []
        found[name] = measured(name, "ppl", "--data", file, *windows(recipe, args), *also)
    if ROWS in recipe.data:
        asked = ["--data", shown(out / "data" / f"{ROWS}.test.jsonl"), "--template", recipe.template]
        answers = measured(
            "answers", "qa", *asked, "--limit", args.answers, "--max-new-tokens", args.max_new_tokens
        )
        found["answers"] = {k: v for k, v in answers.items() if k != "answers"}
    if recipe.choices:
        file, limit = (
            shown(out / "data" / "labelled.test.jsonl"),
            ["--limit", args.limit] if args.limit else [],
        )
        choices = measured("choices", "choices", "--data", file, "--format", recipe.choices, *limit)
        found["choices"] = {
            k: v
            for k, v in choices.items()
            if k not in ("predictions", "loglikelihoods", "loglikelihoods_per_byte")
        }
    prompts = out / PROMPTS
    if not prompts.exists():
        write_text("".join(prompt + "\n" for prompt in recipe.prompts), prompts)
    greedy = [
        "--temperature",
        0,
        "--repetition-penalty",
        1.2,
        "--max-new-tokens",
        min(60, args.max_new_tokens),
    ]
    measured("generations", "generate", "--prompts", shown(prompts), *greedy)
    return found


def classified(directory: Path) -> dict:
    """The third phase on the held-out texts of both sides, beside the baselines."""
    found = read_json(directory / "summary.json").get("classification") or {}
    kept = ("texts", "accuracy", "accuracy_ci95", "macro_f1", "macro_f1_ci95")
    return {"beside": {name: {k: r[k] for k in kept} for name, r in found.items()}} | {
        k: found["model"][k] for k in kept if found
    }


def page(recipe: Recipe, out: Path, stages: dict[str, str], args) -> None:
    """report.html, by eval.py compare."""
    if is_there(out):
        return
    columns = [f"{name}={file}" for name, file in texts_measured(recipe, out).items()]
    command = [
        "eval.py",
        "compare",
        "--models",
        *stages.values(),
        "--data",
        *columns,
        "--prompts",
        shown(out / PROMPTS),
    ]
    command += ["--max-new-tokens", min(60, args.max_new_tokens), "--out", shown(out)]
    command += [*windows(recipe, args), *common(args, training=False)]
    command += ["--classifier", shown(out / "classifier")] if "classify" in recipe.phases else []
    run(command)


if __name__ == "__main__":
    cli.execute(main, "nanomed.reproduce")
