import torch
from torch.nn.functional import normalize

from criteria.base import Criterion, lowest, need


class NPair(Criterion):
    """N-pair loss (Sohn, Improved DML with Multi-class N-pair Loss Objective, NeurIPS 2016).

    Each class's anchor against the positives of all classes: mean of -log softmax of its similarities to them. The
    anchor of a class is its first image in the batch, the positive its second; classes with a single image take no
    part. Similarities are cosines over `temperature`. The paper has unnormalised embeddings with an L2 penalty
    instead; with temperature 1 this is pytorch-metric-learning's NPairsLoss.
    """

    def __init__(self, temperature=1.0):
        super().__init__()
        need(self, temperature=temperature)
        self.temperature = temperature

    def loss(self, embeddings, labels):
        embeddings = normalize(embeddings, dim=1)
        later = (labels[:, None] == labels[None, :]).triu(1)  # the same class, further on in the batch
        anchor = later.any(1) & ~later.any(0)  # first of its class, and not its last
        positive = later.int().argmax(1)
        # all B rows and columns, those that are no anchor masked out: no shape depends on the labels
        logits = embeddings @ embeddings[positive].T / self.temperature
        logits = logits.masked_fill(~anchor[None, :], lowest(logits))
        terms = torch.logsumexp(logits, 1) - logits.diagonal()
        self.log(pairs=anchor.sum())
        return terms.masked_fill(~anchor, 0).sum() / anchor.sum().clamp(min=1)
