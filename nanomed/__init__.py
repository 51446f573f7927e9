"""nanomed: GPT-2, GPT-Neo and Llama, LoRA, a training loop and a perplexity evaluator, hand-written in plain
PyTorch."""

__version__ = "0.1.0"
