"""Retrieval metrics, from the labels of ranked neighbours: Recall@K, mAP@R, R-precision, mAP@K."""

import functools
import logging

import numpy as np
import torch

from evaluation.search import Unmeasurable, blocks_of_neighbours

warn_once = functools.cache(logging.getLogger("antico").warning)
CHANCE = "evaluation: for over 1% of the images Recall@K is chance: float32 cannot rank neighbours (collapse? copies?)"


def as_tensors(embeddings, labels, least=2):
    """Embeddings (n, d), float64 if they were, else float32, and labels (n,); ValueError where they cannot be used."""
    embeddings, labels = torch.as_tensor(embeddings).detach(), torch.as_tensor(labels)
    embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    fit = embeddings.ndim == 2 and embeddings.shape[1] and labels.shape == embeddings.shape[:1]
    if not fit or len(labels) < least:
        shapes = f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"evaluation: expects embeddings (n, d) and labels (n,), n at least {least}, got {shapes}")
    if broken := int((~embeddings.isfinite()).any(1).sum()):
        raise Unmeasurable(f"evaluation: {broken} of {len(labels)} embeddings are not finite")
    return embeddings, labels.long().to(embeddings.device)


def as_sets(embeddings, labels, query_embeddings=None, query_labels=None):
    """The gallery and the queries (None without any), each a pair of as_tensors; ValueError where they do not fit."""
    if query_embeddings is None and query_labels is None:
        return as_tensors(embeddings, labels), None
    gallery = as_tensors(embeddings, labels, 1)
    if query_embeddings is None or query_labels is None or np.shape(query_embeddings)[1:] != gallery[0].shape[1:]:
        of = f"of the gallery's {gallery[0].shape[1]} dimensions"
        raise ValueError(f"evaluation: query_embeddings and query_labels go together, {of}; give both")
    return gallery, as_tensors(query_embeddings, query_labels, 1)


def together(gallery, queries):
    """(embeddings, labels) of both, the queries first."""
    return gallery if queries is None else tuple(map(torch.cat, zip(queries, gallery)))


def nearest_matches(gallery, queries, depth, k=1, backend="auto"):
    """Whether each of the `depth` images nearest to a query has its label: bool (n, depth), cut to what there is.

    Warns, once, where over 1% of the queries have more than k images, not all of their class, as near as the nearest.
    """
    (embeddings, labels), (asked, own) = gallery, queries or gallery
    matches, undecided = [], 0
    for rows, found, alike in blocks_of_neighbours(asked, embeddings, max(depth, k + 1), queries is None, backend):
        right = labels[found] == own[rows, None]
        undecided += (alike[:, k:].any(1) & (alike & ~right).any(1)).sum()
        matches.append(right[:, :depth])
    if undecided > 0.01 * len(own):
        warn_once(CHANCE)
    return torch.cat(matches)


def class_sizes(query_labels, labels):
    """For each query, the number of images of its class: (q,)."""
    ordered = labels.sort().values
    return torch.searchsorted(ordered, query_labels, right=True) - torch.searchsorted(ordered, query_labels)


def recall(matches, k):
    """Recall@K: the share of queries that have a match among their K nearest."""
    return matches[:, :k].any(1).double().mean().item()


def mean_ap_at_r(matches, class_sizes):
    """mAP@R: mean over queries of 1/R Σ_{i ≤ R} precision(i) · [the i-th neighbour matches]; R = 0 is left out."""
    return average_precision(among_first(matches, class_sizes), class_sizes)


def r_precision(matches, class_sizes):
    """R-precision: mean over queries of the share of matches among their R nearest; R = 0 is left out."""
    found, kept = among_first(matches, class_sizes).sum(1), class_sizes > 0
    return (found[kept].double() / class_sizes[kept]).mean().item() if kept.any() else 0.0


def published_map(matches, published_sizes, k):
    """`mAP_<k>`: mean over queries of 1/n Σ_{i ≤ k} precision(i) · [the i-th neighbour matches], n the size of the
    class with the query itself: perfect retrieval stays below 1, as mAP@R does not. `mAP_c`, without k: i ≤ n."""
    counted = among_first(matches, published_sizes) if k is None else matches[:, :k]
    return average_precision(counted, published_sizes)


def among_first(matches, sizes):
    """The matches (n, k) among each query's first `sizes` (n,): bool (n, the largest of them)."""
    matches = matches[:, : int(sizes.max())]
    return matches & (torch.arange(matches.shape[1], device=matches.device) < sizes[:, None])


def average_precision(matches, total):
    """Mean over rows with total > 0 of Σ_i precision(i) · matches(i) / total; 0 where there are none."""
    ranks = torch.arange(1, matches.shape[1] + 1, device=matches.device)
    summed = torch.cat([((part.cumsum(1).double() / ranks) * part).sum(1) for part in matches.split(4096)])
    return (summed / total)[total > 0].mean().item() if (total > 0).any() else 0.0


def recall_at_k(embeddings, labels, k=(1, 2, 4, 8), backend="auto"):
    """Recall@K (Jégou et al., PAMI 2011) of embeddings (n, d) and labels (n,), tensors or arrays: {K: float in 0..1}, a
    float where k is an int. ValueError where they do not fit or a K is below 1."""
    ks = np.atleast_1d(k).tolist()
    if min(ks) < 1:
        raise ValueError(f"recall_at_k: K must be at least 1, got {min(ks)}")
    matches = nearest_matches(as_tensors(embeddings, labels), None, max(ks), min(ks), backend)
    recalls = {each: recall(matches, each) for each in ks}
    return recalls if np.ndim(k) else recalls[ks[0]]


def map_at_r(embeddings, labels, backend="auto"):
    """mAP@R of embeddings (n, d) and labels (n,), tensors or arrays: in 0..1. Source: Musgrave et al., ECCV 2020."""
    embeddings, labels = as_tensors(embeddings, labels)
    sizes = class_sizes(labels, labels) - 1
    return mean_ap_at_r(nearest_matches((embeddings, labels), None, max(int(sizes.max()), 1), 1, backend), sizes)
