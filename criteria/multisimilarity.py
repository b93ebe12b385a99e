"""The multi-similarity loss with its own pair mining."""

import torch
from torch.nn.functional import normalize

from criteria.base import Criterion, log1p_sum_exp, need_positive, pair_masks


class MultiSimilarity(Criterion):
    """Soft-weighted positive and negative pairs, kept where they are harder than the opposite kind's hardest.

    With cosine similarities S within the batch, for anchor i: a negative k is kept if S_ik > min_positive S_i -
    epsilon, a positive if S_ik < max_negative S_i + epsilon; the loss is the mean over all B anchors of

        1/alpha · log(1 + Σ_pos exp(-alpha (S_ik - base))) + 1/beta · log(1 + Σ_neg exp(beta (S_ik - base))).

    Anchors without a kept pair give 0. alpha = 2, beta = 50, epsilon = 0.1 are the paper's; base (the paper's lambda)
    is 0.5, as in its authors' code, since the paper's 1 leaves the negatives nearly without weight.

    Source: Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019, eq. 10-15.
    """

    name = "multisimilarity"

    def __init__(
        self,
        alpha=2.0,  # --loss_multisimilarity_alpha: inverse temperature of positive pairs
        beta=50.0,  # --loss_multisimilarity_beta: inverse temperature of negative pairs
        base=0.5,  # --loss_multisimilarity_base: similarity around which pairs are weighted (the paper's lambda)
        epsilon=0.1,  # --loss_multisimilarity_epsilon: margin of the pair mining
    ):
        super().__init__()
        need_positive(loss_multisimilarity_alpha=alpha, loss_multisimilarity_beta=beta)
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def loss(self, embeddings, labels):
        embeddings = normalize(embeddings, dim=1)
        similarity = embeddings @ embeddings.T
        positive, negative = pair_masks(labels)
        with torch.no_grad():  # which pairs count is a choice, not a function to differentiate
            hardest_positive = similarity.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
            hardest_negative = similarity.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
            positive = positive & (similarity < hardest_negative + self.epsilon)
            negative = negative & (similarity > hardest_positive - self.epsilon)
        pull = log1p_sum_exp(-self.alpha * (similarity - self.base), positive, 1) / self.alpha
        push = log1p_sum_exp(self.beta * (similarity - self.base), negative, 1) / self.beta
        self.log(positive=pull.mean(), negative=push.mean())
        return (pull + push).mean()
