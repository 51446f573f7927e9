"""eval.py benchmarks: every medical benchmark that lies in a directory."""

from pathlib import Path

from nanomed import flags
from nanomed.commands.choices import COP_HELP
from nanomed.errors import UserError

HELP = "all medical benchmarks of a directory, in one table"
FROM_HELP = (
    "where MedQA, MedMCQA, MMLU, HEAD-QA and PubMedQA lie, as published (known by their fields; of each its"
    " test split, or the validation split where the test's answers are hidden), or a recipe that names them"
    " (recipes/benchmarks.toml: on the Hub); --limit N: N questions of each file, drawn by --seed"
)


# fmt: off
def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    p.add_argument("--from", dest="home", required=True, type=flags.directory, metavar="DIR", help=FROM_HELP)
    p.add_argument("--cop-from", type=int, choices=[0, 1], help=COP_HELP)
    flags.add_batch_size_flag(p, "prompts")
    flags.add_flags(p, flags.Rows, "skip_bad_rows")
# fmt: on


def main(args) -> dict:
    from nanomed.evaluation import benchmarks, measure, suite
    from nanomed.evaluation.choices import measure_choices
    from nanomed.evaluation.tables import text_table
    from nanomed.evaluation.training_texts import overlap_with_training
    from nanomed.text import special

    home = Path(args.home)
    if not home.exists():
        raise UserError(f"--from {home}: no such directory, and no recipe")
    there = suite.lying_in(home) if home.is_dir() else suite.named_in(home)
    # All, and so found to be fit, before any is measured.
    how = args.cop_from, args.limit, args.skip_bad_rows, args.seed
    read = {name: found for name, b in there.items() if (found := suite.read(name, b, *how))}
    if not read:
        raise UserError(f"--from {home}: nothing there can be measured")
    o = measure.open_asked(args)
    print(f"{o}; {len(read)} benchmarks, {sum(len(q.items) for _, q in read.values()):,} questions")
    results, texts = {}, []
    for name, (split, asked) in read.items():
        items = benchmarks.with_shots(asked.items, [], 0, in_order=True)
        texts += [item.prompt for item in items]
        r = measure_choices(o, items, args.batch_size, args.seed)
        how = {"format": there[name].format, "data": there[name].data[split], "split": split}
        how |= {"data_sha256": asked.sha256(), "hidden": asked.hidden, "bad_rows": asked.bad}
        results[name] = r | how
        cut = f"; {r['truncated']:,} prompts too long, which lost their beginning" if r["truncated"] else ""
        print(f"{name}: {r['accuracy']:.3f} of {r['questions']:,}{asked.left_out()}{cut}", flush=True)
    special.say(special.report(o.tokenizer, reports=(r["special_tokens"] for r in results.values())))
    print(text_table(suite.table(results), width=110))
    how = {"from": str(home), "limit": args.limit, "seed": args.seed}
    return o.named() | how | {"benchmarks": results} | overlap_with_training(o, texts)
