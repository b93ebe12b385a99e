import torch

from criteria.base import Criterion, distances, mean_of_positive


class Triplet(Criterion):
    """Triplet loss (Schroff et al., FaceNet, CVPR 2015, section 3.1).

    Mean of [D_ap - D_an + margin]₊ over the triplets (a, p, n) of the miner (embeddings, labels) → index tensors, those
    where it is not 0. D are Euclidean distances of L2-normalised embeddings (FaceNet squares them;
    pytorch-metric-learning and the Reality Check do not).
    """

    def __init__(self, miner, margin=0.2):
        super().__init__()
        self.miner, self.mined, self.margin = miner, True, margin

    def loss(self, embeddings, labels):
        a, p, n = self.miner(embeddings, labels)
        distance = distances(embeddings)
        violation = torch.relu(distance[a, p] - distance[a, n] + self.margin)
        self.log(active=(violation > 0).sum() / max(len(a), 1))
        return mean_of_positive(violation)
