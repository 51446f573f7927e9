"""Models of others and for others: found and downloaded (source), read and written in Hugging Face's layout
(weights), and peft's (adapters, merging)."""

from nanomed.hub.adapters import save_adapter
from nanomed.hub.source import BUNDLED, Source, find, fingerprint
from nanomed.hub.weights import (
    check_vocabulary,
    is_classifier,
    load_classifier,
    load_model,
    read_config,
    save_model,
)

__all__ = [
    "BUNDLED",
    "Source",
    "check_vocabulary",
    "find",
    "fingerprint",
    "is_classifier",
    "load_classifier",
    "load_model",
    "read_config",
    "save_adapter",
    "save_model",
]
