"""eval.py qa: a model's own answers against the references of their rows."""

from nanomed import flags
from nanomed.commands import retrieval
from nanomed.training.settings import Questions

HELP = "exact match, F1, BLEU and ROUGE of a model's answers"


def add_flags(p) -> None:
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    flags.add_files_flag(p, "--data", flags.DATA_HELP, required=True)
    flags.add_flags(p, Questions)
    flags.add_sampling_flags(p, temperature=0.0, top_p=1.0)
    flags.add_data_flags(p, text_field=False)
    retrieval.add_flags(p)


check_flags = retrieval.check_flags


def main(args) -> dict:
    from nanomed.evaluation import measure
    from nanomed.evaluation.tables import answers_table, text_table
    from nanomed.evaluation.training_texts import overlap_with_training
    from nanomed.text import instructions, special
    from nanomed.text.conversations import unplaced

    fields = instructions.Fields(args.instruction_field, args.input_field, args.response_field)
    how = (fields, args.limit, args.skip_bad_rows, args.system)
    items, bad, sha = instructions.read_instructions(args.data, *how)
    o = measure.open_asked(args, writes=True)
    texts, questions = [item.text() for item in items], [item.input or item.instruction for item in items]
    queries = [f"{item.instruction} {item.input}" for item in items]
    found = retrieval.look_up(args, o, queries, [None] * len(items))
    if found:
        pairs = zip(items, found.passages, strict=True)
        items = [item.with_input("\n".join(filter(None, [*texts, item.input]))) for item, texts in pairs]
    template, named = measure.choose_template(args.template, o, "response")
    left_out = f"; {bad} bad rows left out" if bad else ""
    asked, references = len({item.asked for item in items}), sum(len(i.each_answer()) for i in items)
    several = f" with {references:,} references, of which the best counts" if references > asked else ""
    print(f"{o}; {asked:,} questions{several}{left_out}; template {named}")
    sampling, most = measure.sampling_of(args), args.max_new_tokens
    r = measure.measure_answers(o, items, template, sampling, most, args.batch_size, args.seed)
    print(text_table(answers_table({args.model: r})))
    print(f"BLEU: {r['settings']['bleu']}\nROUGE: {r['settings']['rouge']}")
    if r["dropped"]:
        full = f"their prompts fill the model's {o.model.config.n_positions} positions"
        print(f"{r['dropped']} rows left out: {full}")
    special.say(r["special_tokens"])
    for line in unplaced((item.turns for item in items), template):
        print(line)
    prompts = (template.ask(item.asked).text for item in items)  # with passages, perhaps
    show_answers(r["answers"], dict(zip(prompts, questions, strict=True)))
    how = {"data": args.data, "data_sha256": sha, "template": named, "bad_rows": bad, "seed": args.seed}
    how |= {"retrieval": found and found.report, "sampling": vars(sampling), "max_new_tokens": most}
    return r | overlap_with_training(o, texts) | how


def show_answers(answers: list[dict], questions: dict[str, str], most: int = 3, width: int = 145) -> None:
    """The first few answers beside their references, each text cut to two lines. questions: by prompt."""
    for n, a in enumerate(answers[:most], 1):
        texts = {"question": questions[a["prompt"]], "reference": a["reference"], "answer": a["completion"]}
        print(f"\n{n} of {len(answers)}")
        for name, text in texts.items():
            text = " ".join(text.split()) or "(nothing)"
            print(f"  {name + ':':10} {text if len(text) <= width else text[: width - 3] + '...'}")
    print()
