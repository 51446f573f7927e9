"""Phase 4, instruct: supervised fine-tuning of a GPT-2 on instruction/response pairs, with all weights or with LoRA.

python train_sft.py --model runs/adapted --data pairs.jsonl --out runs/instructed
python train_sft.py --model runs/adapted --data pairs.jsonl --template alpaca --lora-r 8 --out runs/instructed-lora
python train_sft.py --model runs/adapted --data pairs.jsonl --replay abstracts.jsonl --out runs/instructed
"""

from nanomed import cli, data, examples, run
from nanomed.errors import UserError
from nanomed.perplexity import answer_perplexity
from nanomed.templates import load_template


def parse_args():
    p = cli.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, metavar="M", help=cli.MODEL_HELP)
    p.add_argument("--data", required=True, nargs="+", action=cli.Several, metavar="D",
                   help="rows of an instruction and its response: " + cli.DATA_HELP)  # fmt: skip
    p.add_argument("--val-data", nargs="+", action=cli.Several, metavar="D", help="validate on these rows")
    p.add_argument("--val-fraction", type=cli.share, default=0.05, help="else on this share of --data's rows")
    p.add_argument("--exclude", nargs="+", action=cli.Several, metavar="D",
                   help="rows that will be measured on later: take their questions out of the training side too")  # fmt: skip
    cli.add_instruction_flags(p)
    p.add_argument("--group-field", metavar="FIELD",
                   help="rows that share this field's value (a disease, say) stay on one side of the split")  # fmt: skip
    p.add_argument("--train-on-prompt", action="store_true", help="supervise the prompt too, for comparison")
    p.add_argument("--no-packing", action="store_true", help="one example a row, padded, instead of several, isolated")
    p.add_argument("--replay", nargs="+", action=cli.Several, metavar="D",
                   help="documents to mix in as plain text (--text-field), against forgetting what was read")  # fmt: skip
    p.add_argument("--replay-ratio", type=cli.positive, default=1.0, help="documents of --replay per example")
    cli.add_training_flags(p)
    return cli.parse(p, phase="instruct")


def main():
    args = parse_args()
    template = load_template(args.template)
    setup = run.setup(args, full_lr=5e-5)
    fields = examples.Fields(args.instruction_field, args.input_field, args.response_field, args.group_field)

    # rows -> the sides -> masked ids -> rows of a batch
    def read(side, names, limit=None):
        items, bad, sha = examples.read_instructions(names, fields, limit, args.skip_bad_rows)
        if bad:
            print(f"{' + '.join(names)}: {bad} bad rows left out")
        hashes[f"{side}: {' + '.join(names)}"] = sha
        return items

    hashes = {"template": repr(template)}
    training, validation = read("data", args.data, args.limit), []
    if args.val_data:
        validation = read("val-data", args.val_data)
    elif args.val_fraction:
        training, validation = examples.split_instructions(training, args.val_fraction, args.seed)
    held_out = validation + (read("exclude", args.exclude) if args.exclude else [])
    training, removed = examples.without_questions(training, held_out)
    run.say_removed(removed)
    sides = [examples.encode_instructions(s, setup.tokenizer, template, args.context) for s in (training, validation)]
    chosen, held_out = (side.examples for side in sides)
    if not chosen or (validation and not held_out):
        raise UserError(f"no example fits --context {args.context}{sides[0] if not chosen else sides[1]}")
    answer_tokens = sum(len(e.ids) - e.start for e in chosen)
    if args.train_on_prompt:
        chosen = examples.supervise_prompts(chosen)
    replayed, beyond = [], ""
    if args.replay:
        corpus = data.encode_corpus(args.replay, setup.tokenizer, args.text_field, None, args.skip_bad_rows)
        limit = round(args.replay_ratio * len(chosen))
        replayed = examples.text_examples(corpus.all(), args.context, limit, args.seed)
        if limit > len(corpus.all().indices):
            beyond = f" (of {limit:,} documents asked for, all that there are)"
        hashes[f"replay: {corpus.name}"] = corpus.sha256
    rows = [[e] for e in chosen + replayed] if args.no_packing else examples.pack(chosen + replayed, args.context)
    batches = examples.Batches(rows, examples.collate, args.batch_size, args.grad_accum, args.seed)

    facts = {
        "template": args.template,
        "examples": len(chosen),
        "val_examples": len(held_out),
        "truncated": sides[0].truncated,
        "dropped": sides[0].dropped,
        "empty_responses": sides[0].empty,
        "duplicates_removed": removed,
        "rows": len(rows),
        "filled": sum(len(e.ids) - 1 for e in chosen + replayed) / (len(rows) * args.context),
    }
    what = (
        f"{len(chosen):,} examples{sides[0]}, {answer_tokens:,} tokens of answers; template {args.template}; "
        + (f"{len(replayed):,} pieces of text replayed{beyond}; " if replayed else "")
        + f"{len(rows):,} rows of up to {args.context} tokens, {facts['filled']:.0%} filled; "
        f"{len(held_out):,} validation examples{sides[1]}"
    )

    def evaluate(model):
        return answer_perplexity(model, held_out, args.batch_size, setup.device, args.dtype)

    if run.train(args, setup, batches, examples.instruction_loss, evaluate if held_out else None, hashes, facts, what):
        print(
            f"results in {args.out}; next: python eval.py generate --model {args.out} --template {args.template}, "
            f"or eval.py qa --model {args.out} --template {args.template} --data ..."
        )


if __name__ == "__main__":
    cli.run(main)
