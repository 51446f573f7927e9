"""Phase 2, adapt: continue a GPT-2's causal-LM training on (biomedical) text, with all weights or with LoRA.

python train_clm.py --model gpt2 --data abstracts.jsonl --out runs/adapted
python train_clm.py --model gpt2 --data pubmed.jsonl:0.9 --data general.jsonl:0.1 --lora-r 8 --out runs/mixed
python train_clm.py --model config.json --from-scratch --data general.jsonl --out runs/base
"""

import shlex
from functools import partial

from nanomed import cli, data, heldout, rows, run
from nanomed.errors import UserError
from nanomed.loss import linear_cross_entropy
from nanomed.perplexity import perplexity


def parse_args():
    p = cli.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, metavar="M", help=cli.MODEL_HELP)
    p.add_argument(
        "--data",
        required=True,
        nargs="+",
        action=cli.Several,
        metavar="D",
        help=cli.DATA_HELP + "; D:WEIGHT gives its share of the blocks",
    )
    cli.add_held_out_flags(p, "documents")
    cli.add_sample_flag(p)
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
    chosen = [encode(n, args.limit).all() for n in (names if any(weights) else [names])]
    held, hashes = heldout.excluded(args)
    hashes |= {s.corpus.name: s.corpus.sha256 for s in chosen}
    chosen, excluded = zip(*(data.without(s, held.texts()) for s in chosen), strict=True)
    if args.val_data:
        validation = {name: [encode(files).all()] for name, files in rows.named_sets(args.val_data).items()}
        hashes |= {f"val-data {name}": s.corpus.sha256 for name, (s,) in validation.items()}
        training = chosen
        heldout.say_overlap(sum(data.without(s, held.texts())[1] for (s,) in validation.values()))
    else:
        training, drawn = zip(*(data.split(s, args.val_fraction, args.seed) for s in chosen), strict=True)
        drawn = [s for s in drawn if len(s.indices)]
        validation = {"validation": drawn} if drawn else {}
    held.documents |= data.digests([s for sides in validation.values() for s in sides])
    training, removed = zip(*(data.without(s, held.documents) for s in training), strict=True)
    run.say_removed(sum(excluded) + sum(removed))
    for selection in training:
        if not len(selection.indices):
            raise UserError(f"{selection.corpus.name}: no documents left to train on")
    run.say_earlier(setup, sum(data.without(s, setup.earlier.texts())[1] for s in training))
    shares = [w or 1.0 for w in weights[: len(training)]]
    blocks = data.Mixture(training, shares, args.context, args.batch_size, args.grad_accum, args.seed)

    facts = {
        "documents": sum(len(s.indices) for s in training),
        "val_documents": sum(len(s.indices) for sides in validation.values() for s in sides),
        "duplicates_removed": sum(excluded) + sum(removed),
    }
    what = (
        f"{facts['documents']:,} documents, {sum(blocks.counts) * args.context:,} tokens an epoch in blocks of {args.context}"
        f"{' (' + ' + '.join(f'{c:,}' for c in blocks.counts) + ' blocks)' if len(blocks.counts) > 1 else ''}; "
        f"{facts['val_documents']:,} validation documents"
    )

    def evaluate(model, documents):
        context, batch_size = args.context, args.batch_size
        result = perplexity(model, documents, context, context // 2, batch_size, setup.device, args.dtype)
        return {"loss": result["loss"], "ppl": result["ppl"]}

    measures = {name: partial(evaluate, documents=sides) for name, sides in validation.items()}
    if run.train(args, setup, blocks, clm_loss, measures, held, hashes, facts, what, from_scratch=args.from_scratch):
        print(f"results in {args.out}; next: python eval.py generate --model {shlex.quote(args.out)} --prompt 'The patients were'")


if __name__ == "__main__":
    cli.run(main)
