"""The directory of a training run: made at the start, turned into a model directory at the end.

run.json       command, settings, versions, hashes of the data     (written first)
held_out.json  what it and the phases before it measure on         (nanomed.heldout)
metrics.jsonl  one object a logged update                          (nanomed.train)
state/         for --resume, until the run is complete             (nanomed.checkpoint)
base/          the merged base, if an adapter was merged before a new one was trained on it
config.json, model.safetensors, ... or adapter_config.json, adapter_model.safetensors; summary.json, loss.png
.nanomed-*     only while a process is at work there: its lock, files half written (nanomed.files)
"""

import platform
import shlex
import sys
import time
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

import nanomed
from nanomed import checkpoint, cli, estimate, heldout, hub, report, show, templates
from nanomed.errors import UserError
from nanomed.files import check_directory, is_part, lock, names_in, read_json, write_json
from nanomed.generate import Ending, Sampling, generate, room
from nanomed.lora import LoRAConfig, inject, lora_layers, merge_and_unwrap
from nanomed.precision import peak_rss, resolve_device, resolve_dtype, store_frozen
from nanomed.tokenizer import Tokenizer, load_tokenizer
from nanomed.train import Settings, fit, total_steps

# Settings that may differ when a run is resumed: they change nothing that is computed.
FREE = {"config", "resume", "save_every", "log_every", "out", "grad_checkpoint", "dry_run", "show", "sample_prompt"}
# What a run leaves that ended before its first checkpoint: nothing that is worth keeping.
LEFTOVERS = {"run.json", "held_out.json", "metrics.jsonl", "state", "base"}
SAMPLE_TOKENS = 40  # of --sample-prompt's continuation


@dataclass(frozen=True)
class Setup:
    """What every phase begins with: where the model is, how it reads, and where it will be trained."""

    source: hub.Source
    config: object
    tokenizer: Tokenizer
    device: torch.device
    earlier: heldout.HeldOut  # by the phases that made the model; nothing where its weights are not used


def setup(args, full_lr: float, lora_lr: float = 2e-4, weights: bool = True) -> Setup:
    """Check the flags and find the model. Puts the values that `auto` and defaults stand for into `args`, so that run.json
    holds them and a resumed run is held to them. Raises UserError for whatever cannot be trained."""
    device = resolve_device(args.device)
    args.device, args.dtype = str(device), resolve_dtype(args.dtype, device)
    if args.lora_r and not weights:
        raise UserError("--from-scratch trains all weights; an adapter would need a base that is saved nowhere (--lora-r)")
    check_out(args)
    cli.check_lora_flags(args)
    args.lr = args.lr or (lora_lr if args.lora_r else full_lr)
    args.keep = args.keep or ("best" if args.patience else "last")
    args.lora_alpha = args.lora_alpha or 2.0 * args.lora_r
    torch.manual_seed(args.seed)
    source = hub.find(args.model, weights)
    check_source(args, source)
    _, config = hub.read_config(source.directory)
    tokenizer = load_tokenizer(source.tokenizer_directory)
    hub.check_vocabulary(tokenizer, config, source)
    args.context = args.context or min(config.n_positions, 1024)
    if not 2 <= args.context <= config.n_positions:
        raise UserError(f"--context {args.context}: {source.name} has {config.n_positions} positions")
    earlier = heldout.earlier(source.adapter, source.directory) if weights else heldout.HeldOut()
    return Setup(source, config, tokenizer, device, earlier)


