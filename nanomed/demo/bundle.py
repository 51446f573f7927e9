"""Make a trained model the bundled one: python -m nanomed.demo.bundle runs/nano writes nanomed/demo/nano, in
fp16."""

import sys

import torch

from nanomed import cli, hub
from nanomed.errors import UserError


def main():
    if len(sys.argv) != 2:
        raise UserError("one argument: the directory that train_clm.py made")
    source = hub.find(sys.argv[1])
    hub.save_model(hub.load_model(source), hub.BUNDLED["nano"], source.tokenizer_directory, torch.float16)
    print(f"results in {hub.BUNDLED['nano']}; its card, README.md, is written by hand")


if __name__ == "__main__":
    cli.execute(main)
