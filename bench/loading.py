"""From a model's directory to a model in memory: nanomed, transformers, and reading the file and nothing
else.

    python bench/loading.py [--model runs/models/smollm2-135m]

A unit is a load; the file is in the system's cache after the first. Both are called to come out in fp32 on
the CPU."""

import time
from pathlib import Path

import sides

SIDES = ["nanomed", "transformers", "reading the file"]


def main():
    p = sides.parser(__doc__, SIDES)
    args = p.parse_args()
    pairs = {f"nanomed against {peer}": ("nanomed", peer) for peer in SIDES[1:]}
    sides.execute("loading", "loads", args, measure, pairs, same_loss=0.0)


def measure(side: str, args) -> dict:
    run = {"nanomed": ours, "transformers": theirs, "reading the file": read}[side](args.model)
    seconds = []
    for _ in range(2 + args.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"per_s": [1 / s for s in seconds[2:]], "warm_up_s": sum(seconds[:2]), "loss": None}


def ours(model):
    from nanomed import hub

    return lambda: hub.load_model(hub.find(model))


def theirs(model):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return lambda: transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def read(model):
    (file,) = Path(model).glob("*.safetensors")
    return lambda: len(file.read_bytes())


if __name__ == "__main__":
    main()
