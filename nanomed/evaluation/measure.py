"""Every measurement of one model, for eval.py, for the page that compares models, and for the demo."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation import metrics
from nanomed.evaluation.baselines import beside_baselines
from nanomed.evaluation.generate import Ending, Sampling, generate, row_seed, stream
from nanomed.evaluation.perplexity import answer_perplexity, perplexity
from nanomed.files import read_object
from nanomed.models.classifier import predict
from nanomed.precision import resolve_device, resolve_dtype, store_frozen
from nanomed.text import instructions, labelled
from nanomed.text.corpus import Corpus, encode_corpus
from nanomed.text.rows import get_text, get_value, named_sets, read_rows
from nanomed.text.templates import Template, of_model
from nanomed.text.tokenizer import Tokenizer, load_tokenizer
from nanomed.training.plan import Classify


@dataclass(frozen=True)
class Opened:
    """A model ready to be measured: frozen, on its device, with its tokenizer, and the template that it was instructed with,
    if it was."""

    name: str
    model: torch.nn.Module
    tokenizer: Tokenizer
    device: torch.device
    dtype: str
    directory: Path
    template: Template | None

    def __str__(self):
        n = sum(p.numel() for p in self.model.parameters())
        return f"{self.name}: {n:,} parameters, none trainable; {self.device}, {self.dtype}"


def open_model(name: str, device="auto", dtype="auto", classifier=False) -> Opened:
    """Find and load a language model, or a classifier. Raises UserError as hub does."""
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    source = hub.find(name)
    _, config = hub.read_config(source.directory)
    tokenizer = load_tokenizer(source.tokenizer_directory)
    hub.check_vocabulary(tokenizer, config, source)
    model = (hub.load_classifier(source) if classifier else hub.load_model(source)).requires_grad_(False)
    store_frozen(model, dtype, device)
    template = of_model(source.adapter, source.directory)
    return Opened(name, model.to(device).eval(), tokenizer, device, dtype, source.adapter or source.directory, template)


def encode(o: Opened, names: list[str], text_field="text", limit=None, skip_bad=False) -> Corpus:
    return encode_corpus(names, o.tokenizer, text_field, limit, skip_bad)


def measure_ppl(o: Opened, corpus: Corpus, context=None, stride=None, batch_size=8, seed=0) -> dict:
    """perplexity() of a corpus, by default in windows of the model's positions (1024 at most), half overlapping."""
    context = context or min(o.model.config.n_positions, 1024)
    stride = stride or max(1, context // 2)
    result = perplexity(o.model, [corpus.all()], context, stride, batch_size, o.device, o.dtype, seed=seed)
    return result | {
        "data_sha256": corpus.sha256,
        "bad_rows": corpus.bad_rows,
        "model": o.name,
        "vocab_size": o.model.config.vocab_size,
        "begins_with": o.tokenizer.name(o.tokenizer.lead),
    }


def trained_with(directory: Path) -> dict:
    """The settings of the run that made a directory, data files as they are found from here; {} for a model from elsewhere."""
    return _read_run(directory)[0].get("settings", {})


def _read_run(directory: Path) -> tuple[dict, str | None]:
    """run.json, its settings as trained_with() gives them; or {}, and why nothing is known of the run."""
    path = Path(directory) / "run.json"
    if not path.exists():
        return {}, f"{path} is not there, so the training texts are unknown"
    try:
        run = read_object(path)
    except UserError as e:
        return {}, f"{e}, so the training texts are unknown"
    ours = all(isinstance(run.get(key), dict) for key in ("settings", "data", "versions"))
    if not ours or "nanomed" not in run["versions"]:
        return {}, f"{path} is another program's, so the training texts are unknown"
    settings, home = dict(run["settings"]), Path(run.get("directory", "."))

    def found(file):
        return file if file.startswith("hub:") else str(home / file)

    for flag in ("data", "positives", "negatives", "exclude"):
        settings[flag] = [found(file) for file in settings.get(flag) or []] or None
    if settings.get("val_data"):  # NAME=D
        sets = named_sets(settings["val_data"], home).items()
        settings["val_data"] = [f"{name}={found(file)}" for name, files in sets for file in files]
    return run | {"settings": settings}, None


# --- generation -------------------------------------------------------------------------------------------------------


def read_questions(file: str, limit: int | None = None) -> tuple[list[str], list[str | None]]:
    """The prompts of a .txt file (one a line) or of rows with a `prompt` or a question, and what their rows say the answer
    is (`response`, `output` or `answer`), or None."""
    fields = "text" if file.lower().endswith(".txt") else f"prompt,{instructions.Fields.instruction}"

    def take(row):
        answer = get_value(row, instructions.Fields.response)
        known = isinstance(answer, str) and bool(answer.strip())
        return get_text(row, fields, "the file must have it"), answer if known else None

    rows = list(read_rows(file, take, limit, False))
    if not rows:
        raise UserError(f"{file}: no prompts there")
    return [prompt for prompt, _ in rows], [answer for _, answer in rows]


def complete(o: Opened, texts: list[str], sampling: Sampling, markers=(), max_new_tokens=None, batch_size=16, seed=0) -> list[dict]:
    """[{prompt, completion, stopped}] of prompts as they stand, in their order."""
    prompts = [o.tokenizer.prompt(text).tolist() for text in texts]
    ending = Ending(o.tokenizer, markers)
    done = generate(o.model, prompts, max_new_tokens, sampling, ending, o.device, o.dtype, seed, batch_size)
    return [{"prompt": p, "completion": c.text, "stopped": c.stopped} for p, c in zip(texts, done, strict=True)]


def write_on(o: Opened, text: str, sampling: Sampling, markers, steps: int, seed: int) -> None:
    """Write a completion to the terminal as it comes."""
    prompt, ending, ids, shown = o.tokenizer.prompt(text).tolist(), Ending(o.tokenizer, markers), [], 0
    for (token,) in stream(o.model, [prompt], steps, sampling, [row_seed(seed, 0)], o.device, o.dtype):
        ids.append(token)
        done = ending.completion(ids, last=len(ids) == steps)
        new = done.text if done else ending.printable(ids)
        print(new[shown:], end="", flush=True)
        shown = max(shown, len(new))
        if done:
            print()
            return


# --- answers ----------------------------------------------------------------------------------------------------------


def measure_answers(
    o: Opened, items: list[instructions.Instruction], template: Template, sampling=None, max_new_tokens=None, batch_size=16, seed=0
) -> dict:
    """metrics.answers() of what the model writes after each prompt, against the row's own response; answer_ppl: the
    perplexity of that response and its end; dropped: rows whose prompt leaves no room; answers: all of the others."""
    asked = [template.ask(item.instruction, item.input) for item in items]
    least = max_new_tokens or 1
    fits = [len(o.tokenizer.prompt(prompt)) + least <= o.model.config.n_positions for prompt in asked]
    if not any(fits):
        raise UserError(f"no prompt leaves room for {least} new tokens in the model's {o.model.config.n_positions} positions")
    prompts = [prompt for prompt, fit in zip(asked, fits, strict=True) if fit]
    items = [item for item, fit in zip(items, fits, strict=True) if fit]
    done = complete(o, prompts, sampling or Sampling(), template.markers, max_new_tokens, batch_size, seed)
    completions = [d["completion"].strip() for d in done]
    references = [item.response.strip() for item in items]
    result = metrics.answers(completions, references, [d["stopped"] for d in done], seed)
    encoded = instructions.encode_instructions(items, o.tokenizer, template, o.model.config.n_positions)
    if encoded.examples:
        ppl = answer_perplexity(o.model, encoded.examples, batch_size, o.device, o.dtype, seed)
        result |= {"answer_ppl": ppl["ppl"], "answer_ppl_ci95": ppl["ppl_ci95"]}
    answers = [
        {"prompt": d["prompt"], "completion": c, "reference": r, "stopped": d["stopped"]}
        for d, c, r in zip(done, completions, references, strict=True)
    ]
    return result | {
        "truncated": encoded.truncated,
        "dropped": fits.count(False),
        "model": o.name,
        "dtype": o.dtype,
        "answers": answers,
    }


# --- classes ----------------------------------------------------------------------------------------------------------


def read_test_texts(o: Opened, sources, text_field, label_field, limit, skip_bad) -> labelled.LabelledSet:
    found = labelled.read_labelled(sources, text_field, label_field, limit, skip_bad)
    if found.multi_label != o.model.multi_label:
        kinds = ("one label a text", "a list of labels a text")
        raise UserError(
            f"{sources[0][0]}: has {kinds[found.multi_label]}, but {o.name} was trained on {kinds[o.model.multi_label]}"
        )
    return found


def measure_classes(o: Opened, items: list[labelled.Labelled], batch_size=16, seed=0) -> dict:
    """metrics.classification() of a classifier on labelled texts, beside the two baselines if the directory's run.json
    still leads to the texts it was trained on: {labels, measures: {name: ...}, no_baseline: why, or None}."""
    m = o.model
    context = trained_with(o.directory).get("context", m.config.n_positions)  # beyond it nothing was trained
    ids, truncated = labelled.encode_texts([item.text for item in items], o.tokenizer, context)
    targets = labelled.targets_of(items, m.labels, m.multi_label)
    logits = predict(m, ids, o.tokenizer.pad, batch_size, o.device, o.dtype)
    sides, why = _training_sides(o)
    measures = beside_baselines(logits, m.labels, sides, items, targets, seed)
    return {
        "labels": m.labels,
        "multi_label": m.multi_label,
        "texts": len(items),
        "truncated": truncated,
        "measures": measures,
        "no_baseline": why,
        "model": o.name,
        "dtype": o.dtype,
    }


def _training_sides(o: Opened) -> tuple[labelled.Sides | None, str | None]:
    run, why = _read_run(o.directory)
    if why:
        return None, why
    try:
        sides = labelled.read_sides(Classify.read(run["settings"], o.directory / "run.json"))
    except UserError as e:
        return None, f"the training texts cannot be read again: {e}"
    if sorted(sides.hashes.values()) != sorted(run["data"].values()):  # by content: the paths may be written otherwise
        return None, "the training texts have changed since"
    return sides, None
