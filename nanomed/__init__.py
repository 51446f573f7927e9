"""nanomed: GPT-2, GPT-Neo, Llama and Gemma 3, LoRA, a training loop and a perplexity evaluator,
hand-written in plain PyTorch."""

__version__ = "0.1.0"
