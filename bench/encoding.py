"""Text to token ids on disk: nanomed's encode_corpus against datasets.map with the fast tokenizer, of a
corpus and a tenth of it.

    python bench/encoding.py --data general.jsonl --model runs/models/smollm2-135m

A unit is a MB of the file. Memory is the process's peak: it should not follow the corpus. `again` opens what
was encoded before, which is what every later run starts with."""

import os
import tempfile
import time
from pathlib import Path

import sides

SIDES = ["nanomed tenth", "nanomed all", "nanomed again", "datasets tenth", "datasets all", "datasets again"]


def main():
    p = sides.parser(__doc__, SIDES)
    p.add_argument("--data", required=True, help="documents, JSONL")
    p.add_argument("--text-field", default="text")
    args = p.parse_args()
    pairs = {
        f"{what}: nanomed against datasets.map": (f"nanomed {what}", f"datasets {what}")
        for what in ("tenth", "all", "again")
    }
    sides.execute("encoding", "MB", args, measure, pairs, same_loss=1e-6)


def measure(side: str, args) -> dict:
    """`loss` is the number of tokens that come out, which must be the same but for the names of special
    tokens: `<filename>` in a text is text to nanomed, and to the library that token."""
    who, what = side.split()
    with tempfile.TemporaryDirectory() as directory:
        data = Path(args.data)
        if what == "tenth":
            data = Path(directory) / "tenth.jsonl"
            shorten(Path(args.data), data)
        run = {"nanomed": ours, "datasets": theirs}[who](args, data)
        seconds = []
        for k in range(1 + args.repeats):
            cache = f"{directory}/{'again' if what == 'again' else k}"
            start = time.perf_counter()
            tokens = run(cache)
            seconds.append(time.perf_counter() - start)
    megabytes = data.stat().st_size / 1e6 if what != "tenth" else Path(args.data).stat().st_size / 1e7
    return {"per_s": [megabytes / s for s in seconds[1:]], "warm_up_s": seconds[0], "loss": float(tokens)}


def shorten(whole: Path, tenth: Path) -> None:
    size, left = whole.stat().st_size, 0
    with open(whole, "rb") as f, open(tenth, "wb") as out:
        for line in f:
            left += len(line)
            out.write(line)
            if left * 10 >= size:
                break


def ours(args, data):
    from nanomed.text.corpus import encode_corpus
    from nanomed.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(args.model))

    def run(cache):
        os.environ["NANOMED_CACHE"] = cache
        corpus = encode_corpus(str(data), tokenizer, args.text_field)
        return len(corpus.tokens) - len(corpus.documents)  # without the leading ones

    return run


def theirs(args, data):
    import datasets
    import transformers

    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)

    def encode(batch):
        encoded = tokenizer(batch[args.text_field])
        return {**encoded, "n": [len(ids) for ids in encoded["input_ids"]]}

    def run(cache):
        rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=cache)
        return sum(rows.map(encode, batched=True, remove_columns=rows.column_names)["n"])

    return run


if __name__ == "__main__":
    main()
