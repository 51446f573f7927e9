"""The model that a run starts from, and the one that it leaves: all weights, an adapter, or an adapter
merged."""

from dataclasses import replace
from pathlib import Path

import torch

from nanomed import hub
from nanomed.errors import UserError
from nanomed.hub.adapters import check_size
from nanomed.models import attention, loss
from nanomed.models.classifier import HEAD, Classifier
from nanomed.models.language_model import LanguageModel
from nanomed.models.lora import (
    LoRAConfig,
    adapter_state,
    fits,
    inject,
    lora_layers,
    merge_and_unwrap,
    resolve,
)
from nanomed.models.quant import QUANTISED
from nanomed.precision import DTYPES, store_frozen
from nanomed.text.labels import in_line, to_model
from nanomed.training import distributed
from nanomed.training.settings import Settings


def check_source(source: hub.Source, out: Path) -> None:
    """Refuse to train a model into the directory that it lies in. Raises UserError."""
    for directory in filter(None, (source.directory, source.adapter)):
        if directory.resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out}: the model {directory} lies there; choose another directory")


def start_model(s: Settings, source: hub.Source, classifier=None):
    """(model on the CPU, the name of its base), by what `source` is and what the settings ask for:

    - without --lora-r all weights; an adapter that `source` names is merged into them;
    - with --lora-r a new adapter, or that of `source` goes on, if its settings are the same. If they differ,
      or it is more than plain LoRA, it is merged first, and the merged base is written to DIR/base, where the
      new one's config will point.

    classifier: a function that puts a classification head on the model, or None. The head of a source that is
    a classifier itself goes on, if it has the same labels."""
    as_stored = bool(s.lora) and not source.adapter  # make_ready() turns each weight into what it is used as
    model, base = _load(source, s, classifier, as_stored), source.name
    lora = s.lora and resolve(model, s.lora)
    merged = bool(source.adapter) and not model.lora  # more than plain LoRA, which hub has merged
    goes_on = bool(lora and model.lora) and _same(model, lora)
    _check_quantised(model, s, source, bool(lora), goes_on, merged)
    new = ", the base of a new one" if lora else ""
    if goes_on:
        print(f"{source.adapter}: the adapter goes on")
        model.lora = replace(model.lora, dropout=s.lora_dropout)
        for layer in lora_layers(model).values():
            layer.dropout.p = s.lora_dropout
    elif merged:
        print(f"{source.adapter}: more than a plain LoRA adapter; merged into the model{new}")
    elif model.lora:
        own = f"--lora-r {model.lora.r} would go on with it" if not lora else f"its settings: {model.lora}"
        print(f"{source.adapter}: the adapter is merged into the model{new}; {own}")
        merge_and_unwrap(model)
        merged = True
    if merged and lora:
        base = str((s.out / "base").resolve())
        if not s.dry_run and distributed.rank() == 0:
            hub.save_model(model, Path(base), source.tokenizer_directory)
        model.config = replace(model.config, model_type=model.hf_config["model_type"])  # as it is there
    if lora and not goes_on:
        try:
            check_size(model, lora)
            inject(model, lora)
        except UserError as e:
            raise UserError(f"--lora-r, --lora-targets: {e}") from e
    return _put_head_on(model, classifier, source) if classifier else model, base


def _check_quantised(model, s: Settings, source: hub.Source, lora: bool, goes_on: bool, merged: bool) -> None:
    """Raises UserError for what quantised weights, which stay as they are, cannot do."""
    quantised = any(isinstance(m, QUANTISED) for m in model.modules())
    if quantised and not lora:
        otherwise = ", or --quantize none" if s.quantize else ""
        why = "its quantised weights stay frozen"
        raise UserError(f"{source.name}: {why}: train an adapter (--lora-r){otherwise}")
    if quantised and model.lora and not goes_on:
        raise UserError(
            f"{source.adapter}: an adapter of other settings ({model.lora}) on quantised weights; merge it"
            " first (--merge), or go on with its own"
        )
    if merged and s.quantize:
        raise UserError(
            f"{source.adapter}: more than plain LoRA, so it is merged, and --quantize {s.quantize} would"
            " round that away; train without it (--quantize none)"
        )


