"""nanomed: GPT-2, GPT-Neo, Llama and Gemma 3, LoRA, a training loop and a perplexity evaluator,
hand-written in plain PyTorch.

m = nanomed.load("gpt2")                             m.perplexity, generate, chat, choose, classify
nanomed.adapt("gpt2", data, "runs/adapted")          and nanomed.classify, nanomed.instruct: train
"""

import importlib

__version__ = "0.1.0"
__all__ = ["UserError", "adapt", "classify", "instruct", "load"]


def __getattr__(name: str):
    """Names of nanomed.python, which is imported when one is asked for: a script need not wait for it."""
    if name in __all__:
        return getattr(importlib.import_module("nanomed.python"), name)
    raise AttributeError(f"module 'nanomed' has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the names that __getattr__ knows, for somebody who looks around in a notebook."""
    return sorted({*globals(), *__all__})
