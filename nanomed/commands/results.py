"""Where a command's results go: never over a file that it reads."""

import os
from pathlib import Path

from nanomed import hub
from nanomed.evaluation.training_texts import trained_with
from nanomed.files import check_output, write_json
from nanomed.outputs import check_directory
from nanomed.text import reading
from nanomed.text.names import split_how, split_name


def check(args) -> None:
    """Raises UserError if --json or --out names what cannot be written, or what the command reads."""
    if getattr(args, "out", None) is not None:  # of compare
        check_directory(args.out)
        for file in filter(Path.exists, (Path(args.out) / name for name in ("report.json", "report.html"))):
            check_output(file, files_read(args), "--out")
    elif getattr(args, "json", None) is not None:
        check_output(args.json, files_read(args))


def write(args, result) -> None:
    if result is not None and args.json:
        write_json(result, Path(args.json))
        print(f"results in {args.json}")


def files_read(args) -> list[Path]:
    """The files that the command reads, and the directories of its models, adapters' bases included."""
    given = vars(args)
    models = given.get("models") or [given[k] for k in ("model",) if k in given]
    sources = [hub.find(m) for m in models if m in hub.BUNDLED or os.path.isdir(os.path.expanduser(m))]
    directories = [d for s in sources for d in (s.directory, s.adapter) if d]
    data = [given.get(flag) for flag in reading.FILES]
    for s in sources if args.command == "cls" else ():  # for the baselines beside it
        trained = trained_with(s.home)
        data += [getattr(trained, name) for name in trained.of_files()] if trained else []
    names = [split_how(split_name(name)[1])[0] for files in data if files for name in files]
    names += [given.get(k) for k in ("prompts", "template", "classifier")]
    names += given.get("benchmarks") or ()
    names += [args.home, *Path(args.home).rglob("*")] if given.get("home") else ()
    if given.get("tasks"):
        names += args.tasks if args.command == "compare" else Path(args.tasks).glob("*.json*")
    return directories + [Path(name) for name in names if name and Path(name).exists()]
