"""What the scripts do, as functions of Python (docs/python.md): the scripts' own code, with parameters in
place of flags, and exceptions in place of an exit status.

    m = nanomed.load("gpt2")                          perplexity, generate, chat, choose, classify
    run = nanomed.adapt("gpt2", data, "runs/adapted", lora_r=8)      and classify, instruct

Data is named as --data names it, or is at hand (nanomed.text.at_hand)."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

from nanomed import flags, outputs
from nanomed.calling import from_python, in_python, model_name, parsed, plain
from nanomed.errors import UserError
from nanomed.files import read_object
from nanomed.text import at_hand, reading
from nanomed.training.settings import PHASES, Adapt, Classify, Instruct, Settings, parse

# --- training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A training that is complete. Its directory goes wherever a model's name goes; a notebook shows its
    curve."""

    out: Path

    def __fspath__(self) -> str:
        return str(self.out)

    @property
    def summary(self) -> dict:
        """What summary.json says."""
        return read_object(self.out / "summary.json")

    @property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl, one a logged update."""
        from nanomed.training.curves import read_metrics

        return read_metrics(self.out)

    def load(self, **how) -> "Model":
        """The model that it left: load() of its directory."""
        return load(self, **how)

    def _repr_png_(self) -> bytes | None:
        picture = self.out / "loss.png"
        return picture.read_bytes() if picture.exists() else None


def adapt(model, data, out, **settings) -> Run | None:
    """Phase 2: continue a model's training on texts, as train_clm.py does. None after dry_run=True."""
    import train_clm

    return _train(train_clm.adapt, Adapt, model, data, out, settings)


def classify(model, data=None, out=None, **settings) -> Run | None:
    """Phase 3: put a classification head on a model and train it, as train_cls.py does; data: rows of text
    and label, or None beside positives= and negatives=. None after dry_run=True."""
    import train_cls

    return _train(train_cls.classify, Classify, model, data, out, settings)


def instruct(model, data, out, **settings) -> Run | None:
    """Phase 4: fine-tune a model on conversations, or questions and answers, as train_sft.py does. None after
    dry_run=True."""
    import train_sft

    return _train(train_sft.instruct, Instruct, model, data, out, settings)


def _train(train, kind: type[Settings], model, data, out, settings: dict) -> Run | None:
    given, kept = {"model": model_name(model), "data": data, "out": out, **settings}, {}
    with from_python(kept):
        presets = plain(given, kind.of_files(), kept)
        recipe = ["--config", presets.pop("config")] if "config" in presets else []
        said = ", ".join(
            f"{name}={at_hand.in_short(value)}" for name, value in given.items() if value is not None
        )
        s = replace(parse(kind, None, recipe, presets), command=f"nanomed.{kind.phase}({said})")
        try:
            train(s)
        finally:
            outputs.release()
    return None if s.dry_run else Run(s.out)


def _explain_settings(function) -> None:
    """The phase's settings into what help() and a notebook show of a function."""
    own = list(inspect.signature(function).parameters.values())[:3]
    known = {
        n: f for n, f in flags.flags_of(PHASES[function.__name__]).items() if n not in {p.name for p in own}
    }
    more = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=f.default) for n, f in known.items()]
    function.__signature__ = inspect.Signature([*own, *more])
    function.__doc__ += "\n\n" + "\n".join(f"    {n}: {in_python(f.help)}" for n, f in known.items())


# --- a model ------------------------------------------------------------------------------------------------


def load(model, device="auto", dtype="auto", quantize=None, special_tokens="text") -> "Model":
    """A language model or a classifier: a Hub id (gpt2), a directory, an adapter's too, a Run, or nano, the
    bundled model; the rest as eval.py's flags have it."""
    given = {"device": device, "dtype": dtype, "quantize": quantize, "special_tokens": special_tokens}
    with from_python():
        how = parsed(lambda p: flags.add_flags(p, flags.Running, *given), "nanomed.load", given)
        from nanomed.evaluation import generation_config, measure

        how = {
            "quantize": how.quantize,
            "reading": how.special_tokens,
            "device": how.device,
            "dtype": how.dtype,
            "write_in": "stored",
        }
        opened = measure.open_model(model_name(model), classifier=None, **how)
        generation_config.say(opened.asked_for)
    return Model(opened)


