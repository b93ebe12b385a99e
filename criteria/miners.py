"""Batch miners: (embeddings (B, d), labels (B,), own parameters) → index tensors (anchors, positives, negatives), (T,).

Distances are Euclidean, of L2-normalised embeddings. Images without a positive or without a negative are no anchors; a
batch without any gives T = 0. Pairs are counted where the labels are: on the host, and nothing waits for a GPU.
"""

import torch
from torch.nn.functional import normalize

from criteria.base import lowest, pair_masks, squared_distances
from criteria.rate import full_precision


def masks(labels):
    """(B, B) masks of the positive pairs whose anchor has a negative, and of the negative pairs."""
    positive, negative = pair_masks(labels)
    return positive & (labels != labels[0]).any(), negative  # with two classes every image has a negative


def geometry(embeddings, labels):
    """Squared distances (B, B), the positive pairs (anchors, positives), and the mask (B, B) of negative pairs."""
    number = int(masks(labels)[0].sum())
    positive, negative = masks(labels.to(embeddings.device, non_blocking=True))
    squared = squared_distances(normalize(full_precision(embeddings), dim=1))
    return squared, *positive.nonzero_static(size=number).unbind(1), negative


def draw(weight):
    """One column a row of (R, B), in proportion to the weights, by the inverse of their cumulative sum."""
    cumulative = weight.cumsum(1, dtype=torch.float64)
    u = torch.rand(len(weight), 1, dtype=torch.float64, device=weight.device) * cumulative[:, -1:]
    # NaN, of embeddings with NaN, is looked for beyond the end
    return torch.searchsorted(cumulative, u, right=True).squeeze(1).clamp(max=weight.shape[1] - 1)


def draw_from(mask, otherwise):
    """One column a row, uniformly from `mask`; from `otherwise` in the rows where the mask is empty."""
    return draw(torch.where(mask.any(1, keepdim=True), mask, otherwise))


def every(embeddings, labels):
    """All triplets of the batch."""
    positive, negative = masks(labels)
    number = int((positive.sum(1) * negative.sum(1)).sum())
    _, anchors, positives, negative = geometry(embeddings, labels)
    pair, negatives = negative[anchors].nonzero_static(size=number).unbind(1)
    return anchors[pair], positives[pair], negatives


def random(embeddings, labels):
    """Each positive pair with a negative drawn uniformly."""
    _, anchors, positives, negative = geometry(embeddings, labels)
    return anchors, positives, draw_from(negative[anchors], negative[anchors])


def semihard(embeddings, labels, margin=0.2):
    """Each positive pair with a negative farther by less than `margin`, else any (Schroff et al., CVPR 2015, 3.2)."""
    squared, anchors, positives, negative = geometry(embeddings, labels)
    distance = squared.sqrt_()
    away, to_positive = distance[anchors], distance[anchors, positives][:, None]
    band = negative[anchors] & (away > to_positive) & (away < to_positive + margin)
    return anchors, positives, draw_from(band, negative[anchors])


def softhard(embeddings, labels):
    """A positive beyond the nearest negative, a negative nearer than the farthest positive (Roth & Brattoli, 2019).
    One triplet an anchor, each drawn uniformly; where there is no such image, from all."""
    number = int(masks(labels)[0].any(1).sum())
    positive, negative = masks(labels.to(embeddings.device, non_blocking=True))
    anchors = positive.any(1).nonzero_static(size=number).squeeze(1)
    distance = squared_distances(normalize(full_precision(embeddings), dim=1))[anchors]
    positive, negative = positive[anchors], negative[anchors]
    nearest_negative = distance.masked_fill(~negative, torch.inf).amin(1, keepdim=True)
    farthest_positive = distance.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
    positives = draw_from(positive & (distance > nearest_negative), positive)
    return anchors, positives, draw_from(negative & (distance < farthest_positive), negative)


def distance_weighted(embeddings, labels, lower_cutoff=0.5, upper_cutoff=1.4):
    """Each positive pair with a negative drawn about uniformly in distance (Wu et al., ICCV 2017, eq. 3-4).

    On the unit sphere distances of random points have density q(t) ∝ t^(d-2) (1 - t²/4)^((d-3)/2); a negative at
    distance t is drawn with probability ∝ 1 / q(max(t, lower_cutoff)), and not at all from upper_cutoff on. An anchor
    without a negative in reach draws from all its negatives alike. The upper cutoff of 1.4 is the authors'; the
    published code does without, as 2 does here: at a random start in 512 dimensions 2/3 of the negatives lie beyond.
    """
    d = embeddings.shape[1]
    squared, anchors, positives, negative = geometry(embeddings, labels)
    quarter = squared.clamp(max(lower_cutoff**2, 1e-8), 4 - 1e-3).div_(4)  # t²/4; the density's constants fall out
    log_weight = quarter.log().mul_((2 - d) / 2).sub_(torch.log1p(-quarter), alpha=(d - 3) / 2)
    # out of reach, negatives weigh less than in reach, but more than others: where all are so, each is as likely
    log_weight.masked_fill_(squared >= upper_cutoff**2, lowest(squared) / 2).masked_fill_(~negative, lowest(squared))
    return anchors, positives, draw(torch.softmax(log_weight, 1)[anchors])


def rho_distance(embeddings, labels, lower_cutoff=0.5, upper_cutoff=1.4, cp=0.2):
    """Distance-weighted triplets (a, p, n), a share cp of them made (a, a, p) (Roth et al., ICML 2020, section 5).
    The positive in the negative's place is pushed away from its anchor: classes are packed less densely."""
    anchors, positives, negatives = distance_weighted(embeddings, labels, lower_cutoff, upper_cutoff)
    switched = torch.rand(len(anchors), device=anchors.device) < cp
    return anchors, torch.where(switched, anchors, positives), torch.where(switched, positives, negatives)