def train(
    args,
    setup: Setup,
    blocks,
    loss_fn,
    validation: dict,
    held: heldout.HeldOut,
    data_hashes: dict,
    facts: dict,
    what: str,
    template=None,
    unit: str = "tokens",
    **prepare,
) -> dict | None:
    """Train the model that `args` name on `blocks` and leave it in DIR; None if there was nothing to train: DIR holds the end
    of this very run, or it was a dry run.

    validation: {name: measure(model)} of the held-out sets; held: what is measured on, for later phases; facts: what
    summary.json should say besides; what: the data, in words; template: of an instructed model; unit: what loss_fn counts;
    prepare: for prepare_model.
    """
    identity = {
        "data": data_hashes,
        "tokenizer": setup.tokenizer.hash,
        "model": hub.fingerprint(setup.source, weights=not prepare.get("from_scratch")),
        "held_out.json of the model": setup.earlier.hash(),  # decides what is replayed
    }
    sampled = getattr(args, "sample_prompt", None)
    wanted = {"--patience": args.patience, "--keep best": args.keep == "best", "--sample-prompt": sampled}
    for flag, given in wanted.items():
        if given and not validation:
            raise UserError(f"{flag} looks at the validation, and there is no validation (--val-data, --val-fraction)")
    sample = partial(_sample, args, setup, template) if sampled else None
    if sample:
        sample(None)
    if not args.dry_run and not is_complete(args, identity):
        lock(Path(args.out))
        check_out(args)  # again, now that no other process changes it any more
    if is_complete(args, identity):
        if not args.dry_run:  # in case it was killed just before it did so itself
            checkpoint.remove(Path(args.out))
        print(f"{args.out}: this run is complete; nothing to do")
        return None
    if not args.dry_run:
        record_start(args, identity)
        heldout.write(held.add(setup.earlier), Path(args.out))
    model, base = prepare_model(args, setup.source, setup.device, args.dtype, **prepare)
    settings = Settings(**{k: v for k, v in vars(args).items() if k in Settings.__dataclass_fields__})
    parameters = list(model.parameters())
    facts = {
        "model": setup.source.name,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        **facts,
        "device": args.device,
        "dtype": args.dtype,
        "context": args.context,
    }
    print(
        f"{args.model}: {facts['parameters']:,} parameters, {facts['trainable']:,} trainable; {what}; {args.device}, "
        f"{args.dtype}; {total_steps(blocks, settings):,} updates of up to {args.batch_size} x {args.grad_accum} rows, "
        f"peak learning rate {args.lr:g}"
    )
    if args.show:
        show.rows(blocks.window(0), setup.tokenizer, args.show, facts.get("labels"))
    if args.dry_run:
        estimate.dry_run(model, blocks, loss_fn, settings, bool(validation), unit, args.out)
        return None
    evaluate = (lambda: {name: measure(model) for name, measure in validation.items()}) if validation else None
    write = partial(sample, model) if sample else None
    result = fit(model, blocks, loss_fn, evaluate, settings, Path(args.out), args.resume, unit, write)
    finish(args, model, base, setup, result, facts, unit, prepare.get("head"), template)
    say_kept(args, result)
    return result


def say_kept(args, result: dict) -> None:
    """Which weights DIR holds, and what their validation was."""
    best, last = result["best_val"], result["last_val"]
    if not last:
        print(f"no validation; kept the last weights (update {result['step']})")
        return
    kept = best if args.keep == "best" else last
    name = "ppl" if "ppl" in kept else "loss"
    sets = [("validation", result["first_val"], kept)]
    if "sets" in kept:
        sets = [(n, result["first_val"]["sets"][n], kept["sets"][n]) for n in kept["sets"]]
    print("; ".join(f"{n} {'perplexity' if name == 'ppl' else name} {a[name]:.4g} -> {b[name]:.4g}" for n, a, b in sets))
    other = "" if best["step"] == last["step"] else f"; --keep best would keep those of update {best['step']}"
    print(
        f"kept: the weights of the best validation (update {best['step']} of {result['steps']})"
        if args.keep == "best"
        else f"kept: the last weights (update {result['step']}){other}"
    )


def _sample(args, setup: Setup, template, model) -> str | None:
    """How the model goes on from --sample-prompt, greedily; without a model, only whether the prompt fits: UserError."""
    prompt = template.ask(args.sample_prompt) if template else args.sample_prompt
    ids = setup.tokenizer.encode(prompt).tolist()
    steps = min(SAMPLE_TOKENS, room(setup.config, ids, None))
    if model is None:
        return None
    ending = Ending(setup.tokenizer, template.markers if template else ())
    (done,) = generate(model, [ids], steps, Sampling(), ending, setup.device, args.dtype)
    return f"{args.sample_prompt} >>> {done.text.strip()}" + ("" if done.stopped else " ...")


