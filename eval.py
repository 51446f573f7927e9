"""Measure a model, or let it write.

python eval.py ppl      --model gpt2 --data abstracts.jsonl --json before.json
python eval.py generate --model runs/instructed --template response --prompt "What is anthrax?"
python eval.py generate --model runs/instructed --template response            (a small chat)
python eval.py qa       --model runs/instructed --template response --data questions.jsonl
python eval.py choices  --model runs/adapted --data pubmedqa.jsonl --format pubmedqa
python eval.py overlap  --data abstracts.jsonl --against pubmedqa.jsonl --against-field context
python eval.py drift    --model runs/instructed --reference questions.jsonl --incoming log.jsonl
python eval.py tasks    --model runs/medtuned --tasks runs/tasks
python eval.py cls      --model runs/classifier --data labelled.jsonl
python eval.py compare  --models gpt2 runs/adapted runs/instructed --data abstracts.jsonl --out runs/report"""

import argparse
import sys

from nanomed import cli, flags
from nanomed.errors import UserError
from nanomed.evaluation.named import FORMATS, MISTAKES
from nanomed.text import reading

CHOICES_HELP = (
    "rows {prompt, choices, answer} (a choice stands as it is after the prompt; answer: its number, from 0,"
    " or its text), or PubMedQA's: "
)


