"""Libraries that only some commands need: imported when they are, and said in one line how to get where they
are missing."""

import importlib

from nanomed.errors import UserError

# The extra of pyproject.toml that brings a library, if it is not `report`.
EXTRAS = {"tokenizers": "sentencepiece", "gguf": "gguf", "transformers": "gguf", "bm25s": "tasks"}
EXTRAS |= {"datasketch": "tasks", "lxml": "pubmed", "bioc": "corpora"}


def need(module: str):
    """Import it. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        name = module.split(".")[0]
        extra = EXTRAS.get(name, "report")
        raise UserError(f"{name} is not installed: pip install 'nanomed[{extra}]'") from e
