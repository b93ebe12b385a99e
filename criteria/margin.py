"""The margin loss: pairs on either side of a learnable boundary."""

import torch
from torch import nn

from criteria.base import Criterion, distances, need_range


class Margin(Criterion):
    """Positive pairs nearer than beta - margin, negative pairs farther than beta + margin, on Euclidean distances.

    Over the mined triplets (a, p, n): Σ [D_ap - beta + margin]₊ + Σ [beta - D_an + margin]₊, divided by the
    number of terms that are not zero (0 where all are).

    Parameters
    ----------
    miner : function (embeddings, labels) → (anchors, positives, negatives)
    margin, beta : float
        Euclidean distances of unit vectors; beta is learned, with a learning rate of its own (`beta_lr`).

    Source: Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017, eq. 5-6.
    """

    name = "margin"

    def __init__(
        self,
        miner,  # --batch_mining: takes its triplets
        margin=0.2,  # --loss_margin_margin: margin around the boundary, Euclidean distance
        beta=1.2,  # --loss_margin_beta: initial boundary, Euclidean distance
        beta_lr=5e-4,  # --loss_margin_beta_lr: learning rate of the boundary
    ):
        super().__init__()
        need_range(loss_margin_beta_lr=beta_lr)
        self.miner, self.margin, self.beta_lr = miner, margin, beta_lr
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def param_groups(self, lr):
        return [{"params": [self.beta], "lr": self.beta_lr, "weight_decay": 0.0}]

    def loss(self, embeddings, labels):
        a, p, n = self.miner(embeddings, labels)
        distance = distances(embeddings)
        pos = torch.relu(distance[a, p] - self.beta + self.margin)
        neg = torch.relu(self.beta - distance[a, n] + self.margin)
        active = ((pos > 0).sum() + (neg > 0).sum()).clamp(min=1)
        self.log(beta=self.beta, active=active / max(2 * len(a), 1))
        return (pos.sum() + neg.sum()) / active
