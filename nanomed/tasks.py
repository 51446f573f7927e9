r"""Build an instruction set of biomedical tasks from annotated files.

python -m nanomed.tasks recipes/medtuned-tasks.toml --from DIR --out runs/tasks
python train_sft.py --model M --data runs/tasks/train.jsonl --group-field group,input --template medtuned \
    --out runs/medtuned
python eval.py tasks --model runs/medtuned --tasks runs/tasks --json runs/medtuned.tasks.json"""

from pathlib import Path

from nanomed import cli, flags, outputs
from nanomed.errors import UserError
from nanomed.files import json_lines, write_json, write_text
from nanomed.systems.tasks import baselines, mixture, sets, sources
from nanomed.systems.tasks.forms import FORMS

NEAR = """take out of the training side what repeats a test text of any source, exactly or with a Jaccard
    similarity of J or more of the sequences of five words; 0: exactly alone"""


def parse_args():
    p = cli.Parser(prog=sets.PROGRAM, description=cli.summary(__doc__))
    flag = p.add_argument
    flag("sources", metavar="TOML", help="the annotated files, a section a source (docs/tasks.md explains)")
    home = "where the files that it names lie"
    flag("--from", dest="home", type=flags.directory, default=".", metavar="DIR", help=home)
    flag("--out", required=True, metavar="DIR", help="where the instruction set goes")
    flag("--only", nargs="+", metavar="NAME", help="these sources alone")
    without = f"no task of these forms in the mixture (they are measured all the same): {', '.join(FORMS)}"
    flag("--without", nargs="+", metavar="FORM", default=[], choices=list(FORMS), help=without)
    flag("--near-duplicates", type=flags.share_or_1, default=0.8, metavar="J", help=NEAR)
    flag("--limit", type=flags.count, metavar="N", help="take only the first N rows of each file")
    wording = "of the instructions' wording, of what is drawn, and of its order"
    flag("--seed", type=flags.whole, default=0, help=wording)
    flag("--skip-bad-rows", action="store_true", help="leave out rows that cannot be used, and count them")
    return p.parse_args()


def asked_for(args) -> list[sources.Source]:
    """Raises UserError for --only that names none, and for a file that is read and would be written over."""
    found, out = sources.read_sources(Path(args.sources)), Path(args.out)
    if unknown := set(args.only or []) - {s.name for s in found}:
        raise UserError(f"--only {sorted(unknown)[0]}: {args.sources} has {', '.join(s.name for s in found)}")
    chosen = [s for s in found if not args.only or s.name in args.only]
    read = [Path(args.sources), *(Path(args.home) / name for s in found for name in (*s.train, *s.test))]
    for written in (out / name for name in sets.files_of(s.name for s in chosen)):
        for path in read:
            if written.exists() and path.exists() and written.samefile(path):
                raise UserError(f"--out {out}: {path} is read, and would be written over; choose another")
    return chosen


def main():
    args = parse_args()
    out, found = Path(args.out), asked_for(args)
    writes = sets.files_of(source.name for source in found)
    held = outputs.take(out, sets.PROGRAM, sets.RECORD, writes=writes)
    tasks = [sources.read_task(s, Path(args.home), args.limit, args.skip_bad_rows) for s in found]
    sources.keep_apart(tasks, args.near_duplicates, args.seed % 2**32)
    rows = mixture.mixture([t for t in tasks if t.source.form not in args.without], args.seed)
    described = {task.source.name: mixture.describe(task, args.seed) for task in tasks}
    with outputs.built(out, sets.PROGRAM, held, sets.RECORD) as made:
        for task in tasks:
            name = task.source.name
            for side in sources.SIDES:
                text = json_lines(mixture.rows_of(task, side, args.seed))
                write_text(text, made / f"{name}.{side}.jsonl")
            counts = f"{len(task.train):,} to train on", f"{len(task.test):,} to measure on"
            print(f"{name} ({task.source.form}):", ", ".join([*counts, *sources.say_counts(described[name])]))
        write_text(json_lines(rows), made / "train.jsonl")
        baselines.write(tasks, args.seed, made)
        how = {key: getattr(args, key) for key in ("seed", "near_duplicates", "without")}
        write_json(how | {"mixture": len(rows), "tasks": described}, made / sets.RECORD)
    train = out / "train.jsonl"
    # a text that is asked about again, by another task or in other words, is on one side only
    next_ = f"train_sft.py --model M --data {train} --group-field group,input --template medtuned --out DIR"
    print(f"{len(rows):,} rows in {train}; next: python {next_}")


if __name__ == "__main__":
    cli.execute(main, "nanomed.tasks")
