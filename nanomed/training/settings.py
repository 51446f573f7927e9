"""The settings of a training, each declared once (nanomed.flags). Some decide the weights: run.json holds
them, and a resumed run must repeat them. The others belong to one call: where results go, how often to save.

parse() takes them from the command line, or a recipe's section. What is left open there (`flag=None`, auto)
is decided by nanomed.training.run.setup. A field's default is what a run.json without the key means: so a run
that began before there was a setting goes on as it was."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from nanomed import cli, flags
from nanomed.errors import UserError
from nanomed.files import typed
from nanomed.flags import DATA_HELP, MODEL_HELP, declared, flags_of, of_call, setting
from nanomed.limits import AtLeast0, Count, Files, Positive, Share, ShareOr1, Whole
from nanomed.text import reading
from nanomed.text.templates import TEMPLATES

# A setting of phases 2 and 4 alone.
of_text = partial(setting, phases=("adapt", "instruct"))


@declared
class Optimization:
    title = "training"

    context: Count | None = setting(None, "tokens a row (default: the model's positions, 1024 at most)")
    batch_size: Count = setting(8, "rows a micro-batch")
    grad_accum: Count = setting(1, "micro-batches an update, which is one step of the optimizer")
    epochs: Positive = setting(1.0, "passes over the data")
    max_steps: Whole = setting(0, "updates, whatever --epochs says; 0: unset")
    lr: Positive | None = setting(
        None, "peak learning rate (default: 5e-5; LoRA 2e-4; from scratch 6e-4; head alone 1e-3)"
    )
    warmup_ratio: Share = setting(0.05, "share of the updates in which the rate rises to its peak")
    weight_decay: AtLeast0 = setting(0.1, "on matrices and embeddings only")
    grad_clip: AtLeast0 = setting(1.0, "largest gradient norm; 0: no clipping")
    dropout: Share = setting(0.0, "in place of the probabilities in the model's config (GPT-2's say 0.1)")
    compile: bool | None = setting(
        False,
        "compile the model with torch.compile, half a minute, then faster (default: if the run is long enough"
        " for that to pay; never the classifier's)",
        flag=None,
        two_way=True,
        one_process=True,
    )
    grad_checkpoint: bool = of_call(False, "recompute activations: less memory, slower", two_way=True)


@declared
class Lora:
    title = "LoRA"

    lora_r: Whole = setting(0, "rank; 0 trains all weights", metavar="R")
    lora_alpha: AtLeast0 | None = setting(0.0, "of the scale (default: 2 r)", flag=None, metavar="A")
    lora_scale: Literal["lora", "rslora"] | None = setting(
        "lora", "lora: alpha / r; rslora: alpha / sqrt(r), which suits high ranks (default: lora)", flag=None
    )
    lora_dropout: Share = setting(0.0, "on the adapter's input, in training")
    lora_targets: str | None = setting(
        "c_attn",
        "ends of modules' names (c_attn,c_proj,c_fc), or all-linear: every linear layer below the head"
        " (default: peft's for the family: c_attn of GPT-2, else q_proj,v_proj)",
        flag=None,
        metavar="NAMES",
    )
    merge: bool = setting(False, "fold the adapter into the model that DIR holds at the end", two_way=True)

    @property
    def lora(self):
        """The LoRAConfig, or None."""
        from nanomed.models.lora import LoRAConfig

        if not self.lora_r:
            return None
        targets = tuple(t.strip() for t in self.lora_targets.split(",") if t.strip())
        rslora = self.lora_scale == "rslora"
        return LoRAConfig(self.lora_r, self.lora_alpha, self.lora_dropout, targets, rslora)


@declared
class Forgetting:
    title = "against forgetting (beside a lower --lr, --lora-r, other text mixed in)"

    l2_sp: AtLeast0 = of_text(
        0.0,
        "pull all weights towards where they started: A/2 times the squared distance is added to the loss",
        metavar="A",
        one_process=True,
    )
    ewc: AtLeast0 = of_text(
        0.0,
        "elastic weight consolidation: the same, each weight by its Fisher information on --ewc-data; L: what"
        " a token of that text counts beside one that is trained on",
        metavar="L",
        one_process=True,
    )
    ewc_data: Files | None = of_text(None, "general text, of which a sample is taken")
    ewc_blocks: Count = of_text(200, "blocks of --context tokens in the sample")
    pull_on: str = of_text(
        "",
        "only weights with one of these, separated by commas, in their names (wte,wpe: GPT-2's embeddings)",
        metavar="NAMES",
    )


@declared
class Course:
    title = "the run"

    config: str | None = of_call(None, "recipe that presets flags; the command line wins", metavar="TOML")
    out: Path = of_call(Path(), "where model and records go", flag=None, required=True, metavar="DIR")
    resume: bool = of_call(False, "go on from DIR's last checkpoint, or start if it has none")
    save_every: Whole = of_call(200, "updates between checkpoints; 0: at the end")
    eval_every: Whole = setting(0, "updates between validations; 0: an epoch")
    patience: Whole = setting(0, "stop after so many validations without improvement; 0: never")
    keep: Literal["last", "best"] | None = setting(
        "last",
        "the weights of DIR: the last, or of the best validation (default: best with --patience, else last)",
        flag=None,
    )
    log_every: Count = of_call(10, "updates between lines of metrics.jsonl")
    dry_run: bool = of_call(False, "time two updates, say what all would take, and stop", one_process=True)
    show: Whole = of_call(0, "first print N rows of a batch, example by example, what is supervised in [[ ]]")
    sample_prompt: str | None = of_text(None, "show, at validations, what follows it", of_call=True)


@declared
class Settings(Course, Forgetting, Lora, Optimization, flags.Rows, flags.Running, flags.Written):
    """What all three phases have."""

    phase: ClassVar[str] = ""
    items: ClassVar[str] = "documents"  # what the data consists of, for --help
    command: str | None = None  # what began it, if that was no command line

    model: str = setting("", MODEL_HELP, flag=None, required=True, metavar="M")
    data: Files | None = setting(None, DATA_HELP, required=True)
    val_data: Files | None = setting(
        None,
        "validate on these {items}; several named sets are each a line and a curve, and the first decides"
        " which weights are best",
        metavar="[NAME=]D",
    )
    val_fraction: Share = setting(0.05, "else on this share of --data's {items}")
    exclude: Files | None = setting(
        None,
        "documents or instruction rows that are measured on later: they get into no part of the run, neither"
        " training nor replay nor the share that is validated on",
    )
    near_duplicates: ShareOr1 = setting(
        0.0,
        "take out of the training side what repeats another of its texts, or a held-out one, exactly or"
        " nearly: with a Jaccard similarity of J or more of their sequences of five words (0.8, say); 0: only"
        " what is held out, exactly",
        metavar="J",
    )
    from_scratch: bool = setting(False, "random weights; M gives shape and tokenizer", phases=("adapt",))

    @property
    def usual_lr(self) -> float:
        """The peak learning rate where --lr gives none."""
        if self.lora_r:
            return 2e-4
        return 6e-4 if self.from_scratch else 5e-5

    @classmethod
    def of_files(cls) -> list[str]:
        """The settings that name files."""
        return [f.name for f in fields(cls) if f.type == Files | None]

    def recorded(self) -> dict:
        """What run.json holds: all that decides the weights."""
        return {name: getattr(self, name) for name, flag in flags_of(self).items() if not flag.of_call}

    @classmethod
    def read(cls, settings: dict, where: Path) -> "Settings":
        """From what a run.json holds. Raises UserError for a run of another phase, or of a version that knows
        more settings. Earlier versions wrote down what is of one call, too."""
        known = flags_of(cls)
        odd = sorted(settings.keys() - known.keys())
        if odd:
            what = "not a run of this phase, or of this version of nanomed"
            raise UserError(f"{where}: {what} (the setting {odd[0]!r})")
        lasting = {name: value for name, value in settings.items() if not known[name].of_call}
        return typed(cls, lasting, f"{where}: settings")

    def changes(self, before: "Settings") -> tuple[str, str] | None:
        """The settings in which two runs differ, as they were and as they are now; None if there is none."""
        was, now = before.recorded(), self.recorded()
        changed = [name for name in now if now[name] != was[name]]
        said = [", ".join(f"{name} = {s[name]!r}" for name in changed) for s in (was, now)]
        return (said[0], said[1]) if changed else None


@declared
class Adapt(Settings):
    """Of train_clm.py."""

    phase = "adapt"

    data: Files | None = setting(None, DATA_HELP + "; D:WEIGHT gives its share of the blocks", required=True)


@declared
class Classify(flags.Labelled, Settings):
    """Of train_cls.py."""

    phase = "classify"
    items = "texts"

    stratify: bool = setting(
        False,  # as runs were before there was a choice
        "draw the share that is validated on from each label alike, and leave each a text to train on",
        flag=True,
        two_way=True,
    )
    freeze: bool = setting(False, "train the head alone")
    balance: Literal["weights", "sampling", "none"] = setting(
        "weights", "if classes differ in size: weigh their losses, repeat the rarer texts, or neither"
    )

    @property
    def usual_lr(self) -> float:
        return 1e-3 if self.freeze else super().usual_lr


@declared
class Questions:
    """How rows become instructions."""

    template: str | None = setting(
        "response",
        f"how a prompt looks: {', '.join(TEMPLATES)}, a TOML file, or a name among the model's chat templates"
        " (default: the model's own, or response)",
        flag=None,
        metavar="NAME",
    )
    system: str | None = setting(None, "a system's turn before conversations that have none", metavar="TEXT")
    instruction_field: str = setting("instruction,question", "of what is asked")
    input_field: str = setting("input", "of what it is asked about, if anything")
    response_field: str = setting("response,output,answer", "of the answer")


@declared
class Instruct(Questions, Settings):
    """Of train_sft.py."""

    phase = "instruct"
    items = "rows"

    data: Files | None = setting(None, "rows of a conversation, or of fields: " + DATA_HELP, required=True)
    group_field: str | None = setting(
        None, "rows that share its value (a disease, say) stay together, on one side of a split"
    )
    last_turn_only: bool = setting(False, "of a conversation, supervise the last answer alone")
    train_on_prompt: bool = setting(False, "supervise the prompt too, for comparison")
    no_packing: bool = setting(False, "one example a row, padded, instead of several, isolated")
    replay: Files | None = setting(None, "documents to mix in as plain text, against forgetting")
    replay_ratio: Positive = setting(1.0, "documents of --replay per example")


PHASES = {kind.phase: kind for kind in (Adapt, Classify, Instruct)}


def parse(kind: type[Settings], doc: str | None = None, words=None, given: dict | None = None) -> Settings:
    """The settings on the command line, or in other words and as given (cli.parse). doc: the script's."""
    p = cli.Parser(description=cli.summary(doc))
    flags.add_flags(p, kind)
    args = reading.read_as(cli.parse(p, kind.phase, words, given), kind.of_files())
    return kind(**{f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)})


