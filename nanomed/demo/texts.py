"""The demo's files: what is trained and measured on, written where nothing of anybody else's stands."""

import hashlib
import json
import os
import random
from pathlib import Path

from nanomed import hub, outputs
from nanomed.demo import render
from nanomed.errors import UserError
from nanomed.files import write_json, write_text
from nanomed.optional import need

PROGRAM, RECORD = "nanomed.demo", "settings.json"
PER_CONDITION = 16  # paragraphs in the corpus about each condition
QUICK = 60  # lines of each file, with --quick
ANOTHER = "give another --out (with make: RUNS=...)"


def make_texts(seed: int, most: int | None = None) -> dict[str, str]:
    """Everything that is trained and measured on, as the lines of files that the scripts read; `most`: lines
    of each."""
    groups = render.groups(seed)
    told = groups["taught"] + groups["read"]
    ways = [0, 1, 2, 3]
    rng = random.Random(f"order {seed}")
    train = render.questions(groups["taught"], ways, seed, per_fact=2)
    rng.shuffle(train)
    rows = {
        "corpus": _documents(render.corpus(told, PER_CONDITION, seed)),
        "prose": _documents(
            render.real_texts("prose.jsonl", without=groups["unknown"])
            + render.real_texts("abstracts.jsonl", without=groups["unknown"])
        ),
        "general.mix": _documents(
            render.real_texts("passages.jsonl", without=groups["unknown"]) + 2 * render.general_paragraphs()
        ),
        "self": _documents(render.real_texts("selfwritten.jsonl", without=groups["unknown"])),
        "biomedical": _documents(render.retold(told, seed)),
        "unknown": _documents(render.retold(groups["unknown"], seed)),
        "abstracts.dev": _documents(render.real_texts("abstracts.dev.jsonl")),
        "general.dev": _documents(render.real_texts("general.dev.jsonl")),
        "abstracts": _documents(render.real_texts("abstracts.test.jsonl")),
        "general": _documents(render.real_texts("general.test.jsonl")),
        "questions.train": train,
        "questions.val": rng.sample(render.questions(groups["read"], [0], seed), 60),
        "probe.train": render.named(groups["taught"]),
        "probe.read": render.named(groups["read"]),
        "probe.unknown": render.named(groups["unknown"]),
    }
    return {
        f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in r[:most])
        for name, r in rows.items()
    }


def _documents(texts: list[str]) -> list[dict]:
    return [{"text": text} for text in texts]


def start(args, out: Path, seed: int, results: list[str]) -> None:
    """Write the texts into `out`, where `results` will be made. Raises UserError, before anything is touched,
    if a demo with other settings lives there, if something there is not the demo's, or if something is
    missing that would be missed only at the end."""
    for module in ("matplotlib", "jinja2", "sklearn"):
        need(module)
    hub.find(args.model)
    texts = make_texts(seed, QUICK if args.quick else None)
    settings = {
        "seed": seed,
        "model": args.model,
        "dtype": args.dtype,
        "quick": args.quick,
        "full": args.full,
        "texts": hashlib.sha256("".join(texts.values()).encode()).hexdigest(),
    }

    def of_earlier(held):
        return held if held.keys() == settings.keys() else None

    # Two demos in one place would be in each other's way.
    before = outputs.take(out, PROGRAM, RECORD, writes=[*texts, *results], beside=True, older=of_earlier)
    changed = [k for k, v in settings.items() if before and v != before.get(k)]
    if changed:
        raise UserError(
            f"{out}: holds a demo with other settings ({', '.join(changed)}); delete it, or {ANOTHER}"
        )
    for name, text in texts.items():
        file = out / name
        if os.path.lexists(file) and not (file.is_file() and file.read_bytes() == text.encode()):
            raise UserError(
                f"{file}: is not what the demo wrote, and it does not write over it; move it away, or"
                f" {ANOTHER}"
            )
    write_json(outputs.stamp(PROGRAM) | settings, out / RECORD)
    for name, text in texts.items():
        write_text(text, out / name)


def refuse_foreign(out: Path, names: list[str]) -> None:
    """Raise UserError if something of these names is in `out`, where no demo has been."""
    for name in names:
        if os.path.lexists(out / name):
            raise UserError(f"{out / name}: is there already, and no demo wrote it; {ANOTHER}")
