"""Retrieval metrics: Recall@K, mAP@R and mAP@K, from labels of ranked neighbours."""

from numbers import Integral

import torch

from evaluation.search import nearest_neighbours


def as_tensors(embeddings, labels, least=2):
    """Float32 embeddings (n, d) and labels (n,) as tensors; ValueError, one line, where they cannot be evaluated."""
    embeddings, labels = torch.as_tensor(embeddings).detach().float(), torch.as_tensor(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or len(labels) < least:
        raise ValueError(f"evaluation: expects embeddings (n, d) and labels (n,), n > {least - 1}, got {tuple(embeddings.shape)} and {tuple(labels.shape)}")
    broken = int((~torch.isfinite(embeddings)).any(1).sum())
    if broken:
        raise ValueError(f"evaluation: {broken} of {len(embeddings)} embeddings are not finite")
    return embeddings, labels.to(embeddings.device)


def rank_matches(embeddings, labels, k, query_embeddings=None, query_labels=None, **search):
    """Whether each of the k nearest other images has the query's label: bool (n, k).

    With query_embeddings (q, d) and query_labels (q,) the embeddings are the gallery, nothing is left out, and it is (q, k).
    """
    if query_embeddings is None:
        found = nearest_neighbours(embeddings, embeddings, k, exclude_self=True, **search)
        return labels[found] == labels[:, None]
    found = nearest_neighbours(query_embeddings, embeddings, k, **search)
    return labels[found] == query_labels[:, None]


def class_sizes(labels):
    """For each image, the number of other images of its class: (n,)."""
    _, where, count = labels.unique(return_inverse=True, return_counts=True)
    return count[where] - 1


def gallery_sizes(query_labels, labels):
    """For each query, the number of gallery images of its class: (q,)."""
    classes, count = labels.unique(return_counts=True)
    where = torch.searchsorted(classes, query_labels).clamp(max=len(classes) - 1)
    return count[where] * (classes[where] == query_labels)


def recall_at_k(embeddings, labels, k=(1, 2, 4, 8), **search):
    """Recall@K: the share of images that have one of their class among their K nearest other images.

    An image that is alone in its class counts as a miss. K beyond the number of images means all of them.

    Parameters
    ----------
    embeddings (n, d), labels (n,) : tensors or arrays
    k : int or ints

    Returns
    -------
    {K: float in 0..1}; a float where k is an int.

    Source: Jégou et al., PAMI 2011; Oh Song et al., CVPR 2016.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    single = isinstance(k, Integral)
    ks = [int(k)] if single else [int(each) for each in k]  # numpy's ints too
    recalls = recall_of(rank_matches(embeddings, labels, max(ks), **search), ks)
    return recalls[k] if single else recalls


def recall_of(matches, ks):
    """recall_at_k from rank_matches: {K: float}."""
    return {k: matches[:, :k].any(1).double().mean().item() for k in ks}


def map_at_r(embeddings, labels, **search):
    """mAP@R: mean over images of 1/R Σ_{i ≤ R} precision(i) · [the i-th neighbour matches], R = others of the class.

    Images that are alone in their class (R = 0) are left out; 0 where all are.
    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    sizes = class_sizes(labels)
    return map_at_r_of(rank_matches(embeddings, labels, max(int(sizes.max()), 1), **search), sizes)


def map_at_r_of(matches, sizes):
    """map_at_r from rank_matches and class_sizes."""
    within = torch.arange(matches.shape[1], device=matches.device) < sizes[:, None]
    return average_precision(matches[:, : within.shape[1]] & within, sizes)


def r_precision(embeddings, labels, **search):
    """R-precision: mean over images of the share of matches among their R nearest others, R and exclusions as in map_at_r.

    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    sizes = class_sizes(labels)
    return r_precision_of(rank_matches(embeddings, labels, max(int(sizes.max()), 1), **search), sizes)


def r_precision_of(matches, sizes):
    """r_precision from rank_matches and class_sizes."""
    kept = sizes > 0
    if not kept.any():
        return 0.0
    within = torch.arange(matches.shape[1], device=matches.device) < sizes[:, None]
    return ((matches[:, : within.shape[1]] & within).sum(1)[kept].double() / sizes[kept]).mean().item()


def map_c_of(matches, total):
    """`mAP_c` of the published code: as map_at_k, with as many neighbours as the class has images, the query itself counted.

    `mAP_lim` is map_at_k at 1023, the most that its faiss-gpu could find. Source: Roth et al., ICML 2020 (code).
    """
    within = torch.arange(matches.shape[1], device=matches.device) < total[:, None]
    return average_precision(matches & within, total)


def map_at_k(embeddings, labels, k=1000, **search):
    """`mAP_<k>` of the published code: mean over all images of 1/n Σ_{i ≤ k} precision(i) · [the i-th neighbour matches].

    n is the size of the class with the query itself, so that perfect retrieval stays below 1; mAP@R has no such bias.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    return average_precision(rank_matches(embeddings, labels, k, **search), class_sizes(labels) + 1)


def average_precision(matches, total):
    """Mean over rows with total > 0 of Σ_i precision(i) · matches(i) / total."""
    kept = total > 0
    if not kept.any():
        return 0.0
    matches, total = matches[kept], total[kept]
    ranks = torch.arange(1, matches.shape[1] + 1, device=matches.device)
    summed = torch.cat([((part.cumsum(1).double() / ranks) * part).sum(1) for part in matches.split(4096)])
    return (summed / total).mean().item()
