"""What an adapter, which may come from anybody, could do to the machine that reads it."""

from collections.abc import Iterable

import regex

from nanomed.errors import UserError
from nanomed.memory import shortage
from nanomed.models.lora import LoRAConfig, fits, is_linear

LONGEST = 1.0  # second that a regular expression may take for one name


def check_expressions(patterns: Iterable[str], names: list[str]) -> None:
    """Try regular expressions on all names that they will be matched against: some would take years. Raises
    UserError for such a one, and for what is none."""
    for pattern in patterns:
        for name in names:
            try:
                regex.fullmatch(pattern, name, timeout=LONGEST)
            except regex.error as e:
                raise UserError(f"LoRA's target {pattern!r} is no regular expression ({e})") from e
            except TimeoutError as e:
                why = f"takes too long to be matched against {name}"
                raise UserError(f"LoRA's target {pattern!r} {why}") from e


def check_size(model, lora: LoRAConfig) -> None:
    """Raises UserError for an adapter whose weights would not fit this machine."""
    linears = [m for n, m in model.named_modules() if fits(lora.targets, n) and is_linear(n, m)]
    if why := shortage(4 * lora.r * sum(m.in_features + m.out_features for m in linears)):
        raise UserError(f"LoRA of rank {lora.r}: {why}")