def check(s: Settings) -> None:
    """Raises UserError for settings that make no sense together."""
    if s.lora_r and s.from_scratch:
        raise UserError("--from-scratch trains all weights: an adapter (--lora-r) has no base then")
    if s.lora_r and getattr(s, "freeze", False):
        raise UserError("--freeze trains the head alone, --lora-r an adapter too: give one of them")
    if s.quantize in flags.QUANTIZATIONS and not s.lora_r:
        raise UserError(f"--quantize {s.quantize} needs --lora-r: quantised weights are frozen")
    if s.lora_targets is not None and not s.lora_targets.strip(" ,"):
        raise UserError("--lora-targets: name modules, separated by commas (default: peft's for the family)")
    if s.lora_alpha == 0:
        raise UserError("--lora-alpha must be more than 0: an adapter of that scale does nothing")
    for name in ("lora_alpha", "lora_scale", "lora_dropout", "merge", "lora_targets"):
        if getattr(s, name) and not s.lora_r:
            raise UserError(f"--{name.replace('_', '-')} needs --lora-r, the rank of the adapter")
    pull = "--ewc" if s.ewc else "--l2-sp" if s.l2_sp else None
    if pull and s.lora_r:
        raise UserError(f"{pull} holds trained weights back, and --lora-r leaves them as they are: give one")
    if pull and s.from_scratch:
        raise UserError(f"{pull} pulls towards the weights at the start, and --from-scratch has none")
    if s.pull_on and not pull:
        raise UserError("--pull-on says what --l2-sp or --ewc pulls; give one of the two")
    if bool(s.ewc) != bool(s.ewc_data):
        raise UserError("--ewc needs --ewc-data, general text to tell what each weight is needed for")
    if s.phase == "instruct" and s.replay_ratio != 1 and not s.replay:
        raise UserError("--replay-ratio says how much of --replay is mixed in; give both")