def say_removed(count: int, what: str = "documents") -> None:
    if count:
        print(f"{count} training {what} that are held out too were taken out of the training side")


def say_earlier(setup: Setup, count: int) -> None:
    """Told to train on what an earlier phase measured on: it is done, and said."""
    if count:
        print(
            f"note: {count} of what is trained on was held out when {setup.source.adapter or setup.source.name} was trained; "
            "from now on a measurement on it is none on unseen text"
        )


def check_out(args) -> None:
    """Refuse to train over what is there. Raises UserError unless DIR is new, empty, to be resumed, or what a run left
    that ended before its first checkpoint. A run's own names prove nothing: only its run.json does."""
    check_directory(args.out)
    out, names = Path(args.out), names_in(Path(args.out))
    if out == Path("."):
        raise UserError(f"--out {args.out}: name a directory for the run")
    if not names:
        return
    ours = _is_run(out / "run.json")
    for folder, known in (("state", lambda n: any(fnmatch(n, p) for p in checkpoint.NAMES)), ("base", is_part)):
        for name in sorted(n for n in names_in(out / folder) if not known(n)):
            raise UserError(f"--out {out}: {folder}/{name} is no part of a run; move it away, or choose another directory")
    if args.resume and not ours:
        why = "its run.json is another program's" if "run.json" in names else "no run.json"
        raise UserError(f"--out {out}: not a run's directory ({why}), so there is nothing to resume; choose another directory")
    started = "summary.json" in names or checkpoint.latest(out)
    if not args.resume and (started or not ours or names - LEFTOVERS):
        mend = "--resume goes on with the run there, or " if ours else ""
        raise UserError(f"--out {out}: not empty; {mend}choose another directory")
    if "summary.json" in names and not any(n.endswith(".safetensors") for n in names):
        raise UserError(
            f"--out {out}: summary.json says that the run is complete, but its weights are gone; choose another "
            "directory, or delete this one"
        )
    model = sorted(n for n in names - LEFTOVERS if is_part(n))
    if not started and model:
        raise UserError(
            f"--out {out}: {model[0]} is there, but neither summary.json nor a checkpoint, so that it would be "
            "trained over from the start; choose another directory"
        )


def _is_run(path: Path) -> bool:
    """Whether a run.json is one that record_start wrote."""
    try:
        record = read_json(path)
        return isinstance(record["settings"], dict) and "command" in record and "nanomed" in record["versions"]
    except (UserError, TypeError, KeyError, IndexError):
        return False


def check_source(args, source: hub.Source) -> None:
    """Refuse to train a model into the directory that it lies in. Raises UserError."""
    out = Path(args.out).resolve()
    for directory in filter(None, (source.directory, source.adapter)):
        if directory.resolve().is_relative_to(out):
            raise UserError(f"--out {args.out}: the model {directory} lies there; choose another directory")


def is_complete(args, identity: dict) -> bool:
    """Whether DIR already holds the end of this very run. Raises UserError if it was another one."""
    if not args.resume or not (Path(args.out) / "summary.json").exists():
        return False
    _check_same(args, identity)
    return True


def _check_same(args, identity: dict) -> None:
    path = Path(args.out) / "run.json"
    before = read_json(path)
    then = before["settings"]
    changed = [k for k, v in vars(args).items() if k not in FREE and v != then.get(k)]
    if changed:
        was, now = (", ".join(f"{k} = {s.get(k)!r}" for k in changed) for s in (then, vars(args)))
        raise UserError(
            f"{path}: the run was started with {was}, now it is {now}; resume with the same settings, or choose another "
            "--out (make: RUNS=...)"
        )
    for key, value in identity.items():
        if value != before.get(key, value):
            raise UserError(f"{path}: the {key} changed since the run was started; choose another --out")


