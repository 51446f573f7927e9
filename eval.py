"""Measure a model, or let it write.

python eval.py ppl      --model gpt2 --data abstracts.jsonl --json before.json
python eval.py generate --model runs/instructed --template response --prompt "What is anthrax?"
python eval.py generate --model runs/instructed --template response            (a small chat)
python eval.py qa       --model runs/instructed --template response --data questions.jsonl
python eval.py choices  --model runs/adapted --data pubmedqa.jsonl --format pubmedqa
python eval.py benchmarks --model runs/adapted --from benchmarks --limit 200 --json scores.json
python eval.py overlap  --data abstracts.jsonl --against pubmedqa.jsonl --against-field context
python eval.py drift    --model runs/instructed --reference questions.jsonl --incoming log.jsonl
python eval.py tasks    --model runs/medtuned --tasks runs/tasks
python eval.py cls      --model runs/classifier --data labelled.jsonl
python eval.py compare  --models gpt2 runs/adapted runs/instructed --data abstracts.jsonl --out runs/report"""

import re
import sys

from nanomed import cli, flags
from nanomed.commands import benchmarks, choices, cls, compare, drift, generate, overlap, ppl, qa, tasks
from nanomed.errors import UserError
from nanomed.text import reading

# Each has add_flags(parser), perhaps check_flags(args), whether they go together, and main(args), which loads
# libraries, measures and returns what --json writes.
COMMANDS = {"ppl": ppl, "generate": generate, "qa": qa, "choices": choices, "benchmarks": benchmarks,
            "tasks": tasks, "cls": cls, "overlap": overlap, "drift": drift, "compare": compare}  # fmt: skip


def parse_args():
    p = cli.Parser(description=cli.summary(__doc__))
    parsers = p.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=cli.Parser)
    for name, command in COMMANDS.items():
        example = re.search(rf"^python eval.py {name} .*", __doc__ or "", re.M)
        example = example and f"for example: {' '.join(example[0].split())}"
        about = f"{command.HELP[0].upper()}{command.HELP[1:]}."
        parser = parsers.add_parser(name, help=command.HELP, description=about, epilog=example)
        command.add_flags(parser)
        if name != "compare":
            parser.add_argument("--json", metavar="FILE", help="write the result there")
        if name != "overlap":
            flags.add_common_flags(parser)
    if sys.argv[1:2] and sys.argv[1].startswith("-") and sys.argv[1] not in ("-h", "--help"):
        raise UserError("a command comes first: eval.py ppl --model M --data D (--help lists the commands)")
    args = p.parse_args()
    if hasattr(COMMANDS[args.command], "check_flags"):
        COMMANDS[args.command].check_flags(args)
    return reading.read_as(args) if hasattr(args, "document_per") else args


def main():
    args = parse_args()
    from nanomed.commands import results  # from here on, so that --help need not wait for PyTorch

    results.check(args)
    result = COMMANDS[args.command].main(args)
    results.write(args, result)
    return drift.DRIFTED if args.command == "drift" and result["drifted"] else 0


if __name__ == "__main__":
    cli.execute(main)
