"""The flags that say how rows are found in files that can hold them in several ways. Like flags.py it loads
no library."""

import argparse

from nanomed.errors import UserError

SEPARATORS = ("comma", "semicolon", "tab", "bar")


def separator(text: str) -> str:
    """Its name, of which nanomed.text.csv_rows knows the character."""
    name = {",": "comma", ";": "semicolon", "\t": "tab", "\\t": "tab", "|": "bar"}.get(text, text)
    if name not in SEPARATORS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(SEPARATORS)}, not {text!r}")
    return name


def add_flags(p: argparse.ArgumentParser) -> None:
    """How rows are found in files that can hold them in several ways; read_as() puts them into the names."""
    p.add_argument(
        "--rows",
        metavar="KEY",
        help=(
            "of .json files: the key that the rows stand under (data, a.b), where it "
            "is not plain; of a DatasetDict that was saved: the split (default: train)"
        ),
    )
    p.add_argument(
        "--separator",
        type=separator,
        metavar="S",
        help=f"of .csv and .tsv files: {', '.join(SEPARATORS)} (default: as the header shows)",
    )
    p.add_argument(
        "--document-per",
        choices=["file", "line", "blank-line"],
        help="of .txt files: what is a document (default: line; in a folder of them: file)",
    )
    p.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows that cannot be used, and count them"
    )


DATA_FLAGS = (
    "data",
    "positives",
    "negatives",
    "val_data",
    "exclude",
    "replay",
    "ewc_data",
    "corpus",
    "against",
    "reference",
    "incoming",
)


def read_as(args):
    """args, in which the names of files say what --rows, --separator and --document-per do: `nested.json`
    becomes `nested.json#data` (nanomed.text.formats), so that it is read alike wherever the name goes. Raises
    UserError for a flag that is about none of them."""
    said = {"--rows": args.rows, "--separator": args.separator, "--document-per": args.document_per}
    if not any(said.values()):
        return args
    from nanomed.text.formats import find
    from nanomed.text.rows import split_name, split_weight

    about = {
        "json": "--rows",
        "saved": "--rows",
        "csv": "--separator",
        "text": "--document-per",
        "folder": "--document-per",
    }
    used = set()

    def named(name: str) -> str:
        file = split_name(name)[1]
        path = split_weight(file)[0]
        source = None if path.startswith("hub:") else find(path)
        flag = about.get(source.kind) if source and source.how is None else None
        if flag is None or said[flag] is None:
            return name
        used.add(flag)
        end = len(name) - len(file) + len(path)
        return f"{name[:end]}#{said[flag]}{name[end:]}"

    for flag in DATA_FLAGS:
        if getattr(args, flag, None):
            setattr(args, flag, [named(name) for name in getattr(args, flag)])
    for flag, value in said.items():
        if value is not None and flag not in used:
            kinds = {"--rows": ".json", "--separator": ".csv or .tsv", "--document-per": ".txt"}
            raise UserError(f"{flag} {value}: no {kinds[flag]} file is read")
    return args
