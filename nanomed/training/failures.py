"""What can end a training before its end, other than a signal, and what is said then."""

import math
from contextlib import contextmanager
from pathlib import Path

from nanomed.errors import Interrupted, UserError, is_out_of_memory
from nanomed.training import checkpoint
from nanomed.training.progress import Progress
from nanomed.training.settings import Settings

SMALLEST_SCALE = 2.0**-14  # of fp16's losses; they start at 2^16, and each overflow halves the scale


def check_finite(done, progress: Progress, scaler, s: Settings) -> None:
    """Raises UserError for what is not finite in an Update of the loop, and cannot become so."""
    where = f"at update {progress.step + 1} (window {progress.consumed + 1} of the data"
    for i, loss in enumerate(done.losses, 1):
        if not math.isfinite(loss):
            wider = {"fp32": "", "bf16": ", or try --dtype fp32", "fp16": ", or try --dtype bf16 or fp32"}
            mend = f"lower --lr{wider[s.dtype]}"
            raise UserError(f"the loss is {loss} {where}, micro-batch {i}); {mend}")
    pull = " and ".join(flag for flag, value in {"--l2-sp": s.l2_sp, "--ewc": s.ewc}.items() if value)
    penalty = done.penalty or 0.0
    if not math.isfinite(penalty):
        raise UserError(f"what {pull} adds to the loss is {penalty} {where}); lower it")
    if not math.isfinite(done.grad_norm) and s.dtype != "fp16":  # whose scaler skips the step
        lower = pull if penalty > sum(done.losses) / done.count else "--lr"
        raise UserError(f"the gradient's norm is {done.grad_norm} {where}); lower {lower}")
    if not done.stepped and scaler.get_scale() < SMALLEST_SCALE:
        what = f"no gradient is finite in fp16 at update {progress.step + 1}, however small its scale"
        raise UserError(f"{what}; try --dtype bf16 or fp32")


@contextmanager
def explained(progress: Progress, out: Path):
    """Whatever ends the loop before its end says which checkpoint stays."""
    try:
        yield
    except (UserError, Interrupted) as e:
        e.args = (f"{e}; {checkpoint.stays(out)}",)
        raise
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(
            f"out of memory at update {progress.step + 1}: lower --batch-size (and raise --grad-accum by as"
            f" much) or --context, or add --grad-checkpoint; {checkpoint.stays(out)}"
        ) from e
