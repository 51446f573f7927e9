"""Against forgetting: the weights are pulled back to where they started from, all alike or by what each is
needed for.

The other ways need no code of their own: a lower rate, an adapter (nanomed.models.lora), other text beside
what is learnt (nanomed.text.blocks.Mixture)."""

import torch

from nanomed.errors import UserError
from nanomed.models.loss import clm_loss
from nanomed.precision import autocast
from nanomed.streams import progress_bar
from nanomed.text import corpus, heldout
from nanomed.text.blocks import Stream, batch_of
from nanomed.training.settings import Settings


class Anchor:
    """The weights w0 that a training starts from, and how strongly each pulls. To the loss, which is a mean
    over tokens, it adds

        l2_sp / 2  sum (w - w0)^2                  Li et al. 2018 (L2-SP), equation 2, without a new head
        ewc / 2    sum F (w - w0)^2                Kirkpatrick et al. 2017 (EWC), equation 3

    where F is fisher()'s, so that `ewc` is what a token of general text counts beside one that is learnt. It
    is as large as the model (with EWC twice), and is made of the model before its first update, also when a
    run is resumed."""

    def __init__(self, model, l2_sp: float, ewc=0.0, fisher: dict | None = None, on: tuple[str, ...] = ("",)):
        self.pulls = []  # (weight, w0, how strongly: a number, or one for each entry)
        for name, p in model.named_parameters():
            if p.requires_grad and any(part in name for part in on):
                self.pulls.append((p, p.detach().clone(), l2_sp + ewc * fisher[name] if ewc else l2_sp))

    def nbytes(self) -> int:
        """The memory that it takes."""
        parts = [part for _, *parts in self.pulls for part in parts if torch.is_tensor(part)]
        return sum(part.numel() * part.element_size() for part in parts)

    @torch.no_grad()
    def pull(self) -> torch.Tensor:
        """Add the penalty's gradient to the weights' own; returns the penalty, in nats a token."""
        penalty = torch.zeros((), device=self.pulls[0][0].device)
        for p, start, strength in self.pulls:
            moved = p - start
            gradient = strength * moved
            penalty += 0.5 * (gradient * moved).sum(dtype=torch.float32)
            p.grad.add_(gradient)
        return penalty


def fisher(model, batches, device) -> dict[str, torch.Tensor]:
    """Diagonal of the Fisher information of one token, by parameter name: the mean over `batches` (of
    one block each) of the squared gradient of a block's summed loss, divided by its tokens (which is a
    token's own on average, since the gradients of successive tokens are uncorrelated under the model).
    Empirical: the targets are the text's, not drawn from the model. In fp32, without dropout."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    training = model.training
    model.eval()
    for batch in progress_bar(batches, desc="fisher", unit=" blocks"):
        with autocast(device, "fp32"):
            nll, _ = clm_loss(model, batch)
        nll.backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name].addcmul_(p.grad, p.grad, value=1 / (batch.supervised * len(batches)))
                p.grad = None
    model.train(training)
    return total


def general_stream(s: Settings, tokenizer, held: heldout.HeldOut) -> Stream | None:
    """The blocks of --ewc-data, without what is held out; None if there is no --ewc."""
    if not s.ewc:
        return None
    found = corpus.read_corpus(s.ewc_data, s, tokenizer)
    (found,) = corpus.kept([found], ~held.has(corpus.items([found], tokenizer)))
    stream = Stream(found, s.context, (s.seed, 1))
    if stream.n_blocks < 1:
        raise UserError(f"{found.corpus.name}: not a single token for --ewc that is not held out")
    return stream


def make_anchor(model, s: Settings, general: Stream | None, device: torch.device) -> Anchor | None:
    """What pulls the weights back, made of the model as the run starts it; None if nothing is to."""
    if not (s.l2_sp or s.ewc):
        return None
    information = None
    if s.ewc:
        blocks = [general.block(0, i) for i in range(min(s.ewc_blocks, general.n_blocks))]
        name = general.selection.corpus.name
        print(f"--ewc: the Fisher information of {len(blocks):,} blocks of {s.context} tokens of {name}")
        information = fisher(model, [batch_of([block]) for block in blocks], device)
    on = tuple(part.strip() for part in s.pull_on.split(","))
    anchor = Anchor(model, s.l2_sp, s.ewc, information, on)
    if not anchor.pulls:
        one = next(iter(model.state_dict()))
        raise UserError(f"--pull-on {s.pull_on}: no weight has such a name; there are, say, {one}")
    return anchor