def parse_args():
    p = cli.Parser(description=cli.summary(__doc__))
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=cli.Parser)

    ppl = commands.add_parser("ppl", help="perplexity, bits per byte and word perplexity of documents")
    ppl.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(ppl, flags.DATA_HELP)
    flags.add_window_flags(ppl)
    flags.add_data_flags(ppl)
    ppl.add_argument(
        "--also",
        type=mistake_names,
        default=(),
        metavar="NAMES",
        help="beside it, under their names, what common mistakes would give: "
        + ", ".join(MISTAKES)
        + ", or all (docs/measuring-perplexity.md)",
    )

    generate = commands.add_parser("generate", help="write on from prompts; without any, a small chat")
    generate.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    generate.add_argument(
        "--prompt", metavar="TEXT", help="one prompt; the completion is shown as it is written"
    )
    generate.add_argument("--prompts", metavar="FILE", help=flags.PROMPTS_HELP)
    generate.add_argument(
        "--template",
        metavar="NAME",
        help=(
            "put the prompt into this template as its instruction "
            "(default: the model's own, if it was instructed; none: the bare prompt)"
        ),
    )
    flags.add_sampling_flags(generate, temperature=0.8, top_p=0.95)

    qa = commands.add_parser("qa", help="exact match, F1, BLEU and ROUGE of a model's answers")
    qa.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(qa, flags.DATA_HELP)
    flags.add_instruction_flags(qa, "the model's own, else response")
    flags.add_sampling_flags(qa, temperature=0.0, top_p=1.0)
    reading.add_flags(qa)

    given = commands.add_parser(
        "choices", help="accuracy of the likeliest of given answers; PubMedQA's yes, no or maybe"
    )
    given.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(given, CHOICES_HELP + flags.DATA_HELP)
    given.add_argument(
        "--format",
        choices=["rows", *FORMATS],
        default="rows",
        help=(
            "rows; pubmedqa: PubMedQA's fields, asked as lm-eval asks; pubmedqa-closed: without the abstract"
        ),
    )
    given.add_argument(
        "--all-rows",
        action="store_true",
        help="of PubMedQA all rows, not only the 500 of the official test split",
    )
    given.add_argument(
        "--template",
        metavar="NAME",
        help="put each prompt into this template as its instruction (default: none)",
    )
    given.add_argument(
        "--batch-size",
        type=flags.count,
        default=16,
        help="prompts at once; changes a result by rounding only",
    )
    reading.add_flags(given)
    flags.add_retrieval_flags(given)

    many = commands.add_parser(
        "tasks", help="every task of an instruction set: entities, relations, classes, answers"
    )
    many.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    many.add_argument(
        "--tasks",
        required=True,
        metavar="DIR",
        help="what python -m nanomed.tasks made (--limit N: N test texts of each task, drawn by --seed)",
    )
    many.add_argument("--only", nargs="+", metavar="NAME", help="these tasks alone")
    many.add_argument(
        "--predictions",
        metavar="DIR",
        help="what was said of each text, as each task is done; the same command goes on with what is there",
    )
    many.add_argument(
        "--template",
        metavar="NAME",
        help="how a prompt looks (default: the model's own, if it was instructed; else medtuned)",
    )
    many.add_argument(
        "--batch-size",
        type=flags.count,
        default=16,
        help="prompts at once; changes a result by rounding only",
    )

    cls = commands.add_parser(
        "cls", help="accuracy, F1, AUC and calibration of a classifier, beside plain baselines"
    )
    cls.add_argument("--model", required=True, metavar="M", help="directory that train_cls.py made")
    flags.add_labelled_flags(cls)
    cls.add_argument(
        "--batch-size", type=flags.count, default=16, help="texts at once; changes a result by rounding only"
    )
    flags.add_data_flags(cls)

    same = commands.add_parser(
        "overlap", help="how far texts repeat those of another side: equal, nearly equal, runs of words"
    )
    flags.add_overlap_flags(same)
    same.add_argument("--json", metavar="FILE", help="write the result there")

    alarm = commands.add_parser(
        "drift", help="whether what users ask surprises a model as its training texts do; for cron"
    )
    flags.add_drift_flags(alarm)

    page = commands.add_parser("compare", help="several models under one protocol, on one page: report.html")
    page.add_argument(
        "--models", required=True, nargs="+", action=cli.Several, metavar="M", help=flags.MODEL_HELP
    )
    flags.add_data_flag(
        page, "documents, each D a column of the perplexity table (NAME=D names it): " + flags.DATA_HELP
    )
    page.add_argument(
        "--classifier", metavar="DIR", help="directory of the third phase, measured on its validation texts"
    )
    page.add_argument(
        "--tasks", nargs="+", metavar="FILE", help="what eval.py tasks --json wrote, of one or several models"
    )
    page.add_argument(
        "--prompts",
        metavar="FILE",
        help=flags.PROMPTS_HELP + "; where rows hold an answer, right ones are marked (default: six)",
    )
    page.add_argument(
        "--template",
        metavar="NAME",
        help=(
            "put each prompt into this template as its instruction "
            "(default: a model's own, if it was instructed; none: the bare prompt)"
        ),
    )
    page.add_argument(
        "--max-new-tokens", type=flags.count, default=80, metavar="N", help="tokens a completion"
    )
    page.add_argument("--out", required=True, metavar="DIR", help="where report.html and report.json go")
    flags.add_window_flags(page)
    flags.add_data_flags(page)

    flags.add_retrieval_flags(qa)
    for command in (ppl, generate, qa, given, many, cls, alarm, page):
        if command is not page:
            command.add_argument("--json", metavar="FILE", help="write the result there")
        flags.add_common_flags(command)
    if sys.argv[1:2] and sys.argv[1].startswith("-") and sys.argv[1] not in ("-h", "--help"):
        raise UserError(
            "a command comes first: eval.py ppl --model M --data D (eval.py ppl --help lists the flags)"
        )
    args = p.parse_args()
    return reading.read_as(args) if hasattr(args, "document_per") else args


def mistake_names(text: str) -> tuple[str, ...]:
    """The names in a list that is separated by commas; `all`: every one."""
    names = tuple(MISTAKES) if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in MISTAKES:
            raise argparse.ArgumentTypeError(f"unknown: {name!r}; known: {', '.join(MISTAKES)}")
    return names


def main():
    args = parse_args()
    from nanomed.evaluation import (
        run,
    )  # from here on, so that --help and a wrong flag need not wait for PyTorch

    return run.command(args)


if __name__ == "__main__":
    cli.execute(main)
