"""Collapse metrics: how much of the space the embeddings of a split fill. No labels needed."""

import torch

from criteria import coding_rate


def coding_rate_share(embeddings):
    """R / R_max of the L2-normalised embeddings (n, d), a float in 0..1: 1 is spread evenly, near 0 is collapsed.

    The scale is the published one of the evaluation, s = d / (0.5 n), so that values of splits of one dimension compare.
    Source: Yu et al., MCR², NeurIPS 2020, eq. 1, over its maximum (criteria/coding_rate.py).
    """
    share = float(coding_rate.coding_rate_share(torch.as_tensor(embeddings).detach()))
    return min(share, 1.0)  # float32 can round a full rate above its maximum
