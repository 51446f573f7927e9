"""A run, from the command line to a directory that others can load: what every training script does after
reading its data.

setup()  flags -> Plan, model found, tokenizer        train()  Job -> checks, fit(), the model and summary.json in DIR
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from nanomed import flags, hub
from nanomed.errors import UserError
from nanomed.evaluation.generate import Ending, Sampling, generate, room
from nanomed.evaluation.trained import trained_with
from nanomed.files import write_json
from nanomed.memory import peak_rss
from nanomed.models import FAMILIES
from nanomed.models.quant import count_parameters
from nanomed.outputs import lock
from nanomed.precision import resolve_device, resolve_dtype
from nanomed.text import heldout, show, special, templates
from nanomed.text.blocks import Stream, batch_of
from nanomed.text.corpus import without
from nanomed.text.tokenizer import Tokenizer, load_tokenizer
from nanomed.training import checkpoint, compiling, curves, distributed, estimate
from nanomed.training.anchor import Anchor, fisher
from nanomed.training.directory import began_compiled, check_out, check_space, is_complete, record_start
from nanomed.training.loop import fit, total_steps
from nanomed.training.model import check_source, leave_model, make_ready, start_model
from nanomed.training.settings import Plan, Settings

SAMPLE_TOKENS = 40  # of --sample-prompt's continuation


@dataclass(frozen=True)
class Setup:
    """What every phase begins with: what the run is, where the model lies, how it reads, and where it will be
    trained."""

    plan: Plan
    source: hub.Source
    config: object
    tokenizer: Tokenizer
    device: torch.device
    earlier: heldout.HeldOut  # by the phases that made the model; nothing where its weights are not used


@dataclass
class Job:
    """What a phase hands to train(). validation: {name: measure(model)} of the held-out sets; held: what is
    measured on, for later phases; hashes: of the data, by name; facts: what summary.json should say besides;
    what: the data, in words; template: how the model that comes out is to be asked, if it was instructed;
    sample_in: the template that --sample-prompt is put into; general: a Stream of --ewc-data; unit: what
    loss_fn counts; classifier: a function that puts a classification head on the model."""

    blocks: object
    loss_fn: Callable
    validation: dict
    held: heldout.HeldOut
    hashes: dict
    facts: dict
    what: str
    template: templates.Template | None = None
    sample_in: templates.Template | None = None
    general: Stream | None = None
    unit: str = "tokens"
    classifier: Callable | None = None


def setup(args, kind: type[Plan], full_lr: float, lora_lr: float = 2e-4) -> Setup:
    """Check the flags, find the model, and decide what the flags leave open. Raises UserError for whatever
    cannot be trained."""
    device, out = resolve_device(args.device), Path(args.out)
    from_scratch = getattr(args, "from_scratch", False)
    if args.lora_r and from_scratch:
        raise UserError(
            "--from-scratch trains all weights; an adapter would need a base that is saved nowhere (--lora-r)"
        )
    check_out(out, args.resume)
    flags.check_lora_flags(args)
    check_processes(args, kind)
    distributed.start(device)
    torch.manual_seed(args.seed)
    source = hub.find(args.model, weights=not from_scratch)
    check_source(source, out)
    raw, config = hub.read_config(source.directory)
    tokenizer = load_tokenizer(source.tokenizer_directory, source.directory, args.special_tokens)
    hub.check_vocabulary(tokenizer, config, source)
    quantize = args.quantize or (trained_with(source.adapter).get("quantize") if source.adapter else None)
    context = args.context or min(config.n_positions, 1024)
    if not 2 <= context <= config.n_positions:
        raise UserError(
            f"--context {context}: must be from 2 to the {config.n_positions} positions of {source.name}"
        )
    plan = kind.of(
        args,
        device=str(device),
        dtype=resolve_dtype(args.dtype, device),
        context=context,
        quantize=None if quantize == "none" else quantize,
        lr=args.lr or (lora_lr if args.lora_r else full_lr),
        keep=args.keep or ("best" if args.patience else "last"),
        lora_alpha=args.lora_alpha or 2.0 * args.lora_r,
        lora_scale=args.lora_scale or Plan.lora_scale,
        lora_targets=args.lora_targets or ",".join(FAMILIES[raw["model_type"]].LORA_TARGETS),
    )
    earlier = heldout.HeldOut() if from_scratch else heldout.earlier(source.adapter, source.directory)
    return Setup(plan, source, config, tokenizer, device, earlier)


def train(args, setup: Setup, job: Job) -> dict | None:
    """Train the model that the plan names and leave it in DIR; None if there was nothing to train: DIR holds
    the end of this very run, or it was a dry run."""
    plan, source, out = decide_compile(args, setup, job), setup.source, Path(args.out)
    identity = {
        "data": job.hashes,
        "tokenizer": setup.tokenizer.hash,
        "model": hub.fingerprint(source, weights=not plan.from_scratch),
        "held_out.json of the model": setup.earlier.hash(),  # decides what is replayed
        "special_tokens": job.facts["special_tokens"],
    }
    sampled = getattr(args, "sample_prompt", None)
    wanted = {"--patience": plan.patience, "--keep best": plan.keep == "best", "--sample-prompt": sampled}
    for flag, given in wanted.items():
        if given and not job.validation:
            raise UserError(
                f"{flag} looks at the validation, and there is no validation (--val-data, --val-fraction)"
            )
    sample = partial(_sample, sampled, setup, job.sample_in) if sampled else None
    if sample:
        sample(None)
    writes = not args.dry_run and distributed.rank() == 0
    if writes and not is_complete(out, args.resume, plan, identity):
        lock(out)
        check_out(out, args.resume)  # again, now that no other process changes it any more
    if is_complete(out, args.resume, plan, identity):
        # in case it was killed just before it did so itself; what it held the directory with goes with
        # release()
        if writes:
            lock(out)
            checkpoint.remove(out)
            if not (out / "loss.png").exists():
                curves.plot_curves(out, job.unit)
        print(f"{out}: this run is complete; nothing to do")
        return None
    if writes:
        record_start(out, args.resume, plan, identity)
        heldout.write(job.held, out, setup.earlier)
    with distributed.in_turn():
        model, base = start_model(plan, source, out, args.dry_run, job.classifier)
        make_ready(model, plan, setup.device, args.grad_checkpoint)
    if writes:
        check_space(out, model, plan)
    special.say(job.facts["special_tokens"])
    settings = settings_of(args, plan)
    processes = {"processes": distributed.world()} if distributed.world() > 1 else {}
    facts = {
        "model": source.name,
        "parameters": count_parameters(model),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **job.facts,
        "device": plan.device,
        "dtype": plan.dtype,
        "quantize": plan.quantize,
        "context": plan.context,
        **processes,
    }
    where = " x ".join(map(str, [plan.device, *processes.values()]))
    over = f" over {plan.quantize}" if plan.quantize else ""
    print(
        f"{plan.model}: {facts['parameters']:,} parameters, {facts['trainable']:,} trainable; {job.what};"
        f" {where}, {plan.dtype}{over}; {total_steps(job.blocks, settings):,} updates of up to"
        f" {plan.batch_size} x {plan.grad_accum} rows, peak learning rate {plan.lr:g}"
    )
    if args.show:
        show.rows(job.blocks.window(0), setup.tokenizer, args.show, facts.get("labels"))
    anchor = make_anchor(model, plan, job.general, setup.device)
    if args.dry_run:
        estimate.dry_run(
            model, job.blocks, job.loss_fn, settings, bool(job.validation), job.unit, args.out, anchor
        )
        return None
    measures = {name: distributed.forward(measure) for name, measure in job.validation.items()}
    evaluate = (lambda: {name: measure(model) for name, measure in measures.items()}) if measures else None
    write = partial(distributed.forward(sample), model) if sample else None
    result = fit(
        model,
        job.blocks,
        distributed.forward(job.loss_fn),
        evaluate,
        settings,
        out,
        args.resume,
        job.unit,
        write,
        anchor,
    )
    facts |= leave_model(model, base, plan, source, out, job.classifier)
    if distributed.rank():
        return result
    if job.template:
        templates.save(job.template, setup.tokenizer, out)
    peak = {"peak_rss_bytes": peak_rss()}
    if torch.cuda.is_available():
        peak["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    write_json(
        facts | result | peak, out / "summary.json"
    )  # after the model: it says that the run is complete
    checkpoint.remove(out)
    curves.plot_curves(out, job.unit)  # after all that matters, and where a full disk has room again
    say_kept(plan, result)
    return result


def settings_of(args, plan: Plan) -> Settings:
    return Settings(
        **{k: v for k, v in (vars(args) | vars(plan)).items() if k in Settings.__dataclass_fields__}
    )


def decide_compile(args, setup: Setup, job: Job) -> Plan:
    """The plan, with --compile decided where the flags leave it open: as the run began if it is resumed, else
    by what pays."""
    plan, before = setup.plan, began_compiled(Path(args.out)) if args.resume else None
    if plan.compile is not None:
        return plan
    if before is not None or distributed.world() > 1:
        return replace(plan, compile=bool(before))
    updates = total_steps(job.blocks, settings_of(args, plan))
    plan = replace(plan, compile=compiling.pays(plan, setup.config.model_type, setup.config, updates))
    if plan.compile:
        print(
            "compiling, which takes a while at the first update and then saves more than it took"
            " (--no-compile: as it is)"
        )
    return plan


def check_processes(args, kind: type[Plan]) -> None:
    """Raises UserError for what several processes (torchrun) do not do together."""
    n = distributed.world()
    if n == 1:
        return
    for name in ("l2_sp", "ewc", "compile", "dry_run"):
        if getattr(args, name, None):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is for one process; {n} processes (torchrun) train without it")
    if args.batch_size < n:
        raise UserError(
            f"--batch-size {args.batch_size}: its rows are dealt to {n} processes (torchrun); give at"
            f" least {n}"
        )


def general_stream(plan: Plan, encode, held: heldout.HeldOut, hashes: dict) -> Stream | None:
    """The blocks of --ewc-data, without what is held out; encode(names) gives a corpus. None if there is no
    --ewc."""
    if not plan.ewc:
        return None
    corpus = encode(plan.ewc_data)
    hashes[f"ewc-data: {corpus.name}"] = corpus.sha256
    stream = Stream(without(corpus.all(), held.texts())[0], plan.context, (plan.seed, 1))
    if stream.n_blocks < 1:
        raise UserError(f"{corpus.name}: not a single token for --ewc that is not held out")
    return stream


def make_anchor(model, plan: Plan, general: Stream | None, device: torch.device) -> Anchor | None:
    """What pulls the weights back, made of the model as the run starts it; None if nothing is to."""
    if not (plan.l2_sp or plan.ewc):
        return None
    information = None
    if plan.ewc:
        blocks = [general.block(0, i) for i in range(min(plan.ewc_blocks, general.n_blocks))]
        print(
            f"--ewc: the Fisher information of {len(blocks):,} blocks of {plan.context} tokens of"
            f" {general.selection.corpus.name}"
        )
        information = fisher(model, [batch_of([block]) for block in blocks], device)
    on = tuple(part.strip() for part in plan.pull_on.split(","))
    anchor = Anchor(model, plan.l2_sp, plan.ewc, information, on)
    if not anchor.pulls:
        raise UserError(
            f"--pull-on {plan.pull_on}: no weight has such a name; there are, say,"
            f" {next(iter(model.state_dict()))}"
        )
    return anchor


def say_kept(plan: Plan, result: dict) -> None:
    """Which weights DIR holds, and what their validation was."""
    best, last = result["best_val"], result["last_val"]
    if not last:
        print(f"no validation; kept the last weights (update {result['step']})")
        return
    kept = best if plan.keep == "best" else last
    name = "ppl" if "ppl" in kept else "loss"
    sets = [("validation", result["first_val"], kept)]
    if "sets" in kept:
        sets = [(n, result["first_val"]["sets"][n], kept["sets"][n]) for n in kept["sets"]]
    print(
        "; ".join(
            f"{n} {'perplexity' if name == 'ppl' else name} {a[name]:.4g} -> {b[name]:.4g}"
            for n, a, b in sets
        )
    )
    other = "" if best["step"] == last["step"] else f"; --keep best would keep those of update {best['step']}"
    if plan.keep == "best":
        print(f"kept: the weights of the best validation (update {best['step']} of {result['steps']})")
    else:
        print(f"kept: the last weights (update {result['step']}){other}")


def _sample(asked: str, setup: Setup, template, model) -> str | None:
    """How the model goes on from --sample-prompt, greedily; without a model, only whether the prompt fits:
    UserError."""
    ids = setup.tokenizer.prompt(template.ask(asked) if template else asked).tolist()
    steps = min(SAMPLE_TOKENS, room(setup.config, ids, None))
    if model is None:
        return None
    ending = Ending(setup.tokenizer, template.ends if template else ())
    (done,) = generate(model, [ids], steps, Sampling(), ending, setup.device, setup.plan.dtype)
    return f"{asked} >>> {done.text.strip()}" + ("" if done.stopped else " ...")


def say_removed(count: int, what: str = "documents") -> None:
    if count:
        print(f"{count} training {what} that are held out too were taken out of the training side")


def say_earlier(setup: Setup, count: int) -> None:
    """Told to train on what an earlier phase measured on: it is done, and said."""
    if count:
        print(
            f"note: {count} of what is trained on was held out when"
            f" {setup.source.adapter or setup.source.name} was trained; from now on a measurement on it is"
            " none on unseen text"
        )
