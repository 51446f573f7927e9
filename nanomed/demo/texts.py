"""The demo's files: what is trained and measured on, written where nothing of anybody else's stands."""

import hashlib
import os
import random
from pathlib import Path

from nanomed import hub, outputs
from nanomed.demo import render
from nanomed.errors import UserError
from nanomed.files import json_lines, write_json, write_text
from nanomed.optional import need

PROGRAM, RECORD = "nanomed.demo", "settings.json"
PER_CONDITION = 16  # paragraphs in the corpus about each condition
QUICK = 60  # lines of each file, with --quick
PROBED = {"train": "taught", "read": "read", "unknown": "unknown"}
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

    def read(name: str) -> list[str]:
        return render.real_texts(name, without=groups["unknown"])

    documents = {
        "corpus": render.corpus(told, PER_CONDITION, seed),
        "prose": read("prose.jsonl") + read("abstracts.jsonl"),
        "general.mix": read("passages.jsonl") + 2 * render.general_paragraphs(),
        "self": read("selfwritten.jsonl"),
        "biomedical": render.retold(told, seed),
        "unknown": render.retold(groups["unknown"], seed),
        "abstracts.dev": render.real_texts("abstracts.dev.jsonl"),
        "general.dev": render.real_texts("general.dev.jsonl"),
        "abstracts": render.real_texts("abstracts.test.jsonl"),
        "general": render.real_texts("general.test.jsonl"),
    }
    rows = {name: [{"text": text} for text in texts] for name, texts in documents.items()}
    rows |= {"questions.train": train}
    rows |= {"questions.val": rng.sample(render.questions(groups["read"], [0], seed), 60)}
    rows |= {f"probe.{part}": render.named(groups[group]) for part, group in PROBED.items()}
    return {f"{name}.jsonl": json_lines(found[:most]) for name, found in rows.items()}


def start(args, out: Path, seed: int, results: list[str]) -> None:
    """Write the texts into `out`, where `results` will be made. Raises UserError, before anything is touched,
    if a demo with other settings lives there, if something there is not the demo's, or if something is
    missing that would be missed only at the end."""
    for module in ("matplotlib", "sklearn"):
        need(module)
    hub.find(args.model)
    texts = make_texts(seed, QUICK if args.quick else None)
    settings = {"seed": seed} | {key: getattr(args, key) for key in ("model", "dtype", "quick", "full")}
    settings["texts"] = hashlib.sha256("".join(texts.values()).encode()).hexdigest()

    # Two demos in one place would be in each other's way.
    before = outputs.take(out, PROGRAM, RECORD, writes=[*texts, *results], beside=True)
    changed = [k for k, v in settings.items() if before and v != before.get(k)]
    if changed:
        what = f"holds a demo with other settings ({', '.join(changed)})"
        raise UserError(f"{out}: {what}; delete it, or {ANOTHER}")
    for name, text in texts.items():
        file = out / name
        if os.path.lexists(file) and not (file.is_file() and file.read_bytes() == text.encode()):
            why = "is not what the demo wrote, and it does not write over it"
            raise UserError(f"{file}: {why}; move it away, or {ANOTHER}")
    write_json(outputs.stamp(PROGRAM) | settings, out / RECORD)
    for name, text in texts.items():
        write_text(text, out / name)
