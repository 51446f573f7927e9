"""What the user is told, word by word: messages.txt holds commands and the one line that each ends in, with
exit status 2.

A command is a line, its message the indented line below. `m` and its like are directories made for the test;
a word `m/config.json:n_layer="x"` stands for a copy of `m`, under the same name in another place, in which
that key of that file has that value (JSON; ~ takes the key away; without a key the whole file has that text).
`python tests/test_messages.py` writes down what is said now, to be read before it is kept."""

import gzip
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from nanomed.text.bpe import train_bpe  # noqa: E402
from tests.conftest import make_hf_model, make_texts, run_script, write_jsonl  # noqa: E402

TABLE = Path(__file__).with_name("messages.txt")
CHANGED = re.compile(r"^([\w.-]+)/([\w.-]+):(?:([\w.]+)=)?(.*)$", re.DOTALL)
TINY = "--batch-size 2 --max-steps 2 --log-every 1 --dtype fp32"


def cases() -> list[tuple[str, str]]:
    lines = [
        line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    return [(command, said.strip()) for command, said in zip(lines[::2], lines[1::2], strict=True)]


def make(d: Path, model: Path) -> None:
    """The directories and files that the commands name."""
    write_jsonl(d / "docs.jsonl", make_texts(30, 31))
    write_jsonl(d / "others.jsonl", make_texts(30, 17))
    write_jsonl(d / "one.jsonl", ["fever and cough"])
    rows = [json.dumps({"question": f"What is {k}?", "answer": f"It is {k}."}) for k in range(12)]
    (d / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    (d / "same.jsonl").write_text("\n".join([rows[0]] * 5) + "\n")
    (d / "empty.jsonl").write_text("")
    (d / "blank.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    (d / "broken.jsonl").write_text('{"text": "a fever"}\n{"text": \n')
    (d / "list.jsonl").write_text('{"text": "a fever"}\n["text"]\n')
    (d / "null.jsonl").write_text('{"text": null}\n')
    (d / "number.jsonl").write_text('{"text": 7}\n')
    (d / "field.jsonl").write_text('{"body": "a fever"}\n')
    (d / "utf16.jsonl").write_bytes('{"text": "a fever"}\n'.encode("utf-16"))
    (d / "latin.jsonl").write_bytes(b'{"text": "a f\xe9ver"}\n')
    (d / "zip.jsonl").write_bytes(b"PK\x03\x04aaaa")
    (d / "bad.parquet").write_bytes(b"PAR1nonsense")
    (d / "open.csv").write_text('id,text\n1,"a fever\n2,cough\n')
    (d / "commas.csv").write_text("id,text\n1,a fever, and a cough\n")
    (d / "semicolon.csv").write_text("id;text\n1;a fever\n")
    (d / "no-header.csv").write_text("1,a fever\n")
    (d / "heading.tsv").write_text("ham\ta fever\nspam\tcough\n")
    (d / "two.json").write_text('{"train": [{"text": "a fever"}], "test": [{"text": "cough"}]}')
    (d / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a fever"}\n')[:-9])
    (d / "words.docx").write_bytes(b"PK\x03\x04")
    (d / "labels.jsonl").write_text('{"text": "a fever", "label": "a"}\n{"text": "cough"}\n')
    (d / "alike.jsonl").write_text('{"text": "a fever", "label": "a"}\n{"text": "cough", "label": "a"}\n')
    (d / "prompts.jsonl").write_text('{"prompt": "the fever"}\n{"prompt": ""}\n')
    (d / "recipe.toml").write_text("[adapt]\nlr = 1e-4\n")
    (d / "wrong.toml").write_text("[adapt]\nlearning-rate = 1e-4\n")
    (d / "type.toml").write_text('[adapt]\nlr = "fast"\n')
    (d / "list.toml").write_text("[adapt]\nlr = [1]\n")
    (d / "other.toml").write_text("[classify]\nlr = 1e-4\n")
    (d / "empty.toml").write_text("[adapt]\ndata = []\n")
    (d / "foo.toml").write_text('prompt = "{instruction} {foo}"\n')
    (d / "twice.csv").write_text("text,text\na fever,cough\n")
    (d / "half.jsonl").write_text(
        '{"text": "a fever", "label": "\\ud800"}\n{"text": "cough", "label": "b"}\n'
    )
    (d / "zz.jsonl").write_text('{"text": "a fever", "label": "zz"}\n')
    (d / "fields.jsonl").write_text(json.dumps({f"field{k}": k for k in range(5000)}) + "\n")
    (d / "no.toml").write_text("[adapt\n")
    (d / "template.toml").write_text('prompt = "Q: {question}"\nresponse = "{response}"\n')
    (d / "extra.toml").write_text('prompt = "{instruction}"\nresponse = "{response}"\ncolour = "red"\n')
    (d / "a-file").write_text("x")
    (d / "a-directory").mkdir()
    (d / "a-link").symlink_to("nowhere")
    shutil.copytree(model, d / "m")
    shutil.copytree(model, d / "pickled")
    (d / "pickled" / "model.safetensors").rename(d / "pickled" / "pytorch_model.bin")
    shutil.copytree(model, d / "bare")
    (d / "bare" / "config.json").unlink()
    shutil.copytree(model, d / "mute")
    (d / "mute" / "tokenizer.json").unlink()
    (d / "mute" / "vocab.json").unlink(missing_ok=True)
    theirs = make_hf_model(d / "shards", model)
    (d / "shards" / "model.safetensors").unlink()
    theirs.save_pretrained(d / "shards", max_shard_size="40KB")
    for name, flags in {"adapter": "--data docs.jsonl --lora-r 2", "run": "--data docs.jsonl"}.items():
        done = run_script(d, "train_clm.py", "--model", "m", "--out", name, *TINY.split(), *flags.split())
        assert done.returncode == 0, done.stderr
    flags = "--model m --positives docs.jsonl --negatives others.jsonl --val-fraction 0.3 --out cls"
    done = run_script(d, "train_cls.py", *flags.split(), *TINY.split())
    assert done.returncode == 0, done.stderr
    shutil.copytree(d / "run", d / "lost")
    (d / "lost" / "model.safetensors").write_bytes(b"")
    (d / "results").mkdir()
    done = run_script(
        d, "eval.py", *"ppl --model m --data docs.jsonl --dtype fp32 --json results/m.docs.json".split()
    )
    assert done.returncode == 0, done.stderr


def said(d: Path, command: str) -> tuple[int, list[str]]:
    """Exit status and the lines on standard error, without the names of directories that are made anew each
    time."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory).resolve() / "place"
        shutil.copytree(d, place, symlinks=True)
        words = []
        for word in split(command):
            change = CHANGED.match(word)
            if change and (place / change[1]).is_dir():
                where, name, key, value = change.groups()
                rewrite(place / where / name, key, value)
                word = where
            words.append(word)
        done = run_script(place, *words)
        lines = [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]
        lines = [line.replace(f"{place}/", "").replace(str(d.resolve()) + "/", "") for line in lines]
        return done.returncode, [re.sub(r"machine of [\d.,]+ GB", "machine of N GB", line) for line in lines]


def split(command: str) -> list[str]:
    """Words between blanks; none of them holds one, but for values, where _ stands for it: 'x_y'."""
    return [re.sub(r"^'(.*)'$", lambda m: m[1].replace("_", " "), word) for word in command.split(" ")]


def rewrite(file: Path, key: str | None, value: str) -> None:
    if key is None:
        file.write_text(value)
        return
    content = json.loads(file.read_text())
    at = content
    *path, last = key.split(".")
    for part in path:
        at = at[part]
    if value == "~":
        del at[last]
    else:
        at[last] = json.loads(value)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir):
    d = tmp_path_factory.mktemp("messages")
    make(d, model_dir)
    return d


@pytest.mark.parametrize("command, line", cases(), ids=[f"{k}" for k in range(len(cases()))])
def test_message(place, command, line):
    assert said(place, command) == (2, [line])


def test_there_are_many_and_none_is_long():
    found = cases()
    assert len(found) >= 150 and len({command for command, _ in found}) == len(found)
    assert max(len(line) for _, line in found) < 420
    assert all(line.split(":")[0].endswith(".py") for _, line in found)


def main():
    """Write the table anew."""
    with tempfile.TemporaryDirectory() as directory:
        d = Path(directory)
        os.environ["NANOMED_CACHE"] = str(d / "cache")
        train_bpe(make_texts(300, seed=1), 400, d / "bpe")
        make_hf_model(d / "model", d / "bpe")
        (d / "place").mkdir()
        make(d / "place", d / "model")
        lines = []
        for line in TABLE.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                status, shown = said(d / "place", line)
                good = status == 2 and len(shown) == 1
                lines.append(
                    "    " + (shown[0] if good else f"!! {status}, {len(shown)} lines, the last {shown[-1:]}")
                )
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
