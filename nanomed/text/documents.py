"""Phase 2's data: documents to train on and to validate on."""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from nanomed.errors import UserError
from nanomed.text import corpus, heldout, special
from nanomed.text.corpus import Selection, kept
from nanomed.text.divide import Divided, draw
from nanomed.text.heldout import Excluded, Items
from nanomed.text.names import named_sets, split_weight


@dataclass(frozen=True)
class Documents:
    """What the settings (nanomed.training.settings.Adapt) name. sources: of --data, each with its weight in
    the blocks; validation: of --val-data, by the names of the sets; {name: SHA-256} of each."""

    settings: object
    tokenizer: object
    excluded: Excluded
    sources: list[Selection]
    weights: list[float]
    validation: dict[str, Selection]
    hashes: dict[str, str]

    def items(self) -> Items:
        return corpus.items(self.sources, self.tokenizer)

    def given(self) -> dict[str, Items]:
        """The sets of --val-data."""
        return {name: corpus.items([side], self.tokenizer) for name, side in self.validation.items()}

    def draw(self, allowed: np.ndarray) -> np.ndarray:
        """Which of the allowed documents to validate on: a share of each source's."""
        left, fraction, seed = kept(self.sources, allowed), self.settings.val_fraction, self.settings.seed
        return np.concatenate([draw(np.arange(len(d.indices)), fraction, seed, d.corpus.name) for d in left])

    def sides(self, divided: Divided) -> tuple[list[Selection], dict[str, list[Selection]]]:
        """What is trained on, and what is validated on by the names of the sets. Raises UserError if a source
        has nothing left to train on."""
        training = kept(self.sources, divided.training)
        for d in training:
            if not len(d.indices):
                raise UserError(f"{d.corpus.name}: no documents left to train on")
        drawn = [d for d in kept(self.sources, divided.validation) if len(d.indices)]
        given = {name: [side] for name, side in self.validation.items()}
        return training, given or ({"validation": drawn} if drawn else {})

    def facts(self, training: list[Selection], validation: dict[str, list[Selection]]) -> dict:
        """What summary.json says of them."""
        read = {d.corpus.sha256: d.corpus for d in (*self.sources, *chain(*validation.values()))}
        reports = (c.special_tokens for c in read.values())
        return {
            "special_tokens": special.report(self.tokenizer, reports=reports),
            "documents": sum(len(d.indices) for d in training),
            "val_documents": sum(len(d.indices) for d in chain(*validation.values())),
        }


def read_documents(s, tokenizer) -> Documents:
    """The files that settings name: --data as one source, or as one each if they have weights (D:0.9)."""
    names, weights = zip(*map(split_weight, s.data), strict=True)
    if any(weights) and not all(weights):
        raise UserError("--data: give every source a weight (D:0.9), or none")
    groups = [[name] for name in names] if any(weights) else [list(names)]
    sources = [corpus.read_corpus(group, s, tokenizer, s.limit) for group in groups]
    excluded = heldout.read_excluded(s)
    sets = {n: corpus.read_corpus(files, s, tokenizer) for n, files in named_sets(s.val_data or []).items()}
    hashes = excluded.hashes | {d.corpus.name: d.corpus.sha256 for d in sources}
    hashes |= {f"val-data {name}": d.corpus.sha256 for name, d in sets.items()}
    shares = list(weights) if any(weights) else [1.0]
    return Documents(s, tokenizer, excluded, sources, shares, sets, hashes)
