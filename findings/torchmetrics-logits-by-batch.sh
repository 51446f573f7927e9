#!/usr/bin/env bash
# torchmetrics 1.9.0. Its metrics of classes take logits as well as probabilities, and one would expect the same figure however the
# rows are batched. What they are is asked of each batch: if all its numbers lie between 0 and 1 they are probabilities, else each
# is put through a sigmoid. Then logits of one run are ranked against probabilities, and 0.3 is now no, now yes.
# Seen: of the same four logits AUROC 1.0 and accuracy 1.0 in one batch, 0.0 and 0.5 one by one
set -euo pipefail
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$d" torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
PYTHONPATH=$d python3 -W error - <<'E'
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

logits, gold = torch.tensor([-0.2, 0.3, 0.4, -0.1]), torch.tensor([0, 1, 1, 0])
found = []
for metric in (BinaryAUROC(), BinaryAccuracy()):
    for size in (4, 1):
        metric.reset()
        for some, their in zip(logits.split(size), gold.split(size)):
            metric.update(some, their)
        found.append(metric.compute().item())
print("AUROC in one batch and one by one", found[:2], "accuracy", found[2:])
assert found == [1.0, 0.0, 1.0, 0.5]
E
