"""Train a byte-level BPE of one's own, for a model that is trained from scratch.

    python -m nanomed.text.bpe --data general.jsonl --vocab-size 8192 --out runs/shape

The training itself is the `tokenizers` library's (the [sentencepiece] extra); nanomed.text.tokenizer reads
what it writes: tokenizer.json, vocab.json and merges.txt."""

import os
import shutil
from pathlib import Path

from nanomed import cli, flags
from nanomed.errors import UserError
from nanomed.files import make_temporary, read_json, write_json
from nanomed.optional import need
from nanomed.outputs import check_directory, lock, names_in
from nanomed.text import reading, rows
from nanomed.text.tokenizer import EOT

CONFIG = {"tokenizer_class": "GPT2Tokenizer", "bos_token": EOT, "eos_token": EOT}
# The first says who wrote the others.
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


def check_out(out: str) -> None:
    """Refuse to write over another tokenizer, or beside the weights of a model that would read it. Raises
    UserError unless `out` is new, empty, or what this program made: a config.json, for the shape of a new
    model, may have come to it."""
    check_directory(out)
    names, config = names_in(Path(out)), Path(out) / "tokenizer_config.json"
    ours = names <= {*WRITTEN, "config.json"} and config.exists() and read_json(config) == CONFIG
    if names and not ours:
        raise UserError(f"--out {out}: holds what nanomed.text.bpe did not write; choose another directory")


def main():
    p = cli.Parser(prog="python -m nanomed.text.bpe", description=cli.summary(__doc__))
    p.add_argument("--data", required=True, nargs="+", action=cli.Several, metavar="D", help=flags.DATA_HELP)
    size = "tokens, the 256 bytes and <|endoftext|> included"
    p.add_argument("--vocab-size", type=flags.count, default=8192, help=size)
    p.add_argument("--out", required=True, metavar="DIR", help="where the tokenizer's files go")
    p.add_argument("--limit", type=flags.count, metavar="N", help="only the first N documents of each --data")
    flags.add_data_flags(p)
    args = reading.read_as(p.parse_args())
    out = Path(args.out)
    check_out(args.out)
    lock(out)
    check_out(args.out)  # again, now that no other process changes it any more
    how = (args.text_field, args.limit, args.skip_bad_rows)
    texts = (text for name in args.data for text in rows.read_texts(name, *how) if text)
    made = make_temporary(out)
    try:
        size = train_bpe(texts, args.vocab_size, made)
        for name in WRITTEN:
            os.replace(made / name, out / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    print(f"{args.out}: {size:,} tokens")


if __name__ == "__main__":
    cli.execute(main)
