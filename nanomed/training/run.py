"""A run, from the command line to a directory that others can load: what every training script does after
reading its data.

setup()  settings as they were given -> all decided, model found, tokenizer
train()  Job -> checks, fit(), the model and summary.json in DIR
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from nanomed import hub
from nanomed.errors import UserError
from nanomed.files import write_json
from nanomed.memory import peak_rss
from nanomed.models import FAMILIES
from nanomed.models.quant import count_parameters
from nanomed.outputs import lock
from nanomed.precision import resolve_device, resolve_dtype
from nanomed.text import heldout, show, special, templates
from nanomed.text.tokenizer import Tokenizer, load_tokenizer
from nanomed.training import compiling, directory, distributed, estimate
from nanomed.training.anchor import general_stream, make_anchor
from nanomed.training.loop import fit, total_steps
from nanomed.training.model import check_source, leave_model, make_ready, start_model
from nanomed.training.settings import Settings, check, flags_of

MEASURED = ("loss", "ppl", "accuracy")  # what is logged of a held-out set


@dataclass(frozen=True)
class Setup:
    """What every phase begins with: what the run is, where the model lies, how it reads, and where it will be
    trained."""

    settings: Settings
    source: hub.Source
    config: object
    tokenizer: Tokenizer
    device: torch.device
    earlier: heldout.HeldOut  # by the phases that made the model; nothing where its weights are not used

    @property
    def model_name(self):
        return self.source.adapter or self.source.name


@dataclass
class Job:
    """What a phase hands to train()."""

    data: object  # deals out the batches of each update, as fit() takes them
    loss_fn: Callable  # as fit() takes it
    validation: dict[str, Callable]  # {name of a held-out set: its measure(model)}
    held: heldout.HeldOut  # what is measured on, for later phases
    hashes: dict[str, str]  # of the data, by name
    facts: dict  # what summary.json says of the data
    what: str  # the data, in words
    template: templates.Template | None = None  # how the model is to be asked, if it was instructed
    classifier: Callable | None = None  # puts a classification head on the model
    sample: Callable | None = None  # a text that the model writes


def setup(s: Settings) -> Setup:
    """Check the settings, find the model, and decide what was left open. Raises UserError for whatever cannot
    be trained."""
    device = resolve_device(s.device)
    check(s)
    directory.check_out(s.out, s.resume)
    check_processes(s)
    distributed.start(device)
    torch.manual_seed(s.seed)
    source = hub.find(s.model, weights=not s.from_scratch)
    check_source(source, s.out)
    raw, config = hub.read_config(source.directory)
    tokenizer = load_tokenizer(source.tokenizer_directory, source.directory, s.special_tokens)
    hub.check_vocabulary(tokenizer, config, source)
    context = s.context or min(config.n_positions, 1024)
    if not 2 <= context <= config.n_positions:
        most = f"the {config.n_positions} positions of {source.name}"
        raise UserError(f"--context {context}: must be from 2 to {most}")
    quantize = s.quantize or directory.quantized(source.adapter)
    adapter = bool(s.lora_r) and not s.merge
    if adapter and s.save_dtype not in (None, "fp32"):
        raise UserError(f"--save-dtype {s.save_dtype}: an adapter stays fp32; --merge writes a whole model")
    stored = "fp32" if adapter or s.from_scratch else hub.stored_dtype(source.directory)
    decided = replace(
        s,
        device=str(device),
        dtype=resolve_dtype(s.dtype, device),
        context=context,
        quantize=None if quantize == "none" else quantize,
        lr=s.lr or s.usual_lr,
        save_dtype=s.save_dtype or stored,
        keep=s.keep or ("best" if s.patience else "last"),
        lora_alpha=s.lora_alpha or 2.0 * s.lora_r,
        lora_scale=s.lora_scale or "lora",
        lora_targets=s.lora_targets or ",".join(FAMILIES[raw["model_type"]].LORA_TARGETS),
    )
    earlier = heldout.HeldOut() if s.from_scratch else heldout.earlier(*source.places)
    return Setup(decided, source, config, tokenizer, device, earlier)


def train(setup: Setup, job: Job) -> dict | None:
    """Train the model that the settings name and leave it in DIR. None if there was nothing to train: DIR
    holds the end of this very run, or it was a dry run."""
    s, source = decide_compile(setup, job), setup.source
    check_validated(s, job)
    general = general_stream(s, setup.tokenizer, job.held)
    identity = identity_of(s, setup, job, general)
    writes = not s.dry_run and distributed.rank() == 0
    if writes:
        lock(s.out)
        directory.check_out(s.out, s.resume)  # again, now that no other process changes it any more
    if directory.is_complete(s, identity):
        if writes:  # what is left to do if it was killed just before it did so itself
            directory.finish(s, job.data.unit)
        print(f"{s.out}: this run is complete; nothing to do")
        return None
    if writes:
        directory.record_start(s, identity)
        heldout.write(job.held, s.out, setup.earlier)
    with distributed.in_turn():
        model, base = start_model(s, source, job.classifier)
        make_ready(model, s, setup.device)
    if writes:
        directory.check_space(model, s)
    facts = describe(model, s, source, job)
    if s.show:
        show.rows(job.data.window(0), setup.tokenizer, s.show, facts.get("labels"))
    anchor = make_anchor(model, s, general, setup.device)
    if s.dry_run:
        estimate.dry_run(model, job.data, job.loss_fn, s, bool(job.validation), anchor)
        return None
    loss_fn, validate = distributed.forward(job.loss_fn), validation_of(model, job)
    result = fit(model, job.data, loss_fn, s, s.out, validate, anchor)
    facts |= leave_model(model, base, s, source, job.classifier) | result
    if distributed.rank() == 0:
        if job.template:
            job.template.save(setup.tokenizer, s.out)
        facts["peak_rss_bytes"] = peak_rss()
        if torch.cuda.is_available():
            facts["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
        write_json(facts, s.out / "summary.json")  # the last file: the run is complete
        directory.finish(s, job.data.unit)
        say_kept(s, result)
        say_written(s, source)
    return result


def identity_of(s: Settings, setup: Setup, job: Job, general) -> dict:
    """Hashes of what goes into a run besides its settings: a resumed run has to have the same."""
    hashes = dict(job.hashes)
    if general:
        hashes[f"ewc-data: {general.selection.corpus.name}"] = general.selection.corpus.sha256
    return {
        "data": hashes,
        "tokenizer": setup.tokenizer.hash,
        "model": hub.fingerprint(setup.source, weights=not s.from_scratch),
        "held_out.json of the model": setup.earlier.hash(),  # decides what is replayed
        "special_tokens": job.facts["special_tokens"],
    }


def validation_of(model, job: Job) -> Callable | None:
    """A function that measures the model on the held-out sets, and lets it write; None if there are none."""
    if not job.validation:
        return None
    measures = {name: distributed.forward(measure) for name, measure in job.validation.items()}
    sample = distributed.forward(job.sample or (lambda model: None))

    def validate():
        found = {name: measure(model) for name, measure in measures.items()}
        return {name: {k: of[k] for k in MEASURED if k in of} for name, of in found.items()}, sample(model)

    return validate


def check_validated(s: Settings, job: Job) -> None:
    """Raises UserError for a setting that looks at the validation where there is none."""
    wanted = {"--patience": s.patience, "--keep best": s.keep == "best", "--sample-prompt": s.sample_prompt}
    given = [flag for flag, value in wanted.items() if value]
    if given and not job.validation:
        raise UserError(f"{given[0]}: there is no validation to look at (--val-data, --val-fraction)")


def describe(model, s: Settings, source: hub.Source, job: Job) -> dict:
    """What summary.json says of a run before it begins, which is printed."""
    facts = {
        "model": source.name,
        "parameters": count_parameters(model),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **job.facts,
        **{name: getattr(s, name) for name in ("device", "dtype", "quantize", "context")},
    }
    where, over = s.device, f" over {s.quantize}" if s.quantize else ""
    if distributed.world() > 1:
        facts["processes"] = distributed.world()
        where += f" x {distributed.world()}"
    special.say(job.facts["special_tokens"])
    print(
        f"{s.model}: {facts['parameters']:,} parameters, {facts['trainable']:,} trainable; {job.what};"
        f" {where}, {s.dtype}{over}; {total_steps(job.data, s):,} updates of up to {s.batch_size} x"
        f" {s.grad_accum} rows, peak learning rate {s.lr:g}"
    )
    return facts


def decide_compile(setup: Setup, job: Job) -> Settings:
    """The settings, with --compile decided where it was left open: as the run began if it is resumed, else by
    what pays."""
    s = setup.settings
    if s.compile is not None:
        return s
    before = directory.began_compiled(s.out) if s.resume else None
    if before is not None or distributed.world() > 1:
        return replace(s, compile=bool(before))
    updates = total_steps(job.data, s)
    s = replace(s, compile=compiling.pays(s, setup.config.model_type, setup.config, updates))
    if s.compile:
        print("compiling, which takes a while and then saves more than that (--no-compile: as it is)")
    return s


def check_processes(s: Settings) -> None:
    """Raises UserError for what several processes (torchrun) do not do together."""
    n = distributed.world()
    if n == 1:
        return
    for name, flag in flags_of(s).items():
        if flag.one_process and getattr(s, name):
            said = "--" + name.replace("_", "-")
            raise UserError(f"{said} is for one process; {n} processes (torchrun) train without it")
    if s.batch_size < n:
        dealt = f"its rows are dealt to {n} processes (torchrun); give at least {n}"
        raise UserError(f"--batch-size {s.batch_size}: {dealt}")


def say_written(s: Settings, source: hub.Source) -> None:
    """What the weights of a whole model are stored in."""
    if s.lora_r and not s.merge:
        return
    own = not s.from_scratch and s.save_dtype == hub.stored_dtype(source.directory)
    said = f", as those of {source.name}" if own else ""
    if s.save_dtype != "fp32":
        said += " (rounded from the fp32 that was trained and validated: --save-dtype fp32)"
    print(f"weights written in {s.save_dtype}{said}")


def say_kept(s: Settings, result: dict) -> None:
    """Which weights DIR holds, and what their validation was."""
    first, best, last = result["first_val"], result["best_val"], result["last_val"]
    if not last:
        print(f"no validation; kept the last weights (update {result['step']})")
        return
    kept = best if s.keep == "best" else last
    key, name = ("ppl", "perplexity") if "ppl" in kept else ("loss", "loss")
    before, after = (val.get("sets", {"validation": val}) for val in (first, kept))
    print("; ".join(f"{n} {name} {before[n][key]:.4g} -> {after[n][key]:.4g}" for n in after))
    if s.keep == "best":
        print(f"kept: the weights of the best validation (update {best['step']} of {result['steps']})")
    else:
        other = f"; --keep best would keep those of update {best['step']}" if best != last else ""
        print(f"kept: the last weights (update {result['step']}){other}")