def record_start(args, identity: dict) -> None:
    """Write run.json, or check it against this command if the run is resumed. identity: hashes of what goes in: the
    data by name, the tokenizer, the model."""
    path = Path(args.out) / "run.json"
    if args.resume and checkpoint.latest(Path(args.out)):
        _check_same(args, identity)
        return
    packages = ["torch", "numpy", "tiktoken", "safetensors", "datasets"]
    Path(args.out).mkdir(parents=True, exist_ok=True)
    write_json(
        {
            "command": shlex.join(sys.argv),
            "directory": str(Path.cwd()),
            "settings": vars(args),
            "versions": {"nanomed": nanomed.__version__, "python": platform.python_version()} | {p: version(p) for p in packages},
            "machine": {
                "platform": platform.platform(),
                "cpu": _cpu_name(),
                "threads": torch.get_num_threads(),
                "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
            "seed": args.seed,
            **identity,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
        path,
    )


def prepare_model(args, source: hub.Source, device, dtype: str, from_scratch: bool = False, head=None):
    """Load the model that `args` ask for, ready to be trained on `device`; returns (model, name of its base).
    head(model) puts another head on it.

    With --lora-r, an adapter that `source` names is continued if its settings are the same; with other settings it is
    merged first, and the merged base written to DIR/base, where the new adapter's config will point.
    """
    model = hub.load_model(source, from_scratch, dropout=args.dropout)
    base = source.name
    if args.lora_r:
        targets = tuple(t.strip() for t in args.lora_targets.split(",") if t.strip())
        lora = LoRAConfig(args.lora_r, args.lora_alpha, args.lora_dropout, targets)
        if model.lora and not _same(model, lora):
            print(f"{source.adapter}: an adapter of other settings ({model.lora}); merged into the base of a new one")
            merge_and_unwrap(model)
            base = str((Path(args.out) / "base").resolve())
            if not args.dry_run:
                hub.save_model(model, Path(base), source.tokenizer_directory)
        if model.lora is None:
            inject(model, lora)
        else:
            print(f"{source.adapter}: the adapter goes on")
        model.lora = replace(model.lora, dropout=lora.dropout)
        for layer in lora_layers(model).values():
            layer.dropout.p = args.lora_dropout
    elif model.lora:
        print(f"{source.adapter}: the adapter is merged into the model; --lora-r {model.lora.r} would go on with it")
        merge_and_unwrap(model)
    model = head(model) if head else model
    if model.lora:  # else what is frozen will be saved from here, and must keep its bits
        store_frozen(model, dtype, device)
    model.transformer.grad_checkpoint = args.grad_checkpoint
    model.to(device)
    if args.compile:
        model.transformer.compile()
    return model, base


def _same(model, lora: LoRAConfig) -> bool:
    """Whether the model's adapter has this rank, this alpha, and these layers, however its targets are spelled."""
    wanted = {n for n, m in model.named_modules() if lora.matches(n)}
    return (model.lora.r, model.lora.alpha) == (lora.r, lora.alpha) and wanted == set(lora_layers(model))


def finish(args, model, base: str, setup: Setup, result: dict, facts: dict, unit: str, head=None, template=None) -> None:
    """Make DIR a model directory (adapter, merged or full), write summary.json and loss.png, and remove the state.

    Merging starts from the base as it is stored, in fp32: the copy that was trained with may be rounded to bf16.
    """
    out, source = Path(args.out), setup.source
    if model.lora and args.merge:
        fresh = hub.load_model(hub.find(base))
        inject(fresh, model.lora)
        if head:
            fresh = head(fresh)
            fresh.score.load_state_dict(model.score.state_dict())
        fresh.load_state_dict({k: v.cpu() for k, v in hub.adapter_state(model).items()}, strict=False)
        merge_and_unwrap(fresh)
        hub.save_model(fresh, out, source.tokenizer_directory)
    elif model.lora:
        hub.save_adapter(model, out, base, source.tokenizer_directory)
        facts = facts | {"base_sha256": hub.fingerprint(hub.find(base))}
    else:
        hub.save_model(model, out, source.tokenizer_directory)
    template = template or (None if head else templates.of_model(source.adapter, source.directory))  # an instructed model stays one
    if template:
        templates.save(template, setup.tokenizer.decode([setup.tokenizer.eot]), out)
    peak = {"peak_rss_bytes": peak_rss()}
    if torch.cuda.is_available():
        peak["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    write_json(facts | result | peak, out / "summary.json")
    report.plot_curves(out, unit)
    checkpoint.remove(out)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()