class Model:
    """A model that can be asked: frozen, in eval mode, on its device. Settings are eval.py's, by their flags'
    names; results are what it writes with --json."""

    def __init__(self, opened):
        self.opened = opened  # nanomed.evaluation.measure.Opened
        self.name, self.model, self.tokenizer = opened.name, opened.model, opened.tokenizer
        self.device, self.dtype = opened.device, opened.dtype

    def __repr__(self):
        labels = f"; {len(self.labels)} labels" if self.labels else ""
        return f"Model({self.opened}; family {self.model.hf_config['model_type']}{labels})"

    @property
    def labels(self) -> list[str] | None:
        """Of a classifier; None of a language model."""
        return getattr(self.model, "labels", None)

    def perplexity(self, texts, **settings) -> dict:
        """How surprised the model is by texts, {"ppl", "ppl_ci95", "bits_per_byte", ...}: eval.py ppl, with
        its context, stride, batch_size, also, text_field, limit, seed, ..."""
        from nanomed.evaluation import measure
        from nanomed.evaluation.commands import ppl
        from nanomed.evaluation.training_texts import overlap_with_training
        from nanomed.text.corpus import Texts

        def add_flags(p):
            ppl.add_measuring_flags(p)
            flags.add_flags(p, flags.Rows, "limit")

        kept, o = {}, self._language_model()
        with from_python(kept):
            texts = [texts] if isinstance(texts, str) and not at_hand.is_name(texts) else texts
            args = parsed(add_flags, "perplexity", settings)
            args.data = at_hand.names(texts, "texts", kept)
            reading.read_as(args)
            corpus = measure.encode(o, args.data, args.text_field, args.limit, args.skip_bad_rows)
            how = args.context, args.stride, args.batch_size, args.seed, args.also
            found = measure.measure_ppl(o, corpus, *how)
            return found | overlap_with_training(o, Texts([corpus.all()], o.tokenizer), say=lambda line: None)

    def generate(self, prompt, **settings):
        """What the model writes after a prompt, in the template that it was instructed with; of a list of
        prompts, a list: eval.py generate, with its max_new_tokens, temperature, top_k, top_p,
        repetition_penalty, template, system, seed, ..."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if odd := [p for p in prompts if not isinstance(p, str)]:
            raise UserError(
                f"prompt: a text, or a list of texts, not {at_hand.in_short(odd[0])}; chat() takes messages"
            )
        written = self._write("generate", prompts, settings)
        return written[0] if isinstance(prompt, str) else written

    def chat(self, messages, **settings) -> str:
        """The answer to a conversation, [{"role", "content"}, ...], whose last turn is the user's, or to a
        question; settings as of generate()."""
        from nanomed.text.conversation_rows import asked_and_answered
        from nanomed.text.rows import BadRow

        question = [{"role": "user", "content": messages}]
        try:
            turns, answer = asked_and_answered(question if isinstance(messages, str) else list(messages))
        except BadRow as e:
            raise UserError(f"messages: {e}") from None
        if answer is not None:
            raise UserError(
                "messages: the last turn is the assistant's; one of the user's waits for an answer"
            )
        return self._write("chat", [turns], settings)[0]

    def _write(self, where: str, prompts: list, settings: dict) -> list[str]:
        from nanomed.evaluation import measure
        from nanomed.evaluation.commands import generate

        o = self._language_model()
        with from_python():
            args = parsed(generate.add_writing_flags, where, settings)
            args.prompts = None  # no file of them
            template, _ = measure.choose_template(args.template, o)
            asked = generate.put_all(args, o, prompts, template)
            ends, sampling = template.ends if template else (), measure.sampling_of(args)
            how = args.max_new_tokens, args.batch_size, args.seed
            return [done["completion"] for done in measure.complete(o, asked, sampling, ends, *how)]

    def choose(self, prompt: str, choices, template: str | None = None) -> dict:
        """Which of the choices, each as it stands after the prompt (" yes", with its blank), the model finds
        likeliest: eval.py choices. {"choice", "loglikelihoods": {choice: in nats, summed over its tokens},
        "loglikelihoods_per_byte"}."""
        from nanomed.evaluation.choices import measure_choices
        from nanomed.evaluation.questions import from_row
        from nanomed.text.rows import BadRow
        from nanomed.text.templates import load_template

        o = self._language_model()
        with from_python():
            try:
                item = from_row({"prompt": prompt, "choices": list(choices), "answer": 0})
            except BadRow as e:
                raise UserError(str(e)) from None
            r = measure_choices(o, [item], template=load_template(template) if template else None)
        kinds = {kind: r[kind][0] for kind in ("loglikelihoods", "loglikelihoods_per_byte")}
        values = {kind: dict(zip(item.choices, of, strict=True)) for kind, of in kinds.items()}
        return {"choice": item.choices[r["predictions"][0]], **values}

    def classify(self, texts, batch_size: int = 16):
        """What a classifier says of a text, {"label" (in a multi-label task "labels"), "probabilities"}; of a
        list of texts, a list."""
        from nanomed.evaluation.classes import context_of
        from nanomed.models.classifier import predict, probabilities
        from nanomed.text.labelled import encode_texts

        o = self.opened
        if not self.labels:
            raise UserError(f"{self.name}: not a classifier (nanomed.classify makes one)")
        with from_python():
            ids, _ = encode_texts(
                [texts] if isinstance(texts, str) else list(texts), o.tokenizer, context_of(o)
            )
            logits = predict(o.model, ids, o.tokenizer.pad, batch_size, o.device, o.dtype)
        found = []
        for row in probabilities(logits, o.model.multi_label).tolist():
            of = dict(zip(self.labels, row, strict=True))
            said = {"label": max(of, key=of.get)}
            if o.model.multi_label:
                said = {"labels": [label for label, p in of.items() if p >= 0.5]}
            found.append(said | {"probabilities": of})
        return found[0] if isinstance(texts, str) else found

    def _language_model(self):
        if self.labels:
            raise UserError(f"{self.name}: a classifier, which has no words; classify() asks it")
        return self.opened


for _function in (adapt, classify, instruct):
    _explain_settings(_function)
