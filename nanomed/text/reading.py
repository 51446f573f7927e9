"""The flags that say how rows are found in files that can hold them in several ways. Like flags.py it loads
no library."""

from nanomed import flags
from nanomed.errors import UserError


def add_flags(p) -> None:
    """How rows are found in files that can hold them in several ways; read_as() puts them into the names."""
    flags.add_flags(p, flags.Rows, "rows", "separator", "document_per", "skip_bad_rows")


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
