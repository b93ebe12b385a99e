"""Clustering metrics: k-means with as many clusters as classes, then NMI and F1 by scikit-learn, which loads slowly."""

import torch

from evaluation.search import BLOCK_BYTES, nearest_rows, well_scaled


def kmeans(embeddings, n_clusters, seed=0, restarts=1):
    """Cluster of each embedding (n, d): a numpy array (n,) of ints, by 20 Lloyd iterations on the embeddings' device.

    Of `restarts` starts at points that the seed draws, as faiss does, the one with the smallest distances counts. Where
    there are no more different points than clusters, each is one.
    """
    (points,) = well_scaled([embeddings])
    different, which = points.unique(dim=0, return_inverse=True)
    if len(different) <= n_clusters:
        return which.cpu().numpy()
    seeds = (int(seed) % 2**31 + 1 + 15486557 * restart for restart in range(restarts))
    drawn = (torch.randperm(len(points), generator=torch.Generator().manual_seed(each)) for each in seeds)
    found = (lloyd(points, points[order[:n_clusters].to(points.device)]) for order in drawn)
    return min(found, key=lambda pair: pair[0])[1].cpu().numpy()


def lloyd(points, centres, iterations=20):
    """(sum of squared distances, nearest centre (n,)) of points (n, d) after so many iterations from centres (c, d).

    A cluster that is empty begins again at the point that is farthest from its centre. Source: Lloyd, IEEE TIT 1982.
    """
    for iteration in range(iterations + 1):
        squares, block = centres.square().sum(1), max(1, BLOCK_BYTES // (64 * len(centres)))  # a CPU's cache likes few
        found = [nearest_rows(part, centres, squares, 1, "torch") for part in points.split(block)]
        distances, nearest = (torch.cat(column)[:, 0] for column in zip(*found))
        if iteration == iterations:
            return distances.sum(dtype=torch.float64).item(), nearest
        empty = (nearest.bincount(minlength=len(centres)) == 0).nonzero()[:, 0]
        nearest[distances.topk(len(empty)).indices] = empty
        sizes = nearest.bincount(minlength=len(centres))[:, None]  # a cluster that has lost its only point stays
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)


def nmi(labels, clusters):
    """Normalised mutual information, 2 I / (H(labels) + H(clusters)), in 0..1. Source: Manning et al. 2008, 16.3."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(torch.as_tensor(labels).cpu(), clusters))


def f1(labels, clusters):
    """F1 of "same cluster" as a prediction of "same class" over all pairs of images, in 0..1; 0 without a true pair."""
    from sklearn.metrics.cluster import pair_confusion_matrix

    (_, wrong), (missed, right) = pair_confusion_matrix(torch.as_tensor(labels).cpu(), clusters)
    return float(2 * right / max(2 * right + wrong + missed, 1))
