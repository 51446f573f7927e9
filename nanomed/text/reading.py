"""The flags that say how rows are found in files that can hold them in several ways. Like flags.py it loads
no library."""

from nanomed.errors import UserError

# Flags of eval.py.
FILES = tuple("data shots_from positives negatives corpus against reference incoming".split())
ABOUT = {
    "rows": ("--rows", ".json", ("json", "saved")),
    "separator": ("--separator", ".csv or .tsv", ("csv",)),
    "document_per": ("--document-per", ".txt", ("text", "folder")),
}


def read_as(args, files=FILES):
    """args, in which the names of `files` say what --rows, --separator and --document-per do: `nested.json`
    becomes `nested.json#data` (nanomed.text.names), so that it is read alike wherever the name goes. Raises
    UserError for a flag that is about none of them."""
    said = {key: getattr(args, key) for key in ABOUT if getattr(args, key)}
    if not said:
        return args
    from nanomed.text.names import find, split_name, split_weight

    used = set()

    def named(name: str) -> str:
        file = split_name(name)[1]
        path = split_weight(file)[0]
        source = None if path.startswith("hub:") else find(path)
        about = [key for key in said if source and source.how is None and source.kind in ABOUT[key][2]]
        if not about:
            return name
        used.update(about)
        end = len(name) - len(file) + len(path)
        return f"{name[:end]}#{said[about[0]]}{name[end:]}"

    for flag in files:
        if getattr(args, flag, None):
            setattr(args, flag, [named(name) for name in getattr(args, flag)])
    if unused := [key for key in said if key not in used]:
        flag, kinds, _ = ABOUT[unused[0]]
        raise UserError(f"{flag} {said[unused[0]]}: no {kinds} file is read")
    return args
