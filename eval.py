"""Measure a model: `eval.py ppl`, the perplexity of documents.

python eval.py ppl --model gpt2 --data abstracts.jsonl --json before.json
"""

import sys
from pathlib import Path

from nanomed import cli, data, hub
from nanomed.errors import UserError
from nanomed.files import write_json
from nanomed.perplexity import perplexity
from nanomed.precision import resolve_device, resolve_dtype, store_frozen
from nanomed.tokenizer import load_tokenizer


def parse_args():
    p = cli.Parser(description=__doc__.splitlines()[0])
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=cli.Parser)
    ppl = commands.add_parser("ppl", help="perplexity, bits per byte and word perplexity of documents")
    ppl.add_argument("--model", required=True, metavar="M", help=cli.MODEL_HELP)
    ppl.add_argument("--data", required=True, nargs="+", action=cli.Several, metavar="D", help=cli.DATA_HELP)
    ppl.add_argument("--context", type=cli.count, metavar="N",
                     help="ids a window (default: the model's positions, 1024 at most)")  # fmt: skip
    ppl.add_argument("--stride", type=cli.count, metavar="N", help="ids between windows (default: context // 2)")
    ppl.add_argument(
        "--batch-size", type=cli.count, default=8, help="windows at once; the result does not depend on it"
    )
    ppl.add_argument("--json", metavar="FILE", help="write the result there")
    cli.add_common_flags(ppl)
    cli.add_data_flags(ppl)
    if sys.argv[1:2] and sys.argv[1].startswith("-") and sys.argv[1] not in ("-h", "--help"):
        raise UserError("a command comes first: eval.py ppl --model M --data D (eval.py ppl --help lists the flags)")
    return p.parse_args()


def ppl(args):
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    source = hub.find(args.model)
    _, config = hub.read_config(source.directory)
    context = args.context or min(config.n_positions, 1024)
    stride = args.stride or max(1, context // 2)
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: no such directory")
    tokenizer = load_tokenizer(source.tokenizer_directory)
    hub.check_vocabulary(tokenizer, config, source)
    corpus = data.encode_corpus(args.data, tokenizer, args.text_field, args.limit, args.skip_bad_rows)
    model = hub.load_model(source).requires_grad_(False)
    store_frozen(model, dtype, device)
    model.to(device)
    print(
        f"{args.model}: {sum(p.numel() for p in model.parameters()):,} parameters, none trainable; "
        f"{len(corpus.documents):,} documents, "
        f"{int(corpus.documents['length'].sum()) - len(corpus.documents):,} tokens; context {context}, stride {stride}; "
        f"{device}, {dtype}" + (f"; {corpus.bad_rows} bad rows left out" if corpus.bad_rows else "")
    )
    result = perplexity(model, [corpus.all()], context, stride, args.batch_size, device, dtype, seed=args.seed)
    result |= {"data": args.data, "data_sha256": corpus.sha256, "bad_rows": corpus.bad_rows, "model": args.model}
    interval = "[{:.2f}, {:.2f}]".format(*result["ppl_ci95"]) if result["ppl_ci95"] else "(one document: no interval)"
    print(
        f"perplexity {result['ppl']:.2f} {interval}, loss {result['loss']:.4f} nats a token, "
        f"{result['bits_per_byte']:.4f} bits a byte; {result['tokens_scored']:,} tokens, {result['tokens_per_s']:,.0f} a second"
    )
    if args.json:
        write_json(result, Path(args.json))
        print(f"results in {args.json}")


def main():
    args = parse_args()
    {"ppl": ppl}[args.command](args)


if __name__ == "__main__":
    cli.run(main)
