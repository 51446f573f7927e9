"""Every measurement of one model, for eval.py, for the page that compares models, and for the demo."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation import generation_config, metrics, mistakes
from nanomed.evaluation.generate import Completion, Ending, Sampling, generate, room, row_seed, stream
from nanomed.evaluation.perplexity import answer_perplexity, perplexity, window_sizes
from nanomed.evaluation.prompts import Asked, ask
from nanomed.models import narrow
from nanomed.models.fused import fuse
from nanomed.models.prepacked import pays_for_texts, prepack
from nanomed.models.quant import count_parameters
from nanomed.precision import resolve_device, resolve_dtype, store_frozen
from nanomed.streams import note
from nanomed.text import special
from nanomed.text.corpus import Corpus, encode_corpus
from nanomed.text.examples import encode_instructions
from nanomed.text.templates import Template, choose, of_model
from nanomed.text.tokenizer import Tokenizer, load_tokenizer
from nanomed.training.directory import quantized


@dataclass(frozen=True)
class Opened:
    """A model ready to be measured: frozen, on its device, with its tokenizer. places: the directories of its
    adapter, if it has one, and of the model."""

    name: str
    model: torch.nn.Module
    tokenizer: Tokenizer
    device: torch.device
    dtype: str
    places: tuple[Path | None, Path]
    quantize: str | None = None
    asked_for: dict = field(default_factory=dict)  # by its generation_config.json

    @property
    def directory(self) -> Path:
        return self.places[0] or self.places[1]

    @cached_property
    def template(self):
        """That it was instructed with, or its own; None if it has none. Raises UserError as of_model()."""
        return of_model(*self.places)

    def named(self) -> dict:
        """What every result says of the model that it is about."""
        return {"model": self.name, "dtype": self.dtype, "quantize": self.quantize}

    def __str__(self):
        over = f" over {self.quantize}" if self.quantize else ""
        parameters = f"{count_parameters(self.model):,} parameters, none trainable"
        return f"{self.name}: {parameters}; {self.device}, {self.dtype}{over}"


def open_model(
    name: str,
    device="auto",
    dtype="auto",
    classifier=False,
    quantize=None,
    plain=False,
    reading="text",
    write_in=None,
    scores=False,
) -> Opened:
    """Find and load a language model, or a classifier (None: whichever it is); quantize: nf4, int8, none, or
    None for what an adapter was trained over; plain: linear layers stay as they are, and are not laid out for
    the matrix library; reading: of special tokens in texts (nanomed.text.special); write_in: how a
    language model's weights are read to write with on a CPU (nanomed.models.narrow), None for one that is not
    to write; scores: it only scores texts, thousands of tokens at once. Raises UserError as hub does."""
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    source = hub.find(name)
    _, config = hub.read_config(source.directory)
    tokenizer = load_tokenizer(source.tokenizer_directory, source.directory, reading)
    hub.check_vocabulary(tokenizer, config, source)
    if quantize is None:  # an adapter was fitted to the weights that these codes stand for
        quantize = quantized(source.adapter)
    quantize = None if quantize == "none" else quantize
    classifier = hub.is_classifier(source) if classifier is None else classifier
    write_in = None if classifier else write_in
    if write_in == narrow.ROUNDED:
        narrow.check(device, quantize)
    load = hub.load_classifier if classifier else hub.load_model
    model = load(source, quantize=quantize, as_stored=True).requires_grad_(False)
    if not plain and device.type == "cpu":  # before there is a copy of the weights in the dtype
        fuse(model)
        if write_in:
            narrow.narrow(model, write_in, dtype)
    store_frozen(model, dtype, device)
    model = model.to(device).eval()
    if not plain and (not scores or pays_for_texts()):
        prepack(model)
    asked_for = generation_config.asked_for(*source.places)
    return Opened(name, model, tokenizer, device, dtype, source.places, quantize, asked_for)


def open_asked(args, model: str | None = None, classifier=False, writes=False, scores=False) -> Opened:
    """open_model() by the flags of eval.py; model: another than --model; writes: it will be asked to write,
    so what its generation_config.json asks for is said."""
    how = {"quantize": args.quantize, "reading": args.special_tokens, "scores": scores}
    if writes:
        how["write_in"] = getattr(args, "write_in", narrow.STORED)
    o = open_model(args.model if model is None else model, args.device, args.dtype, classifier, **how)
    if writes:
        generation_config.say(o.asked_for)
    return o


def choose_template(asked: str | None, o: Opened, otherwise: str | None = None):
    """(template or None, what it is called): the one that is asked for, which may be one of several of the
    model's, else the one that the model was instructed with, else `otherwise`. Says if that is another than
    the model's own."""
    if asked is None and o.template:
        return o.template, "the model's own"
    name = asked or otherwise
    template = choose(name, *o.places)[0] if name else None
    with suppress(UserError):  # of several, none is the default
        if o.template and template != o.template:
            note(f"{o.name} was instructed with another template, the default")
    return template, name


