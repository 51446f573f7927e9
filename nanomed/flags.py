"""How a setting is declared: once, as a field of a dataclass with its type, its limits, its default and its
help. Its flag and --help are derived from that here, a recipe's keys from the flags (nanomed.cli), and what
run.json holds in nanomed.training.settings. No library is loaded here, so that --help comes at once."""

import argparse
import csv
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from nanomed.cli import Several
from nanomed.limits import AtLeast0, AtLeast1, Count, Files, Positive, Probability, ShareOr1, Whole, limited

count, whole, share_or_1, probability = map(limited, (Count, Whole, ShareOr1, Probability))
at_least_0, at_least_1, positive = map(limited, (AtLeast0, AtLeast1, Positive))


def name_list(text: str) -> list[str]:
    """Of a line of CSV."""
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not names or not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be different names, separated by commas, not {text[:60]!r}")
    return names


@dataclass(frozen=True)
class Flag:
    """What the type and the default of a field do not say."""

    help: str
    default: Any  # the field's; or None, auto, for what is decided later
    required: bool = False
    metavar: str | None = None
    parse: Any = None  # text -> value, where the type does not say how
    two_way: bool = False  # --merge and --no-merge
    of_call: bool = False  # decides no weights: not in run.json, and a resumed run may have another value
    one_process: bool = False  # not for several (torchrun)
    phases: tuple[str, ...] = ()  # the trainings that have the flag; () all


def setting(default, help: str, flag=..., **more):
    """A field of a class of settings. flag: the flag's default, if it is another; more: of Flag."""
    return field(default=default, metadata={"flag": Flag(help, default if flag is ... else flag, **more)})


of_call = partial(setting, of_call=True)
# A class of settings; --help would wait for == and repr to be made, which nobody asks for.
declared = dataclass(frozen=True, kw_only=True, repr=False, eq=False)


def flags_of(kind) -> dict[str, Flag]:
    """{name of a field: its Flag} of a class of settings, or of one of the class."""
    return {name: f.metadata["flag"] for name, f in kind.__dataclass_fields__.items() if f.metadata}


def add_flags(p: argparse.ArgumentParser, kind: type, *names: str) -> None:
    """Add a flag for each field of `kind`, or for those that are named, in a group for each class that has a
    `title`."""
    types, titles = get_type_hints(kind, include_extras=True), {}
    for part in reversed(kind.__mro__):
        titles |= dict.fromkeys(vars(part).get("__annotations__", ()), vars(part).get("title"))
    for name, flag in flags_of(kind).items():
        if (names and name not in names) or (flag.phases and kind.phase not in flag.phases):
            continue
        help = flag.help.replace("{items}", getattr(kind, "items", ""))
        options = {"help": help, "default": flag.default, "required": flag.required}
        options |= _options(name, types[name], flag)
        _group(p, titles[name]).add_argument("--" + name.replace("_", "-"), **options)


def _group(p: argparse.ArgumentParser, title: str | None):
    there = [group for group in p._action_groups if group.title == title]
    return there[0] if there else p.add_argument_group(title) if title else p


def _options(name: str, kind, flag: Flag) -> dict:
    """What a field's type means for argparse."""
    if type(None) in get_args(kind):  # X | None
        kind = get_args(kind)[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction if flag.two_way else "store_true"}
    if get_origin(kind) is Literal and not flag.parse:
        return {"choices": get_args(kind)}
    if kind == Files:
        return {"nargs": "+", "action": Several, "metavar": flag.metavar or "D"}
    if kind == list[str]:
        return {"type": name_list, "metavar": "A,B,..."}
    if get_origin(kind) is Annotated:
        return {"type": limited(kind), "metavar": flag.metavar or ("N" if get_args(kind)[0] is int else "X")}
    return {"type": flag.parse or kind, "metavar": flag.metavar or name.rpartition("_")[2].upper()}


# --- what several commands share ----------------------------------------------------------------------------

