"""The scripts' flags: what each takes, its help and its default; which of them make no sense together. Like
cli.py it loads no library, so that --help comes at once, and a wrong flag is found before a second has gone
into loading PyTorch."""

import argparse
import csv

from nanomed.cli import Several
from nanomed.errors import UserError
from nanomed.text import reading
from nanomed.text.templates import TEMPLATES
from nanomed.training.settings import QUANTIZATIONS, READINGS, Instruct, Plan, Settings


def _whole(text: str, least: int) -> int:
    """Which fits the 64 bits in which things are counted, and random generators are seeded."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text[:40]!r}")
    if len(text) > 100 or not least <= int(text) < 2**63:
        below = " and less than 2^63" if len(text) > 18 else ""
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}{below}, not {text[:40]!r}"
        )
    return int(text)


def count(text: str) -> int:
    """A positive whole number."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """A whole number, 0 included."""
    return _whole(text, 0)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from e


def share(text: str) -> float:
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1, not {text!r}")
    return value


def share_or_1(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text!r}")
    return value


def at_least_0(text: str) -> float:
    value = number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text!r}")
    return value


def positive(text: str) -> float:
    value = number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text!r}")
    return value


def at_least_1(text: str) -> float:
    value = number(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text!r}")
    return value


def probability(text: str) -> float:
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most 1, not {text!r}")
    return value


def name_list(text: str) -> list[str]:
    """Of a line of CSV."""
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not names or not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be different names, separated by commas, not {text[:60]!r}")
    return names


LISTS = ("names", "vectors")  # what lists of 0 and 1 are (nanomed.text.labels)
MODEL_HELP = (
    "Hub id (gpt2), directory in Hugging Face's layout, peft adapter directory, or nano, the bundled model"
)
DATA_HELP = (
    ".jsonl, .json, .csv, .tsv, .parquet, .txt (a document a line), packed (.gz, .zst) too, a folder of .txt,"
    " what Dataset.save_to_disk wrote, or hub:REPO[:CONFIG[:SPLIT]]; several may be given (docs/files.md)"
)
PROMPTS_HELP = "prompts, one a line (.txt) or in the field `prompt`, `instruction` or `question` (.jsonl)"

OWN_TEMPLATE_HELP = (
    "put a prompt into this template as its instruction (default: the model's own, if it was instructed; none:"
    " the bare prompt)"
)
QUANTIZE_HELP = (
    "keep the linear layers below the head in 4 bits (NF4, the scales in 8: QLoRA) or 8; they stay frozen, so"
    " a training needs --lora-r too (default: what an adapter was trained over, else the weights as they are"
    " stored; none: these)"
)


# One table of flags, laid out by hand.
# fmt: off
def add_common_flags(p: argparse.ArgumentParser) -> None:
    """The flags of everything that runs a model."""
    p.add_argument("--quantize", choices=[*QUANTIZATIONS, "none"], help=QUANTIZE_HELP)
    p.add_argument("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto",
                   help="of matrix products; auto: bf16 where the hardware multiplies it natively, else fp16 on CUDA "
                        "and fp32 on the CPU")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: CUDA if there is one")
    p.add_argument("--special-tokens", choices=READINGS, default=READINGS[0],
                   help="where a text spells a special token of the model's (<|endoftext|>, </s>): take it as its letters (text), "
                        "as the token (read), or not at all, as a bad row (refuse); what a template spells is the token")
    p.add_argument("--limit", type=count, metavar="N", help="take only the first N documents of each D")
    p.add_argument("--seed", type=whole, default=0, help="of everything random")


def add_window_flags(p: argparse.ArgumentParser) -> None:
    """The windows in which perplexity is measured."""
    p.add_argument("--context", type=count, metavar="N", help="ids a window (default: the model's positions, 1024 at most)")
    p.add_argument("--stride", type=count, metavar="N", help="ids between windows (default: context // 2)")
    p.add_argument("--batch-size", type=count, default=8,
                   help="windows at once; changes a result by rounding only (documents at once of --also batch-mean)")


def add_sampling_flags(p: argparse.ArgumentParser, temperature: float, top_p: float) -> None:
    """How the next token is chosen, and how many there may be."""
    p.add_argument("--max-new-tokens", type=count, metavar="N",
                   help="tokens a completion at most (default: 256, or what the model's positions leave)")
    p.add_argument("--temperature", type=at_least_0, default=temperature, help="0: always the likeliest token")
    p.add_argument("--top-k", type=whole, default=0, metavar="K", help="draw from the K likeliest only; 0: from all")
    p.add_argument("--top-p", type=probability, default=top_p, metavar="P",
                   help="draw from the likeliest that reach this probability together")
    p.add_argument("--repetition-penalty", type=positive, default=1.0, metavar="R",
                   help="more than 1: make tokens that are there already less likely")
    add_batch_size_flag(p, "prompts")


def add_batch_size_flag(p: argparse.ArgumentParser, what: str) -> None:
    p.add_argument("--batch-size", type=count, default=16, help=f"{what} at once; changes a result by rounding only")


def add_data_flag(p: argparse.ArgumentParser, help: str) -> None:
    p.add_argument("--data", required=True, nargs="+", action=Several, metavar="D", help=help)


def add_data_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--text-field", default="text", help="field of the text: a name, a path like "
                   "context.contexts, or several (a,b), of which the first that a row has counts; a list is joined with "
                   "newlines; of a list by number: messages.1.content")
    reading.add_flags(p)


def add_held_out_flags(p: argparse.ArgumentParser, what: str) -> None:
    """What is measured on, during the run and later. what: `documents`, say."""
    p.add_argument("--val-data", nargs="+", action=Several, metavar="[NAME=]D",
                   help=f"validate on these {what}; several named sets are each a line and a curve, and the first decides "
                        "which weights are best")
    p.add_argument("--val-fraction", type=share, default=0.05, help=f"else on this share of --data's {what}")
    p.add_argument("--exclude", nargs="+", action=Several, metavar="D",
                   help="documents or instruction rows that are measured on later: they get into no part of the run, neither "
                        "training nor replay nor the share that is validated on")


def add_near_duplicates_flag(p: argparse.ArgumentParser) -> None:
    p.add_argument("--near-duplicates", type=share_or_1, default=Plan.near_duplicates, metavar="J",
                   help="take out of the training side what repeats another of its texts, or a held-out one, exactly or nearly: "
                        "with a Jaccard similarity of J or more of their sequences of five words (0.8, say); 0: only what is "
                        "held out, exactly")


def add_labelled_flags(p: argparse.ArgumentParser) -> None:
    """Texts with labels: two kinds of texts, or rows that say it themselves."""
    for side in ("positives", "negatives"):
        p.add_argument(f"--{side}", nargs="+", action=Several, metavar="D", help=f"texts of label {side[:-1]}: " + DATA_HELP)
    p.add_argument("--data", nargs="+", action=Several, metavar="D",
                   help="or texts with their labels, of two classes or more; lists of labels make a multi-label task")
    p.add_argument("--label-field", default="label,labels", metavar="FIELD", help="of --data's labels")
    p.add_argument("--label-names", type=name_list, metavar="A,B,...",
                   help="what the labels 0, 1, ... are called, and what the places of a vector stand for (default: a data set's "
                        "own names, ClassLabel; else the numbers; of vectors LABEL_0, LABEL_1, ...); where rows hold the names "
                        "themselves, their order. A name with a comma stands in double quotes")
    p.add_argument("--label-separator", metavar="SEP",
                   help="what parts several labels in one text, as | does in asthma|renal; list: the text is a list as Python or "
                        "JSON writes it, ['asthma', 'renal'] (default: a text is one label)")
    p.add_argument("--label-columns", type=name_list, metavar="A,B,...",
                   help="fields that each say whether a text has the label that they are called: 0 or 1, true or false")
    p.add_argument("--label-lists", choices=LISTS,
                   help="whether lists of 0 and 1 are names of labels, or vectors with a place a label, as [1, 0, 0, 1] is; asked "
                        "for where they could be either")
    p.add_argument("--positive-name", default="positive", metavar="NAME", help="what label 1 is called")
    p.add_argument("--negative-name", default="negative", metavar="NAME", help="what label 0 is called")


def add_instruction_flags(p: argparse.ArgumentParser, otherwise: str) -> None:
    """How rows become instructions."""
    p.add_argument("--template", metavar="NAME",
                   help=f"how a prompt looks: {', '.join(TEMPLATES)}, or a TOML file (default: {otherwise})")
    p.add_argument("--instruction-field", default=Instruct.instruction_field, metavar="FIELD", help="of what is asked")
    p.add_argument("--input-field", default=Instruct.input_field, metavar="FIELD", help="of what it is asked about, if anything")
    p.add_argument("--response-field", default=Instruct.response_field, metavar="FIELD", help="of the answer")


def add_training_flags(p: argparse.ArgumentParser) -> None:
    """The flags that every training phase takes."""
    p.add_argument("--config", metavar="TOML", help="recipe that presets flags; flags on the command line win")
    p.add_argument("--out", required=True, metavar="DIR", help="where the trained model and the run's records go")
    add_common_flags(p)
    add_data_flags(p)
    add_near_duplicates_flag(p)
    g = p.add_argument_group("training")
    g.add_argument("--context", type=count, metavar="N", help="tokens a row (default: the model's positions, 1024 at most)")
    g.add_argument("--batch-size", type=count, default=Plan.batch_size, help="rows a micro-batch")
    g.add_argument("--grad-accum", type=count, default=Plan.grad_accum, help="micro-batches an update")
    g.add_argument("--epochs", type=positive, default=Plan.epochs, help="passes over the data")
    g.add_argument("--max-steps", type=whole, default=Plan.max_steps, help="updates, whatever --epochs says; 0: unset")
    g.add_argument("--lr", type=positive,
                   help="peak learning rate (default: 5e-5; LoRA 2e-4; from scratch 6e-4; head alone 1e-3)")
    g.add_argument("--warmup-ratio", type=share, default=Plan.warmup_ratio, help="share of the updates that warm up")
    g.add_argument("--weight-decay", type=at_least_0, default=Plan.weight_decay, help="on matrices and embeddings only")
    g.add_argument("--grad-clip", type=at_least_0, default=Plan.grad_clip, help="largest gradient norm; 0: no clipping")
    g.add_argument("--dropout", type=share, default=Plan.dropout,
                   help="in place of the probabilities in the model's config (GPT-2's say 0.1)")
    g.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                   help="compile the model with torch.compile, half a minute, then faster (default: if the run is long enough "
                   "for that to pay; never the classifier's)")
    g.add_argument("--grad-checkpoint", action=argparse.BooleanOptionalAction, default=False,
                   help="recompute activations in backward: less memory, slower")
    g = p.add_argument_group("LoRA")
    g.add_argument("--lora-r", type=whole, default=Plan.lora_r, metavar="R", help="rank; 0 trains all weights")
    g.add_argument("--lora-alpha", type=positive, metavar="A", help="of the scale (default: 2 r)")
    g.add_argument("--lora-scale", choices=["lora", "rslora"],
                   help="lora: alpha / r; rslora: alpha / sqrt(r), which suits high ranks (default: lora)")
    g.add_argument("--lora-dropout", type=share, default=Plan.lora_dropout, help="on the adapter's input, in training")
    g.add_argument("--lora-targets", metavar="NAMES",
                   help="modules, separated by commas, matched at the end of their names: c_attn,c_proj,c_fc; or all-linear: every "
                        "linear layer below the head (default: peft's for the family: c_attn of GPT-2, else q_proj,v_proj)")
    g.add_argument("--merge", action=argparse.BooleanOptionalAction, default=Plan.merge,
                   help="fold the adapter into the model that DIR holds at the end")
    g = p.add_argument_group("the run")
    g.add_argument("--resume", action="store_true", help="go on from DIR's last checkpoint, or start if it has none")
    g.add_argument("--save-every", type=whole, default=Settings.save_every, help="updates between checkpoints; 0: at the end")
    g.add_argument("--eval-every", type=whole, default=Plan.eval_every, help="updates between validations; 0: an epoch")
    g.add_argument("--patience", type=whole, default=Plan.patience,
                   help="stop after so many validations without improvement; 0: never")
    g.add_argument("--keep", choices=["last", "best"],
                   help="the weights that DIR holds at the end: the last, or those of the best validation (default: best with "
                        "--patience, else last)")
    g.add_argument("--log-every", type=count, default=Settings.log_every, help="updates between lines of metrics.jsonl")
    g.add_argument("--dry-run", action="store_true",
                   help="count everything, time two updates, say what it would take, and stop; DIR is not touched")
    g.add_argument("--show", type=count, default=0, metavar="N",
                   help="first print N rows of a batch with what is supervised in [[ ]], packed examples one by one")


def add_forgetting_flags(p: argparse.ArgumentParser) -> None:
    """What holds the weights back, of the trainings that keep the language model's head."""
    g = p.add_argument_group("against forgetting (beside a lower --lr, --lora-r, other text mixed in)")
    g.add_argument("--l2-sp", type=at_least_0, default=Plan.l2_sp, metavar="A",
                   help="pull all weights towards where they started: A/2 times the squared distance is added to the loss")
    g.add_argument("--ewc", type=at_least_0, default=Plan.ewc, metavar="L",
                   help="elastic weight consolidation: the same, each weight by its Fisher information on --ewc-data; L: what a "
                        "token of that text counts beside one that is trained on")
    g.add_argument("--ewc-data", nargs="+", action=Several, metavar="D", help="general text, of which a sample is taken")
    g.add_argument("--ewc-blocks", type=count, default=Plan.ewc_blocks, metavar="N",
                   help="blocks of --context tokens in the sample")
    g.add_argument("--pull-on", default=Plan.pull_on, metavar="NAMES",
                   help="pull only weights with one of these, separated by commas, in their names (wte,wpe: GPT-2's embeddings)")


