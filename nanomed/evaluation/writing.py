"""Answers to many prompts, in a batch whose rows come and go: continuous batching (Yu et al. 2022, Orca,
section 3.1).

Answers differ in length. A batch that waits for its longest one pays for rows that have long ended, so here a
row that ends leaves at once, and the next prompts take the places that are free. Whenever they came, all rows
end at the same column of one cache: a step writes one column, and looks at those from the longest row's first
one on, under a mask for what lies before the others'.

    column   0 1 2 3 4 5 6 7 8
    row 0        a a a a A A A     a prompt of four tokens, and three of its answer
    row 1            b b b b B     it came two steps later, to a place where an answer had ended
    row 2          c c c c C C     it came one step later

Once the first columns are nobody's, all move to the left. A beginning that many prompts share, such as a
task's instruction, is read once and copied to each of them (vLLM, Kwon et al. 2023, section 4.4)."""

from collections import deque
from dataclasses import dataclass
from itertools import groupby, islice

import torch

from nanomed.evaluation.next_token import Sampling, check_finite, choose, logits_after
from nanomed.models.attention import CAUSAL, Mask
from nanomed.models.cache import make_cache
from nanomed.precision import DTYPES

DRIFT = 64  # columns that are nobody's, before all move to the left
REFILL = 4  # prompts are read when one place in so many is free: to read a few takes little longer than one
FORWARD = 32  # tokens that are read in about the time that reading the weights takes
BEGINNINGS = 16  # that prompts share and that are kept


@dataclass(eq=False)
class Row:
    """An answer that is being written."""

    k: int  # the number of its prompt
    first: int  # the column of its first token
    draws: torch.Generator
    seen: torch.Tensor  # (V,): the tokens that it holds
    token: int = -1  # what was written last, which the model has not read yet


@torch.no_grad()
def write(model, prompts, rooms, sampling: Sampling, seeds, device, dtype, places: int, listen) -> None:
    """Write an answer to each prompt (lists of ids), `places` at once.

    listen(k, token) is told each token of the answer to prompt k, and says whether it is over, after rooms[k]
    tokens at the latest; seeds: one a prompt. Of several processes, each takes the same steps. Raises
    UserError if the first logits after a prompt are not finite."""
    batch = Batch(model, prompts, rooms, sampling, seeds, device, dtype, places)
    waiting = deque(in_order(prompts)) if prompts else ()
    while waiting or batch.rows:
        free = places - len(batch.rows)
        new = []
        if waiting and (free * REFILL >= places or not batch.rows):
            new = batch.read(next_of(waiting, prompts, free))
        for row in new or batch.step():
            if listen(row.k, row.token):
                batch.leave(row)


class Batch:
    """The rows that are being written, and their cache, whose first rows they are."""

    def __init__(self, model, prompts, rooms, sampling, seeds, device, dtype, places: int):
        self.model, self.prompts, self.sampling, self.seeds = model, prompts, sampling, seeds
        self.device, self.dtype = device, dtype
        self.longest = max(map(len, prompts), default=0)
        length = DRIFT + max((len(p) + n for p, n in zip(prompts, rooms, strict=True)), default=0)
        self.cache = make_cache(model.config, min(places, len(prompts)), length, device, DTYPES[dtype])
        for layer in self.cache:
            layer.n = self.longest  # there is room before this column for every prompt
        self.rows, self.begun = [], {}

    def read(self, coming: list[tuple[int, int]]) -> list[Row]:
        """New rows, each with the first token of its answer. coming: which prompts, and how many tokens of
        each are read once for several (in_order)."""
        prompts = [self.prompts[k] for k, _ in coming]
        begins = [tuple(self.prompts[k][:n]) for k, n in coming]
        for ids in begins:
            self.begun[ids] = self.begun.get(ids) or self._begin(ids)
        # The last T tokens of each row are read: in padding's place what it shares, once more.
        T = max(max(len(p) - len(ids), 1) for p, ids in zip(prompts, begins, strict=True))
        idx, real, seen = (t.to(self.device) for t in padded_left(prompts, self.model.config.vocab_size))
        width, n, B = idx.size(1), idx.size(1) - T, len(self.rows)
        cache = [layer.part(slice(B, B + len(coming)), width, n) for layer in self.cache]
        for row, (prompt, ids) in enumerate(zip(prompts, begins, strict=True)):
            for layer, begun in zip(cache, self.begun[ids], strict=True):
                layer.put(row, width - len(prompt), begun)
        mask = CAUSAL if n == 0 and bool(real.all()) else prompt_mask(real, n)
        logits = self._logits(idx[:, n:], positions(real)[:, n:], mask, cache)
        check_finite(logits, self.dtype)
        end = self.cache[0].n
        for (k, _), prompt, tokens in zip(coming, prompts, seen, strict=True):
            draws = torch.Generator().manual_seed(self.seeds[k])
            self.rows.append(Row(k, end - len(prompt), draws, tokens))
        return self._choose(self.rows[B:], logits)

    def step(self) -> list[Row]:
        """All rows, each with its next token."""
        self._move_left()
        first, n = min(row.first for row in self.rows), self.cache[0].n
        for layer in self.cache:
            layer.first = first
        firsts = torch.tensor([[row.first] for row in self.rows], device=self.device)  # (B, 1)
        idx = torch.tensor([[row.token] for row in self.rows], device=self.device)
        there = torch.arange(first, n + 1, device=self.device) >= firsts  # (B, S)
        mask = CAUSAL if all(row.first == first for row in self.rows) else Mask(there[:, None, None])
        return self._choose(list(self.rows), self._logits(idx, n - firsts, mask, self.cache))

    def leave(self, row: Row) -> None:
        """The last row takes the place of one that is over."""
        place, last = self.rows.index(row), self.rows.pop()
        if last is not row:
            self.rows[place] = last
            for layer in self.cache:
                layer.copy_row(len(self.rows), place)

    def _move_left(self) -> None:
        by = min(self.cache[0].n - self.longest, *(row.first for row in self.rows))
        if by < DRIFT:
            return
        for layer in self.cache:
            layer.move_left(by, len(self.rows))
        for row in self.rows:
            row.first -= by

    def _begin(self, ids: tuple[int, ...]) -> list:
        """A cache of these tokens."""
        cache = make_cache(self.model.config, 1, len(ids), self.device, DTYPES[self.dtype])
        if ids:
            self._logits(torch.tensor([ids], device=self.device), None, CAUSAL, cache)
        return cache

    def _logits(self, idx, pos, mask, cache):
        return logits_after(self.model, idx, pos, mask, cache, self.device, self.dtype)

    def _choose(self, rows: list[Row], logits) -> list[Row]:
        penalised = self.sampling.repetition_penalty != 1
        seen = torch.stack([row.seen for row in rows]) if penalised else None
        tokens = choose(logits, self.sampling, seen, [row.draws for row in rows]).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.token = token
            if penalised:
                row.seen[token] = True
        return rows


