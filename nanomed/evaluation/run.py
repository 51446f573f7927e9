"""What eval.py does with its flags: which command is which, what each reads, and where its results go."""

import os
import sys
from pathlib import Path

from nanomed import flags, hub
from nanomed.errors import UserError
from nanomed.evaluation import calls, compare, measure, tables
from nanomed.evaluation.generate import room
from nanomed.evaluation.named import MISTAKES
from nanomed.evaluation.trained import trained_with
from nanomed.files import check_output, write_json
from nanomed.outputs import check_directory
from nanomed.systems import drift
from nanomed.systems.tasks import measure as tasks
from nanomed.text import special
from nanomed.text.corpus import Texts
from nanomed.text.formats import split_how
from nanomed.text.rows import split_name
from nanomed.text.templates import load_template


def command(args) -> int:
    """The command that the flags name; gives the exit status."""
    if args.command == "compare":
        check_directory(args.out)
        for file in filter(Path.exists, (Path(args.out) / name for name in ("report.json", "report.html"))):
            check_output(file, inputs(args), "--out")
        compare_models(args)
        return 0
    if args.json is not None:
        check_output(args.json, inputs(args))
    if args.command == "generate":
        generate(args)
        return 0
    figures = {"qa": calls.answer, "choices": calls.choose, "overlap": calls.repeats, "cls": calls.classify}
    figures |= {"ppl": ppl, "tasks": tasks.run, "drift": drift.measure_drift}
    result = figures[args.command](args)
    save(args, result)
    return drift.DRIFTED if args.command == "drift" and result["drifted"] else 0


def save(args, result) -> None:
    if args.json:
        write_json(result, Path(args.json))
        print(f"results in {args.json}")


def ppl(args):
    o = measure.open_asked(args)
    corpus = measure.encode(o, args.data, args.text_field, args.limit, args.skip_bad_rows)
    tokens = int(corpus.documents["length"].sum()) - len(corpus.documents)
    print(
        f"{o}; {len(corpus.documents):,} documents, {tokens:,} tokens"
        + (f"; {corpus.bad_rows} bad rows left out" if corpus.bad_rows else "")
    )
    special.say(corpus.special_tokens)
    result = measure.measure_ppl(
        o, corpus, args.context, args.stride, args.batch_size, args.seed, args.also
    ) | {"data": args.data}
    interval = (
        tables.interval_cell(result["ppl_ci95"]) if result["ppl_ci95"] else "(one document: no interval)"
    )
    print(
        f"perplexity {tables.ppl_cell(result['ppl'], result['vocab_size'])} {interval}, loss"
        f" {result['loss']:.4f} nats a token, {result['bits_per_byte']:.4f} bits a byte;"
        f" {result['tokens_scored']:,} tokens in windows of {result['context']}, stride {result['stride']},"
        f" each document after {result['begins_with']}, {result['tokens_per_s']:,.0f} a second"
    )
    result |= calls.overlap_with_training(o, Texts([corpus.all()], o.tokenizer))
    if args.also:
        print("\nwhat common mistakes would give on the same model and texts:")
        for name, value in result["also"].items():
            cell = tables.ppl_cell(value, result["vocab_size"]) if value is not None else "-"
            print(f"  {name:16} {cell:>8}   {result['also_missing'].get(name, MISTAKES[name])}")
    return result


def generate(args):
    if args.prompt is not None and args.prompts:
        raise UserError("--prompt and --prompts: give one of them")
    chat = args.prompt is None and not args.prompts
    if chat and not sys.stdin.isatty():
        raise UserError("no --prompt and no --prompts, and no terminal to chat on")
    sampling = flags.sampling(args)
    texts = measure.read_questions(args.prompts, args.limit)[0] if args.prompts else [args.prompt]
    o = measure.open_asked(args, writes=True)
    template = calls.choose_template(args, o)
    markers = template.ends if template else ()
    print(f"{o}; {sampling}" + (f"; template: {args.template}" if template else ""))
    if chat:
        return talk(o, args, sampling, template)
    prompts = [template.ask(text) if template else text for text in texts]
    special.say(special.report_of(o.tokenizer, texts))
    if args.prompts:
        for k, prompt in enumerate(prompts, 1):
            try:
                room(o.model.config, o.tokenizer.prompt(prompt).tolist(), args.max_new_tokens)
            except UserError as e:
                raise UserError(f"{args.prompts}, row {k}: {e}") from e
        done = measure.complete(
            o, prompts, sampling, markers, args.max_new_tokens, args.batch_size, args.seed
        )
        for d in done:
            print(f"\n{d['prompt']}\n>>> {d['completion'].strip()}" + ("" if d["stopped"] else " ..."))
    elif args.json:
        done = measure.complete(
            o, prompts, sampling, markers, args.max_new_tokens, args.batch_size, args.seed
        )
        print(done[0]["completion"])
    else:
        steps = room(o.model.config, o.tokenizer.prompt(prompts[0]).tolist(), args.max_new_tokens)
        measure.write_on(o, prompts[0], sampling, markers, steps, args.seed)
        return
    save(args, [d | {"prompt": text} for d, text in zip(done, texts, strict=True)])


def talk(o, args, sampling, template):
    """Read a question, write the answer, until the input ends. Each question stands alone: nothing of the
    talk is kept."""
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
        measure.write_on(o, prompt, sampling, template.ends if template else (), steps, seed)
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
    names = [
        split_how(split_name(n)[1])[0]
        for read in (given, *trained)
        for flag in flags
        for n in read.get(flag) or []
    ]
    names += [given.get(k) for k in ("prompts", "template", "classifier")]
    if given.get("tasks"):
        names += args.tasks if args.command == "compare" else Path(args.tasks).glob("*.json*")
    return directories + [Path(name) for name in names if name and Path(name).exists()]
