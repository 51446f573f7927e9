"""Reading, encoding, selecting and packing: formats, bad rows, the cache, and which token is where."""

import csv
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nanomed import caches
from nanomed.caches import claimed
from nanomed.errors import UserError
from nanomed.text import arrow, lines
from nanomed.text import corpus as corpus_module
from nanomed.text.batch import IGNORE
from nanomed.text.blocks import Mixture, Stream
from nanomed.text.corpus import Selection, encode_corpus
from nanomed.text.names import split_weight
from nanomed.text.rows import full_texts, read_texts
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import ROOT, assert_refused, make_texts, write_jsonl

TEXTS = ["First patient.", "Second, with β-cells and “quotes”", "  blanks kept  ", "fourth"]


@pytest.fixture(scope="module")
def tokenizer(bpe_dir):
    return load_tokenizer(bpe_dir)


def read(path, field="text", limit=None, skip=False):
    return list(read_texts(str(path), field, limit, skip))


def write_csv(path, texts):
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerows([["id", "text"], *([i, t] for i, t in enumerate(texts))])
    return path


def write_parquet(path, texts):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": texts}), path)
    return path


def write_json_list(path, texts):
    path.write_text(json.dumps([{"text": t} for t in texts]))
    return path


def write_lines(path, texts):
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


FORMATS = {
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".json": write_json_list,
    ".txt": write_lines,
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, tokenizer, suffix):
    path = FORMATS[suffix](tmp_path / f"d{suffix}", TEXTS)
    assert read(path) == TEXTS
    corpus = encode_corpus(str(path), tokenizer)
    assert corpus.sha256 == hashlib.sha256(b"".join(t.encode() + b"\0" for t in TEXTS)).hexdigest()
    for i, text in enumerate(TEXTS):
        ids = corpus.all().ids(i)
        assert ids[0] == tokenizer.lead and tokenizer.decode(ids[1:]) == text
        row = corpus.documents[i]
        assert (row["n_bytes"], row["n_words"]) == (len(text.encode()), len(text.split()))


def test_dotted_fields_lists_and_alternatives(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(
        '{"context": {"contexts": ["a", "b"]}}\n{"text": "c", "context": {"contexts": ["d"]}}\n{"text":'
        ' "e"}\n'
    )
    assert read(path, "context.contexts,text") == ["a\nb", "d", "e"]
    assert read(path, "text,context.contexts") == ["a\nb", "c", "e"]


def test_of_several_fields_the_first_that_is_filled_is_read_and_others_are_said(tmp_path, capsys):
    path = write_csv(tmp_path / "d.csv", [])
    path.write_text("title,abstract,text\nOn fever,,\nOn cough,It was seen.,\n")
    lines.note_once.cache_clear()
    assert read(path, "abstract,title") == ["On fever", "It was seen."]
    said = "note: --text-field abstract,title: of a row with abstract, title only the first is read\n"
    assert capsys.readouterr().err == said
    assert read(path, "text,title") == ["On fever", "On cough"] and capsys.readouterr().err == ""
    assert read(path, "abstract") == ["", "It was seen."] and read(path, "abstract,text") == [
        "",
        "It was seen.",
    ]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}\n')
    assert read(path) == ["a", "b"]


BAD = {
    "json": (b'{"text": "a"}\n{"text": \n', "row 2", "not valid JSON"),
    "encoding": (b'{"text": "a"}\n{"text": "\xff"}\n', "row 2", "not UTF-8"),
    "field": (b'{"text": "a"}\n{"texts": "b"}\n', "row 2", "no text in the field 'text' (fields: texts"),
    "type": (b'{"text": "a"}\n{"text": 3}\n', "row 2", "not text but int"),
    "null": (b'{"text": "a"}\n{"text": null}\n', "row 2", "no text in the field"),
    "object": (b'{"text": "a"}\n[1]\n', "row 2", "it is a list"),
    "surrogate": (b'{"text": "a"}\n{"text": "\\ud800"}\n', "row 2", "lone surrogate"),
}


