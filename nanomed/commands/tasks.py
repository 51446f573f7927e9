"""eval.py tasks: a model asked about every text of an instruction set's test sides."""

import time
from pathlib import Path

from nanomed import flags
from nanomed.errors import UserError

HELP = "every task of an instruction set: entities, relations, classes, answers"
TEMPLATE = "medtuned"  # of a model that was instructed with none
WAYS = ("written", "likelihood", "calibrated")  # nanomed.systems.tasks.likelihood's


# fmt: off
def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    p.add_argument("--tasks", required=True, type=flags.directory, metavar="DIR",
                   help="what python -m nanomed.tasks made (--limit N: N texts a task, drawn by --seed)")
    p.add_argument("--only", nargs="+", metavar="NAME", help="these tasks alone")
    p.add_argument("--predictions", metavar="DIR",
                   help="what was said of each text, task by task; the same command goes on with it")
    p.add_argument("--template", metavar="NAME",
                   help=f"how a prompt looks (default: the model's own, if it has one; else {TEMPLATE})")
    p.add_argument("--ask", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY",
                   help="how, where a text has one of few labels (else the model writes): written;"
                        " likelihood: the likeliest label; calibrated: the same, divided by how likely a"
                        " label is without a text (Zhao et al. 2021). The first counts (default:"
                        f" {' '.join(WAYS)})")
    flags.add_batch_size_flag(p, "prompts")
# fmt: on


def main(args) -> dict:
    from nanomed.evaluation.measure import choose_template, open_asked
    from nanomed.evaluation.questions import say_rows
    from nanomed.evaluation.tables import text_table
    from nanomed.evaluation.training_texts import overlap_with_training
    from nanomed.systems.tasks import measure
    from nanomed.systems.tasks.forms import FORMS
    from nanomed.systems.tasks.likelihood import ways_of
    from nanomed.systems.tasks.predictions import Predictions
    from nanomed.systems.tasks.sets import chosen, read_set
    from nanomed.text import special

    directory = Path(args.tasks)
    made = read_set(directory)
    names = args.only or list(made)
    if unknown := [name for name in names if name not in made]:
        raise UserError(f"--only {unknown[0]}: {directory} has {', '.join(made)}")
    sets = {name: chosen(directory, name, made[name], args.limit, args.seed) for name in names}
    if read_set(directory) != made:
        raise UserError(f"{directory}: was built anew while it was read; start again")
    o = open_asked(args, writes=True)
    template, named = choose_template(args.template, o, TEMPLATE)
    predictions = Predictions(args, o, template) if args.predictions else None
    inputs = [row["input"] for rows, _ in sets.values() for row in rows]
    print(f"{o}; {len(names)} tasks, {len(inputs):,} texts; template {named}; greedy")
    out = {}
    for name, (rows, baselines) in sets.items():
        task, ways, start = made[name], ways_of(made[name], args.ask), time.perf_counter()
        earlier = predictions.read(name, rows) if predictions else None
        answers = earlier or measure.ask_in(ways, o, rows, task, template, args.batch_size, args.seed)
        seconds = None if earlier else time.perf_counter() - start
        if predictions and not earlier:
            predictions.write(name, rows, answers, measure.said_in(ways[0], task, rows, answers))
        out[name] = measure.measure_task(task, rows, answers, baselines, args.seed, ways)
        out[name]["seconds"] = seconds
        out[name]["rows"] = [row["row"] for row in rows]
        if args.limit:
            print(f"{name}: drawn by --seed: {say_rows(out[name]['rows'], f'{name}.test.jsonl')}")
        took = f"from {predictions.file(name)}" if earlier else f"in {seconds:,.0f} s"
        print(f"{name}: {len(rows):,} texts {took}, {measure.say_figure(out[name])}", flush=True)
    how = {"set": str(directory), "template": named, "limit": args.limit, "seed": args.seed, "ask": args.ask}
    how["special_tokens"] = special.report(o.tokenizer, inputs)
    special.say(how["special_tokens"])
    result = o.named() | how | {"tasks": out}
    print(text_table(measure.table({o.name: result}), width=110))
    if any(FORMS[task["form"]].tagged for task in out.values()):
        print(measure.TWO_WAYS)
    published = [f"published, {name}: {task['published']}" for name, task in out.items() if task["published"]]
    print(*measure.say_linear(out), *published, sep="\n")
    return result | overlap_with_training(o, inputs)