MODEL_HELP = (
    "Hub id (gpt2), directory in Hugging Face's layout, peft adapter directory, or nano, the bundled model"
)
DATA_HELP = (
    ".jsonl, .json, .csv, .tsv, .parquet, .txt (a document a line), packed (.gz, .zst) too, a folder of .txt,"
    " what Dataset.save_to_disk wrote, or hub:REPO[:CONFIG[:SPLIT]]; several may be given (docs/files.md)"
)
OWN_TEMPLATE_HELP = (
    "put a prompt into this template as its instruction (default: the one that the model was instructed with,"
    " or its own chat template; none: the bare prompt)"
)
PROMPTS_HELP = (
    "prompts, one a line (.txt) or in the field `prompt`, `instruction` or `question`, with its `input`"
    " (.jsonl), or conversations (`messages`), each without its last answer"
)

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "\\t": "tab", "|": "bar"}


def directory(text: str) -> str:
    if not text.strip():  # it would be the current one
        raise argparse.ArgumentTypeError("name a directory")
    return text


def separator(text: str) -> str:
    """Its name, or the character."""
    name = SEPARATORS.get(text, text)
    if name not in SEPARATORS.values():
        known = ", ".join(dict.fromkeys(SEPARATORS.values()))
        raise argparse.ArgumentTypeError(f"must be one of {known}, not {text!r}")
    return name


@declared
class Rows:
    """Of every command that reads texts. rows, separator and document_per become part of the files' names
    (nanomed.text.reading)."""

    title = "how files are read"

    text_field: str = setting(
        "text",
        "field of the text: a name, a path like context.contexts, or several (a,b), of which the first that"
        " is filled counts; a list is joined with newlines; of a list by number: messages.1.content",
    )
    limit: Count | None = setting(None, "take only N documents of each D: the first, unless said otherwise")
    rows: str | None = setting(
        None,
        "of .json files: the key that the rows stand under (data, a.b), where it is not plain; of a"
        " DatasetDict that was saved: the split (default: train)",
        metavar="KEY",
        of_call=True,
    )
    separator: Literal["comma", "semicolon", "tab", "bar"] | None = setting(
        None,
        "of .csv and .tsv files: comma, semicolon, tab, bar (default: as the header shows)",
        parse=separator,
        metavar="S",
        of_call=True,
    )
    document_per: Literal["file", "line", "blank-line"] | None = setting(
        None, "of .txt files: what is a document (default: line; in a folder of them: file)", of_call=True
    )
    skip_bad_rows: bool = setting(False, "leave out rows that cannot be used, and count them")


QUANTIZATIONS = ("nf4", "int8")  # nanomed.models.quant
SAVED = ("fp32", "bf16", "fp16")


@declared
class Written:
    """Of everything that writes a whole model."""

    title = "what is written"

    save_dtype: Literal[SAVED] | None = of_call(
        None,
        "what the weights of a full or merged model are written in at the end (default: what those of M are"
        " stored in; of a new model fp32); training, checkpoints, validation and adapters are fp32",
    )


