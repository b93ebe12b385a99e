"""Batch miners: which triplets of a batch a loss is computed on. They choose indices, so nothing here is differentiated."""

import torch


@torch.no_grad()
def distance_weighted(embeddings, labels, lower_cutoff=0.5, upper_cutoff=1.4):
    """One negative for every anchor-positive pair, drawn so that its distance to the anchor is about uniform.

    On the unit sphere distances of random points have density q(t) ∝ t^(d-2) (1 - t²/4)^((d-3)/2); a negative at
    distance t is drawn with probability ∝ 1 / q(max(t, lower_cutoff)), and not at all beyond upper_cutoff. An anchor
    without a negative in reach draws from all its negatives alike. Pairs of a batch with one class give no triplet.

    Parameters
    ----------
    embeddings : tensor (B, d), rows L2-normalised
    labels : tensor (B,)

    Returns
    -------
    anchors, positives, negatives : index tensors (T,)

    Source: Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017, eq. 3-4.
    """
    d = embeddings.shape[1]
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    distance = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels[None, :]
    t = distance.clamp(lower_cutoff, 2 - 1e-4)
    log_weight = (2.0 - d) * t.log() - (d - 3) / 2 * torch.log1p(-t.square() / 4)
    reachable = ~same & (distance < upper_cutoff)
    lonely = ~reachable.any(1, keepdim=True)
    log_weight = torch.where(lonely, 0.0, log_weight).masked_fill(~torch.where(lonely, ~same, reachable), -torch.inf)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    anchors, positives = (positive & (~same).any(1, keepdim=True)).nonzero(as_tuple=True)
    if len(anchors) == 0:
        return anchors, positives, anchors
    # the arg max of log-weights plus Gumbel noise is a draw in proportion to the weights
    gumbel = -torch.empty_like(log_weight[anchors]).exponential_().log()
    return anchors, positives, (log_weight[anchors] + gumbel).argmax(1)


MINERS = {"distance": distance_weighted}