@pytest.mark.parametrize(("content", "row", "why"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, tokenizer, content, row, why):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content + b'{"text": "z"}\n')
    with pytest.raises(UserError) as e:
        encode_corpus(str(path), tokenizer)
    for word in (str(path), row, why, "--skip-bad-rows"):
        assert word in str(e.value)
    corpus = encode_corpus(str(path), tokenizer, skip_bad_rows=True)
    assert len(corpus.documents) == 2 and corpus.bad_rows == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gone.jsonl", None, "no such file"),
        ("d.docx", b"x", "not a data file"),
        ("empty.jsonl", b"", "no documents there"),
        ("d.json", b"3", "must hold a list"),
        ("d.parquet", b"PAR1 no", "not Parquet"),
        ("d.csv", b"id,text\n1,\xff\n", "not UTF-8"),
        ("d.csv", b"id,body\n1,a\n", "no text in the field"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, tokenizer, name, content, why):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why) as e:
        encode_corpus(str(tmp_path / name), tokenizer)
    assert name in str(e.value)


def test_the_cache_is_keyed_by_content_field_limit_and_tokenizer(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "cache"))
    path = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    count = lambda: len(list((tmp_path / "cache").iterdir()))  # noqa: E731
    first = encode_corpus(str(path), tokenizer)
    monkeypatch.setattr(corpus_module, "_encode_into", None)  # a second encoding would fail
    again = encode_corpus(str(path), tokenizer)
    assert np.array_equal(first.tokens, again.tokens) and count() == 1
    renamed = tmp_path / "renamed.jsonl"
    path.rename(renamed)
    assert encode_corpus(str(renamed), tokenizer).sha256 == first.sha256
    monkeypatch.undo()
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "cache"))
    encode_corpus(str(renamed), tokenizer, limit=2)
    assert count() == 2
    write_jsonl(renamed, [*TEXTS, "more"])
    assert len(encode_corpus(str(renamed), tokenizer).documents) == 5 and count() == 3
    assert not list((tmp_path / "cache").glob("encoding-*"))