def _load(source: hub.Source, s: Settings, classifier, as_stored=False) -> LanguageModel | Classifier:
    how = {"dropout": s.dropout, "quantize": s.quantize, "as_stored": as_stored}
    if classifier and hub.is_classifier(source):
        return hub.load_classifier(source, **how)
    return hub.load_model(source, s.from_scratch, **how)


def _put_head_on(model, classifier, source: hub.Source) -> Classifier:
    made, where = classifier(model), source.home
    if not isinstance(model, Classifier):
        return made
    calls, _ = to_model(set(made.labels), model.labels)  # the rows may have the numbers of the model's labels
    own = [calls.get(label, label) for label in made.labels]
    if set(own) <= set(model.labels) and model.multi_label in (None, made.multi_label):
        some = ", for the labels that there are here" if len(own) < len(model.labels) else ""
        print(f"{where}: its head goes on{some}")
        made.score.weight.data = model.score.weight.data[[model.labels.index(label) for label in own]]
    else:
        print(f"{where}: a new head, since its own is of other labels ({in_line(model.labels)})")
    return made


def _same(model, lora: LoRAConfig) -> bool:
    """Whether the model's adapter has this rank, this scale, and these layers, however its targets are
    spelled."""
    wanted = {n for n, m in model.named_modules() if fits(lora.targets, n)}
    return (model.lora.r, model.lora.scale) == (lora.r, lora.scale) and wanted == set(lora_layers(model))


def make_ready(model, s: Settings, device: torch.device) -> None:
    """In place: on its device (of several, a shard on each), and as --dtype, --compile and --grad-checkpoint
    want it."""
    model.backbone.grad_checkpoint = s.grad_checkpoint
    if distributed.world() > 1:  # in fp32: the frozen weights too are dealt out, and saved from there
        store_frozen(model, "fp32", device)
        distributed.shard(model, device, s.dtype)
        return
    store_frozen(model, s.dtype, device)
    model.to(device)
    if s.compile:
        compile_backbone(model)
    else:
        loss.compile_gradient(False)


def compile_backbone(model) -> None:
    """The network below the head, in place, and the passes over the logits; attention is left to its
    kernels."""
    attention.leave_uncompiled()
    loss.compile_gradient()
    model.backbone.compile()


def leave_model(model, base: str, s: Settings, source: hub.Source, classifier=None) -> dict:
    """Make DIR a model directory: full, adapter or merged; returns what summary.json should say of it.

    Merging starts from the base as it is stored, in fp32: the copy that was trained with may be rounded to
    bf16. Where the base was quantised, it starts from what its codes stand for, which is what the adapter was
    trained on."""
    state = distributed.gathered(adapter_state(model) if model.lora else model.state_dict())
    head = distributed.gathered({HEAD: model.score.weight}) if model.lora and classifier else {}
    if distributed.rank():
        return {}
    written = {"save_dtype": s.save_dtype} if s.save_dtype != "fp32" else {}
    if not model.lora:
        hub.save_model(model, s.out, source.tokenizer_directory, DTYPES[s.save_dtype], state)
        return written
    if not s.merge:
        hub.save_adapter(model, s.out, base, source.tokenizer_directory, state | head)
        return {"base_sha256": hub.fingerprint(hub.find(base))}
    merged = _load(hub.find(base), s, classifier)
    inject(merged, model.lora)
    if classifier:
        merged = classifier(merged)
    merged.load_state_dict({k: v.detach().cpu() for k, v in (state | head).items()}, strict=False)
    merge_and_unwrap(merged)
    hub.save_model(merged, s.out, source.tokenizer_directory, DTYPES[s.save_dtype])
    return written
