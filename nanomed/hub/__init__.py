"""Models of others and for others, and every check of what others wrote: found and downloaded (source), read
and written in Hugging Face's layout (weights), and peft's (adapters, merging)."""

# ruff: noqa: F401
from nanomed.hub.adapters import save_adapter
from nanomed.hub.config import read_config
from nanomed.hub.source import BUNDLED, Source, find, fingerprint
from nanomed.hub.weights import (
    check_vocabulary,
    is_classifier,
    load_classifier,
    load_model,
    save_model,
    stored_dtype,
)
