import torch
from torch.nn.functional import normalize, softplus

from criteria.base import Criterion, lowest, need, pair_masks


class MultiSimilarity(Criterion):
    """Multi-similarity loss with its own pair mining (Wang et al., CVPR 2019, eq. 10-15).

    Soft-weighted positive and negative pairs, kept where they are harder than the opposite kind's hardest. With cosine
    similarities S within the batch, for anchor i: a negative k is kept if S_ik > min_positive S_i - epsilon, a positive
    if S_ik < max_negative S_i + epsilon; the loss is the mean over all B anchors of

        1/alpha · log(1 + Σ_pos exp(-alpha (S_ik - base))) + 1/beta · log(1 + Σ_neg exp(beta (S_ik - base))).

    Anchors without a kept pair give 0. alpha = 2, beta = 50, epsilon = 0.1 are the paper's; base (the paper's lambda)
    is 0.5, as in its authors' code, since the paper's 1 leaves the negatives nearly without weight.
    """

    def __init__(self, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1):
        super().__init__()
        need(self, alpha=alpha, beta=beta)
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
        # softplus(logsumexp) is log(1 + Σ exp): 0 with gradient 0 where no pair is kept
        pull = (-self.alpha * (similarity - self.base)).masked_fill(~positive, lowest(similarity))
        push = (self.beta * (similarity - self.base)).masked_fill(~negative, lowest(similarity))
        pull, push = softplus(torch.logsumexp(pull, 1)) / self.alpha, softplus(torch.logsumexp(push, 1)) / self.beta
        self.log(positive=pull.mean(), negative=push.mean())
        return (pull + push).mean()
