"""Write on from prompts: a KV cache, sampling, batches of prompts of unequal length.

Each step feeds the model one token a row; the keys and values of all earlier ones lie in a cache that is
handed to the model as an argument. stream() writes to a batch that stays: shorter prompts are padded on the
left, so that all rows end at the same place, a mask hides the padding, and positions count from each row's
first real token. generate() takes any number of prompts: on a CPU rows come and go
(nanomed.evaluation.writing), on a GPU a batch stays until its longest answer is over, since its steps can be
recorded then."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nanomed.errors import UserError
from nanomed.evaluation.cuda_graph import RecordedStep
from nanomed.evaluation.next_token import Sampling, check_finite, choose, logits_after
from nanomed.evaluation.writing import padded_left, positions, prompt_mask, write
from nanomed.models.attention import CAUSAL, Mask
from nanomed.models.cache import Kept
from nanomed.precision import DTYPES, evaluating
from nanomed.streams import progress_bar

ANSWER = 256  # tokens that an answer has room for, where --max-new-tokens does not say it
WORTH_RECORDING = 8  # steps: to record one takes as long as a few


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt, without the end-of-text token; text: up to the marker that ended it,
    if one did; stopped: it ended by itself and not for want of room."""

    ids: list[int]
    text: str
    stopped: bool


def room(config, prompt: list[int], max_new_tokens: int | None) -> int:
    """How many tokens may be written after a prompt: what was asked for, or ANSWER, or what is left. Raises
    UserError if the prompt is empty, or prompt and new tokens do not fit the model's positions."""
    if not prompt:
        raise UserError("an empty prompt (--prompt): there is nothing to write on from")
    left = config.n_positions - len(prompt)
    if left < (max_new_tokens or 1):
        wanted = f" and {max_new_tokens} new ones" if max_new_tokens else ""
        raise UserError(
            f"a prompt of {len(prompt)} tokens{wanted} does not fit the model's {config.n_positions}"
            " positions; shorten it, or lower --max-new-tokens"
        )
    return max_new_tokens or min(ANSWER, left)


# --- writing ------------------------------------------------------------------------------------------------


def generate(model, prompts, max_new_tokens, sampling, ending, device, dtype, seed=0, batch_size=16):
    """A Completion for each prompt (lists of ids), in their order; batch_size at once.

    max_new_tokens: of every prompt, or of each (a list), or None for what its own length leaves, 256 at most;
    neighbours change nothing. seed: prompt k draws from (seed, k), whatever the batch. Puts the model in eval
    mode and back. Raises UserError as `room` does, before anything is written."""
    most = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    rooms = [room(model.config, prompt, n) for prompt, n in zip(prompts, most, strict=True)]
    seeds = [row_seed(seed, k) for k in range(len(prompts))]
    done: list[Completion | None] = [None] * len(prompts)
    written = [[] for _ in prompts]

    def listen(k: int, token: int) -> bool:
        written[k].append(token)
        done[k] = ending.completion(written[k], last=len(written[k]) == rooms[k])
        bar.update(done[k] is not None)
        return done[k] is not None

    bar = progress_bar(total=len(prompts), desc="writing", unit=" answers")
    way = in_batches if recordable(device) else write
    with evaluating(model), bar:
        way(model, prompts, rooms, sampling, seeds, device, dtype, batch_size, listen)
    return done


def in_batches(model, prompts, rooms, sampling, seeds, device, dtype, batch_size, listen) -> None:
    """write() of batches that wait for their longest answer, so that their steps can be recorded."""
    order = sorted(range(len(prompts)), key=lambda k: -len(prompts[k]))
    for i in range(0, len(order), batch_size):
        rows = order[i : i + batch_size]
        steps, left = max(rooms[k] for k in rows), set(rows)
        chosen = [prompts[k] for k in rows], steps, sampling, [seeds[k] for k in rows]
        for tokens in stream(model, *chosen, device, dtype):
            left -= {k for k, token in zip(rows, tokens, strict=True) if k in left and listen(k, token)}
            if not left:
                break


