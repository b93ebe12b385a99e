import torch
from torch import nn

from criteria.base import Criterion, distances


class Margin(Criterion):
    """Margin loss with a learned boundary (Wu et al., Sampling Matters, ICCV 2017, eq. 5-6).

    Positive pairs nearer than beta - margin, negative pairs farther than beta + margin. Over the triplets (a, p, n) of
    the miner (embeddings, labels) → index tensors: Σ [D_ap - beta + margin]₊ + Σ [beta - D_an + margin]₊, divided by
    the number of terms that are not zero (0 where all are). D are Euclidean distances of L2-normalised embeddings, and
    so are margin and beta, which is learned at a rate of its own, `beta_lr`.
    """

    def __init__(self, miner, margin=0.2, beta=1.2, beta_lr=5e-4):
        super().__init__()
        self.miner, self.mined, self.margin, self.beta_lr = miner, True, margin, beta_lr
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
