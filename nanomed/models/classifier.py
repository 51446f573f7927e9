"""A classifier: a linear head on the hidden state of a text's last token.

The layout is that of transformers' ...ForSequenceClassification: nothing after the text, padding on the
right, and the logits of the last token that is no padding. Causal attention never looks right, so the padding
changes nothing."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from nanomed.errors import UserError
from nanomed.precision import autocast, evaluating, mend, to_device
from nanomed.streams import progress_bar
from nanomed.text.batch import IGNORE, Batch

HEAD = "score.weight"
PROBLEMS = ("single_label_classification", "multi_label_classification")


class Classifier(nn.Module):
    """A language model's transformer under a classification head; logits (B, K) of ids (B, T) with `lengths`
    (B,). multi_label None: config.json does not say."""

    def __init__(self, lm, labels: list[str], multi_label: bool | None, pad: int):
        super().__init__()
        self.family, self.config, self.lora = lm.family, lm.config, lm.lora
        self.labels, self.multi_label = labels, multi_label
        setattr(self, self.family.BACKBONE, lm.backbone)
        self.score = nn.Linear(lm.config.n_embd, len(labels), bias=False)
        nn.init.normal_(self.score.weight, std=lm.config.initializer_range)
        # transformers refuses a num_labels that is not the number of id2label.
        replaced = ("num_labels", "_num_labels", "finetuning_task")
        self.hf_config = {k: v for k, v in lm.hf_config.items() if k not in replaced} | {
            "id2label": {str(k): name for k, name in enumerate(labels)},
            "label2id": {name: k for k, name in enumerate(labels)},
            "problem_type": None if multi_label is None else PROBLEMS[multi_label],
            "pad_token_id": pad,
        }

    @property
    def architecture(self) -> str:
        return self.family.ARCHITECTURES[self.hf_config["model_type"]][1]

    @property
    def backbone(self) -> nn.Module:
        return getattr(self, self.family.BACKBONE)

    def forward(self, idx, lengths):
        x = self.backbone(idx)  # (B, T, C)
        last = x[torch.arange(len(idx), device=idx.device), lengths - 1]  # (B, C)
        with torch.autocast(idx.device.type, enabled=False):  # in bf16, half of the texts would tie
            return self.score(last.float())


def collate_labelled(items: list[tuple], pad: int) -> Batch:
    """A Batch of (ids, target) pairs."""
    lengths = torch.tensor([len(ids) for ids, _ in items])
    idx = pad_sequence([torch.from_numpy(ids) for ids, _ in items], batch_first=True, padding_value=pad)
    targets = torch.from_numpy(np.stack([target for _, target in items]))
    return Batch(idx, targets, lengths=lengths)


def loss_of_logits(logits, targets, weights=None) -> tuple[torch.Tensor, int]:
    """(summed loss, decisions): cross-entropy of logits (N, K) a text against targets (N,), or binary
    cross-entropy a text and label against zeros and ones (N, K). weights (K,): of class_weights. A decision
    is what the loss is the mean over: a text, in a multi-label task a text and label, K decisions a text."""
    logits = logits.float()
    weights = None if weights is None else weights.to(logits)
    if targets.dim() == 2:
        real = targets[:, 0] != IGNORE  # a process without a row of its own has one that counts for nothing
        logits, targets = logits[real], targets[real]
        how = {"pos_weight": weights, "reduction": "sum"}
        loss = F.binary_cross_entropy_with_logits(logits, targets.float(), **how)
    else:
        loss = F.cross_entropy(logits, targets, weight=weights, reduction="sum")
    return loss, targets.numel()


def classification_loss(model, batch: Batch, weights=None):
    """(summed loss of a batch, {}): what the loop asks for, as clm_loss gives it."""
    batch = batch.map(lambda t: to_device(t, model.score.weight.device))
    # not model(...): of several processes, whose weights are sharded, the caller has gathered them
    logits = model.forward(batch.idx, batch.lengths)
    return loss_of_logits(logits, batch.targets, weights)[0], {}


def predict(model, ids: list[np.ndarray], pad: int, batch_size: int, device, dtype: str) -> torch.Tensor:
    """Logits (N, K), fp32 on the CPU, of texts in their order; longest first in batches. Eval mode, and back.
    Raises UserError if one is not finite."""
    out = torch.zeros(len(ids), len(model.labels))
    order = sorted(range(len(ids)), key=lambda k: -len(ids[k]))
    bar = progress_bar(total=len(ids), desc="classifying", unit=" texts")
    with evaluating(model), bar:
        for i in range(0, len(ids), batch_size):
            rows = order[i : i + batch_size]
            batch = collate_labelled([(ids[k], 0) for k in rows], pad)
            with autocast(device, dtype):
                out[rows] = model(batch.idx.to(device), batch.lengths.to(device)).float().cpu()
            bar.update(len(rows))
    if not out.isfinite().all():
        raise UserError(f"a text has logits that are not finite in {dtype}; {mend(dtype)}")
    return out


def probabilities(logits: torch.Tensor, multi_label: bool) -> np.ndarray:
    return (logits.sigmoid() if multi_label else logits.softmax(-1)).double().numpy()