# --- prompts ------------------------------------------------------------------------------------------------


def in_order(prompts: list[list[int]]) -> list[tuple[int, int]]:
    """(which prompt, how many of its first tokens are read once for several), by how many are left, the most
    first, so that neighbours pad little.

    Prompts that begin alike are a group. It is divided at the token where they part, if what more the parts
    share is worth reading it apart."""
    out, groups, more = [], [sorted(range(len(prompts)), key=lambda k: prompts[k])], BEGINNINGS - 1
    while groups:
        group = groups.pop(0)
        n = shared(prompts, group)
        parts = [list(part) for _, part in groupby(group, lambda k, n=n: prompts[k][n : n + 1])]
        sizes = [shared(prompts, part) for part in parts]
        saved = [(size - n) * len(part) - size - FORWARD for size, part in zip(sizes, parts, strict=True)]
        apart = [i for i in sorted(range(len(parts)), key=lambda i: -saved[i])[:more] if saved[i] > 0]
        groups, more = groups + [parts[i] for i in apart], more - len(apart)
        rest = [k for i, part in enumerate(parts) if i not in apart for k in part]
        out += [(k, n if n * (len(rest) - 1) > FORWARD else 0) for k in rest]
    return sorted(out, key=lambda of: len(prompts[of[0]]) - of[1], reverse=True)


def shared(prompts: list[list[int]], group: list[int]) -> int:
    """How many first tokens the prompts of a group share, of which the first and last part earliest: it is
    sorted."""
    a, b = prompts[group[0]], prompts[group[-1]]
    return next((n for n, (i, j) in enumerate(zip(a, b, strict=False)) if i != j), min(len(a), len(b)))


def next_of(waiting: deque, prompts: list[list[int]], most: int) -> list[tuple[int, int]]:
    """The next to be read together: up to so many, as long as what they pad is less than another pass over
    the weights costs."""
    own, padding, out = [len(prompts[k]) - n for k, n in islice(waiting, most)], 0, []
    for size in own:
        padding += own[0] - size
        if padding <= FORWARD:
            out.append(waiting.popleft())
    return out


def padded_left(prompts: list[list[int]], vocab_size: int):
    """(idx (B, T), real (B, T): which of them are no padding, seen (B, V): which tokens a row holds)."""
    T = max(map(len, prompts))
    idx = torch.tensor([[0] * (T - len(p)) + p for p in prompts])
    real = torch.tensor([[False] * (T - len(p)) + [True] * len(p) for p in prompts])
    seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, prompt] = True
    return idx, real, seen


def positions(real):
    """(B, T), counted from each row's first real token."""
    return (real.long().cumsum(1) - 1).clamp(min=0)


def prompt_mask(real, n: int = 0) -> Mask:
    """Of (B, 1, T - n, T), for the tokens after the first n: causal, without padding; but each token sees
    itself: padding must see something."""
    j = torch.arange(real.size(1), device=real.device)
    i = j[n:, None]
    return Mask(((j <= i) & real[:, None, :] | (j == i))[:, None])
