"""A model with its linear layers quantised, in a directory that this program and transformers load.

python -m nanomed.quantise --model M --quantize nf4 --out DIR
"""

from pathlib import Path

from nanomed import cli, flags, hub
from nanomed.errors import UserError
from nanomed.files import check_directory
from nanomed.text import templates
from nanomed.text.tokenizer import load_tokenizer
from nanomed.training.plan import QUANTIZATIONS


def main() -> None:
    p = cli.Parser(prog="python -m nanomed.quantise", description=cli.first_line(__doc__))
    p.add_argument("--model", required=True, metavar="M", help=flags.MODEL_HELP)
    p.add_argument("--quantize", required=True, choices=QUANTIZATIONS, help="4 bits (NF4, the scales in 8) or 8 bits a weight")
    p.add_argument("--out", required=True, metavar="DIR", help="where the model goes")
    args = p.parse_args()
    check_directory(args.out)
    out, source = Path(args.out), hub.find(args.model)
    if source.adapter:
        raise UserError(f"{args.model}: an adapter; merge it first (--merge), or quantise its base {source.name}")
    if (out / "config.json").exists():
        raise UserError(f"--out {out}: a model lies there; choose another directory")
    model = hub.load_model(source, quantize=args.quantize)
    hub.save_model(model, out, source.tokenizer_directory)
    template = templates.of_model(source.directory)
    if template:
        templates.save(template, load_tokenizer(source.tokenizer_directory), out)
    print(f"results in {out}: {(out / 'model.safetensors').stat().st_size / 1e6:,.1f} MB of weights")


if __name__ == "__main__":
    cli.execute(main, "nanomed.quantise")
