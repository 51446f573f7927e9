"""Write a GPT-2-small-shaped model (124 M, random weights) with transformers: the real size where no weights
can be had.

python bench/random_gpt2.py --tokenizer runs/study/shape --out runs/gpt2-random"""

import argparse
from pathlib import Path

import torch
import transformers

from nanomed.text.tokenizer import FILES, load_tokenizer


def write_random_gpt2(out: Path, tokenizer: Path | None = None, **config) -> None:
    """GPT-2's default shape, or as `config` says, in `out`; with the tokenizer's files and its
    <|endoftext|>."""
    torch.manual_seed(0)
    eot = load_tokenizer(tokenizer).eos if tokenizer else 50256
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{"bos_token_id": eot, "eos_token_id": eot} | config)
    ).save_pretrained(out)
    for name in FILES:
        if tokenizer and (tokenizer / name).exists():
            (out / name).write_bytes((tokenizer / name).read_bytes())


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--tokenizer", type=Path, required=True, help="directory whose tokenizer it gets")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args()
    write_random_gpt2(args.out, args.tokenizer)
