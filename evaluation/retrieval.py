"""Retrieval metrics: Recall@K, mAP@R and mAP@K, from labels of ranked neighbours."""

from numbers import Integral

import torch

from evaluation.search import Search, Unmeasurable

TRIED = 64  # neighbours among which the first match is looked for; a deeper search is of the queries that have none
NONE = 1 << 62  # rank of the first match where there is none


def as_tensors(embeddings, labels, least=2):
    """Embeddings (n, d), float64 if they were, else float32, and labels (n,); ValueError where they cannot be used."""
    embeddings, labels = torch.as_tensor(embeddings).detach(), torch.as_tensor(labels)
    embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    if embeddings.ndim != 2 or not embeddings.shape[1] or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "evaluation: expects embeddings (n, d) and labels (n,), "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    if len(labels) < least:
        raise ValueError(f"--evaluation_metrics: {len(labels)} image(s) to evaluate, at least {least} are needed")
    if not torch.stack(embeddings.aminmax()).isfinite().all():
        broken = int((~embeddings.isfinite()).any(1).sum())
        raise Unmeasurable(f"evaluation: {broken} of {len(embeddings)} embeddings are not finite")
    return embeddings, (labels if labels.is_floating_point() else labels.long()).to(embeddings.device)


@torch.no_grad()
def rank(embeddings, labels, k, deepest=0, query_embeddings=None, query_labels=None, backend="auto", on_cpu=False):
    """What the metrics need of each image's ranking of all others, in the order of search.nearest_neighbours.

    Returns `matches`, bool (n, k'): whether each of the k (cut to what there is) nearest has the query's label; and
    `first`, int (n,): the rank from 1 of the nearest match, NONE where it lies beyond k and `deepest`.
    With query_embeddings (q, d) and query_labels (q,) the embeddings are the gallery, nothing is left out, and n is q.
    """
    queries, own_labels = (embeddings, labels) if query_embeddings is None else (query_embeddings, query_labels)
    search = Search(queries, embeddings, max(k, deepest), query_embeddings is None, backend, on_cpu)
    labels, own_labels = labels.to(search.device), own_labels.to(search.device)

    def right(rows, neighbours):
        return labels[neighbours] == own_labels[rows, None]

    def matches_of(rows, depth):
        return right(rows, search.nearest(rows, depth, right))

    near = max(k, min(deepest, TRIED))
    matches = torch.cat([matches_of(rows, near) for rows in search.blocks()])
    first = torch.cat([rank_of_first(part) for part in matches.split(search.block)])
    if min(deepest, search.available) > matches.shape[1]:
        has_match = gallery_sizes(own_labels, labels) > int(search.exclude_self)
        for rows in search.blocks(((first == NONE) & has_match).nonzero().squeeze(1)):
            first[rows] = rank_of_first(matches_of(rows, deepest))
    return matches[:, :k].to(embeddings.device), first.to(embeddings.device)


def rank_of_first(matches):
    """The rank from 1 (n,) of the first match in matches (n, k), NONE where there is none."""
    return torch.where(matches.any(1), matches.byte().argmax(1) + 1, NONE)


def gallery_sizes(query_labels, labels):
    """For each query, the number of gallery images of its class: (q,)."""
    ordered = labels.sort().values
    return torch.searchsorted(ordered, query_labels, right=True) - torch.searchsorted(ordered, query_labels)


def class_sizes(labels):
    """For each image, the number of other images of its class: (n,)."""
    return gallery_sizes(labels, labels) - 1


def recall_at_k(embeddings, labels, k=(1, 2, 4, 8), **search):
    """Recall@K: the share of images that have one of their class among their K nearest other images.

    embeddings (n, d), labels (n,): tensors or arrays; k: int or ints from 1, beyond the number of images all of them;
    search: arguments of `rank`. Returns {K: float in 0..1}; a float where k is an int. An image that is alone in its
    class counts as a miss. Source: Jégou et al., PAMI 2011; Oh Song et al., CVPR 2016.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    ks = [int(each) for each in ([k] if isinstance(k, Integral) else k)]  # numpy's ints too
    if min(ks) < 1:
        raise ValueError(f"recall_at_k: K must be at least 1, got {min(ks)}")
    first = rank(embeddings, labels, 1, deepest=max(ks), **search)[1]
    recalls = {each: recall_of(first, each) for each in ks}
    return recalls[ks[0]] if isinstance(k, Integral) else recalls


def recall_of(first, k):
    """recall_at_k from the ranks of the first matches."""
    return (first <= min(k, NONE - 1)).double().mean().item()


def map_at_r(embeddings, labels, **search):
    """mAP@R: mean over images of 1/R Σ_{i ≤ R} precision(i) · [the i-th neighbour matches], R: others of its class.

    Images that are alone in their class (R = 0) are left out; 0 where all are.
    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    sizes = class_sizes(labels)
    return map_at_r_of(rank(embeddings, labels, max(int(sizes.max()), 1), **search)[0], sizes)


def map_at_r_of(matches, sizes):
    """map_at_r from rank's matches and class_sizes; from sizes with the query in them, the published code's `mAP_c`."""
    return average_precision(matches & within(sizes, matches), sizes)


def r_precision(embeddings, labels, **search):
    """R-precision: mean over images of the share of matches among their R nearest others; R, source as in map_at_r."""
    embeddings, labels = as_tensors(embeddings, labels)
    sizes = class_sizes(labels)
    return r_precision_of(rank(embeddings, labels, max(int(sizes.max()), 1), **search)[0], sizes)


def r_precision_of(matches, sizes):
    """r_precision from rank's matches and class_sizes."""
    shares = (matches & within(sizes, matches)).sum(1).double() / sizes
    return shares[sizes > 0].mean().item() if (sizes > 0).any() else 0.0


def within(sizes, matches):
    """Whether a place in matches (n, k) is among the query's first sizes (n,)."""
    return torch.arange(matches.shape[1], device=matches.device) < sizes[:, None]


def map_at_k(embeddings, labels, k=1000, **search):
    """`mAP_<k>` as published: mean over all images of 1/n Σ_{i ≤ k} precision(i) · [the i-th neighbour matches].

    n is the size of the class with the query itself, so that perfect retrieval stays below 1; mAP@R has no such bias.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    return map_at_k_of(rank(embeddings, labels, k, **search)[0], class_sizes(labels) + 1, k)


def map_at_k_of(matches, published_sizes, k):
    """map_at_k from rank's matches and the sizes of the classes with the query in them."""
    return average_precision(matches[:, :k], published_sizes)


def map_lim_of(matches, published_sizes):
    """`mAP_lim` of the published code: map_at_k_of as far down as its faiss-gpu could search."""
    return map_at_k_of(matches, published_sizes, 1023)


def average_precision(matches, total):
    """Mean over rows with total > 0 of Σ_i precision(i) · matches(i) / total."""
    ranks = torch.arange(1, matches.shape[1] + 1, device=matches.device)
    summed = torch.cat([((part.cumsum(1).double() / ranks) * part).sum(1) for part in matches.split(4096)])
    return (summed / total)[total > 0].mean().item() if (total > 0).any() else 0.0
