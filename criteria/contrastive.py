import torch

from criteria.base import Criterion, distances, mean_of_positive, pair_masks
from criteria.miners import every


class Contrastive(Criterion):
    """Contrastive loss (Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, eq. 4).

    Mean of [D - pos_margin]₊ over positive pairs + mean of [neg_margin - D]₊ over negative pairs, where not 0. D are
    Euclidean distances of L2-normalised embeddings, and so are the margins, 0 to 2. As in the Reality Check and
    pytorch-metric-learning the hinges are not squared (Hadsell et al. square them) and each mean is over the terms
    above 0. With a miner (`miners.py`) the pairs are those of its triplets; without, or with `miners.every`, all, once.
    """

    def __init__(self, miner=None, pos_margin=0.0, neg_margin=1.0):
        super().__init__()
        self.miner, self.mined = (None, False) if miner in (None, every) else (miner, True)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def loss(self, embeddings, labels):
        distance = distances(embeddings)
        pull, push = torch.relu(distance - self.pos_margin), torch.relu(self.neg_margin - distance)
        if self.miner is None:
            positive, negative = pair_masks(labels)
            pull, push = pull * positive, push * negative
        else:
            a, p, n = self.miner(embeddings, labels)
            pull, push = pull[a, p], push[a, n]
        pull, push = mean_of_positive(pull), mean_of_positive(push)
        self.log(positive=pull, negative=push)
        return pull + push
