"""Prompt templates as data: the one place that says how an instruction looks, in training, evaluation and
generation. A chat model has a template of its own (nanomed.text.chat), which is asked in the same way.

A template is plain text with `{instruction}`, `{input}` and `{response}` in it. The model sees the prompt's
ids, which are the same when there is no response yet, then those of the response as it follows the prompt,
then its end; of a conversation, one question and answer after the other. Special tokens that a template
spells are the tokens; in what is put into it they are what --special-tokens says (nanomed.text.special)."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from nanomed.errors import UserError
from nanomed.files import read_object, read_section, read_toml, write_json, write_text
from nanomed.text.conversations import Conversation, Turn, turns_of
from nanomed.text.lines import BadRow
from nanomed.text.special import Written, template_text

if TYPE_CHECKING:
    import numpy as np

    from nanomed.text.chat import ChatTemplate

# How a model that was instructed is asked: for us, for transformers.
FILE, CHAT = "template.json", "chat_template.jinja"
# What each text of a template must hold.
PLACEHOLDERS = {"prompt": ["instruction"], "prompt_with_input": ["instruction", "input"]}
PLACEHOLDERS |= {"response": ["response"]}


@dataclass(frozen=True)
class Template:
    prompt: str  # of an instruction alone
    prompt_with_input: str  # of an instruction and its input
    response: str = "{response}"
    # A generated answer that begins one of these has run on into the next example.
    markers: tuple[Annotated[str, Meta(min_length=1)], ...] = ()

    unseen: ClassVar[tuple[str, ...]] = ("reasoning", "names")  # there is no place for them

    def ask(self, said: str | Sequence[Turn], input: str = "") -> Written:
        """What the model is given to answer: a question, or turns (without the tokens that end the answers
        among them)."""
        return sum((piece for _, piece in self._pieces(turns_of(said, input))), Written(""))

    def answer(self, response: str) -> Written:
        """The response's text, which follows the prompt's."""
        return _fill(self.response, {"response": response})

    def whole(self, turns: Sequence[Turn]) -> Written:
        """Turns when all is said."""
        return self.ask(turns)

    def check(self, conversation: Conversation) -> None:
        """Raises BadRow for turns that have no place: questions and answers take turns here; a system's text
        stands before the first question, what a tool says is a question."""
        roles = [turn.role for turn in conversation.turns if turn.role != "system"]
        if any((role == "assistant") != (k % 2 == 1) for k, role in enumerate(roles)):
            there = ", ".join(roles)
            raise BadRow(f"questions and answers must alternate in this template; they are {there}")

    def prompt_ids(self, said: str | Sequence[Turn], tokenizer) -> "np.ndarray":
        """The ids of what the model is given to answer, with the tokens that end the answers among them."""
        return tokenizer.joined([part for _, ids in self._encoded(turns_of(said), tokenizer) for part in ids])

    def encode(self, conversation: Conversation, tokenizer) -> list[tuple]:
        """One example's ids, and the spans of them that are supervised: the answers, and their ends.

        Prompt ids + the response's as it follows the prompt (Tokenizer.continuation) + the end
        (tokenizer.eos), and so on, put together as ids: no marker is ever searched for in encoded text. A
        response that spells its own end, where that is read, gets no second."""
        learned, parts, spans, at = conversation.learned, [], [], 0
        for k, ids in self._encoded(conversation.turns, tokenizer):
            parts += ids
            end = at + sum(map(len, ids))
            spans += [(at, end)] if k in learned else []
            at = end
        return [(tokenizer.joined(parts), tuple(spans))]

    def _encoded(self, turns: Sequence[Turn], tokenizer) -> Iterator[tuple[int, list]]:
        """The number of each turn that stands for itself, and its ids, in parts."""
        before, eos = Written(""), tokenizer.name(tokenizer.eos)
        for k, piece in self._pieces(turns):
            ids = tokenizer.continuation(before, piece) if before.text else tokenizer.prompt(piece)
            ended = self.holds_end(eos) or (len(ids) and ids[-1] == tokenizer.eos)
            if turns[k].role == "assistant" and not ended:
                yield k, [ids, [tokenizer.eos]]
                piece += template_text(eos)
            else:
                yield k, [ids]
            before += piece

    def _pieces(self, turns: Sequence[Turn]) -> Iterator[tuple[int, Written]]:
        """Each turn's number and text; a system's is a part of the question behind it."""
        system = ""
        for k, turn in enumerate(turns):
            if turn.role == "system":
                system += turn.text and f"{turn.text}\n\n"
            elif turn.role == "assistant":
                yield k, self.answer(turn.text)
            else:
                prompt = self.prompt_with_input if turn.input else self.prompt
                yield k, _fill(prompt, {"instruction": system + turn.text, "input": turn.input})
                system = ""

    def identity(self, tokenizer) -> str:
        """All that decides how rows are asked and answered, for run.json."""
        return repr(self) + (" and continuations" if tokenizer.codec.puts_blank else "")

    def save(self, tokenizer, directory: Path) -> None:
        """Write it beside the model: as template.json, and as the chat template that transformers'
        apply_chat_template uses (what a user says is the instruction, what the assistant says the response
        and its end)."""
        eos, content = tokenizer.name(tokenizer.eos), "message['content']"
        end = "" if self.holds_end(eos) else f" + {json.dumps(eos)}"
        bos = json.dumps(_beginning(self, tokenizer))
        write_json(asdict(self), directory / FILE)
        write_text(
            (f"{{{{- {bos} -}}}}" if bos != '""' else "")
            + "{%- set said = namespace(before='') -%}{%- for message in messages -%}"
            "{%- if message['role'] == 'system' -%}"
            f"{{%- if {content} -%}}"
            f"{{%- set said.before = said.before + {content} + '\\n\\n' -%}}"
            "{%- endif -%}"
            "{%- elif message['role'] in ['user', 'tool'] -%}"
            f"{{{{- {_jinja(self.prompt, 'instruction', f'said.before + {content}')} -}}}}"
            "{%- set said.before = '' -%}"
            "{%- elif message['role'] == 'assistant' -%}"
            f"{{{{- {_jinja(self.response, 'response', content)}{end} -}}}}"
            "{%- else -%}{{- raise_exception('no such role has a place in this template') -}}"
            "{%- endif -%}{%- endfor -%}",
            directory / CHAT,
        )

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
    return _checked(read_toml(path), path)


def of_model(*directories: Path | None, name: str | None = None) -> "Template | ChatTemplate | None":
    """How a model is asked, by the first of the directories that says so: the template that nanomed
    instructed it with, else its own chat template; or its chat template of this name. None if none does."""
    from nanomed.text import chat  # here, so that --help need not wait for Jinja

    found = ((not name and instructed_with(d)) or chat.load(d, name) for d in directories if d)
    return next(filter(None, found), None)


def instructed_with(*directories: Path | None) -> Template | None:
    """The template that nanomed instructed a model with, if it did."""
    files = (directory / FILE for directory in directories if directory)
    file = next((file for file in files if file.exists()), None)
    return file and _checked(read_object(file), file)


def choose(asked: str | None, *directories: Path | None) -> "tuple[Template | ChatTemplate, str]":
    """The template to instruct a model with, and what it is called: the one that is asked for (by its name,
    or that of one of the model's chat templates), else the model's own, else `response`."""
    if asked and asked not in TEMPLATES and not asked.endswith(".toml"):
        return of_model(*directories, name=asked) or load_template(asked), asked
    if asked:
        return load_template(asked), asked
    own = of_model(*directories)
    return (own, "the model's own") if own else (TEMPLATES["response"], "response")


def _beginning(template: Template, tokenizer) -> str:
    """What a rendered chat has to begin with, so that its ids are those of Tokenizer.prompt(): the token that
    is put before every text, and a blank where the vocabulary puts one before a text but not behind a special
    token."""
    if not tokenizer.adds_bos or template.prompt.startswith(tokenizer.name(tokenizer.bos)):
        return ""
    name = tokenizer.name(tokenizer.bos)
    prompt = template_text(template.prompt)
    begins = {blank: template_text(name) + Written(blank) + prompt for blank in ("", " ")}
    ids = tokenizer.prompt(prompt).tolist()
    same = (name + blank for blank, text in begins.items() if tokenizer.encode(text).tolist() == ids)
    return next(same, name)


def _jinja(text: str, placeholder: str, value: str) -> str:
    """A Jinja expression for a template's text with a value in the place of `placeholder`."""
    parts = text.replace("{input}", "").split(f"{{{placeholder}}}")
    return f" + {value} + ".join(json.dumps(part, ensure_ascii=False) for part in parts)


def _checked(keys: dict, path: Path) -> Template:
    """A template from the keys of a file. Raises UserError for an unknown key or a placeholder that is
    missing."""
    with_input = str(keys.get("prompt")).replace("{instruction}", "{instruction}\n{input}")
    template = read_section(Template, {"prompt_with_input": with_input} | keys, path)
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
    for k, part in enumerate(re.split(r"\{(instruction|input|response)\}", text)):
        if k % 2:
            part = values.get(part, f"{{{part}}}")
        elif part:
            own.append((at, at + len(part)))
        out.append(part)
        at += len(part)
    return Written("".join(out), tuple(own))
