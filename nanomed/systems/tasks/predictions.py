"""What a model said of each text of a set's tasks: a directory that eval.py tasks writes task by task, and
goes on with.

predictions.json    whose predictions these are: model, its weights' files, template, set, limit, seed
NAME.jsonl          a row a test text: {row (of NAME.test.jsonl, from 1), instruction, input, gold, answer,
                    stopped (it ended by itself), room (there was any for an answer), loglikelihoods and
                    content_free ({label: nats}, nanomed.systems.tasks.likelihood), read (labels or tags, in
                    the way that counts; null: malformed, cut off), right}; what was not asked for is left out
"""

from dataclasses import dataclass
from pathlib import Path

from nanomed import outputs
from nanomed.errors import UserError
from nanomed.evaluation.measure import Opened
from nanomed.files import json_lines, write_json, write_text
from nanomed.systems.tasks.sets import Row, read_lines
from nanomed.text.templates import Template

PROGRAM, RECORD = "eval.py tasks", "predictions.json"
ASKED = ("row", "instruction", "input", "gold")
ANSWER = ("answer", "stopped", "room", "loglikelihoods", "content_free")


@dataclass
class Said(Row):
    row: int
    answer: str | None = None
    stopped: bool | None = None
    room: bool | None = None
    loglikelihoods: dict[str, float] | None = None
    content_free: dict[str, float] | None = None


class Predictions:
    def __init__(self, args, o: Opened, template: Template):
        """Raises UserError for a directory of something else, or of predictions of another model or asked
        otherwise."""
        self.directory = Path(args.predictions)
        files = [(f.name, f.stat()) for f in sorted(o.directory.glob("*.safetensors"))]
        asked = {"model": o.name, "weights": [[name, s.st_size, s.st_mtime_ns] for name, s in files]}
        asked |= {"dtype": o.dtype, "quantize": o.quantize}
        asked["template"] = [template.ask("instruction", "input").text, *template.ends]
        asked |= {"special_tokens": o.tokenizer.reading, "set": str(Path(args.tasks).resolve())}
        asked |= {"limit": args.limit, "seed": args.seed, "ask": args.ask}
        found = outputs.take(self.directory, PROGRAM, RECORD, flag="--predictions")
        if other := [key for key in asked if found and found.get(key) != asked[key]]:
            what = f"of another {', '.join(other)}"
            raise UserError(f"--predictions {self.directory}: {what}; choose another directory")
        write_json(outputs.stamp(PROGRAM) | asked, self.directory / RECORD)

    def file(self, name: str) -> Path:
        return self.directory / f"{name}.jsonl"

    def read(self, name: str, rows: list[dict]) -> list[dict] | None:
        """The answers to a task's rows, if it was done before. Raises UserError for those to other rows."""
        if not self.file(name).exists():
            return None
        found = [vars(row) for row in read_lines(self.file(name), Said)]
        if [[row[k] for k in ASKED] for row in found] != [[row[k] for k in ASKED] for row in rows]:
            now = "not of the set's texts as they are now"
            raise UserError(f"{self.file(name)}: {now}; choose another directory")
        return [{k: row[k] for k in ANSWER if row.get(k) is not None} for row in found]

    def write(self, name: str, rows: list[dict], answers: list[dict], said: list[list[str] | None]) -> None:
        made = [
            {k: row[k] for k in ASKED} | answer | {"read": found, "right": found == row["gold"]}
            for row, answer, found in zip(rows, answers, said, strict=True)
        ]
        write_text(json_lines(made), self.file(name))
