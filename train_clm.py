"""Phase 2, adapt: continue a GPT-2's causal-LM training on (biomedical) text, with all weights or with LoRA.

python train_clm.py --model gpt2 --data abstracts.jsonl --out runs/adapted
python train_clm.py --model gpt2 --data pubmed.jsonl:0.9 --data general.jsonl:0.1 --lora-r 8 --out runs/mixed
python train_clm.py --model config.json --from-scratch --data general.jsonl --out runs/base
"""

from pathlib import Path

import torch

from nanomed import cli, data, hub, run
from nanomed.errors import UserError
from nanomed.loss import linear_cross_entropy
from nanomed.perplexity import perplexity
from nanomed.precision import resolve_device, resolve_dtype
from nanomed.tokenizer import load_tokenizer
from nanomed.train import Settings, fit, total_steps


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
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    run.check_out(args)
    cli.check_lora_flags(args)
    torch.manual_seed(args.seed)

    # text -> tokens -> the documents of each side
    source = hub.find(args.model, weights=not args.from_scratch)
    _, config = hub.read_config(source.directory)
    tokenizer = load_tokenizer(source.tokenizer_directory)
    hub.check_vocabulary(tokenizer, config, source)
    context = args.context or min(config.n_positions, 1024)
    if not 2 <= context <= config.n_positions:
        raise UserError(f"--context {context}: {source.name} has {config.n_positions} positions")

    def encode(names, limit=None):
        corpus = data.encode_corpus(names, tokenizer, args.text_field, limit, args.skip_bad_rows)
        if corpus.bad_rows:
            print(f"{corpus.name}: {corpus.bad_rows} bad rows left out")
        return corpus

    names, weights = zip(*map(data.split_weight, args.data), strict=True)
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
    if sum(removed):
        print(f"{sum(removed)} training documents that are held out too were taken out of the training side")
    for selection in training:
        if not len(selection.indices):
            raise UserError(f"{selection.corpus.name}: no documents left to train on")
    if args.patience and not validation:
        raise UserError(
            "--patience stops on the validation loss, and there is no validation (--val-data, --val-fraction)"
        )
    shares = [w or 1.0 for w in weights[: len(training)]]
    blocks = data.Mixture(training, shares, context, args.batch_size, args.grad_accum, args.seed)

    # model
    # The values that `auto` and defaults stand for, so that run.json holds them and a resumed run is held to them.
    args.device, args.dtype, args.context = str(device), dtype, context
    args.lr = args.lr or (2e-4 if args.lora_r else 6e-4 if args.from_scratch else 5e-5)
    args.lora_alpha = args.lora_alpha or 2.0 * args.lora_r
    identity = {
        "data": {s.corpus.name: s.corpus.sha256 for s in [*training, *held_out]},
        "tokenizer": tokenizer.hash,
        "model": hub.fingerprint(source, weights=not args.from_scratch),
    }
    if run.is_complete(args, identity):
        print(f"{args.out}: this run is complete; nothing to do")
        return
    run.record_start(args, identity)
    model, base = run.prepare_model(args, source, device, dtype, args.from_scratch)
    settings = Settings(**{k: v for k, v in vars(args).items() if k in Settings.__dataclass_fields__})
    parameters = list(model.parameters())
    facts = {
        "model": source.name,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "documents": sum(len(s.indices) for s in training),
        "val_documents": sum(len(s.indices) for s in validation),
        "duplicates_removed": sum(removed),
        "device": str(device),
        "dtype": dtype,
        "context": context,
    }
    print(
        f"{args.model}: {facts['parameters']:,} parameters, {facts['trainable']:,} trainable; "
        f"{facts['documents']:,} documents, {sum(blocks.counts) * context:,} tokens an epoch in blocks of {context}"
        f"{' (' + ' + '.join(f'{c:,}' for c in blocks.counts) + ' blocks)' if len(blocks.counts) > 1 else ''}; "
        f"{facts['val_documents']:,} validation documents; {device}, {dtype}; {total_steps(blocks, settings):,} updates "
        f"of up to {args.batch_size} x {args.grad_accum} blocks, peak learning rate {args.lr:g}"
    )

    def evaluate():
        return perplexity(model, validation, context, context // 2, args.batch_size, device, dtype)

    result = fit(model, blocks, clm_loss, evaluate if validation else None, settings, Path(args.out), args.resume)
    run.finish(args, model, base, source, result, facts)
    val = result["best_val" if args.patience else "last_val"]  # of the weights that are in DIR
    print(f"validation perplexity {result['first_val']['ppl']:.2f} -> {val['ppl']:.2f}" if val else "no validation")
    print(f"results in {args.out}; next: python eval.py ppl --model {args.out} --data ...")


if __name__ == "__main__":
    cli.run(main)
