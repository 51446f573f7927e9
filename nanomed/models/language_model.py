"""A language model of any family: its transformer under the head that turns hidden states into logits."""

import math

import torch
from torch import nn

from nanomed.models.attention import CAUSAL


class LanguageModel(nn.Module):
    """`forward(idx, pos=None, mask=CAUSAL)` gives logits (B, T, V). `idx` (B, T) holds token ids, `pos`
    (B, T) their positions if they are not 0..T-1, and `mask` (nanomed.models.attention.Mask) says which keys
    a query may look at.

    Training and evaluation call `backbone` alone and leave the head to nanomed.models.loss, which never holds
    all logits at once. Generation gives `backbone` its `cache`, one KVCache a layer: the keys of earlier
    calls come first then, the mask is over all of them, and `pos` is the caller's to give."""

    def __init__(self, family, config):
        super().__init__()
        self.family, self.config = family, config
        self.head_blocks = None  # {dtype: the head}, once nanomed.models.prepacked lays it out
        self.writing_head = None  # a layer in the head's place where the next token is chosen, if it has one
        self.lora = None  # the LoRAConfig once nanomed.models.lora has wrapped some of the linears
        setattr(self, family.BACKBONE, family.Transformer(config))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()

    @property
    def architecture(self) -> str:
        return self.family.ARCHITECTURES[self.hf_config["model_type"]][0]

    @property
    def backbone(self) -> nn.Module:
        return getattr(self, self.family.BACKBONE)

    def tie_weights(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.get_parameter(self.family.EMBEDDING)

    def forward(self, idx, pos=None, mask=CAUSAL):
        return self.lm_head(self.backbone(idx, pos, mask))

    @torch.no_grad()
    def init_weights(self):
        """Random weights for training from scratch: normal(0, initializer_range), biases zero, gains as the
        family's norms begin; the projections onto the residual stream that the family names, divided by
        sqrt(2 * layers) (GPT-2 paper, section 2.3)."""
        std, (n_layer, _, _) = self.config.initializer_range, self.config.cache_shape
        for name, p in self.named_parameters():
            if name.endswith(self.family.RESIDUAL):
                nn.init.normal_(p, std=std / math.sqrt(2 * n_layer))
            elif p.dim() >= 2:
                nn.init.normal_(p, std=std)
            elif name.endswith(".bias"):
                nn.init.zeros_(p)
