"""A model that can be asked from Python (docs/python.md): nanomed.load() gives one. Loaded with PyTorch, when
it is needed."""

from collections.abc import Iterable

from nanomed import flags
from nanomed.calling import from_python, parsed
from nanomed.commands import generate, ppl
from nanomed.errors import UserError, naming
from nanomed.evaluation import classes, measure, questions, training_texts
from nanomed.evaluation.choices import measure_choices
from nanomed.models.classifier import predict, probabilities
from nanomed.text import at_hand, conversation_rows, labelled, reading, templates
from nanomed.text.corpus import texts_of
from nanomed.text.rows import BadRow


class Model:
    """A model that can be asked: frozen, in eval mode, on its device. Settings are eval.py's, by their flags'
    names; results are what it writes with --json."""

    def __init__(self, opened: measure.Opened):
        self.opened = opened
        self.name, self.model, self.tokenizer = opened.name, opened.model, opened.tokenizer
        self.device, self.dtype = opened.device, opened.dtype
        self.labels: list[str] | None = getattr(opened.model, "labels", None)  # None: a language model

    def __repr__(self):
        labels = f"; {len(self.labels)} labels" if self.labels else ""
        return f"Model({self.opened}; family {self.model.hf_config['model_type']}{labels})"

    def perplexity(self, texts, **settings) -> dict:
        """How surprised the model is by texts, {"ppl", "ppl_ci95", "bits_per_byte", ...}: eval.py ppl, with
        its context, stride, batch_size, also, text_field, limit, seed, ..."""
        kept, o = {}, self._language_model()
        with from_python(kept):
            texts = [texts] if isinstance(texts, str) and not at_hand.is_name(texts) else texts
            args = parsed(ppl.add_measuring_flags, "perplexity", settings, "limit")
            args.data = at_hand.names(texts, "texts", kept)
            reading.read_as(args)
            corpus = measure.encode(o, args.data, args.text_field, args.limit, args.skip_bad_rows)
            how = args.context, args.stride, args.batch_size, args.seed, args.also
            found = measure.measure_ppl(o, corpus, *how)
            read = texts_of([corpus.all()], o.tokenizer)
            return found | training_texts.overlap_with_training(o, read, say=lambda line: None)

    def generate(self, prompt, **settings):
        """What the model writes after a prompt, in the template that it was instructed with; of a list of
        prompts, a list: eval.py generate, with its max_new_tokens, temperature, top_k, top_p,
        repetition_penalty, template, system, seed, ..."""
        written = self._write("generate", _several(prompt, "prompt", "; chat() takes messages"), settings)
        return written[0] if isinstance(prompt, str) else written

    def chat(self, messages, **settings) -> str:
        """The answer to a conversation, [{"role", "content"}, ...], whose last turn is the user's, or to a
        question; settings as of generate()."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if isinstance(turns, dict) or not isinstance(turns, Iterable):
            raise UserError(f"messages: a text, or a list of turns, not {at_hand.in_short(messages)}")
        with naming("messages", BadRow):
            turns, answer = conversation_rows.asked_and_answered(list(turns))
        if answer is not None:
            raise UserError("messages: the last turn is the assistant's; one of the user's asks for another")
        return self._write("chat", [turns], settings)[0]

    def _write(self, where: str, prompts: list, settings: dict) -> list[str]:
        o = self._language_model()
        with from_python():
            args = parsed(generate.add_writing_flags, where, settings)
            # what an error names before the row
            args.prompts, args.skip_bad_rows = "prompt" if len(prompts) > 1 else None, False
            template, _ = measure.choose_template(args.template, o)
            asked = generate.put_all(args, o, prompts, template)
            ends, sampling = template.ends if template else (), measure.sampling_of(args)
            how = args.max_new_tokens, args.batch_size, args.seed
            return [done["completion"] for done in measure.complete(o, asked, sampling, ends, *how)]

    def choose(self, prompt: str, choices, template: str | None = None) -> dict:
        """Which of the choices, each as it stands after the prompt (" yes", with its blank), the model finds
        likeliest: eval.py choices. {"choice", "loglikelihoods": {choice: in nats, summed over its tokens},
        "loglikelihoods_per_byte"}."""
        o = self._language_model()
        choices = list(choices) if isinstance(choices, tuple) else choices
        with from_python(), naming("", BadRow):
            item = questions.from_row({"prompt": prompt, "choices": choices, "answer": 0})
            put_into = templates.load_template(str(template)) if template else None
            r = measure_choices(o, [item], template=put_into)
        kinds = {kind: r[kind][0] for kind in ("loglikelihoods", "loglikelihoods_per_byte")}
        values = {kind: dict(zip(item.choices, of, strict=True)) for kind, of in kinds.items()}
        return {"choice": item.choices[r["predictions"][0]], **values}

    def classify(self, texts, batch_size: int = 16):
        """What a classifier says of a text, {"label" (in a multi-label task "labels"), "probabilities"}; of a
        list of texts, a list."""
        o = self.opened
        if not self.labels:
            raise UserError(f"{self.name}: not a classifier (nanomed.classify makes one)")
        several, size = _several(texts, "texts"), {"batch_size": batch_size}
        with from_python():
            size = parsed(lambda p: flags.add_batch_size_flag(p, "texts"), "classify", size).batch_size
            ids, _ = labelled.encode_texts(several, o.tokenizer, classes.context_of(o))
            if not all(map(len, ids)):
                raise UserError("texts: an empty text, of which nothing can be said")
            logits = predict(o.model, ids, o.tokenizer.pad, size, o.device, o.dtype)
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


def _several(texts, what: str, mend: str = "") -> list[str]:
    """One text or some of them as a list. Raises UserError for what is none."""
    found = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str | dict) else [texts]
    if odd := [text for text in found if not isinstance(text, str)]:
        raise UserError(f"{what}: a text, or a list of texts, not {at_hand.in_short(odd[0])}{mend}")
    return found
