"""Prompt templates as data: the one place that says how an instruction looks, in training, evaluation and
generation.

A template is plain text with `{instruction}`, `{input}` and `{response}` in it. The model sees the prompt's
ids, which are the same when there is no response yet, then those of the response as it follows the prompt,
then its end. Special tokens that a template spells are the tokens; in what is put into it they are what
--special-tokens says (nanomed.text.special)."""

import json
import re
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import read_object, read_toml, typed, write_json, write_text
from nanomed.text.special import Written

# How a model that was instructed is asked: for us, for transformers.
FILES = ("template.json", "chat_template.jinja")
# What each text of a template must hold.
PLACEHOLDERS = {
    "prompt": ("instruction",),
    "prompt_with_input": ("instruction", "input"),
    "response": ("response",),
}


@dataclass(frozen=True)
class Template:
    prompt: str  # of an instruction alone
    prompt_with_input: str  # of an instruction and its input
    response: str = "{response}"
    # A generated answer that begins one of these has run on into the next example.
    markers: tuple[Annotated[str, Meta(min_length=1)], ...] = ()

    def ask(self, instruction: str, input: str = "") -> Written:
        """The prompt's text."""
        prompt = self.prompt_with_input if input else self.prompt
        return _fill(prompt, {"instruction": instruction, "input": input})

    def answer(self, response: str) -> Written:
        """The response's text, which follows the prompt's."""
        return _fill(self.response, {"response": response})

    @property
    def ends(self) -> tuple[str, ...]:
        """Where a generated answer is over: at a marker, or at what the template writes behind a response."""
        behind = self._behind.strip()
        return (*self.markers, behind) if behind else self.markers

    def holds_end(self, eos: str) -> bool:
        """Whether the template itself writes the token that ends a response."""
        return eos in self._behind

    @property
    def _behind(self) -> str:
        return self.response.partition("{response}")[2]


