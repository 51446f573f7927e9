"""A model's loss and gradient on CUDA, in every dtype, against fp32 on the CPU.

python bench/parity.py --model nano"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from nanomed import hub
from nanomed.models.loss import clm_loss
from nanomed.precision import autocast
from nanomed.text.batch import Batch
from nanomed.text.tokenizer import load_tokenizer

TEXT = (
    "The patients were treated with aspirin for two weeks, and the results showed a significant effect. " * 6
)


def loss_and_gradient(source, ids, device: torch.device, dtype: str) -> tuple[float, torch.Tensor]:
    """The mean loss of ids (1, T + 1) after the first, and its gradient with respect to all weights, one
    after the other."""
    model = hub.load_model(source, dropout=0.0).to(device)
    with autocast(device, dtype):
        nll, _ = clm_loss(model, Batch(ids[:, :-1], ids[:, 1:]))
    nll.backward()
    return nll.item() / (ids.size(1) - 1), torch.cat(
        [p.grad.flatten().double().cpu() for p in model.parameters()]
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="nano")
    source = hub.find(p.parse_args().model)
    if not torch.cuda.is_available():
        sys.exit("this PyTorch sees no CUDA device: nothing to compare")
    tokenizer = load_tokenizer(source.tokenizer_directory)
    ids = torch.tensor([[tokenizer.lead, *tokenizer.encode(TEXT).tolist()]])
    loss, gradient = loss_and_gradient(source, ids, torch.device("cpu"), "fp32")
    print(f"cpu fp32: loss {loss:.6f}; {torch.cuda.get_device_name()}, torch {torch.__version__}")
    for dtype in ("fp32", "bf16", "fp16"):
        other, found = loss_and_gradient(source, ids, torch.device("cuda"), dtype)
        error = ((found - gradient).norm() / gradient.norm()).item()
        print(f"cuda {dtype}: loss {other:.6f}, relative error of the gradient {error:.1e}")


if __name__ == "__main__":
    main()
