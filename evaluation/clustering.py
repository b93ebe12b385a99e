"""Clustering metrics: k-means with as many clusters as classes, then NMI and F1 against the labels."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import pair_confusion_matrix

from evaluation.search import faiss_gpus, have_faiss


def kmeans(embeddings, n_clusters, seed=0, on_cpu=False, restarts=1):
    """Cluster of each embedding (n,), a numpy array of ints: Lloyd's algorithm, 20 iterations, all points used.

    The best of `restarts` seeded starts, by the sum of squared distances.
    faiss (on the GPU if the embeddings are there), or scikit-learn where faiss is not installed. Depends on the seed,
    and between the two on the library; within one it is deterministic.
    """
    points = np.ascontiguousarray(torch.as_tensor(embeddings).detach().float().cpu().numpy())
    if n_clusters >= len(points):
        return np.arange(len(points))  # every image its own cluster
    if not have_faiss():
        from sklearn.cluster import KMeans
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters: a collapsed model, not a mistake
            return KMeans(n_clusters, init="random", n_init=restarts, max_iter=20, random_state=seed).fit_predict(points)
    import faiss
    gpu = torch.as_tensor(embeddings).is_cuda and not on_cpu and faiss_gpus() > 0
    # any number of points a centroid: no subsampling, and no warning about few
    model = faiss.Kmeans(points.shape[1], n_clusters, niter=20, nredo=restarts, seed=seed, gpu=gpu, min_points_per_centroid=1, max_points_per_centroid=len(points))
    model.train(points)
    return model.index.search(points, 1)[1][:, 0]


def nmi(labels, clusters):
    """Normalised mutual information, 2 I / (H(labels) + H(clusters)), in 0..1. Source: Manning et al., IR book, 16.3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # before 1.8 scikit-learn takes classes of one or two images for a regression
        return float(normalized_mutual_info_score(np.asarray(labels), np.asarray(clusters)))


def f1(labels, clusters):
    """F1 of "same cluster" as a prediction of "same class" over all pairs of images, in 0..1; 0 without a true pair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as in nmi
        (_, false_positive), (false_negative, true_positive) = pair_confusion_matrix(np.asarray(labels), np.asarray(clusters))
    return float(2 * true_positive / max(2 * true_positive + false_positive + false_negative, 1))
