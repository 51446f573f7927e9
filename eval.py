"""Measure a model, or let it write.

python eval.py ppl      --model gpt2 --data abstracts.jsonl --json before.json
python eval.py generate --model runs/instructed --template response --prompt "What is anthrax?"
python eval.py generate --model runs/instructed --template response            (a small chat)
python eval.py qa       --model runs/instructed --template response --data questions.jsonl
python eval.py choices  --model runs/adapted --data pubmedqa.jsonl --format pubmedqa
python eval.py overlap  --data abstracts.jsonl --against pubmedqa.jsonl --against-field context
python eval.py cls      --model runs/classifier --data labelled.jsonl
python eval.py compare  --models gpt2 runs/adapted runs/instructed --data abstracts.jsonl --out runs/report
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from nanomed import cli, flags, hub
from nanomed.errors import UserError
from nanomed.evaluation import compare, measure, retrieve, tables, tasks
from nanomed.evaluation.baselines import verdict
from nanomed.evaluation.generate import room
from nanomed.evaluation.mistakes import MISTAKES
from nanomed.evaluation.pubmedqa import FORMATS
from nanomed.evaluation.trained import trained_with
from nanomed.files import check_directory, check_output, write_json
from nanomed.text import instructions, labelled
from nanomed.text.corpus import Texts
from nanomed.text.rows import split_name
from nanomed.text.templates import Template, load_template

CHOICES_HELP = (
    "rows {prompt, choices, answer} (a choice stands as it is after the prompt; answer: its number, from 0, or its text), or "
    "PubMedQA's: "
)


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

    cls = commands.add_parser("cls", help="accuracy, F1, AUC and calibration of a classifier, beside plain baselines")
    cls.add_argument("--model", required=True, metavar="M", help="directory that train_cls.py made")
    flags.add_labelled_flags(cls)
    cls.add_argument("--batch-size", type=flags.count, default=16, help="texts at once; changes a result by rounding only")
    flags.add_data_flags(cls)

    same = commands.add_parser("overlap", help="how far texts repeat those of another side: equal, nearly equal, runs of words")
    flags.add_overlap_flags(same)
    same.add_argument("--json", metavar="FILE", help="write the result there")

    page = commands.add_parser("compare", help="several models under one protocol, on one page: report.html")
    page.add_argument("--models", required=True, nargs="+", action=cli.Several, metavar="M", help=flags.MODEL_HELP)
    flags.add_data_flag(page, "documents, each D a column of the perplexity table (NAME=D names it): " + flags.DATA_HELP)
    page.add_argument("--classifier", metavar="DIR", help="directory of the third phase, measured on its validation texts")
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
    for command in (ppl, generate, qa, given, cls, page):
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


def choose_template(args, o, otherwise: str | None = None) -> Template | None:
    """The template that was asked for, else the one that the model was instructed with, else `otherwise`; says which."""
    if args.template is None and o.template:
        args.template = "the model's own"
        return o.template
    args.template = args.template or otherwise
    chosen = load_template(args.template) if args.template else None
    if o.template and chosen != o.template:
        print(f"note: {o.name} was instructed with another template, which is the default", file=sys.stderr)
    return chosen


def save(args, result) -> None:
    if args.json:
        write_json(result, Path(args.json))
        print(f"results in {args.json}")


def ppl(args):
    o = measure.open_model(args.model, args.device, args.dtype)
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
    result |= tasks.overlap_with_training(o, Texts([corpus.all()], o.tokenizer))
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
    o = measure.open_model(args.model, args.device, args.dtype)
    template = choose_template(args, o)
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


def qa(args):
    fields = instructions.Fields(args.instruction_field, args.input_field, args.response_field)
    items, bad, sha = instructions.read_instructions(args.data, fields, args.limit, args.skip_bad_rows)
    flags.check_retrieval_flags(args)
    o = measure.open_model(args.model, args.device, args.dtype)
    texts, retrieved = [item.text() for item in items], None
    if args.retrieve:
        asked = [f"{item.instruction} {item.input}" for item in items]
        retrieved = retrieve.look_up(args, o, asked, [None] * len(items))
        items = [
            replace(item, input="\n".join([*found, *([item.input] if item.input else [])]))
            for item, found in zip(items, retrieved.passages, strict=True)
        ]
    template = choose_template(args, o, "response")
    print(f"{o}; {len(items):,} questions" + (f"; {bad} bad rows left out" if bad else "") + f"; template {args.template}")
    result = measure.measure_answers(o, items, template, flags.sampling(args), args.max_new_tokens, args.batch_size, args.seed)
    print(tables.text_table(tables.answers_table({args.model: result})))
    print(f"BLEU: {result['settings']['bleu']}\nROUGE: {result['settings']['rouge']}")
    if result["dropped"]:
        print(f"{result['dropped']} questions left out: their prompts fill the model's {o.model.config.n_positions} positions")
    questions = {template.ask(item.instruction, item.input): item.input or item.instruction for item in items}
    show_answers(result["answers"], questions)
    result |= tasks.overlap_with_training(o, texts)
    how = {"data": args.data, "data_sha256": sha, "template": args.template, "bad_rows": bad, "seed": args.seed}
    how["retrieval"] = retrieved.report if retrieved else None
    save(args, result | how | {"sampling": vars(flags.sampling(args)), "max_new_tokens": args.max_new_tokens})


def show_answers(answers: list[dict], questions: dict[str, str], most: int = 3, width: int = 145) -> None:
    """The first few answers beside their references, each text cut to two lines. questions: by prompt."""
    for n, a in enumerate(answers[:most], 1):
        texts = {"question": questions[a["prompt"]], "reference": a["reference"], "answer": a["completion"]}
        print(f"\n{n} of {len(answers)}")
        for name, text in texts.items():
            text = " ".join(text.split()) or "(nothing)"
            print(f"  {name + ':':10} {text if len(text) <= width else text[: width - 3] + '...'}")
    print()


def choices(args):
    save(args, tasks.choose(args))


def overlap(args):
    save(args, tasks.repeats(args))


def label_names(labels: list[str], args, directory: Path) -> tuple[str, str]:
    """(negative, positive) as given; or as they were in training, if that was on --positives and --negatives too."""
    given = args.negative_name, args.positive_name
    if set(given) <= set(labels):
        return given
    trained = trained_with(directory)
    if given == ("negative", "positive") and trained.get("positives"):
        return trained["negative_name"], trained["positive_name"]
    raise UserError(f"--negative-name and --positive-name must be two of the model's labels: {', '.join(labels)}")


def cls(args):
    o = measure.open_model(args.model, args.device, args.dtype, classifier=True)
    if args.positives:
        args.negative_name, args.positive_name = label_names(o.model.labels, args, o.directory)
    sources = labelled.labelled_sources(args)
    found = measure.read_test_texts(o, sources, args.text_field, args.label_field, args.limit, args.skip_bad_rows)
    print(
        f"{o}; {len(found.items):,} texts, {len(o.model.labels)} labels"
        + (f"; {found.bad_rows} bad rows left out" if found.bad_rows else "")
    )
    result = measure.measure_classes(o, found.items, args.batch_size, args.seed)
    print(tables.text_table(tables.classification_table(result["measures"])))
    if not result["multi_label"]:
        confusion = tables.confusion_table(result["measures"]["model"]["confusion"], result["labels"])
        print("", tables.text_table(confusion, turn=False), "", sep="\n")
    print(f"no baselines: {result['no_baseline']}" if result["no_baseline"] else verdict(result["measures"]))
    result |= tasks.overlap_with_training(o, [item.text for item in found.items])
    save(args, result | {"data_sha256": found.sha256})


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
    flags = (
        "data",
        "corpus",
        "against",
        "positives",
        "negatives",
        "val_data",
        "exclude",
    )  # of a classifier's run too, for its baselines
    names = [split_name(n)[1] for read in (given, *trained) for flag in flags for n in read.get(flag) or []]
    names += [given.get(k) for k in ("prompts", "template", "classifier")]
    return directories + [Path(name) for name in names if name and Path(name).exists()]


def main():
    args = parse_args()
    if args.command == "compare":
        check_directory(args.out)
        for file in filter(Path.exists, (Path(args.out) / name for name in ("report.json", "report.html"))):
            check_output(file, inputs(args), "--out")
    elif args.json is not None:
        check_output(args.json, inputs(args))
    {"ppl": ppl, "generate": generate, "qa": qa, "choices": choices, "overlap": overlap, "cls": cls, "compare": compare_models}[
        args.command
    ](args)


if __name__ == "__main__":
    cli.execute(main)