def test_nothing_is_kept_of_an_encoding_that_failed(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n' * 500 + "{")
    with pytest.raises(UserError, match="row 501"):
        encode_corpus(str(path), tokenizer)
    assert not list((tmp_path / "cache").iterdir())


def test_order_is_kept_by_parallel_encoding(tmp_path, tokenizer):
    texts = make_texts(1000, 3, 1, 40)
    corpus = encode_corpus(str(write_jsonl(tmp_path / "d.jsonl", texts)), tokenizer)
    assert [tokenizer.decode(corpus.all().ids(i)[1:]) for i in range(1000)] == texts


@pytest.mark.slow
def test_memory_stays_flat(tmp_path, bpe_dir):
    """A corpus of 300 MB is encoded and read with far less memory on top of what a small one needs."""
    code = """import re, sys
from nanomed.text.corpus import encode_corpus
from nanomed.text.blocks import Stream
from nanomed.text.tokenizer import load_tokenizer
c = encode_corpus(sys.argv[1], load_tokenizer(sys.argv[2]))
s = Stream(c.all(), 256, (0, 0)); [s.block(0, i) for i in range(50)]
# ru_maxrss counts the parent's
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))"""

    def peak(copies):
        path = tmp_path / f"{copies}.jsonl"
        line = json.dumps({"text": " ".join(make_texts(50, 5))}) + "\n"
        with open(path, "w") as f:
            f.writelines(line for _ in range(copies))
        out = subprocess.run(
            [sys.executable, "-c", code, path, bpe_dir], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(out.stdout), path.stat().st_size

    small, _ = peak(100)
    large, size = peak(25_000)
    assert size > 280e6
    assert large - small < 0.2 * size


# --- selecting ----------------------------------------------------------------------------------------------


def corpus_of(tmp_path, tokenizer, texts, name="c.jsonl"):
    return encode_corpus(str(write_jsonl(tmp_path / name, texts)), tokenizer)


def test_weights_are_told_from_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.jsonl:0.5").touch()
    assert split_weight("a.jsonl:0.9") == ("a.jsonl", 0.9)
    assert split_weight("hub:owner/name:config:2.0") == ("hub:owner/name:config", 2.0)
    for name in ("a.jsonl", "hub:owner/name:2023", "hub:owner/name:3.0.0", "odd.jsonl:0.5", "C:\\data"):
        assert split_weight(name) == (name, None)
    with pytest.raises(UserError, match="more than 0"):
        split_weight("a.jsonl:0")


# --- packing ------------------------------------------------------------------------------------------------


def test_a_stream_predicts_every_token_once_after_its_true_predecessor(tmp_path, tokenizer):
    texts = make_texts(30, 2)
    selection = Selection(corpus_of(tmp_path, tokenizer, texts), np.array([1, 2, 5, *range(9, 30)]))
    stream = Stream(selection, 16, (7, 0))
    expected = sorted(tuple(selection.ids(k)) for k in range(len(selection.indices)))
    for passed in (0, 1):
        blocks = [stream.block(passed, i) for i in range(stream.n_blocks)]
        order = np.argsort(stream._order(passed)[2])  # undo the shuffling of blocks
        idx = np.concatenate([blocks[i][0][blocks[i][1] != IGNORE] for i in order])
        targets = np.concatenate([blocks[i][1][blocks[i][1] != IGNORE] for i in order])
        whole = [*idx[:1], *targets]  # the stream again: documents in some order, each led by <|endoftext|>
        assert np.array_equal(idx, whole[:-1])
        starts = [i for i, t in enumerate(whole) if t == tokenizer.lead]
        documents = [tuple(whole[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert sorted(documents) == expected
        assert all(len(b[0]) == len(b[1]) == 16 for b in blocks)
    assert not np.array_equal(stream.block(0, 0)[0], Stream(selection, 16, (8, 0)).block(0, 0)[0])


def test_a_block_is_the_same_whenever_it_is_asked_for(tmp_path, tokenizer):
    selection = corpus_of(tmp_path, tokenizer, make_texts(20, 2)).all()
    a, b = Stream(selection, 8, (1, 0)), Stream(selection, 8, (1, 0))
    last = a.block(3, 5)
    for passed, i in ((0, 0), (2, 1), (3, 5)):
        got = b.block(passed, i)
    assert all(np.array_equal(x, y) for x, y in zip(last, got, strict=True))


def test_windows_hold_each_block_of_an_epoch_once_and_the_last_is_short(tmp_path, tokenizer):
    selection = corpus_of(tmp_path, tokenizer, make_texts(20, 2)).all()
    mixture = Mixture([selection], [1.0], 8, batch_size=3, grad_accum=2, seed=5)
    windows = [mixture.window(k) for k in range(mixture.windows_per_epoch)]
    tokens = np.concatenate([b.targets.numpy().ravel() for w in windows for b in w])
    assert (tokens != IGNORE).sum() == mixture.streams[0].n_tokens
    n = mixture.streams[0].n_blocks
    assert [sum(len(b.idx) for b in w) for w in windows] == [6] * (n // 6) + ([n % 6] if n % 6 else [])
    fewer = Mixture([selection], [1.0], 8, batch_size=6, grad_accum=1, seed=5)
    for k in range(2):  # the same update, however it is cut into micro-batches
        assert np.array_equal(np.concatenate([b.idx for b in windows[k]]), fewer.window(k)[0].idx)


def test_weights_are_shares_of_the_blocks_and_no_source_is_repeated_in_an_epoch(tmp_path, tokenizer):
    texts = [[f"{i} " + " a" * 30 for i in range(60)], [f"{i} " + " b" * 30 for i in range(90)]]
    parts = [corpus_of(tmp_path, tokenizer, t, f"{i}.jsonl").all() for i, t in enumerate(texts)]
    mixture = Mixture(parts, [0.9, 0.1], 16, batch_size=4, grad_accum=1, seed=0)
    counts = mixture.counts
    assert counts[0] == mixture.streams[0].n_blocks and counts[1] == pytest.approx(counts[0] / 9, abs=1)
    marks = [int(tokenizer.encode(" a")[0]), int(tokenizer.encode(" b")[0])]

    dealt = []
    for k, stream in enumerate(mixture.streams):
        block = stream.block
        stream.block = lambda passed, i, k=k, block=block: dealt.append((k, passed, i)) or block(passed, i)
    epochs = []
    for epoch in range(3):
        first = epoch * mixture.windows_per_epoch
        windows = [mixture.window(k) for k in range(first, first + mixture.windows_per_epoch)]
        tokens = np.concatenate([b.idx.numpy().ravel() for w in windows for b in w])
        share = (tokens == marks[1]).sum() / np.isin(tokens, marks).sum()
        assert share == pytest.approx(0.1, abs=0.02)
        assert [sum(d[0] == k for d in dealt) for k in (0, 1)] == counts
        assert len(set(dealt)) == len(dealt)
        epochs.append(set(dealt))
        dealt.clear()
    assert not epochs[0] & epochs[1] and not epochs[1] & epochs[2]  # the longer source is read on


# --- the cache, when things go wrong ------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOMED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE = {
    "tokens cut": lambda d: (d / "tokens.bin").write_bytes((d / "tokens.bin").read_bytes()[:-3]),
    "tokens gone": lambda d: (d / "tokens.bin").unlink(),
    "tokens a folder": lambda d: ((d / "tokens.bin").unlink(), (d / "tokens.bin").mkdir()),
    "tokens beyond the vocabulary": (
        lambda d: (d / "tokens.bin").write_bytes(b"\xff" * (d / "tokens.bin").stat().st_size)
    ),
    "documents cut": lambda d: (d / "documents.bin").write_bytes((d / "documents.bin").read_bytes()[:-3]),
    "documents gone": lambda d: (d / "documents.bin").unlink(),
    "documents garbage": (
        lambda d: (d / "documents.bin").write_bytes(b"\x7f" * (d / "documents.bin").stat().st_size)
    ),
    "meta gone": lambda d: (d / "meta.json").unlink(),
    "meta empty": lambda d: (d / "meta.json").write_bytes(b""),
    "meta garbage": lambda d: (d / "meta.json").write_bytes(b"\x80\x00{"),
    "meta a list": lambda d: (d / "meta.json").write_text("[1]"),
    "meta without its keys": lambda d: (d / "meta.json").write_text("{}"),
    "meta of an unknown type of number": lambda d: change(d / "meta.json", dtype="nonsense"),
    "meta of another type of number": lambda d: change(d / "meta.json", dtype="float16"),
    "meta of a wider type of number": lambda d: change(d / "meta.json", dtype="uint32"),
    "meta with a text for a count": lambda d: change(d / "meta.json", bad_rows="x"),
    "meta with null for a hash": lambda d: change(d / "meta.json", sha256=None),
    "a file in its place": lambda d: (shutil.rmtree(d), d.write_bytes(b"x")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_encoded_again(tmp_path, tokenizer, cache, damage, monkeypatch):
    path = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    whole = encode_corpus(str(path), tokenizer)
    expected = (whole.tokens.tolist(), whole.documents.tolist(), whole.sha256, whole.bad_rows)
    (cached,) = cache.iterdir()
    damage(cached)
    for _ in range(2):
        again = encode_corpus(str(path), tokenizer)
        assert (again.tokens.tolist(), again.documents.tolist(), again.sha256, again.bad_rows) == expected
        monkeypatch.setattr(corpus_module, "_encode_into", None)  # and once is enough
    assert [p.name for p in cache.iterdir()] == [cached.name]


@pytest.mark.parametrize("damage", [lambda f: f.truncate(10), lambda f: f.write(b"xx")])
def test_a_cache_that_is_damaged_while_it_is_read_is_said(tmp_path, tokenizer, cache, damage):
    """Mapped memory behind the end of a file would end the process, and other bytes would be other tokens."""
    path = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    reading = encode_corpus(str(path), tokenizer).all()
    ids = reading.ids(1).tolist()
    (cached,) = cache.iterdir()
    with open(cached / "tokens.bin", "r+b") as f:
        damage(f)
    with pytest.raises(UserError, match="tokens.bin: changed while it was read"):
        reading.ids(1)
    assert encode_corpus(str(path), tokenizer).all().ids(1).tolist() == ids


def test_several_at_once_encode_a_corpus_once(tmp_path, tokenizer, cache, monkeypatch):
    """All have seen that there is nothing before one begins; the others wait for what it makes."""
    path = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    together, first, encodings = threading.Barrier(4), threading.local(), []
    look, encode = corpus_module._map_corpus, corpus_module._encode_into

    def look_and_wait(*args):
        found = look(*args)
        if not hasattr(first, "done"):
            first.done = True
            together.wait(60)
        return found

    monkeypatch.setattr(corpus_module, "_map_corpus", look_and_wait)
    monkeypatch.setattr(corpus_module, "_encode_into", lambda *args: (encodings.append(args), encode(*args)))
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(lambda _: encode_corpus(str(path), tokenizer), range(4)))
    assert len(encodings) == 1
    assert len({(c.sha256, c.tokens.tobytes(), c.documents.tobytes()) for c in corpora}) == 1
    assert len(list(cache.iterdir())) == 1


def test_of_several_at_once_the_next_encodes_where_the_first_failed(tmp_path, tokenizer, cache, monkeypatch):
    path = write_jsonl(tmp_path / "d.jsonl", TEXTS)
    encode, encodings = corpus_module._encode_into, []

    def fail_once(*args):
        encodings.append(args)
        if len(encodings) == 1:
            raise OSError(28, "No space left on device")
        encode(*args)

    monkeypatch.setattr(corpus_module, "_encode_into", fail_once)
    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(encode_corpus, str(path), tokenizer) for _ in range(3)]
    errors = [task.exception() for task in tasks]
    assert (
        sorted(type(e).__name__ for e in errors) == ["NoneType", "NoneType", "UserError"]
        and len(encodings) == 2
    )
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("how", ["replaced", "appended to"])
def test_a_file_that_changes_while_it_is_encoded_is_no_corpus(tmp_path, tokenizer, cache, monkeypatch, how):
    path, new = (
        write_jsonl(tmp_path / "d.jsonl", TEXTS),
        write_jsonl(tmp_path / "new.jsonl", ["another text"]),
    )
    old = path.read_bytes()
    encode = corpus_module._encode_into

    def change_first(*args):
        path.write_bytes(new.read_bytes() if how == "replaced" else old + new.read_bytes())
        encode(*args)

    monkeypatch.setattr(corpus_module, "_encode_into", change_first)
    with pytest.raises(UserError, match=f"{path}.*changed while it was being encoded"):
        encode_corpus(str(path), tokenizer)
    assert not list(cache.iterdir())
    monkeypatch.setattr(corpus_module, "_encode_into", encode)
    path.write_bytes(old)
    assert len(encode_corpus(str(path), tokenizer).documents) == len(TEXTS)


def test_a_bad_row_of_a_data_set_is_not_an_empty_text(tokenizer, cache, monkeypatch):
    """Nor are two texts one that holds what is between them."""
    corpora = []
    for texts in (["a", None], ["a", ""], ["a", "b"], ["a\0b"], ["a\0", "b"]):
        monkeypatch.setattr(arrow, "hub_rows", lambda name, texts=texts: [{"text": t} for t in texts])
        corpora.append(encode_corpus("hub:owner/texts", tokenizer, skip_bad_rows=True))
    found = [(len(c.documents), c.bad_rows, c.empty) for c in corpora]
    assert found == [(1, 1, 0), (1, 0, 1), (2, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert len(list(cache.iterdir())) == 5


def test_what_killed_encodings_left_goes_and_what_living_ones_hold_stays(tmp_path, tokenizer, cache):
    code = "import sys, time; from pathlib import Path; from nanomed.caches import claimed\n"
    code += "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    killed, alive = "0" * 32, "1" * 32
    names = [str(cache / f"encoding-{name}") for name in (killed, alive)]
    others = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    try:
        assert [p.stdout.readline() for p in others] == ["held\n"] * 2
        for name in names:
            (Path(name) / "tokens.bin").write_bytes(b"x" * 1000)
        others[0].kill()
        others[0].wait()
        (cache / "encoding-notes.txt").write_text("no folder")
        (cache / "encoding-mine").mkdir()  # somebody else's
        (cache / "encoding-mine.lock").touch()
        encode_corpus(str(write_jsonl(tmp_path / "d.jsonl", TEXTS)), tokenizer)
        left = {p.name for p in cache.glob("encoding-*")}
        others_have = {"encoding-notes.txt", "encoding-mine", "encoding-mine.lock"}
        assert left == others_have | {f"encoding-{alive}", f"encoding-{alive}.lock"}
        assert (cache / f"encoding-{alive}" / "tokens.bin").stat().st_size == 1000
    finally:
        for p in others:
            p.kill()
            p.communicate()


def test_a_claim_is_waited_for_and_the_wait_is_said(tmp_path, monkeypatch, capfd):
    """The one that waits gets a folder of its own, once the first has been removed."""
    held, release, seen, flock = threading.Event(), threading.Event(), [], fcntl.flock

    def flock_and_release(file, how):
        if how == fcntl.LOCK_EX:  # the second is about to wait
            release.set()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_and_release)

    def first():
        with claimed(tmp_path / "f"):
            (tmp_path / "f" / "part").touch()
            held.set()
            assert release.wait(60)

    def second():
        with claimed(tmp_path / "f"):
            seen.extend(p.name for p in (tmp_path / "f").iterdir())

    with ThreadPoolExecutor(2) as pool:
        a = pool.submit(first)
        assert held.wait(60)
        b = pool.submit(second)
        a.result(60), b.result(60)
    assert not seen and not list(tmp_path.iterdir())
    assert f"{tmp_path / 'f'}: waiting for another process" in capfd.readouterr().err


# --- places -------------------------------------------------------------------------------------------------

BLANKS = " " * 1_100_000 + "x"  # more in a row than the pre-tokeniser can take

PLACES = {
    "json": ("d.jsonl", '\n{"text": "a"}\n\n[[[\n', "row 2, line 4: not valid JSON"),
    "surrogate": ("d.jsonl", '\n{"text": "a"}\n\n{"text": "\\ud800"}\n', "row 2, line 4: a lone surrogate"),
    "no blank line": ("d.jsonl", '{"text": "a"}\n[[[\n', "row 2: not valid JSON"),
    "blanks": ("d.jsonl", f'\n\n\n{{"text": "{BLANKS}"}}\n', "row 1, line 4: a text cannot be encoded"),
    "blanks in text": ("d.txt", f"a\n\n\n{BLANKS}\n", "row 2, line 4: a text cannot be encoded"),
    "csv": ("d.csv", f'id,text\n1,"a\nb"\n2,"{BLANKS}"\n', "row 2, line 4: a text cannot be encoded"),
    "csv, blank lines": ("d.csv", f'\nid,text\n\n1,"{BLANKS}"\n', "row 1, line 4: a text cannot be encoded"),
    "csv, a value missing": (
        "d.csv",
        'text,id\n"a\n\nb",1\n,2\n"c"\n',
        "row 3, line 6: no text in the field 'id'",
    ),
    "csv, not UTF-8": ("d.csv", b'id,text\n1,"a\nb"\n2,\xff\n', "line 4: not UTF-8"),
    "csv, half a line's end": ("d.csv", b'id,text\n1,"a\nb"\n2,c\rd\n', "line 4: new-line character"),
    "list": ("d.json", '[{"text": "a"},\n\n\n{"text": 3}]', "row 2: field 'text' is not text"),
}


@pytest.mark.parametrize(("name", "content", "message"), PLACES.values(), ids=PLACES)
def test_a_bad_row_is_named_by_its_number_and_its_line(tmp_path, tokenizer, name, content, message):
    """The number counts rows, as --limit does; the line is where the row begins, and is said where it is
    another number."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as e:
        encode_corpus(str(path), tokenizer, text_field="id" if "'id'" in message else "text")
    assert str(e.value).startswith(f"{path}, {message}"), str(e.value)[:300]


def test_blank_lines_are_no_rows_for_the_limit_either(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}\n')
    assert read(path, limit=2) == ["a", "b"]
    (tmp_path / "d.csv").write_text("\nid,text\n\n1,a\n\n2,b\n3,c\n")
    assert read(tmp_path / "d.csv", limit=2) == ["a", "b"]


WRONG_FIELD = {
    "d.jsonl": b'{"id": 1, "body": "a"}\n{"id": 2, "body": "b"}\n',
    "d.csv": b"id,body\n1,a\n2,b\n",
    "d.json": b'[{"id": 1, "body": "a"}, {"id": 2, "body": "b"}]',
}


@pytest.mark.parametrize(("name", "content"), WRONG_FIELD.items(), ids=WRONG_FIELD)
def test_a_wrong_field_is_told_from_a_bad_row(tmp_path, tokenizer, name, content):
    """A field that the very first row lacks is a wrong name, and leaving such rows out would leave
    nothing."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as e:
        encode_corpus(str(path), tokenizer)
    for word in (
        str(path),
        "row 1",
        "'text'",
        "fields: id, body",
        "--text-field a,b takes the first that is filled",
    ):
        assert word in str(e.value)
    assert "--skip-bad-rows" not in str(e.value)
    with pytest.raises(
        UserError, match="all 2 rows are bad.*row 1.*no text in the field 'text'.*fields: id, body"
    ):
        encode_corpus(str(path), tokenizer, skip_bad_rows=True)
    assert len(encode_corpus(str(path), tokenizer, text_field="text,body").documents) == 2


def test_a_field_without_a_text_in_the_first_row_is_a_bad_row(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"a": {"text": null}}\n{"a": {"text": "b"}}\n')
    with pytest.raises(UserError, match="row 1: no text in the field 'a.text'.*--skip-bad-rows leaves"):
        read(path, "a.text")
    assert read(path, "a.text", skip=True) == [None, "b"]
    with pytest.raises(UserError, match="no text in the field 'a.texts'") as e:
        read(path, "a.texts")
    assert "--skip-bad-rows" not in str(e.value)


def test_a_file_of_bad_rows_only_says_why(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text('\n{"text": \n[1]\n')
    with pytest.raises(UserError, match="all 2 rows are bad.*row 1, line 2: not valid JSON"):
        encode_corpus(str(path), tokenizer, skip_bad_rows=True)
    with pytest.raises(UserError, match="the only row is bad.*row 1, line 2: not valid JSON"):
        encode_corpus(str(path), tokenizer, limit=1, skip_bad_rows=True)
    path.write_text(f'{{"text": "{BLANKS}"}}\n' * 2)
    with pytest.raises(UserError, match="all 2 rows are bad.*row 1: a text cannot be encoded"):
        encode_corpus(str(path), tokenizer, skip_bad_rows=True)
    path.write_text("\n")
    with pytest.raises(UserError, match="no documents there"):
        encode_corpus(str(path), tokenizer, skip_bad_rows=True)


@pytest.mark.parametrize("side", ["--exclude", "--val-data"])
def test_a_wrong_field_beside_the_data_names_the_flag_that_takes_several(script, model_dir, tmp_path, side):
    write_jsonl(tmp_path / "d.jsonl", make_texts(30, 1))
    write_jsonl(tmp_path / "held.jsonl", make_texts(5, 2), field="abstract")
    common = ("train_clm.py", "--model", model_dir, "--data", "d.jsonl", "--out", "out", side, "held.jsonl")
    out = script(*common)
    assert_refused(out, "held.jsonl, row 1", "fields: abstract", "--text-field a,b")
    assert "--skip-bad-rows" not in out.stderr
    assert_refused(script(*common, "--skip-bad-rows"), "held.jsonl", "all 5 rows are bad", "fields: abstract")


def test_a_row_nested_beyond_reason_is_a_bad_row(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text("[" * 100_000 + '\n{"text": "a"}\n')
    with pytest.raises(UserError, match="row 1: not valid JSON"):
        encode_corpus(str(path), tokenizer)


def test_text_without_a_token_cannot_be_trained_on(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no documents there; 1 are without text"):
        corpus_of(tmp_path, tokenizer, [""])


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet, write_json_list])
def test_documents_without_text_are_none_and_are_said(tmp_path, tokenizer, capsys, write):
    """As a blank line of a .txt is none: they are read, encoded, and counted in no figure."""
    suffix = {write_jsonl: ".jsonl", write_csv: ".csv", write_parquet: ".parquet"}.get(write, ".json")
    lines.note_once.cache_clear()
    path = str(write(tmp_path / f"d{suffix}", ["", "a fever", " \n", "a cough", "\u3000"]))
    said = f"note: {path}: 3 documents without text are left out\n"
    for _ in range(2):  # encoded, and from the cache
        found = encode_corpus(path, tokenizer)
        assert [tokenizer.decode(found.all().ids(k)[1:]) for k in range(2)] == ["a fever", "a cough"]
        assert (len(found.documents), found.empty, found.bad_rows) == (2, 3, 0)
        assert capsys.readouterr().err == said
        lines.note_once.cache_clear()
    assert list(full_texts([path], "text", None, False)) == ["a fever", "a cough"]
    assert capsys.readouterr().err == said


def test_a_field_asked_of_plain_text_is_said(tmp_path, tokenizer, capsys):
    (tmp_path / "d.txt").write_text("a fever\n")
    lines.note_once.cache_clear()
    for field, said in (("text", ""), ("abstract,text", ""), ("abstract", "plain text has no fields")):
        assert len(encode_corpus(str(tmp_path / "d.txt"), tokenizer, field).documents) == 1
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == bool(said) and (not said or "'abstract'" in err)


def test_rows_of_a_csv_may_end_in_a_comma_and_not_in_another_field(tmp_path):
    (tmp_path / "d.csv").write_text("\ntext,id\nfever,1,\ncough,2,,\n")
    assert list(read_texts(str(tmp_path / "d.csv"), "text", None, False)) == ["fever", "cough"]
    (tmp_path / "e.csv").write_text("text,id\nfever,1\ncough, and more,2\n")
    with pytest.raises(UserError, match="row 2, line 3: 3 fields where the header has 2"):
        list(read_texts(str(tmp_path / "e.csv"), "text", None, False))


def test_who_has_no_home_has_a_cache_all_the_same(monkeypatch, tmp_path):
    for name in ("NANOMED_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(corpus_module.Path, "home", homeless)
    assert str(os.getuid()) in caches.cache_directory().name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches.cache_directory() == tmp_path / "nanomed"


def test_a_file_where_a_folder_is_to_be_filled_is_an_error(tmp_path):
    (tmp_path / "f").write_text("a file")
    with pytest.raises(FileExistsError), claimed(tmp_path / "f"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