@declared
class Running:
    """Of everything that runs a model."""

    title = "how the model is run"

    quantize: Literal["nf4", "int8", "none"] | None = setting(
        None,
        "keep the linear layers below the head in 4 bits (NF4, the scales in 8: QLoRA) or 8; they stay"
        " frozen, so a training needs --lora-r too (default: what an adapter was trained over, else the"
        " weights as they are stored; none: these)",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "fp32",
        "of matrix products; auto: bf16 where the hardware multiplies it natively, else fp16 on CUDA and fp32"
        " on the CPU",
        flag="auto",
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: CUDA if there is one")
    special_tokens: Literal["text", "read", "refuse"] = setting(
        "text",
        "where a text spells a special token of the model's (<|endoftext|>, </s>): take it as its letters"
        " (text), as the token (read), or not at all, as a bad row (refuse); what a template spells is the"
        " token",
    )
    seed: Whole = setting(0, "of everything random")


@declared
class Labelled:
    """Texts with labels: two kinds of texts, or rows that say it themselves."""

    positives: Files | None = setting(None, "texts of label positive: " + DATA_HELP)
    negatives: Files | None = setting(None, "texts of label negative: " + DATA_HELP)
    data: Files | None = setting(
        None, "or texts with their labels, of two classes or more; lists of labels make a multi-label task"
    )
    label_field: str = setting("label,labels", "of --data's labels")
    label_names: list[str] | None = setting(
        None,
        "what the labels 0, 1, ... are called, and what the places of a vector stand for (default: a data"
        " set's own names, ClassLabel; else the numbers; of vectors LABEL_0, LABEL_1, ...); where rows hold"
        " the names themselves, their order. A name with a comma stands in double quotes",
    )
    label_separator: str | None = setting(
        None,
        "what parts several labels in one text, as | does in asthma|renal; list: the text is a list as Python"
        " or JSON writes it, ['asthma', 'renal'] (default: a text is one label)",
    )
    label_columns: list[str] | None = setting(
        None, "fields that each say whether a text has the label that they are called: 0 or 1, true or false"
    )
    label_lists: Literal["names", "vectors"] | None = setting(
        None,
        "whether lists of 0 and 1 are names of labels, or vectors with a place a label, as [1, 0, 0, 1] is;"
        " asked for where they could be either",
    )
    positive_name: str = setting("positive", "what label 1 is called")
    negative_name: str = setting("negative", "what label 0 is called")


def add_common_flags(p: argparse.ArgumentParser) -> None:
    """The flags of everything that runs a model."""
    add_flags(p, Running)
    add_flags(p, Rows, "limit")


def add_files_flag(p, name: str, help: str, required: bool = False, metavar: str = "D") -> None:
    """A flag that takes several names, and may be given several times."""
    p.add_argument(name, required=required, nargs="+", action=Several, metavar=metavar, help=help)


def add_data_flags(p: argparse.ArgumentParser, text_field: bool = True) -> None:
    """How rows are found in files; nanomed.text.reading.read_as() puts it into the names."""
    add_flags(p, Rows, *["text_field"] * text_field, "rows", "separator", "document_per", "skip_bad_rows")


def add_window_flags(p: argparse.ArgumentParser) -> None:
    """The windows in which perplexity is measured."""
    positions = "ids a window (default: the model's positions, 1024 at most)"
    p.add_argument("--context", type=count, metavar="N", help=positions)
    p.add_argument("--stride", type=count, metavar="N", help="ids between windows (default: context // 2)")
    rounding = "windows at once; changes a result by rounding only (documents at once of --also batch-mean)"
    p.add_argument("--batch-size", type=count, default=8, metavar="N", help=rounding)


def add_sampling_flags(p: argparse.ArgumentParser, temperature: float, top_p: float) -> None:
    """How the next token is chosen, and how many there may be."""
    most = "tokens a completion at most (default: 256, or what the model's positions leave)"
    p.add_argument("--max-new-tokens", type=count, metavar="N", help=most)
    likeliest = "0: always the likeliest token"
    p.add_argument("--temperature", type=at_least_0, default=temperature, metavar="T", help=likeliest)
    top_k = "draw from the K likeliest only; 0: from all"
    p.add_argument("--top-k", type=whole, default=0, metavar="K", help=top_k)
    nucleus = "draw from the likeliest that reach this probability together"
    p.add_argument("--top-p", type=probability, default=top_p, metavar="P", help=nucleus)
    penalty = "more than 1: make tokens that are there already less likely"
    p.add_argument("--repetition-penalty", type=positive, default=1.0, metavar="R", help=penalty)
    add_batch_size_flag(p, "prompts")


def add_batch_size_flag(p: argparse.ArgumentParser, what: str) -> None:
    rounding = f"{what} at once; changes a result by rounding only"
    p.add_argument("--batch-size", type=count, default=16, metavar="N", help=rounding)
