"""What is supervised under the chat templates that others publish: those that come with trl.

    python bench/chat_templates.py

Of conversations of 1 to 6 questions and answers, with a system's turn and without, without reasoning, with
an empty one and with some: text and ids are those of transformers' apply_chat_template; every supervised
token is a word of an answer, of the reasoning before it or of what stands between the two, or the token that
ends the answer; all of these are, once. Where trl has a twin of a template that marks what to learn
({% generation %}), its marks hold the same answers, each up to the same end. A line for each template; the
last one counts them."""

import re
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import transformers

from nanomed.errors import UserError
from nanomed.text.bpe import train_bpe
from nanomed.text.chat import ChatTemplate
from nanomed.text.conversations import Conversation, Turn, user
from nanomed.text.tokenizer import load_tokenizer

SPECIAL = re.compile(
    r"<\|[^|<>\s'\"{}]{1,40}\|>|<｜[^<>\s'\"]{1,30}｜>|<(?:start|end)_of_turn>|<end_of_utterance>|</s>|\[/?INST\]|"
    r"<turn\|>|<\|turn>|<\|channel>|<channel\|>|<sop>|\[gMASK\]"
)
NAMES = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
# Its last answer ends in the text's end, where the twin adds the token that the next turn begins with.
OPEN, NEXT = "glm4moe", "<|user|>"


def published() -> dict[str, str]:
    """{name: source} of the templates in trl."""
    files = sorted((Path(find_spec("trl").origin).parent / "chat_templates").glob("*.jinja"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


def tokenizers(directory: Path, texts: list[str], sources):
    """(transformers', ours) of one vocabulary with all the special tokens of the templates."""
    train_bpe(texts, 400, directory / "base")
    special = sorted({name for source in sources for name in SPECIAL.findall(source)})
    file = str(directory / "base" / "tokenizer.json")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_file=file, additional_special_tokens=special, **NAMES
    )
    made.save_pretrained(directory)
    return made, load_tokenizer(directory)


def conversation(n: int, system: bool, reasoning: str | None) -> Conversation:
    """n questions and answers; reasoning: none (None), an empty one, or what each begins with."""
    turns = [Turn("system", "Be short.")] if system else []
    for k in range(n):
        thought = reasoning and f"{reasoning}{k} on."
        turns += [user(f"What is q{k}q?"), Turn("assistant", f'"A{k}a" is (so) said{k}.', reasoning=thought)]
    return Conversation(tuple(turns))


def messages(turns) -> list[dict]:
    return [
        {"role": t.role, "content": t.text}
        | ({} if t.reasoning is None else {"reasoning_content": t.reasoning})
        for t in turns
    ]


def supervised(template: ChatTemplate, item: Conversation, theirs, ours) -> list[tuple[list, list[str]]]:
    """(turns, the answers as they are supervised, each with its end) of each example, which is checked."""
    examples, found = list(template.encode(item, ours)), []
    learned = [item.learned] if len(examples) == 1 else [[k] for k in item.learned]
    for (ids, spans), numbers in zip(examples, learned, strict=True):
        turns, answers = item.turns[: numbers[-1] + 1], []
        how = {"chat_template": template.source, "return_dict": False}
        assert ids.tolist() == theirs.apply_chat_template(messages(turns), **how), "other ids"
        text = theirs.apply_chat_template(messages(turns), tokenize=False, **how)
        assert template.render(turns) == text, "another text"
        for (start, stop), k in zip(spans, numbers, strict=True):
            text, turn = ours.decode(ids[start:stop]), turns[k]
            before, words, end = text.partition(turn.text)
            assert words and (not before or before.startswith(turn.reasoning)), f"{text!r} for {words!r}"
            assert not re.search(r"q\d|A\d|said\d|short", before + end), f"another's words in {text!r}"
            answers.append(words + end)
        found.append((turns, answers))
    return found


def marked(source: str, turns, theirs) -> str:
    """What a template's {% generation %} blocks hold."""
    how = {"chat_template": source, "return_dict": True, "return_assistant_tokens_mask": True}
    out = theirs.apply_chat_template(messages(turns), **how)
    marks = zip(out["input_ids"], out["assistant_masks"], strict=True)
    return theirs.decode([i for i, mark in marks if mark])


def check(name: str, sources: dict[str, str], items, theirs, ours) -> Counter:
    """What became of the conversations under a template: refused (by it), whole, split, and by how many a
    twin agreed. Raises AssertionError for a wrong mask, UserError if a template is refused."""
    template, out = ChatTemplate(sources[name], name, tuple(NAMES.items())), Counter()
    twin = sources.get(f"{name}_training", sources[name])
    twin = twin if re.search(r"{%-?\s*generation", twin) else None
    for item in items:
        try:
            template.render(item.turns)
        except UserError:
            out["refused by the template"] += 1
            continue
        found = supervised(template, item, theirs, ours)
        out["one example" if len(found) == 1 else "an example an answer"] += 1
        for turns, answers in found if twin else ():
            marks, last = marked(twin, turns, theirs), NEXT if name == OPEN else ""
            assert all(answer in marks for answer in (*answers[:-1], answers[-1] + last)), (answers, marks)
            assert not re.search(r"q\d|short", marks), marks
        out["as its marks, or its twin's"] += bool(twin)
    return out


def takes_texts(source: str, theirs) -> bool:
    """Whether a template shows what is said if that is a text, and no list of parts."""
    try:
        chat = messages(conversation(1, False, None).turns)
        return "said0" in theirs.apply_chat_template(chat, chat_template=source, tokenize=False)
    except Exception:
        return False


def main() -> None:
    sources, total = published(), Counter()
    items = [conversation(n, s, r) for n in range(1, 7) for s in (False, True) for r in (None, "", "Thought")]
    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = tokenizers(Path(directory), ["the patient has a disease"] * 9, sources.values())
        for name, source in sources.items():
            if not takes_texts(source, theirs):
                total["take no plain texts"] += 1
                continue
            found = check(name, sources, items, theirs, ours)
            total["masked"] += 1
            print(f"{name:32} " + ", ".join(f"{n} {what}" for what, n in found.items() if n))
    print(f"{len(sources)} templates: " + ", ".join(f"{n} {what}" for what, n in total.items()))


if __name__ == "__main__":
    main()
