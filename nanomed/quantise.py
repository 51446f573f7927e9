"""A model with its linear layers quantised, in a directory that this program and transformers load.

python -m nanomed.quantise --model M --quantize nf4 --out DIR"""

from pathlib import Path

from nanomed import cli, flags, hub, outputs
from nanomed.errors import UserError
from nanomed.files import write_json
from nanomed.precision import DTYPES
from nanomed.text import templates
from nanomed.text.tokenizer import load_tokenizer

PROGRAM = "python -m nanomed.quantise"
KINDS = "4 bits (NF4, the scales in 8) or 8 bits a weight"


def main() -> None:
    p = cli.Parser(prog=PROGRAM, description=cli.summary(__doc__))
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    p.add_argument("--quantize", required=True, choices=flags.QUANTIZATIONS, help=KINDS)
    dtypes = "of what is not quantised (default: as it is stored)"
    p.add_argument("--save-dtype", choices=flags.SAVED, help=dtypes)
    p.add_argument("--out", required=True, metavar="DIR", help="where the model goes")
    args = p.parse_args()
    out, source = Path(args.out), hub.find(args.model)
    if source.adapter:
        mend = f"merge it first (docs/adapters.md), or quantise its base {source.name}"
        raise UserError(f"{args.model}: an adapter; {mend}")
    if "quantization_config" in hub.read_config(source.directory)[0]:
        raise UserError(f"{args.model}: its weights are quantised already")
    dtype = args.save_dtype or hub.stored_dtype(source.directory)
    held, asked = outputs.take(out, PROGRAM), {"model": hub.fingerprint(source), "quantize": args.quantize}
    asked["save_dtype"] = dtype
    tokenizer = load_tokenizer(source.tokenizer_directory, source.directory)
    template = templates.instructed_with(source.directory)
    if held and not outputs.unfinished(held):
        if {k: ({"save_dtype": "fp32"} | held).get(k) for k in asked} != asked:  # as it was without the key
            other = "another model, or quantised otherwise, lies there"
            raise UserError(f"--out {out}: {other}; choose another directory")
        if outputs.is_whole(out, held):
            print(f"{out}: there already")
            return
    model = hub.load_model(source, quantize=args.quantize)
    with outputs.built(out, PROGRAM, held) as made:
        hub.save_model(model, made, source.tokenizer_directory, DTYPES[dtype])
        if template:
            template.save(tokenizer, made)
        write_json(asked, made / outputs.RECORD)
    print(f"results in {out}: {(out / 'model.safetensors').stat().st_size / 1e6:,.1f} MB of weights")


if __name__ == "__main__":
    cli.execute(main, "nanomed.quantise")