def recordable(device) -> bool:
    """Whether a step can be a CUDA graph. Weights that are dealt to several processes are gathered anew at
    each step, which none can hold."""
    return device.type == "cuda" and not torch.distributed.is_initialized()


def row_seed(seed: int, k: int) -> int:
    return (seed * 1_000_003 + k) % 2**63


@torch.no_grad()
def stream(
    model, prompts: list[list[int]], steps: int, sampling: Sampling, seeds, device, dtype, kept=None
) -> Iterator[list[int]]:
    """Yield the next token of every row, `steps` times; a caller who has enough stops asking.

    prompts: ids, none empty; seeds: one a row, so that a completion does not depend on its neighbours in the
    batch. kept: of a single prompt, what was read before (nanomed.models.cache.Kept): what the prompt has in
    common with that is not read again. The caller sees to it that no row is listened to beyond the model's
    positions (`room`). Raises UserError if the first logits are not finite."""
    idx, real, seen = padded_left(prompts, model.config.vocab_size)
    is_padded = not bool(real.all())
    idx, real, seen = (t.to(device) for t in (idx, real, seen))
    B, length = len(idx), idx.size(1) + steps
    length += -length % 8  # kernels like masks to be aligned
    kept = kept or Kept(model.config, B, device, DTYPES[dtype])
    n, cache = kept.rewind(prompts[0], length), kept.cache
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pos = positions(real)
    mask = prompt_mask(real, n) if is_padded or n else CAUSAL
    idx, pos, unread = idx[:, n:], pos[:, n:], prompts[0][n:]

    def ask(idx, pos, mask):
        return logits_after(model, idx, pos, mask, cache, device, dtype)

    last, recorded, can_record = model.config.n_positions - 1, None, recordable(device)
    for step in range(steps):
        logits = recorded(idx) if recorded else ask(idx, pos, mask)
        kept.ids += unread
        if step == 0:
            check_finite(logits, dtype)
        token = choose(logits, sampling, seen, generators)  # (B,)
        written = token.tolist()
        yield written
        idx, unread = token[:, None], written[:1]
        if sampling.repetition_penalty != 1:
            seen[torch.arange(B, device=device), token] = True
        if recorded:
            continue
        # A row that has no room left may have to wait for the others; what it still gets is thrown away.
        pos = (pos[:, -1:] + 1).clamp(max=last)
        if can_record and steps - step > WORTH_RECORDING:
            recorded = RecordedStep(ask, cache, real, pos, last)
        elif is_padded:
            real = torch.cat([real, real.new_ones(B, 1)], 1)
            mask = Mask(real[:, None, None])  # (B, 1, 1, S)
        else:
            mask = CAUSAL


# --- the end ------------------------------------------------------------------------------------------------


class Ending:
    """When an answer is over: at one of the tokens that the model's files name as ends (Tokenizer.ends), or
    where one of `markers` stands in its text."""

    def __init__(self, tokenizer, markers=()):
        self.tokenizer, self.markers = tokenizer, tuple(markers)

    def completion(self, ids: list[int], last: bool) -> Completion | None:
        """The completion if `ids` are over, or are the `last` there will be; else None."""
        stopped = ids[-1] in self.tokenizer.ends
        ids = ids[:-1] if stopped else ids
        if not (stopped or last or self.markers):
            return None
        text = self.tokenizer.decode(ids, inside=True)
        found = [text.index(m) for m in self.markers if m in text]
        if not (stopped or last or found):
            return None
        return Completion(ids, text[: min(found)] if found else text, stopped or bool(found))

    def printable(self, ids: list[int]) -> str:
        """As much of an unfinished text as will stay: no half characters, no beginning of what may become a
        marker."""
        text = self.tokenizer.decode(ids, inside=True).rstrip("\ufffd")
        for marker in self.markers:
            for n in range(len(marker), 0, -1):
                text = text[:-n] if text.endswith(marker[:n]) else text
        return text
