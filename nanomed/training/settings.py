"""What a run is: the settings that decide its weights, which run.json keeps and a resumed run is held to. It
loads no library: the flags take their defaults from here, and --help is to come at once.

The command line says more than that (where results go, how often to save, what to show): that stays in
`args`, may differ from call to call, and is written nowhere. A key that is absent in a run.json has the
default that stands here, so that a run which began before a setting was thought of goes on as it was."""

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import typed


@dataclass
class Settings:
    """What fit() needs to know, with its defaults. Updates are optimiser steps; schedules count nothing
    else."""

    lr: float  # peak learning rate
    epochs: float = 1.0  # passes over the data, unless max_steps is set
    max_steps: int = 0  # updates; 0 means as many as `epochs` take
    warmup_ratio: float = 0.05  # share of the updates in which the rate rises from 0 to its peak
    weight_decay: float = 0.1  # on matrices and embeddings only
    grad_clip: float = 1.0  # largest norm of the whole gradient; 0 leaves it as it is
    eval_every: int = 0  # updates between validations; 0 means once an epoch
    save_every: int = 200  # updates between checkpoints; 0 means only at the end
    log_every: int = 10
    patience: int = 0  # validations without improvement before stopping; 0 never stops early
    keep: str = "last"  # which weights stay at the end: the last, or those of the best validation
    dtype: str = "fp32"


QUANTIZATIONS = ("nf4", "int8")  # nanomed.models.quant
READINGS = ("text", "read", "refuse")  # of special tokens that texts spell: nanomed.text.special
# Of the command and not of the run: earlier versions wrote these down too.
FREE = {
    "config",
    "resume",
    "save_every",
    "log_every",
    "out",
    "grad_checkpoint",
    "dry_run",
    "show",
    "sample_prompt",
}


# What a run.json may hold; the command line's flags have the same limits (nanomed.flags).
Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
AtLeast0 = Annotated[float, Meta(ge=0, lt=1e300)]
Positive = Annotated[float, Meta(gt=0, lt=1e300)]
Files = Annotated[list[str], Meta(min_length=1)]


@dataclass(frozen=True)
class Plan:
    """Of every phase. Names are those of the flags; what a flag leaves open (auto, a default that depends on
    others) is decided here: nanomed.training.run.setup does that."""

    phase: ClassVar[str]

    model: str
    device: str
    dtype: str
    context: Size
    lr: Positive
    data: Files | None = None
    text_field: str = "text"
    limit: Size | None = None
    skip_bad_rows: bool = False
    val_data: Files | None = None
    val_fraction: Share = 0.05
    exclude: Files | None = None
    batch_size: Size = 8
    grad_accum: Size = 1
    epochs: Positive = Settings.epochs
    max_steps: Whole = Settings.max_steps
    warmup_ratio: AtLeast0 = Settings.warmup_ratio
    weight_decay: AtLeast0 = Settings.weight_decay
    grad_clip: AtLeast0 = Settings.grad_clip
    dropout: Share = 0.0
    compile: bool | None = False  # None: not decided yet
    lora_r: Whole = 0
    lora_alpha: AtLeast0 = 0.0
    lora_dropout: Share = 0.0
    lora_targets: str = "c_attn"
    lora_scale: str = "lora"
    merge: bool = False
    quantize: str | None = None
    eval_every: Whole = Settings.eval_every
    patience: Whole = Settings.patience
    keep: str = Settings.keep
    seed: Whole = 0
    l2_sp: AtLeast0 = 0.0
    ewc: AtLeast0 = 0.0
    ewc_data: Files | None = None
    ewc_blocks: Size = 200
    pull_on: str = ""
    near_duplicates: AtLeast0 = 0.0
    special_tokens: str = READINGS[0]
    from_scratch: bool = False

    @property
    def lora(self):
        """The LoRAConfig, or None."""
        from nanomed.models.lora import LoRAConfig

        targets = tuple(t.strip() for t in self.lora_targets.split(",") if t.strip())
        if not self.lora_r:
            return None
        return LoRAConfig(
            self.lora_r, self.lora_alpha, self.lora_dropout, targets, self.lora_scale == "rslora"
        )

    @classmethod
    def of(cls, args, **decided) -> "Plan":
        """From the command line, and what was decided beyond it."""
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)} | decided)

    @classmethod
    def read(cls, settings: dict, where: Path) -> "Plan":
        """From what run.json keeps. Raises UserError for a run of another phase, or of a version that knows
        more settings."""
        known = {f.name: f for f in fields(cls)}
        odd = sorted(settings.keys() - known.keys() - FREE)
        odd += [name for name, f in known.items() if f.default is MISSING and name not in settings]
        if odd:
            raise UserError(
                f"{where}: not a run of this phase, or of this version of nanomed (the setting {odd[0]!r})"
            )
        return typed(cls, settings, f"{where}: settings")

    def changes(self, before: "Plan") -> tuple[str, str] | None:
        """The settings in which two plans differ, as they were and as they are now; None if there is none."""
        was, now = asdict(before), asdict(self)
        changed = [name for name in now if now[name] != was[name]]
        said = [", ".join(f"{name} = {plan[name]!r}" for name in changed) for plan in (was, now)]
        return (said[0], said[1]) if changed else None


@dataclass(frozen=True)
class Adapt(Plan):
    """Of train_clm.py."""

    phase = "adapt"


@dataclass(frozen=True)
class Classify(Plan):
    """Of train_cls.py."""

    phase = "classify"

    positives: Files | None = None
    negatives: Files | None = None
    label_field: str = "label,labels"
    label_names: list[str] | None = None
    label_separator: str | None = None
    label_columns: list[str] | None = None
    label_lists: str | None = None
    stratify: bool = False  # as runs were before there was a choice; the flag is on
    positive_name: str = "positive"
    negative_name: str = "negative"
    freeze: bool = False
    balance: str = "weights"


@dataclass(frozen=True)
class Instruct(Plan):
    """Of train_sft.py."""

    phase = "instruct"

    template: str = "response"
    instruction_field: str = "instruction,question"
    input_field: str = "input"
    response_field: str = "response,output,answer"
    group_field: str | None = None
    train_on_prompt: bool = False
    no_packing: bool = False
    replay: Files | None = None
    replay_ratio: AtLeast0 = 1.0
