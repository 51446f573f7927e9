"""What the user is told, by its kinds: messages.txt holds commands that end with exit status 2 and one line
on standard error, and what that line must name.

A word `m/config.json:n_layer="x"` stands for the directory `m` while that key of that file has that value
(JSON; ~ takes the key away; without a key the whole file has that text)."""

import gzip
import json
import os
import re
import shutil
from contextlib import ExitStack, contextmanager
from functools import cache, reduce
from pathlib import Path

import pytest

from tests.conftest import make_hf_model, make_texts, run_script, write_jsonl

TABLE = Path(__file__).with_name("messages.txt")
CHANGED = re.compile(r"^([\w.-]+)/([\w.-]+):(?:([\w.]+)=)?(.*)$", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
TINY = "--batch-size 2 --max-steps 2 --log-every 1 --dtype fp32"


def cases() -> dict[str, list[str]]:
    """{command: what its message must name}."""
    found, command = {}, ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("$ "):
            command = line[2:]
        elif line and not line.startswith("#"):
            arguments, *words = line.split(" | ")
            found[f"{command} {arguments}"] = words
    return found


ROW = '{"text": "a fever"}\n'
FILES = {
    "same.jsonl": '{"question": "What is it?", "answer": "It is it."}\n' * 5,
    "pairs.jsonl": "".join(f'{{"question": "What is {k}?", "answer": "It is {k}."}}\n' for k in range(12)),
    "one.jsonl": ROW,
    "empty.jsonl": "",
    "broken.jsonl": ROW + '{"text": \n',
    "list.jsonl": ROW + '["text"]\n',
    "null.jsonl": '{"text": null}\n',
    "number.jsonl": '{"text": 7}\n',
    "field.jsonl": '{"body": "a fever"}\n',
    "fields.jsonl": json.dumps({f"field{k}": k for k in range(5000)}) + "\n",
    "utf16.jsonl": ROW.encode("utf-16"),
    "latin.jsonl": b'{"text": "a f\xe9ver"}\n',
    "bad.parquet": "PAR1nonsense",
    "open.csv": 'id,text\n1,"a fever\n2,cough\n',
    "commas.csv": "id,text\n1,a fever, and a cough\n",
    "twice.csv": "text,text\na fever,cough\n",
    "semicolon.csv": "id;text\n1;a fever\n",
    "heading.tsv": "ham\ta fever\nspam\tcough\n",
    "two.json": '{"train": [{"text": "a fever"}], "test": [{"text": "cough"}]}',
    "cut.jsonl.gz": gzip.compress(ROW.encode())[:-9],
    "words.docx": "PK",
    "labels.jsonl": '{"text": "a fever", "label": "a"}\n{"text": "cough"}\n',
    "alike.jsonl": '{"text": "a fever", "label": "a"}\n{"text": "cough", "label": "a"}\n',
    "half.jsonl": '{"text": "a fever", "label": "\\ud800"}\n{"text": "cough", "label": "b"}\n',
    "zz.jsonl": '{"text": "a fever", "label": "zz"}\n',
    "cop.jsonl": '{"question": "a", "opa": "b", "opb": "c", "opc": "d", "opd": "e", "cop": 2}\n',
    "choices.jsonl": '{"prompt": "the", "choices": [" a", " b"], "answer": 0}\n' * 3,
    "equal.jsonl": '{"prompt": "the", "choices": [" a", "a"], "answer": 0}\n',
    "odd.jsonl": '{"prompt": "the", "choices": [" a", "\\ud800"], "answer": 0}\n',
    "chats.jsonl": '{"messages": [{"role": "user", "content": "a"}]}\n'
    '{"messages": [{"role": "system", "content": "b"}]}\n',
    "prompts.jsonl": '{"prompt": "the fever"}\n{"prompt": ""}\n',
    "wrong.toml": "[adapt]\nlearning-rate = 1e-4\n",
    "type.toml": '[adapt]\nlr = "fast"\n',
    "list.toml": "[adapt]\nlr = [1]\n",
    "empty.toml": "[adapt]\ndata = []\n",
    "other.toml": "[classify]\nlr = 1e-4\n",
    "no.toml": "[adapt\n",
    "foo.toml": 'prompt = "{instruction} {foo}"\n',
    "template.toml": 'prompt = "Q: {question}"\nresponse = "{response}"\n',
    "extra.toml": 'prompt = "{instruction}"\nresponse = "{response}"\ncolour = "red"\n',
    "silent.jsonl": '{"messages": [{"role": "user", "content": "a"}]}\n',
    "twice.jsonl": '[{"from": "human", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]\n',
    "narrator.jsonl": '{"messages": [{"role": "narrator", "content": "a"}]}\n',
    "a-file": "x",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir):
    """A directory with all that the commands name."""
    d = tmp_path_factory.mktemp("messages")
    write_jsonl(d / "docs.jsonl", make_texts(30, 31))
    write_jsonl(d / "others.jsonl", make_texts(30, 17))
    for name, content in FILES.items():
        (d / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (d / "a-directory").mkdir()
    (d / "a-link").symlink_to("nowhere")
    os.mkfifo(d / "a-pipe.toml")
    for name in ("m", "pickled", "bare", "mute", "shards"):
        shutil.copytree(model_dir, d / name)
    (d / "pickled" / "model.safetensors").rename(d / "pickled" / "pytorch_model.bin")
    (d / "bare" / "config.json").unlink()
    (d / "mute" / "tokenizer.json").unlink()
    (d / "mute" / "vocab.json").unlink(missing_ok=True)
    (d / "shards" / "model.safetensors").unlink()
    make_hf_model(d / "other").save_pretrained(d / "shards", max_shard_size="40KB")
    os.mkfifo(d / "shards" / "a-pipe")
    clm = "train_clm.py --model m --data docs.jsonl --out"
    cls = "train_cls.py --model m --positives docs.jsonl --negatives others.jsonl --val-fraction 0.3 --out"
    for command in (f"{clm} run", f"{clm} adapter --lora-r 2", f"{cls} cls"):
        done = run_script(d, *command.split(), *TINY.split())
        assert done.returncode == 0, done.stderr
    shutil.copytree(d / "run", d / "lost")
    (d / "lost" / "model.safetensors").write_bytes(b"")
    return d


@contextmanager
def rewritten(file: Path, key: str | None, value: str):
    """A file with another value under a key, or with another text, for a while."""
    before = file.read_bytes()
    if key is not None:
        content = json.loads(before)
        *path, last = key.split(".")
        at = reduce(dict.__getitem__, path, content)
        at.pop(last, None)
        at |= {} if value == "~" else {last: json.loads(value)}
        value = json.dumps(content)
    file.write_text(value)
    try:
        yield
    finally:
        file.write_bytes(before)


def said(place: Path, command: str) -> tuple[int, list[str]]:
    """Exit status and the lines on standard error, without the name of the directory."""
    with ExitStack() as changes:
        words = ["" if word == "''" else word for word in command.split(" ")]
        for k, word in enumerate(words):
            change = CHANGED.match(word)
            if change and (place / change[1]).is_dir():
                where, name, key, value = change.groups()
                changes.enter_context(rewritten(place / where / name, key, value))
                words[k] = where
        done = run_script(place, *words)
    lines = [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]
    return done.returncode, [line.replace(f"{place.resolve()}/", "") for line in lines]


@pytest.mark.parametrize(("command", "words"), cases().items(), ids=cases())
def test_message(place, command, words):
    status, lines = said(place, command)
    assert (status, len(lines)) == (2, 1), lines
    name = command.split()[0]
    shown = name.removesuffix(".py").replace("/", ".") if "/" in name else name  # python -m nanomed.tasks
    assert lines[0].startswith(f"{shown}: ") and len(lines[0]) < 420
    assert all(word in lines[0] for word in words), lines[0]
    advised = re.sub(
        r"(train_\w+\.py|eval\.py \w+) [^:;,)]*", "", lines[0].replace("(--help lists the flags)", "")
    )
    unknown = {*FLAG.findall(advised)} - {*FLAG.findall(command)} - flags_of(place, command)
    assert not unknown, lines[0]


@cache
def _help(place: Path, *command: str) -> set[str]:
    lines = run_script(place, *command, "--help").stdout.splitlines()
    return {flag for line in lines if line.strip().startswith("-") for flag in FLAG.findall(line)}


def flags_of(place: Path, command: str) -> set[str]:
    """That the program, or its command, has."""
    name, first, *_ = command.split()
    return _help(place, name, first) if name == "eval.py" and first != "nothing" else _help(place, name)
