"""Pictures of embeddings, from plain arrays to figures: nearest images, singular values, t-SNE.

Right and wrong, classes and files differ in a mark or a line style besides their colour.
"""

import textwrap
from typing import NamedTuple

import numpy as np
import torch

from evaluation import collapse
from evaluation.retrieval import as_tensors
from evaluation.rows import well_scaled
from evaluation.search import Search
from utilities.report import style

QUERIES, NEAREST = 8, 8  # of a panel
POINTS, CLASSES = 2000, 10  # of t-SNE: drawn, and told apart among them
RIGHT, WRONG = style.COLORS[0], style.COLORS[1]  # blue and vermilion: not red and green


def nearest_images(embeddings, labels, query_embeddings=None, query_labels=None, n=QUERIES, k=NEAREST, seed=0):
    """n queries drawn by seed (n,), their k nearest images (n, k) as the metrics rank them, and which are right (n, k).

    Arrays as `compute` takes them. All of queries or neighbours where there are fewer.
    """
    apart = query_embeddings is not None
    gallery, labels = as_tensors(embeddings, labels, least=1 if apart else 2)
    queries, own = as_tensors(query_embeddings, query_labels, least=1) if apart else (gallery, labels)
    drawn = np.random.default_rng(seed).choice(len(queries), min(n, len(queries)), replace=False)
    rows = torch.from_numpy(np.sort(drawn))
    nearest = Search(queries, gallery, k, exclude_self=not apart).nearest(rows, k)
    return rows.numpy(), nearest.numpy(), (labels[nearest] == own[rows, None]).numpy()


def panel(queries, neighbours, right, names, title):
    """A figure of queries (q, h, w, 3), uint8, each with its neighbours (q, k, h, w, 3): ✓ right (q, k), ✗ wrong.

    names (q,): what is written beside each query.
    """
    figure, axes = style.panels(len(queries), 1 + neighbours.shape[1], style.WIDTH / (1 + NEAREST))
    for line, query, its_own, marks, name in zip(axes, queries, neighbours, right, names):
        line[0].imshow(query)
        line[0].set_ylabel(textwrap.fill(name, 12), rotation=0, ha="right", va="center", fontsize=8)
        for axis, image, hit in zip(line[1:], its_own, marks):
            axis.imshow(image)
            color = RIGHT if hit else WRONG
            axis.spines[:].set(color=color, linewidth=2.5, linestyle="-" if hit else (0, (2, 1)), capstyle="butt")
            box = dict(boxstyle="circle,pad=0.15" if hit else "square,pad=0.15", color=color)
            where = dict(transform=axis.transAxes, ha="center", va="center", clip_on=False)
            axis.text(0.9, 0.9, "✓" if hit else "✗", color="white", fontsize=8, bbox=box, **where)
    for column, axis in enumerate(axes[0]):
        axis.set_title(str(column) if column else "query", fontsize=9)
    for axis in (axis for line in axes for axis in line):
        style.bare(axis)
    figure.suptitle(textwrap.fill(title, 90), fontsize=10)  # a run may have a long name
    return figure


def spectrum(values):
    """A figure of {name: singular values, largest first (r,)}, each as shares of their sum: the collapse picture."""
    figure, ((axis,),) = style.panels(1, 1, 3.6)
    for number, (name, its_own) in enumerate(values.items()):
        share = np.asarray(its_own, dtype=np.float64) / float(sum(its_own))
        rank = collapse.effective_rank_of(torch.from_numpy(share))
        label = f"{name}: effective rank {rank:.1f} of {len(share)}"
        x = np.arange(1, len(share) + 1)
        axis.plot(x, share, label=label, markevery=style.every(number, len(x)), **style.look(number))
    axis.set(yscale="log", xlabel="singular value, largest first", ylabel="share of their sum")
    axis.set_title("Singular values of the embeddings")
    style.legend(figure, [axis])
    return figure


class Flat(NamedTuple):
    """Points of t-SNE (n, 2), their labels (n,), the classes in colour, and how many images and classes there are."""

    points: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    n_images: int
    n_classes: int


def flat_points(embeddings, labels, seed=0):
    """t-SNE of at most POINTS rows: those of CLASSES drawn by seed among the classes with several images, then others.

    Raises ValueError where there are fewer than four rows or all are equal. Source: van der Maaten & Hinton, JMLR 2008.
    """
    from sklearn.manifold import TSNE

    embeddings, labels = as_tensors(embeddings, labels)
    labels, generator = labels.numpy(), np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shown = generator.permutation(classes[counts > 1])[:CLASSES]
    order = generator.permutation(len(labels))
    rows = order[np.argsort(~np.isin(labels[order], shown), kind="stable")][:POINTS]
    points = well_scaled([embeddings[rows]])[0][0].numpy()
    if len(points) < 4 or (points == points[0]).all():
        raise ValueError(f"t-SNE needs four images that are not all alike, these are {len(points)}")
    start = "pca" if points.shape[1] > 1 else "random"  # it wants two components
    fit = TSNE(perplexity=min(30, (len(points) - 1) / 3), init=start, random_state=seed % 2**32)
    return Flat(fit.fit_transform(points), labels[rows], np.sort(shown), len(labels), len(classes))


def tsne(spaces):
    """A figure of {name: Flat} side by side."""
    figure, axes = style.squares(len(spaces))
    for axis, (name, flat) in zip(axes, spaces.items()):
        axis.plot(*flat.points[~np.isin(flat.labels, flat.classes)].T, ".", color="0.8", markersize=3)
        for number, value in enumerate(flat.classes):
            look = style.look(number)
            mark = dict(marker=look["marker"], color=look["color"], markeredgecolor="white", markeredgewidth=0.4)
            axis.plot(*flat.points[flat.labels == value].T, linestyle="", markersize=6, **mark)
        images = f"{len(flat.points):,} of {flat.n_images:,} images"
        title = f"{name}: t-SNE of {images}, {len(flat.classes)} of {flat.n_classes:,} classes in colour"
        axis.set_title("\n".join(textwrap.wrap(title, 96 // min(len(spaces), 3))), fontsize=9)
    return figure
