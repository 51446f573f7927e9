"""Phase 4's data: rows of instructions to train on, and rows or documents to validate on."""

from dataclasses import dataclass, field
from itertools import chain, compress

import numpy as np

from nanomed.errors import UserError
from nanomed.text import corpus, heldout, instructions, special
from nanomed.text.conversations import Conversation, unplaced
from nanomed.text.corpus import Selection
from nanomed.text.divide import Divided, draw
from nanomed.text.examples import Encoded, Example, text_examples
from nanomed.text.heldout import Excluded, HeldOut, Items
from nanomed.text.instructions import Fields
from nanomed.text.names import named_sets
from nanomed.text.templates import Template


@dataclass
class Pairs:
    """What the settings (nanomed.training.settings.Instruct) name. rows: of --data; answers, texts: of
    --val-data, by the names of the sets; replay: the documents of --replay; digests: the SHA-256 of each."""

    settings: object
    tokenizer: object
    excluded: Excluded
    rows: list[Conversation] = field(default_factory=list)
    answers: dict[str, list[Conversation]] = field(default_factory=dict)
    texts: dict[str, Selection] = field(default_factory=dict)
    replay: Selection | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def hashes(self, template) -> dict[str, str]:
        """All that decides the examples, for run.json."""
        return self.digests | {"template": template.identity(self.tokenizer)}

    def items(self) -> Items:
        return Items.of_rows(self.rows)

    def given(self) -> dict[str, Items]:
        """The sets of --val-data."""
        rows = {name: Items.of_rows(side) for name, side in self.answers.items()}
        return rows | {name: corpus.items([side], self.tokenizer) for name, side in self.texts.items()}

    def draw(self, allowed: np.ndarray) -> np.ndarray:
        """Which of the allowed rows to validate on; those of one group (--group-field) stay together."""
        groups = [row.group or str(k) for k, row in enumerate(compress(self.rows, allowed))]
        s = self.settings
        return draw(np.array(groups, object), s.val_fraction, s.seed, ", ".join(s.data))

    def sides(self, divided: Divided) -> tuple[list[Conversation], dict[str, list[Conversation]]]:
        """The rows to train on, and those to validate on, by the names of the sets. Raises UserError if there
        are none to train on."""
        training, drawn = (list(compress(self.rows, m)) for m in (divided.training, divided.validation))
        if not training:
            why = "all rows are held out, or ask what one does (--val-data, --val-fraction, --exclude)"
            raise UserError(f"{', '.join(self.settings.data)}: no example left to train on: {why}")
        return training, self.answers | ({"validation": drawn} if drawn else {})

    def replayed(self, n: int, divided: Divided, earlier: HeldOut, near) -> list[Example]:
        """Documents of --replay as examples, --replay-ratio for each of n examples, without what is held out
        now or was earlier."""
        if not self.replay:
            return []
        allowed = divided.replayed(corpus.items([self.replay], self.tokenizer), earlier, near)
        s, (documents,) = self.settings, corpus.kept([self.replay], allowed)
        limit, there = round(s.replay_ratio * n), len(documents.indices)
        if limit > there:
            print(f"--replay-ratio {s.replay_ratio:g} asks for {limit:,} documents; --replay has {there:,}")
        return text_examples(documents, s.context, limit, s.seed)

    def facts(self, rows: list[list[Example]], training: Encoded, sets: dict[str, Encoded]) -> dict:
        """What summary.json says. rows: of examples, as they are batched; sets: that are validated on."""
        texts = (row.text() for side in (self.rows, *self.answers.values()) for row in side)
        documents = [*self.texts.values(), *([self.replay] if self.replay else [])]
        reports = (side.corpus.special_tokens for side in documents)
        return {
            "special_tokens": special.report(self.tokenizer, texts, reports),
            "template": self.settings.template,
            "examples": len(training.examples),
            "val_examples": sum(len(found.examples) for found in sets.values()),
            "truncated": training.truncated,
            "dropped": training.dropped,
            "later_answers_dropped": training.late,
            "empty_responses": training.empty,
            "rows": len(rows),
            "filled": sum(len(e.ids) - 1 for e in chain(*rows)) / (len(rows) * self.settings.context),
        }

    def in_words(self, facts: dict, rows, training: Encoded, sets: dict[str, Encoded]) -> str:
        answers = sum(e.supervised for e in training.examples)
        sizes = [(len(e.ids), e.replayed) for e in chain(*rows)]
        replayed = [size for size, again in sizes if again]
        said = [f"{facts['examples']:,} examples{training}, {answers:,} tokens of answers"]
        said.append(f"template {facts['template']}")
        if replayed:
            of_all = sum(replayed) / sum(size for size, _ in sizes)
            said.append(f"{len(replayed):,} pieces of text replayed, {of_all:.0%} of all tokens")
        context = self.settings.context
        said.append(f"{len(rows):,} rows of up to {context} tokens, {facts['filled']:.0%} filled")
        said.append(f"{facts['val_examples']:,} validation examples{''.join(map(str, sets.values()))}")
        if self.texts:
            said[-1] += f", {sum(len(d.indices) for d in self.texts.values()):,} validation documents"
        return "; ".join(said)


def check_fit(context: int, *sides: Encoded) -> None:
    for found in sides:
        if not found.examples:
            raise UserError(f"no example fits --context {context}{found}")


def read_pairs(s, tokenizer, template) -> Pairs:
    """The files that settings name, of rows for which the template has a place; says how many bad rows were
    left out."""
    fields = Fields(s.instruction_field, s.input_field, s.response_field, s.group_field)
    excluded = heldout.read_excluded(s, fields)
    found = Pairs(s, tokenizer, excluded, digests=dict(excluded.hashes))

    def read_rows(side: str, names: list[str], limit: int | None = None) -> list[Conversation]:
        how = (fields, limit, s.skip_bad_rows, s.system, template)
        rows, bad, sha = instructions.read_instructions(names, *how)
        if bad:
            print(f"{' + '.join(names)}: {bad} bad rows left out")
        found.digests[f"{side}: {' + '.join(names)}"] = sha
        for line in unplaced((row.turns for row in rows), template):
            print(f"{' + '.join(names)}: {line}")
        return [row.last_only() for row in rows] if s.last_turn_only else rows

    def read_side(side: str, names: list[str]) -> Selection:
        texts = corpus.read_corpus(names, s, tokenizer)
        found.digests[f"{side}: {texts.corpus.name}"] = texts.corpus.sha256
        return texts

    found.rows = read_rows("data", s.data, s.limit)
    if not (isinstance(template, Template) or template.ends):  # nanomed's own end with tokenizer.eos
        print("the template writes nothing behind a last answer: the model does not learn to stop there")
    for name, files in named_sets(s.val_data or []).items():
        if instructions.holds_instructions(files[0], fields, s.text_field, s.skip_bad_rows):
            found.answers[name] = read_rows(f"val-data {name}", files)
        else:
            found.texts[name] = read_side(f"val-data {name}", files)
    found.replay = read_side("replay", s.replay) if s.replay else None
    return found
