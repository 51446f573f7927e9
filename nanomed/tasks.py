"""Build an instruction set of biomedical tasks from annotated files.

python -m nanomed.tasks recipes/medtuned-tasks.toml --from DIR --out runs/tasks
python train_sft.py --model M --data runs/tasks/train.jsonl --template medtuned --lora-r 16 --out runs/medtuned
python eval.py tasks --model runs/medtuned --tasks runs/tasks --json runs/medtuned.tasks.json"""

from pathlib import Path

from nanomed import cli, flags, outputs
from nanomed.errors import UserError
from nanomed.files import write_json
from nanomed.systems.tasks import baselines, sets, sources
from nanomed.systems.tasks.forms import FORMS


def parse_args():
    p = cli.Parser(prog="python -m nanomed.tasks", description=cli.summary(__doc__))
    p.add_argument(
        "sources", metavar="TOML", help="the annotated files, a section a source (docs/tasks.md explains)"
    )
    p.add_argument(
        "--from", dest="home", default=".", metavar="DIR", help="where the files that it names lie"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="where the instruction set goes")
    p.add_argument("--only", nargs="+", metavar="NAME", help="these sources alone")
    p.add_argument("--without", nargs="+", metavar="FORM", default=[], choices=list(FORMS), help="no task of these forms in the "
                   "mixture (they are measured all the same): " + ", ".join(FORMS))  # fmt: skip
    p.add_argument(
        "--near-duplicates",
        type=flags.share_or_1,
        default=0.8,
        metavar="J",
        help=(
            "take out of the training side what repeats a test text of any source, exactly or with a Jaccard"
            " similarity of J or more of the sequences of five words; 0: exactly alone"
        ),
    )
    p.add_argument("--limit", type=flags.count, metavar="N", help="take only the first N rows of each file")
    p.add_argument(
        "--seed",
        type=flags.whole,
        default=0,
        help="of the instructions' wording, of what is drawn, and of its order",
    )
    p.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows that cannot be used, and count them"
    )
    return p.parse_args()


def main():
    args = parse_args()
    out, found = Path(args.out), sources.read_sources(Path(args.sources))
    if unknown := set(args.only or []) - {s.name for s in found}:
        raise UserError(f"--only {sorted(unknown)[0]}: {args.sources} has {', '.join(s.name for s in found)}")
    written = sets.files_of(s.name for s in found if not args.only or s.name in args.only)
    for name in [args.sources, *(str(Path(args.home) / n) for s in found for n in (*s.train, *s.test))]:
        if any((out / w).exists() and Path(name).exists() and (out / w).samefile(name) for w in written):
            raise UserError(
                f"--out {out}: {name} is read, and would be written over; choose another directory"
            )
    held = outputs.take(out, sets.PROGRAM, sets.RECORD, writes=written, older=sets.of_earlier)
    tasks = [
        sources.read_task(source, Path(args.home), args.limit, args.skip_bad_rows)
        for source in found
        if not args.only or source.name in args.only
    ]
    sources.keep_apart(tasks, args.near_duplicates, args.seed % 2**32)
    rows = sources.mixture([t for t in tasks if t.source.form not in args.without], args.seed)
    if not rows:
        raise UserError("no task is left for the mixture (--without)")
    described = {task.source.name: sources.describe(task, args.seed) for task in tasks}
    with outputs.built(out, sets.PROGRAM, held, sets.RECORD) as made:
        for task in tasks:
            name = task.source.name
            for side in ("train", "test"):
                cases = getattr(task, side)
                asked = [sources.row(task, case, (args.seed, name, side, k)) for k, case in enumerate(cases)]
                sources.write_rows(asked, made / f"{name}.{side}.jsonl")
            counted = [
                f"{len(task.train):,} to train on, {len(task.test):,} to measure on",
                *sources.say_counts(described[name]),
            ]
            print(f"{name} ({task.source.form}): {', '.join(counted)}")
        sources.write_rows(rows, made / "train.jsonl")
        baselines.write(tasks, args.seed, made)
        how = {
            "seed": args.seed,
            "near_duplicates": args.near_duplicates,
            "without": args.without,
            "mixture": len(rows),
        }
        write_json(how | {"tasks": described}, made / sets.RECORD)
    train = out / "train.jsonl"
    print(
        f"{len(rows):,} rows in {train}; next: python train_sft.py --model M --data {train} --template"
        " medtuned --out DIR"
    )


if __name__ == "__main__":
    cli.execute(main, "nanomed.tasks")
