"""Clustering metrics: k-means with as many clusters as classes, then NMI and F1 against the labels.

scikit-learn is loaded where it is used: it takes over a second.
"""

import torch

from evaluation.search import have_faiss, well_scaled


def kmeans(embeddings, n_clusters, seed=0, restarts=1):
    """Cluster of each embedding (n,), a numpy array of ints: 20 Lloyd iterations from the best of `restarts` starts.

    Where there are no more distinct points than clusters, each is one. By faiss, or scikit-learn where that is missing.
    """
    (points,), seed = well_scaled([embeddings]), int(seed) % 2**31  # what both libraries take
    distinct = points.unique(dim=0, return_inverse=True)[1].cpu().numpy()
    if distinct.max() < n_clusters:
        return distinct
    points = points.cpu().numpy()
    if not have_faiss():
        from sklearn.cluster import KMeans

        model = KMeans(n_clusters, init="random", n_init=restarts, max_iter=20, random_state=seed)
        return model.fit_predict(points)
    import faiss

    how = dict(niter=20, nredo=restarts, seed=seed, gpu=embeddings.is_cuda and faiss.get_num_gpus() > 0)
    how |= dict(min_points_per_centroid=1, max_points_per_centroid=len(points))  # all are used, and few are no matter
    model = faiss.Kmeans(points.shape[1], n_clusters, **how)
    model.train(points)
    return model.index.search(points, 1)[1][:, 0]


def nmi(labels, clusters):
    """Normalised mutual information, 2 I / (H(labels) + H(clusters)), in 0..1. Source: Manning et al. 2008, 16.3."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(torch.as_tensor(labels).cpu(), clusters))


def f1(labels, clusters):
    """F1 of "same cluster" as a prediction of "same class" over all pairs of images, in 0..1; 0 without a true pair."""
    from sklearn.metrics.cluster import pair_confusion_matrix

    (_, wrong), (missed, right) = pair_confusion_matrix(torch.as_tensor(labels).cpu(), clusters)
    return float(2 * right / max(2 * right + wrong + missed, 1))