TEMPLATES = {
    "response": Template(
        prompt="### Instruction:\n{instruction}\n### Response:\n",
        prompt_with_input="### Instruction:\n{instruction}\n{input}\n### Response:\n",
        markers=("### Instruction:", "### Response:"),
    ),
    # Llama2-MedTuned (Rohanian et al. 2023)
    "medtuned": Template(
        prompt="### Instruction:\n{instruction}\n### Output:\n",
        prompt_with_input="### Instruction:\n{instruction}\n### Input:\n{input}\n### Output:\n",
        markers=("### Instruction:", "### Input:", "### Output:"),
    ),
    # The flashcards' rows say "Answer this question truthfully" and put the question into `input`.
    "flashcards": Template(
        prompt="Instruction: Answer this question truthfully\nQuestion: {instruction}\nResponse:",
        prompt_with_input="Instruction: {instruction}\nQuestion: {input}\nResponse:",
        response=" {response}",
        markers=("\nInstruction:", "\nQuestion:"),
    ),
    # Stanford Alpaca (Taori et al. 2023)
    "alpaca": Template(
        prompt=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the"
            " request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        ),
        prompt_with_input=(
            "Below is an instruction that describes a task, paired with an input that provides further "
            "context. Write a response that appropriately completes the request."
            "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        markers=("### Instruction:", "### Input:", "### Response:"),
    ),
    # The bare text
    "none": Template(prompt="{instruction}", prompt_with_input="{instruction}\n{input}"),
}


def load_template(name: str) -> Template:
    """One of TEMPLATES by name, or the one in a TOML file: `prompt`, and optionally `prompt_with_input`,
    `response` and `markers` (a list). Raises UserError for an unknown name, an unknown key or a placeholder
    that is missing."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    if path.suffix != ".toml":
        known = f"{', '.join(TEMPLATES)}, or a TOML file of your own"
        raise UserError(f"--template {name}: unknown; known: {known}")
    try:
        keys = read_toml(path)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    return _checked(keys, path)


def of_model(*directories: Path | None) -> Template | None:
    """The template that a model was instructed with, from the first of the directories that has one; None if
    none does."""
    files = (directory / FILES[0] for directory in directories if directory)
    file = next((file for file in files if file.exists()), None)
    return file and _checked(read_object(file), file)


def choose(asked: str | None, *directories: Path | None) -> tuple[Template, str]:
    """The template to instruct a model with, and what it is called: the one that is asked for, else the
    model's own, else `response`."""
    if asked:
        return load_template(asked), asked
    own = of_model(*directories)
    return (own, "the model's own") if own else (TEMPLATES["response"], "response")


def identity(template: Template, tokenizer) -> str:
    """All that decides how rows are asked and answered, for run.json."""
    return repr(template) + (" and continuations" if tokenizer.codec.puts_blank else "")


def save(template: Template, tokenizer, directory: Path) -> None:
    """Write it beside the model: as template.json, and as the chat template that transformers'
    apply_chat_template uses (what a user says is the instruction, what the assistant says the response and
    its end)."""
    eos = tokenizer.name(tokenizer.eos)
    end = "" if template.holds_end(eos) else f" + {json.dumps(eos)}"
    bos = json.dumps(_beginning(template, tokenizer))
    write_json(asdict(template), directory / FILES[0])
    write_text(
        (f"{{{{- {bos} -}}}}" if bos != '""' else "") + "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {_jinja(template.prompt, 'instruction')} -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- {_jinja(template.response, 'response')}{end} -}}}}"
        "{%- else -%}{{- raise_exception('only user and assistant have a place in this template') -}}"
        "{%- endif -%}{%- endfor -%}",
        directory / FILES[1],
    )


def _beginning(template: Template, tokenizer) -> str:
    """What a rendered chat has to begin with, so that its ids are those of Tokenizer.prompt(): the token that
    is put before every text, and a blank where the vocabulary puts one before a text but not behind a special
    token."""
    if not tokenizer.adds_bos or template.prompt.startswith(tokenizer.name(tokenizer.bos)):
        return ""
    name = tokenizer.name(tokenizer.bos)
    prompt = Written(template.prompt, ((0, len(template.prompt)),))
    begins = {blank: Written(name + blank, ((0, len(name)),)) + prompt for blank in ("", " ")}
    ids = tokenizer.prompt(prompt).tolist()
    same = (name + blank for blank, text in begins.items() if tokenizer.encode(text).tolist() == ids)
    return next(same, name)


def _jinja(text: str, placeholder: str) -> str:
    """A Jinja expression for a template's text with the message in the place of `placeholder`."""
    parts = text.replace("{input}", "").split(f"{{{placeholder}}}")
    return " + message['content'] + ".join(json.dumps(part, ensure_ascii=False) for part in parts)


def _checked(keys: dict, path: Path) -> Template:
    """A template from the keys of a file. Raises UserError for an unknown key or a placeholder that is
    missing."""
    known = [f.name for f in fields(Template)]
    if unknown := sorted(keys.keys() - set(known)):
        raise UserError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    with_input = str(keys.get("prompt")).replace("{instruction}", "{instruction}\n{input}")
    template = typed(Template, {"prompt_with_input": with_input} | keys, path)
    for key, needed in PLACEHOLDERS.items():
        text = getattr(template, key)
        if missing := [name for name in needed if f"{{{name}}}" not in text]:
            raise UserError(f"{path}: {key} must contain {{{missing[0]}}}")
        taken = needed if key == "response" else ("instruction", "input")
        if odd := sorted(set(re.findall(r"(?<!\{)\{(\w+)\}(?!\})", text)) - {*taken}):
            raise UserError(f"{path}: {key}: {{{odd[0]}}} is no placeholder that is known there")
    return template


def _fill(text: str, values: dict[str, str]) -> Written:
    """Put the values in, all at once, so that braces in a value stay what they are."""
    out, own, at = [], [], 0
    for k, part in enumerate(_parts(text)):
        if k % 2:
            part = values.get(part, f"{{{part}}}")
        elif part:
            own.append((at, at + len(part)))
        out.append(part)
        at += len(part)
    return Written("".join(out), tuple(own))


@cache
def _parts(text: str) -> list[str]:
    """Text, placeholder, text, placeholder, ..., text."""
    return re.split(r"\{(instruction|input|response)\}", text)