def add_sample_flag(p: argparse.ArgumentParser) -> None:
    p.add_argument("--sample-prompt", metavar="TEXT", help="at each validation, show how the model goes on from this")
# fmt: on


def check_lora_flags(args) -> None:
    """Raises UserError for a LoRA flag that would do nothing, since there is no rank."""
    if args.quantize in QUANTIZATIONS and not args.lora_r:
        raise UserError(
            f"--quantize {args.quantize} needs --lora-r: quantised weights are frozen, and an adapter is what"
            " is trained"
        )
    given = {
        "--lora-alpha": args.lora_alpha,
        "--lora-scale": args.lora_scale,
        "--lora-dropout": args.lora_dropout,
        "--merge": args.merge,
        "--lora-targets": args.lora_targets,
    }
    if args.lora_targets is not None and not args.lora_targets.strip(" ,"):
        raise UserError(
            "--lora-targets: name modules, separated by commas; without it, they are peft's for the family"
        )
    for flag, value in given.items():
        if value and not args.lora_r:
            raise UserError(
                f"{flag} needs --lora-r, the rank of the adapter; without it all weights are trained"
            )


def check_forgetting_flags(args) -> None:
    """Raises UserError where there is nothing to pull back, or no text to tell what each weight is needed
    for."""
    pull = "--ewc" if args.ewc else "--l2-sp" if args.l2_sp else None
    if pull and args.lora_r:
        raise UserError(
            f"{pull} holds trained weights back; the adapter of --lora-r leaves them as they are: give one of"
            " the two"
        )
    if pull and getattr(args, "from_scratch", False):
        raise UserError(
            f"{pull} pulls towards the weights that a training starts from; --from-scratch has none"
        )
    if args.pull_on and not pull:
        raise UserError("--pull-on says what --l2-sp or --ewc pulls; give one of the two")
    if bool(args.ewc) != bool(args.ewc_data):
        raise UserError(
            "--ewc and --ewc-data (general text, to tell what each weight is needed for) go together"
        )
