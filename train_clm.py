"""Phase 2, adapt: continue a GPT-2's causal-LM training on (biomedical) text, with all weights or with LoRA.

python train_clm.py --model gpt2 --data abstracts.jsonl --out runs/adapted
python train_clm.py --model gpt2 --data pubmed.jsonl:0.9 --data general.jsonl:0.1 --lora-r 8 --out runs/mixed
python train_clm.py --model config.json --from-scratch --data general.jsonl --out runs/base
"""

from nanomed import cli, data, rows, run
from nanomed.errors import UserError
from nanomed.loss import linear_cross_entropy
from nanomed.perplexity import perplexity


def parse_args():
    p = cli.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, metavar="M", help=cli.MODEL_HELP)
    p.add_argument("--data", required=True, nargs="+", action=cli.Several, metavar="D",
                   help=cli.DATA_HELP + "; D:WEIGHT gives its share of the blocks")  # fmt: skip
    p.add_argument("--val-data", nargs="+", action=cli.Several, metavar="D", help="validate on these documents")
    p.add_argument("--val-fraction", type=cli.share, default=0.05, help="else on this share of --data's documents")
    p.add_argument("--exclude", nargs="+", action=cli.Several, metavar="D",
                   help="documents that will be measured on later: take them out of the training side too")  # fmt: skip
    p.add_argument("--from-scratch", action="store_true", help="random weights; M gives the shape and the tokenizer")
    cli.add_training_flags(p)
    return cli.parse(p, phase="adapt")


def clm_loss(model, batch):
    """Summed next-token loss of (inputs, targets), each (B, T), and how many tokens it sums."""
    idx, targets = batch
    return linear_cross_entropy(model.transformer(idx), model.lm_head.weight, targets)


def main():
    args = parse_args()
    setup = run.setup(args, full_lr=6e-4 if args.from_scratch else 5e-5, weights=not args.from_scratch)

    def encode(names, limit=None):
        corpus = data.encode_corpus(names, setup.tokenizer, args.text_field, limit, args.skip_bad_rows)
        if corpus.bad_rows:
            print(f"{corpus.name}: {corpus.bad_rows} bad rows left out")
        return corpus

    # text -> tokens -> the documents of each side
    names, weights = zip(*map(rows.split_weight, args.data), strict=True)
    if any(weights) and not all(weights):
        raise UserError("--data: give every source a weight (D:0.9), or none")
    corpora = [encode(n, args.limit) for n in (names if any(weights) else [names])]
    if args.val_data:
        training, validation = [c.all() for c in corpora], [encode(args.val_data).all()]
    else:
        sides = [data.split(c, args.val_fraction, args.seed) for c in corpora]
        training, validation = [s[0] for s in sides], [s[1] for s in sides if len(s[1].indices)]
    held_out = validation + ([encode(args.exclude).all()] if args.exclude else [])
    training, removed = zip(*(data.without(s, held_out) for s in training), strict=True)
    run.say_removed(sum(removed))
    for selection in training:
        if not len(selection.indices):
            raise UserError(f"{selection.corpus.name}: no documents left to train on")
    shares = [w or 1.0 for w in weights[: len(training)]]
    blocks = data.Mixture(training, shares, args.context, args.batch_size, args.grad_accum, args.seed)

    facts = {
        "documents": sum(len(s.indices) for s in training),
        "val_documents": sum(len(s.indices) for s in validation),
        "duplicates_removed": sum(removed),
    }
    what = (
        f"{facts['documents']:,} documents, {sum(blocks.counts) * args.context:,} tokens an epoch in blocks of {args.context}"
        f"{' (' + ' + '.join(f'{c:,}' for c in blocks.counts) + ' blocks)' if len(blocks.counts) > 1 else ''}; "
        f"{facts['val_documents']:,} validation documents"
    )

    def evaluate(model):
        context, batch_size = args.context, args.batch_size
        return perplexity(model, validation, context, context // 2, batch_size, setup.device, args.dtype)

    hashes = {s.corpus.name: s.corpus.sha256 for s in [*training, *held_out]}
    if run.train(args, setup, blocks, clm_loss, evaluate if validation else None, hashes, facts, what,
                 from_scratch=args.from_scratch):  # fmt: skip
        print(f"results in {args.out}; next: python eval.py ppl --model {args.out} --data ...")


if __name__ == "__main__":
    cli.run(main)
