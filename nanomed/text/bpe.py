"""Train a byte-level BPE of one's own, for a model that is trained from scratch.

    python -m nanomed.text.bpe --data general.jsonl --vocab-size 8192 --out runs/shape

The training itself is the `tokenizers` library's (the [sentencepiece] extra); nanomed.text.tokenizer reads
what it writes: tokenizer.json, vocab.json and merges.txt."""

from pathlib import Path

from nanomed import cli, flags, outputs
from nanomed.errors import UserError
from nanomed.files import write_json
from nanomed.optional import need
from nanomed.text import reading
from nanomed.text.rows import full_texts
from nanomed.text.tokenizer import EOT

PROGRAM = "python -m nanomed.text.bpe"
CONFIG = {"tokenizer_class": "GPT2Tokenizer", "bos_token": EOT, "eos_token": EOT}
WRITTEN = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt")


def train_bpe(texts, vocab_size: int, out: Path) -> int:
    """Write a vocabulary of up to `vocab_size` tokens to `out`, every byte and <|endoftext|> (id 0) among
    them. Returns its size."""
    need("tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    how = {"special_tokens": [EOT], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **how)
    bpe.train_from_iterator(texts, trainer)
    out.mkdir(parents=True, exist_ok=True)
    write_json(CONFIG, out / "tokenizer_config.json")
    bpe.save(str(out / "tokenizer.json"))
    bpe.model.save(str(out))
    return bpe.get_vocab_size()


def take(out: Path) -> dict:
    """outputs.take(). A config.json, for the shape of a new model, may have come to what this program made.
    Raises UserError for another tokenizer, and for the weights of a model that would read this one."""
    if outputs.names_in(out) - {*WRITTEN, outputs.RECORD, "config.json"}:
        raise UserError(f"--out {out}: holds what nanomed.text.bpe did not write; choose another directory")
    return outputs.take(out, PROGRAM, writes=WRITTEN)


def main():
    p = cli.Parser(prog=PROGRAM, description=cli.summary(__doc__))
    p.add_argument("--data", required=True, nargs="+", action=cli.Several, metavar="D", help=flags.DATA_HELP)
    size = "tokens, the 256 bytes and <|endoftext|> included"
    p.add_argument("--vocab-size", type=flags.count, default=8192, help=size)
    p.add_argument("--out", required=True, type=flags.directory, metavar="DIR", help="where its files go")
    p.add_argument("--limit", type=flags.count, metavar="N", help="only the first N documents of each --data")
    flags.add_data_flags(p)
    args = reading.read_as(p.parse_args())
    out = Path(args.out)
    held = take(out)
    texts = full_texts(args.data, args.text_field, args.limit, args.skip_bad_rows)
    with outputs.built(out, PROGRAM, held) as made:
        size = train_bpe(texts, args.vocab_size, made)
    print(f"{args.out}: {size:,} tokens")


if __name__ == "__main__":
    cli.execute(main)
