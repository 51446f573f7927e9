"""make reproduce: a published system, from its recipe to a table of its figures beside ours.

python -m nanomed.reproduce --recipe gpt-neo-flashcards --out runs/reproduce/gpt-neo-flashcards
python -m nanomed.reproduce --recipe gpt-neo-flashcards --model nano --data pairs.jsonl --limit 200 \
    --context 256 --out runs/small

Each step is a command of the scripts that everyone else uses; it is printed before it runs. Stopped? The same
command goes on."""

from pathlib import Path

from nanomed import cli, flags
from nanomed.files import read_json, write_json, write_text
from nanomed.optional import need
from nanomed.systems import card, figures
from nanomed.systems.recipe import MODEL_OF, Recipe, read_recipe, stand_in
from nanomed.systems.reproduction import PROGRAM, SHORTER, Reproduction
from nanomed.text.names import split_name

LIBRARIES = ("matplotlib", "sacrebleu", "rouge_score", "sklearn", "datasketch")
DATA = "in place of the recipe's data of that name; without a name, of what it is measured on"


def parse_args():
    p = cli.Parser(prog=f"python -m {PROGRAM}", description=cli.summary(__doc__))
    flag = p.add_argument
    dtypes, devices = ["auto", "fp32", "bf16", "fp16"], ["auto", "cpu", "cuda"]
    flag("--recipe", required=True, metavar="NAME", help="of recipes/, or a .toml file")
    flag("--out", required=True, metavar="DIR", help="where texts, models and results go")
    flag("--model", metavar="M", help=f"in place of the recipe's: {flags.MODEL_HELP}")
    flag("--data", nargs="+", action=cli.Several, default=[], metavar="[NAME=]D", help=DATA)
    flag("--field", help="where documents that stand in keep their text (default: as in the recipe)")
    flag("--limit", type=flags.count, metavar="N", help="at most N texts of each side, to run in minutes")
    flag("--max-steps", type=flags.count, metavar="N", help="N updates a phase, in place of the epochs")
    flag("--context", type=flags.count, metavar="N", help="in place of the recipe's")
    flag("--batch-size", type=flags.count, metavar="N", help="in place of the recipe's, and in measuring")
    flag("--answers", type=flags.count, default=100, metavar="N", help="questions that are asked and scored")
    flag("--max-new-tokens", type=flags.count, default=128, metavar="N", help="of an answer")
    flag("--dtype", choices=dtypes, default="auto", help="in place of the recipe's, unless auto")
    flag("--device", choices=devices, default="auto", help="auto: CUDA if there is one")
    return p.parse_args()


def recipe_of(args) -> Recipe:
    """With what stands in. Raises UserError, before anything is computed, for what would fail later."""
    for library in LIBRARIES:
        need(library)
    recipe, given = read_recipe(args.recipe), {}
    for name, file in map(split_name, args.data):
        given.setdefault(name or recipe.measured, []).append(file)
    return stand_in(recipe, args.model, given, args.field)


def main():
    args = parse_args()
    recipe, out = recipe_of(args), Path(args.out)
    r = Reproduction(recipe, out, args)
    r.begin()
    results = {"recipe": recipe.name, "title": recipe.title, "model": recipe.model}
    results["stand_in"] = recipe.instead
    results["shortened"] = {key: value for key in SHORTER if (value := getattr(args, key))}
    results["stages"] = {"base": r.measure("base")}
    for phase in recipe.phases:
        r.train(phase)
        if phase == "classify":
            results["classifier"] = r.classified()
        else:
            results["stages"][MODEL_OF[phase]] = r.measure(MODEL_OF[phase])
    models = {phase: out / MODEL_OF[phase] for phase in recipe.phases}
    results["phases"] = {phase: read_json(model / "summary.json") for phase, model in models.items()}
    results["published"] = figures.beside_published(recipe, results)
    results["generations"] = figures.generations(out, [*r.stages()])
    figures.write_tables(results, out)
    figures.draw_loss(recipe, out, out / "loss.png")
    figures.draw_perplexity(recipe, results, out / "perplexity.png")
    for phase, model in models.items():
        write_text(card.model_card(recipe, results, phase, model), model / "README.md")
    r.page()
    write_json(results, out / "results.json")  # after all else: it says that the run is complete
    tables = "model_performance_comparison.csv, generation_comparison.csv, published.md"
    cards = ", ".join(str(model / "README.md") for model in models.values())
    print(figures.published_text(results))
    files = f"results.json, {tables}, loss.png, perplexity.png, report.html"
    print(f"results in {out}: {files}; the models' cards: {cards}")


if __name__ == "__main__":
    cli.execute(main, "nanomed.reproduce")
