"""Retrieval metrics: Recall@K, mAP@R and mAP@K, from labels of ranked neighbours."""

from numbers import Integral

import numpy as np
import torch

from evaluation.search import Space, Unmeasurable, candidates, lexsort, settle

TRIED = 32  # neighbours among which the first match is looked for before it is counted


def as_tensors(embeddings, labels, least=2):
    """Float32 embeddings (n, d) and labels (n,) as tensors; ValueError, one line, where they cannot be evaluated."""
    embeddings, labels = torch.as_tensor(embeddings).detach().float(), torch.as_tensor(labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or len(labels) < least:
        raise ValueError(f"evaluation: expects embeddings (n, d) and labels (n,), n > {least - 1}, got {tuple(embeddings.shape)} and {tuple(labels.shape)}")
    broken = int((~torch.isfinite(embeddings)).any(1).sum())
    if broken:
        raise Unmeasurable(f"evaluation: {broken} of {len(embeddings)} embeddings are not finite")
    return embeddings, labels.to(embeddings.device)


@torch.no_grad()
def rank(embeddings, labels, k, deepest=0, query_embeddings=None, query_labels=None, backend="auto", on_cpu=False):
    """What the metrics need of the ranking of all other images: `matches` and `first`, in one pass.

    With query_embeddings (q, d) and query_labels (q,) the embeddings are the gallery, nothing is left out, and n is q.
    The order is that of search.nearest_neighbours: exact, ties by index, whatever the back-end.

    Parameters
    ----------
    k : int
        How many of the nearest `matches` has; cut to what the gallery has.
    deepest : int
        How far `first` reaches. Beyond k the images nearer than the nearest match are counted, which takes no sorting.

    Returns
    -------
    matches : bool (n, k), whether each of the k nearest has the query's label
    first : int (n,), the rank from 1 of the nearest match; 2^62 where there is none or it lies beyond k and `deepest`
    """
    queries, own_labels = (embeddings, labels) if query_embeddings is None else (query_embeddings, query_labels)
    space = Space(queries, embeddings, exclude_self=query_embeddings is None, on_cpu=on_cpu)
    labels, own_labels = labels.to(space.q.device), own_labels.to(space.q.device)
    k = min(k, space.available)
    near = max(k, min(deepest, TRIED if backend in ("auto", "torch") else deepest, space.available))
    members = Members(labels)
    matches, first = [], []
    for rows, d, found, D in candidates(space, near, backend):
        def match(rows, found):
            return labels[found] == own_labels[rows][:, None]

        found = settle(space, rows, d, found, D, near, match)
        hit = match(rows, found)
        rank_of_first = torch.where(hit.any(1), hit.int().argmax(1) + 1, 1 << 62)
        if deepest > near and D is not None:
            missed = (rank_of_first == 1 << 62).nonzero().squeeze(1)
            for part in missed.split(256) if len(missed) else ():  # a bite that stays in the cache
                rank_of_first[part] = count_nearer(space, rows[part], D[part], *members.of(own_labels[rows[part]]))
        matches.append(hit[:, :k])
        first.append(rank_of_first)
    return torch.cat(matches).to(embeddings.device), torch.cat(first).to(embeddings.device)


class Members:
    """The gallery images of each class."""

    def __init__(self, labels):
        self.classes, sizes = labels.unique(return_counts=True)
        self.sizes, self.starts, self.order = sizes, sizes.cumsum(0) - sizes, labels.argsort(stable=True)

    def of(self, labels):
        """Indices (b, r) of the images of these classes, and whether each entry is one: the rows are filled up."""
        where = torch.searchsorted(self.classes, labels).clamp(max=len(self.classes) - 1)
        size = self.sizes[where] * (self.classes[where] == labels)
        step = torch.arange(max(int(size.max()), 1), device=labels.device)
        there = step < size[:, None]
        return self.order[torch.where(there, self.starts[where][:, None] + step, 0)], there


def count_nearer(space, rows, D, members, there):
    """Rank of the nearest of the gallery images `members` (b, r), from all distances D (b, m): (b,); 2^62 where there is none."""
    real = there & (members != rows[:, None]) if space.exclude_self else there
    there = real.any(1)
    nearest = D.gather(1, members).masked_fill(~real, torch.inf).min(1)
    tolerance = space.tolerance(rows, members.gather(1, nearest.indices[:, None]))
    low, high = nearest.values[:, None] - tolerance, nearest.values[:, None] + tolerance
    nearer = count(D < low)
    ranks = nearer + 1
    unclear = ((count(D <= high) - nearer > 1) & there).nonzero().squeeze(1)
    if len(unclear):  # others as near as rounding can tell: those before the first match in the exact order count as nearer
        r, c = ((D[unclear] >= low[unclear]) & (D[unclear] <= high[unclear])).nonzero(as_tuple=True)
        r = unclear[r]
        order = lexsort(r, space.exact(rows[r], c), c)
        r, c = r[order], c[order]
        hit = ((members[r] == c[:, None]) & real[r]).any(1).long()
        start = torch.nn.functional.pad(r.bincount(minlength=len(rows)).cumsum(0)[:-1], (1, 0))
        seen = hit.cumsum(0)
        before = seen - (seen - hit)[start.clamp(max=len(r) - 1)][r] == 0
        ranks = ranks + before.long().new_zeros(len(rows)).scatter_add_(0, r, before.long())
    return torch.where(there, ranks, 1 << 62)


def count(mask):
    """True entries of each row (b,). On a CPU numpy counts bits of bytes, where torch first makes 64-bit numbers of them."""
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1)) if mask.device.type == "cpu" else mask.sum(1)


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
    first = rank(embeddings, labels, 1, deepest=max(ks), **search)[1]
    recalls = {each: recall_of(first, each) for each in ks}
    return recalls[k] if single else recalls


def recall_of(first, k):
    """recall_at_k from the ranks of the first matches."""
    return (first <= k).double().mean().item()


def map_at_r(embeddings, labels, **search):
    """mAP@R: mean over images of 1/R Σ_{i ≤ R} precision(i) · [the i-th neighbour matches], R = others of the class.

    Images that are alone in their class (R = 0) are left out; 0 where all are.
    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    sizes = class_sizes(labels)
    return map_at_r_of(rank(embeddings, labels, max(int(sizes.max()), 1), **search)[0], sizes)


def map_at_r_of(matches, sizes):
    """map_at_r from rank's matches and class_sizes."""
    within = torch.arange(matches.shape[1], device=matches.device) < sizes[:, None]
    return average_precision(matches[:, : within.shape[1]] & within, sizes)


def r_precision(embeddings, labels, **search):
    """R-precision: mean over images of the share of matches among their R nearest others, R and exclusions as in map_at_r.

    Source: Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
    """
    embeddings, labels = as_tensors(embeddings, labels)
    sizes = class_sizes(labels)
    return r_precision_of(rank(embeddings, labels, max(int(sizes.max()), 1), **search)[0], sizes)


def r_precision_of(matches, sizes):
    """r_precision from rank's matches and class_sizes."""
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
    return average_precision(rank(embeddings, labels, k, **search)[0], class_sizes(labels) + 1)


def average_precision(matches, total):
    """Mean over rows with total > 0 of Σ_i precision(i) · matches(i) / total."""
    kept = total > 0
    if not kept.any():
        return 0.0
    matches, total = matches[kept], total[kept]
    ranks = torch.arange(1, matches.shape[1] + 1, device=matches.device)
    summed = torch.cat([((part.cumsum(1).double() / ranks) * part).sum(1) for part in matches.split(4096)])
    return (summed / total).mean().item()
