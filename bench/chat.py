"""Ten turns of a chat: how long it takes until the first word of each answer is there, with the cache kept
from turn to turn, and with the whole conversation read anew.

    python bench/chat.py [--model runs/models/smollm2-135m] [--json FILE]

All questions are of about one length, and all answers of --answer tokens, greedily. A time is the best of
--repeats conversations. Both ways must write the same tokens."""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanomed.evaluation import tables
from nanomed.evaluation.chat import Chat
from nanomed.evaluation.generate import Sampling, stream
from nanomed.evaluation.measure import open_model
from nanomed.models.cache import Kept
from nanomed.precision import DTYPES
from nanomed.text.conversations import Turn, user

WHAT = "anthrax botulism cholera diphtheria influenza malaria measles rabies tetanus typhus".split()
HEAD = ["turn", "prompt (tokens)", "of these new", "kept (ms)", "anew (ms)"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="runs/models/smollm2-135m")
    p.add_argument("--answer", type=int, default=48, help="tokens an answer")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dtype", default="auto")
    p.add_argument("--device", default="auto")
    p.add_argument("--processor-time", action="store_true", help="the process's own seconds, not the clock's")
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    if args.processor_time:
        time.perf_counter = time.process_time
    o = open_model(args.model, args.device, args.dtype, write_in="stored")
    chat = Chat(o, o.template, Sampling(), args.answer, 0)
    conversations = [turns(chat, args.answer) for _ in range(args.repeats)]
    found = [
        same[0] | {way: min(turn[way] for turn in same) for way in HEAD[3:]}
        for same in zip(*conversations, strict=True)
    ]
    rows = [HEAD, ["---:"] * len(HEAD), *([f"{turn[key]:,.0f}" for key in HEAD] for turn in found)]
    print(f"{o}\n{tables.markdown(rows)}")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))


def turns(chat: Chat, answer: int) -> list[dict]:
    """The figures of each turn of a conversation."""
    said, kept, found = [], fresh(chat.o), []
    for number, what in enumerate(WHAT, 1):
        said.append(
            user(f"What are the symptoms of {what}, and how do they differ from those of a common cold?")
        )
        ids = list(chat.asked(said).ids)
        anew, seconds_anew = written(chat.o, ids, answer, fresh(chat.o))
        new = len(ids) - kept.rewind(ids, len(ids))
        tokens, seconds = written(chat.o, ids, answer, kept)
        assert tokens == anew, number
        found.append(
            dict(zip(HEAD, (number, len(ids), new, 1000 * seconds, 1000 * seconds_anew), strict=True))
        )
        said.append(Turn("assistant", chat.o.tokenizer.decode(tokens, inside=True)))
    return found


def fresh(o) -> Kept:
    return Kept(o.model.config, 1, o.device, DTYPES[o.dtype])


def written(o, ids: list[int], steps: int, kept: Kept) -> tuple[list[int], float]:
    """(tokens, seconds until the first of them)."""
    start = time.perf_counter()
    tokens = stream(o.model, [ids], steps, Sampling(), [0], o.device, o.dtype, kept)
    first, seconds = next(tokens), time.perf_counter() - start
    return [token for (token,) in (first, *tokens)], seconds


if __name__ == "__main__":
    main()
