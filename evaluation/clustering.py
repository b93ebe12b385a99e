"""Clustering metrics: k-means with as many clusters as classes, then NMI and F1 against the labels.

scikit-learn is loaded when it is needed: it takes over a second, which runs without these metrics save.
"""

import warnings

import numpy as np
import torch

from evaluation.rows import same_rows, well_scaled
from evaluation.search import faiss_gpus, have_faiss


def check_restarts(restarts):
    """ValueError, one line, for a number of starts that neither library takes."""
    if not 1 <= restarts < 2**31:
        raise ValueError(f"--kmeans_restarts {restarts}: must be from 1 to 2^31 - 1")


def kmeans(embeddings, n_clusters, seed=0, on_cpu=False, restarts=1):
    """Cluster of each embedding (n,), a numpy array of ints: Lloyd's algorithm, 20 iterations, all points used.

    The best of `restarts` seeded starts, by the sum of squared distances. Where there are no more distinct points than
    clusters, each is one: that cannot be bettered, and a collapsed model has few.
    faiss (on the GPU if the embeddings are there), or scikit-learn where faiss is not installed. Depends on the seed,
    any whole number, modulo 2^31, and between the two on the library; within one it is deterministic.
    ValueError, one line, unless 1 <= restarts < 2^31.
    """
    check_restarts(restarts)
    embeddings, seed = torch.as_tensor(embeddings).detach(), int(seed) % 2**31  # what both libraries take
    distinct = same_rows(embeddings)
    if int(distinct.max()) < n_clusters:
        return distinct.cpu().numpy()
    points = well_scaled([embeddings])[0][0].cpu().numpy()  # raw squares overflow, or cancel far from the origin
    if not have_faiss():
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # nearly equal points: a collapsed model, not a mistake
            model = KMeans(n_clusters, init="random", n_init=restarts, max_iter=20, random_state=seed)
            return model.fit_predict(points)
    import faiss

    how = dict(niter=20, nredo=restarts, seed=seed, gpu=embeddings.is_cuda and not on_cpu and faiss_gpus() > 0)
    # all points are used, and nothing is said about few
    how.update(min_points_per_centroid=1, max_points_per_centroid=len(points))
    model = faiss.Kmeans(points.shape[1], n_clusters, **how)
    model.train(points)
    return model.index.search(points, 1)[1][:, 0]


def on_host(labels):
    return labels.cpu().numpy() if torch.is_tensor(labels) else np.asarray(labels)


def nmi(labels, clusters):
    """Normalised mutual information, 2 I / (H(labels) + H(clusters)), in 0..1. Source: Manning et al. 2008, 16.3."""
    from sklearn.metrics import normalized_mutual_info_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn before 1.8 takes small classes for a regression
        return float(normalized_mutual_info_score(on_host(labels), on_host(clusters)))


def f1(labels, clusters):
    """F1 of "same cluster" as a prediction of "same class" over all pairs of images, in 0..1; 0 without a true pair."""
    from sklearn.metrics.cluster import pair_confusion_matrix

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as in nmi
        pairs = pair_confusion_matrix(on_host(labels), on_host(clusters))
    (_, false_positive), (false_negative, true_positive) = pairs
    return float(2 * true_positive / max(2 * true_positive + false_positive + false_negative, 1))