def sampling_of(args) -> Sampling:
    """Of flags.add_sampling_flags()."""
    return Sampling(args.repetition_penalty, args.temperature, args.top_k, args.top_p)


def encode(o: Opened, names: list[str], text_field="text", limit=None, skip_bad=False) -> Corpus:
    return encode_corpus(names, o.tokenizer, text_field, limit, skip_bad)


def measure_ppl(o: Opened, corpus: Corpus, context=None, stride=None, batch_size=8, seed=0, also=()) -> dict:
    """perplexity() of a corpus, by default in windows of the model's positions (1024 at most), half
    overlapping; `also`: what common mistakes give, by name."""
    context, stride = window_sizes(o.model.config, context, stride)
    every, how = corpus.all(), (context, stride, batch_size)
    result = perplexity(o.model, [every], *how, o.device, o.dtype, seed, per_document=True)
    nll = result.pop("document_nll")
    if also:
        measured = mistakes.Measured([every.ids(k) for k in range(len(nll))], nll, *how)
        result["also"], result["also_missing"] = mistakes.also(also, o, measured)
    return result | {
        "data_sha256": corpus.sha256,
        "bad_rows": corpus.bad_rows,
        **o.named(),
        "vocab_size": o.model.config.vocab_size,
        "begins_with": o.tokenizer.name(o.tokenizer.lead),
        "special_tokens": corpus.special_tokens,
    }


# --- generation ---------------------------------------------------------------------------------------------


def complete(
    o: Opened, asked, sampling: Sampling, markers=(), max_new_tokens=None, batch_size=16, seed=0
) -> list[dict]:
    """[{prompt, completion, stopped}] of what is Asked, in its order."""
    prompts = [list(a.ids) for a in asked]
    how = (Ending(o.tokenizer, markers), o.device, o.dtype, seed, batch_size)
    done = generate(o.model, prompts, max_new_tokens, sampling, *how)
    pairs = zip(asked, done, strict=True)
    return [{"prompt": a.text, "completion": c.text, "stopped": c.stopped} for a, c in pairs]


def write_on(
    o: Opened, asked: Asked, sampling: Sampling, markers, max_new_tokens, seed: int, kept=None
) -> Completion:
    """Write a completion to the terminal as it comes; kept: what a conversation keeps of earlier ones. Raises
    UserError as room() does."""
    prompt, ending, ids, printed = list(asked.ids), Ending(o.tokenizer, markers), [], 0
    steps = room(o.model.config, prompt, max_new_tokens)
    for (token,) in stream(o.model, [prompt], steps, sampling, [row_seed(seed, 0)], o.device, o.dtype, kept):
        ids.append(token)
        done = ending.completion(ids, last=len(ids) == steps)
        new = done.text if done else ending.printable(ids)
        print(new[printed:], end="", flush=True)
        printed = max(printed, len(new))
        if done:
            print()
            return done


# --- answers ------------------------------------------------------------------------------------------------


def measure_answers(
    o: Opened, items, template: Template, sampling: Sampling, max_new_tokens=None, batch_size=16, seed=0
) -> dict:
    """metrics.answers() of what the model writes after the prompt of each question, which is a whole
    conversation but for its last answer, against the last answers of all items (Conversation) that ask it;
    answer_ppl: the perplexity of all of these answers and their ends; dropped: items whose prompt leaves no
    room; answers: all of the others."""
    positions, least = o.model.config.n_positions, max_new_tokens or 1
    asked = [(ask(o.tokenizer, item.asked, template), item) for item in items]
    asked = [(prompt, item) for prompt, item in asked if len(prompt.ids) + least <= positions]
    if not asked:
        raise UserError(f"no prompt leaves room for {least} new tokens in the model's {positions} positions")
    answered, questions = [one for _, item in asked for one in item.each_answer()], {}
    for prompt, item in asked:
        questions.setdefault(prompt, []).extend(one.response.strip() for one in item.each_answer())
    done = complete(o, questions, sampling, template.ends, max_new_tokens, batch_size, seed)
    answers = []
    for d, references in zip(done, questions.values(), strict=True):
        texts = {"completion": d["completion"].strip(), "reference": references[0]}
        texts |= {"references": references} if len(references) > 1 else {}
        answers.append({"prompt": d["prompt"], **texts, "stopped": d["stopped"]})
    columns = [a["completion"] for a in answers], list(questions.values()), [a["stopped"] for a in answers]
    result = metrics.answers(*columns, seed)
    encoded = encode_instructions([i.last_only() for i in answered], o.tokenizer, template, positions)
    if encoded.examples:
        ppl = answer_perplexity(o.model, encoded.examples, batch_size, o.device, o.dtype, seed)
        result |= {"answer_ppl": ppl["ppl"], "answer_ppl_ci95": ppl["ppl_ci95"]}
    return result | {
        "special_tokens": special.report(o.tokenizer, (item.text() for item in answered)),
        "ends_with": sorted(map(o.tokenizer.name, o.tokenizer.ends)),
        "truncated": encoded.truncated,
        "dropped": len(items) - len(asked),
        **o.named(),
        "answers": answers,
    }
