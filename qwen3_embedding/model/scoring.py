"""The reranker's head: two rows of the language-model head, in fp32.

The score is ``softmax([logit_no, logit_yes])[yes] = sigmoid(logit_yes - logit_no)`` at the last position
(Qwen3 Embedding report, section 2); no other row of the vocabulary is ever multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class YesNoHead(nn.Module):
    """Pooled hidden states to the log-odds of "yes"."""

    def __init__(self, no_D: Tensor, yes_D: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([no_D, yes_D]).float())

    def logits(self, pooled_ND: Tensor) -> Tensor:
        """(N, 2) fp32 logits of "no" and "yes"."""
        return pooled_ND.float() @ self.weight.T

    def forward(self, pooled_ND: Tensor) -> Tensor:
        """(N,) fp32 log-odds: logit of "yes" minus logit of "no"."""
        # Row by row: a matrix product rounds differently with the number of rows.
        return (pooled_ND.float() * (self.weight[1] - self.weight[0])).sum(-1)
