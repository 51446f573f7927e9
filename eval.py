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
python eval.py compare  --models gpt2 runs/adapted runs/instructed --data abstracts.jsonl --out runs/report
"""

import argparse
import os
import sys
from pathlib import Path

from nanomed import cli, flags, hub
from nanomed.errors import UserError
from nanomed.evaluation import calls, compare, drift, measure, tables
from nanomed.evaluation.generate import room
from nanomed.evaluation.mistakes import MISTAKES
from nanomed.evaluation.pubmedqa import FORMATS
from nanomed.evaluation.trained import trained_with
from nanomed.files import check_directory, check_output, write_json
from nanomed.tasks import measure as tasks
from nanomed.text.corpus import Texts
from nanomed.text.rows import split_name
from nanomed.text.templates import load_template

CHOICES_HELP = (
    "rows {prompt, choices, answer} (a choice stands as it is after the prompt; answer: its number, from 0, or its text), or "
    "PubMedQA's: "
)


# The commands that are a call from flags to what --json holds.
FIGURES = {
    "qa": calls.answer,
    "choices": calls.choose,
    "overlap": calls.repeats,
    "cls": calls.classify,
    "tasks": tasks.run,
    "drift": drift.measure_drift,
}


def parse_args():
    p = cli.Parser(description=__doc__.splitlines()[0])
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
        help="beside it, under their names, what common mistakes would give: " + ", ".join(MISTAKES) + ", or all "
        "(docs/measuring-perplexity.md)",
    )

    generate = commands.add_parser("generate", help="write on from prompts; without any, a small chat")
    generate.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    generate.add_argument("--prompt", metavar="TEXT", help="one prompt; the completion is shown as it is written")
    generate.add_argument("--prompts", metavar="FILE", help=flags.PROMPTS_HELP)
    generate.add_argument(
        "--template",
        metavar="NAME",
        help="put the prompt into this template as its instruction "
        "(default: the model's own, if it was instructed; none: the bare prompt)",
    )
    flags.add_sampling_flags(generate, temperature=0.8, top_p=0.95)

    qa = commands.add_parser("qa", help="exact match, F1, BLEU and ROUGE of a model's answers")
    qa.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(qa, flags.DATA_HELP)
    flags.add_instruction_flags(qa, "the model's own, else response")
    flags.add_sampling_flags(qa, temperature=0.0, top_p=1.0)
    qa.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that cannot be used, and count them")

    given = commands.add_parser("choices", help="accuracy of the likeliest of given answers; PubMedQA's yes, no or maybe")
    given.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(given, CHOICES_HELP + flags.DATA_HELP)
    given.add_argument(
        "--format",
        choices=["rows", *FORMATS],
        default="rows",
        help="rows; pubmedqa: PubMedQA's fields, asked as lm-eval asks; pubmedqa-closed: without the abstract",
    )
    given.add_argument("--all-rows", action="store_true", help="of PubMedQA all rows, not only the 500 of the official test split")
    given.add_argument("--template", metavar="NAME", help="put each prompt into this template as its instruction (default: none)")
    given.add_argument("--batch-size", type=flags.count, default=16, help="prompts at once; changes a result by rounding only")
    given.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that cannot be used, and count them")
    flags.add_retrieval_flags(given)

    many = commands.add_parser("tasks", help="every task of an instruction set: entities, relations, classes, answers")
    many.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    many.add_argument(
        "--tasks",
        required=True,
        metavar="DIR",
        help="what python -m nanomed.tasks made (--limit N: N test texts of each task, drawn by --seed)",
    )
    many.add_argument("--only", nargs="+", metavar="NAME", help="these tasks alone")
    many.add_argument(
        "--template", metavar="NAME", help="how a prompt looks (default: the model's own, if it was instructed; else medtuned)"
    )
    many.add_argument("--batch-size", type=flags.count, default=16, help="prompts at once; changes a result by rounding only")

    cls = commands.add_parser("cls", help="accuracy, F1, AUC and calibration of a classifier, beside plain baselines")
    cls.add_argument("--model", required=True, metavar="M", help="directory that train_cls.py made")
    flags.add_labelled_flags(cls)
    cls.add_argument("--batch-size", type=flags.count, default=16, help="texts at once; changes a result by rounding only")
    flags.add_data_flags(cls)

    same = commands.add_parser("overlap", help="how far texts repeat those of another side: equal, nearly equal, runs of words")
    flags.add_overlap_flags(same)
    same.add_argument("--json", metavar="FILE", help="write the result there")

    alarm = commands.add_parser("drift", help="whether what users ask surprises a model as its training texts do; for cron")
    flags.add_drift_flags(alarm)

    page = commands.add_parser("compare", help="several models under one protocol, on one page: report.html")
    page.add_argument("--models", required=True, nargs="+", action=cli.Several, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(page, "documents, each D a column of the perplexity table (NAME=D names it): " + flags.DATA_HELP)
    page.add_argument("--classifier", metavar="DIR", help="directory of the third phase, measured on its validation texts")
    page.add_argument("--tasks", nargs="+", metavar="FILE", help="what eval.py tasks --json wrote, of one or several models")
    page.add_argument(
        "--prompts", metavar="FILE", help=flags.PROMPTS_HELP + "; where rows hold an answer, right ones are marked (default: six)"
    )
    page.add_argument(
        "--template",
        metavar="NAME",
        help="put each prompt into this template as its instruction "
        "(default: a model's own, if it was instructed; none: the bare prompt)",
    )
    page.add_argument("--max-new-tokens", type=flags.count, default=80, metavar="N", help="tokens a completion")
    page.add_argument("--out", required=True, metavar="DIR", help="where report.html and report.json go")
    flags.add_window_flags(page)
    flags.add_data_flags(page)

    flags.add_retrieval_flags(qa)
    for command in (ppl, generate, qa, given, many, cls, alarm, page):
        if command is not page:
            command.add_argument("--json", metavar="FILE", help="write the result there")
        flags.add_common_flags(command)
    if sys.argv[1:2] and sys.argv[1].startswith("-") and sys.argv[1] not in ("-h", "--help"):
        raise UserError("a command comes first: eval.py ppl --model M --data D (eval.py ppl --help lists the flags)")
    return p.parse_args()


def mistake_names(text: str) -> tuple[str, ...]:
    """The names in a list that is separated by commas; `all`: every one."""
    names = tuple(MISTAKES) if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in MISTAKES:
            raise argparse.ArgumentTypeError(f"unknown: {name!r}; known: {', '.join(MISTAKES)}")
    return names


def save(args, result) -> None:
    if args.json:
        write_json(result, Path(args.json))
        print(f"results in {args.json}")


def ppl(args):
    o = measure.open_model(args.model, args.device, args.dtype, quantize=args.quantize)
    corpus = measure.encode(o, args.data, args.text_field, args.limit, args.skip_bad_rows)
    tokens = int(corpus.documents["length"].sum()) - len(corpus.documents)
    print(
        f"{o}; {len(corpus.documents):,} documents, {tokens:,} tokens"
        + (f"; {corpus.bad_rows} bad rows left out" if corpus.bad_rows else "")
    )
    result = measure.measure_ppl(o, corpus, args.context, args.stride, args.batch_size, args.seed, args.also) | {"data": args.data}
    interval = tables.interval_cell(result["ppl_ci95"]) if result["ppl_ci95"] else "(one document: no interval)"
    print(
        f"perplexity {tables.ppl_cell(result['ppl'], result['vocab_size'])} {interval}, loss {result['loss']:.4f} nats a token, "
        f"{result['bits_per_byte']:.4f} bits a byte; {result['tokens_scored']:,} tokens in windows of {result['context']}, "
        f"stride {result['stride']}, each document after {result['begins_with']}, {result['tokens_per_s']:,.0f} a second"
    )
    result |= calls.overlap_with_training(o, Texts([corpus.all()], o.tokenizer))
    if args.also:
        print("\nwhat common mistakes would give on the same model and texts:")
        for name, value in result["also"].items():
            cell = tables.ppl_cell(value, result["vocab_size"]) if value is not None else "-"
            print(f"  {name:16} {cell:>8}   {result['also_missing'].get(name, MISTAKES[name])}")
    save(args, result)


def generate(args):
    if args.prompt is not None and args.prompts:
        raise UserError("--prompt and --prompts: give one of them")
    chat = args.prompt is None and not args.prompts
    if chat and not sys.stdin.isatty():
        raise UserError("no --prompt and no --prompts, and no terminal to chat on")
    sampling = flags.sampling(args)
    texts = measure.read_questions(args.prompts, args.limit)[0] if args.prompts else [args.prompt]
    o = measure.open_model(args.model, args.device, args.dtype, quantize=args.quantize)
    template = calls.choose_template(args, o)
    markers = template.markers if template else ()
    print(f"{o}; {sampling}" + (f"; template: {args.template}" if template else ""))
    if chat:
        return talk(o, args, sampling, template)
    prompts = [template.ask(text) if template else text for text in texts]
    if args.prompts:
        done = measure.complete(o, prompts, sampling, markers, args.max_new_tokens, args.batch_size, args.seed)
        for d in done:
            print(f"\n{d['prompt']}\n>>> {d['completion'].strip()}" + ("" if d["stopped"] else " ..."))
    elif args.json:
        done = measure.complete(o, prompts, sampling, markers, args.max_new_tokens, args.batch_size, args.seed)
        print(done[0]["completion"])
    else:
        steps = room(o.model.config, o.tokenizer.prompt(prompts[0]).tolist(), args.max_new_tokens)
        measure.write_on(o, prompts[0], sampling, markers, steps, args.seed)
        return
    save(args, [d | {"prompt": text} for d, text in zip(done, texts, strict=True)])


def talk(o, args, sampling, template):
    """Read a question, write the answer, until the input ends. Each question stands alone: nothing of the talk is kept."""
    print("Type a question and press Enter; Ctrl-D ends.")
    seed = args.seed
    while True:
        try:
            question = input("\n> ").strip()
        except EOFError:
            print()
            return
        if not question:
            continue
        prompt = template.ask(question) if template else question
        try:
            steps = room(o.model.config, o.tokenizer.prompt(prompt).tolist(), args.max_new_tokens)
        except UserError as e:  # too long a question is no reason to leave
            print(e)
            continue
        measure.write_on(o, prompt, sampling, template.markers if template else (), steps, seed)
        seed += 1


def compare_models(args):
    prompts, expected = measure.read_questions(args.prompts) if args.prompts else (compare.PROMPTS, None)
    template = load_template(args.template) if args.template else None
    out = compare.make_page(args, prompts, template, expected)
    print(f"results in {out}")


def inputs(args) -> list[Path]:
    """The files that the command reads, and the directories of its models, adapters' bases included."""
    given = vars(args)
    models = given.get("models") or [given[k] for k in ("model",) if k in given]
    sources = [hub.find(m) for m in models if m in hub.BUNDLED or os.path.isdir(os.path.expanduser(m))]
    directories = [d for s in sources for d in (s.directory, s.adapter) if d]
    trained = [trained_with(s.adapter or s.directory) for s in sources if args.command == "cls"]
    flags = ["data", "corpus", "against", "reference", "incoming"]
    flags += ["positives", "negatives", "val_data", "exclude"]  # of a classifier's run too, for its baselines
    names = [split_name(n)[1] for read in (given, *trained) for flag in flags for n in read.get(flag) or []]
    names += [given.get(k) for k in ("prompts", "template", "classifier")]
    if given.get("tasks"):
        names += args.tasks if args.command == "compare" else Path(args.tasks).glob("*.json*")
    return directories + [Path(name) for name in names if name and Path(name).exists()]


def main():
    args = parse_args()
    if args.command == "compare":
        check_directory(args.out)
        for file in filter(Path.exists, (Path(args.out) / name for name in ("report.json", "report.html"))):
            check_output(file, inputs(args), "--out")
    elif args.json is not None:
        check_output(args.json, inputs(args))
    if args.command in FIGURES:
        result = FIGURES[args.command](args)
        save(args, result)
        return drift.DRIFTED if args.command == "drift" and result["drifted"] else 0
    return {"ppl": ppl, "generate": generate, "compare": compare_models}[args.command](args)


if __name__ == "__main__":
    cli.execute(main)
