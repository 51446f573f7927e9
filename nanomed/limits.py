"""Numbers with their limits, the same for a flag, a recipe and a run.json: types by which msgspec checks what
is read, and the command line is read."""

import argparse
import contextlib
from typing import Annotated, get_args

import msgspec
from msgspec import Meta

FINITE = 1e300
Count = Annotated[int, Meta(ge=1, le=2**63 - 1)]  # what 64 bits hold
Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
ShareOr1 = Annotated[float, Meta(ge=0, le=1)]
Probability = Annotated[float, Meta(gt=0, le=1)]
AtLeast0 = Annotated[float, Meta(ge=0, lt=FINITE)]
AtLeast1 = Annotated[float, Meta(ge=1, lt=FINITE)]
Positive = Annotated[float, Meta(gt=0, lt=FINITE)]
Files = Annotated[list[str], Meta(min_length=1)]


def limited(kind):
    """A function that reads a number of one of these types from the command line."""
    base, meta = get_args(kind)
    bounds = {"at least": meta.ge, "more than": meta.gt, "at most": meta.le, "less than": meta.lt}
    limits = " and ".join(f"{words} {n:g}" for words, n in bounds.items() if n is not None and n != 2**63 - 1)

    def read(text: str):
        with contextlib.suppress(msgspec.ValidationError):
            if base is float:
                return msgspec.convert(number(text), kind)
            if text.isascii() and text.isdigit():
                return msgspec.convert(text, kind, strict=False)
        what = f"a whole number of {limits}" if base is int else limits
        beyond = " and less than 2^63" if base is int and len(text) > 18 else ""
        raise argparse.ArgumentTypeError(f"must be {what}{beyond}, not {text[:40]!r}")

    return read


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from e
