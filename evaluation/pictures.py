"""Pictures: how every figure looks, and those of embeddings: nearest images, singular values, t-SNE.

Right and wrong, classes and rows differ in a mark or a line style besides their colour.
"""

import textwrap

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from evaluation import collapse
from evaluation.retrieval import as_tensors
from evaluation.search import nearest_neighbours, well_scaled
from utilities.files import write_whole

# Okabe and Ito, Color Universal Design, 2008, without its yellow, which is too light for lines
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
WIDTH = 7.0  # inches: the text of a page; at half of it, a column, type of 10 points is still 5
SETTINGS = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "xtick.labelsize": 9,
    "ytick.labelsize": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.7, "pdf.fonttype": 42,
}  # fmt: skip
QUERIES, NEAREST = 8, 8  # of a panel
POINTS, CLASSES = 2000, 10  # of t-SNE: drawn, and told apart among them
RIGHT, WRONG = COLORS[0], COLORS[1]  # blue and vermilion: not red and green
ARRAYS = ("embeddings", "labels", "query_embeddings", "query_labels")


# --- style ---


def look(number, hollow=False):
    """Keyword arguments of plot, the same for a number in all figures."""
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    marker = dict(marker=marker, markerfacecolor="white" if hollow else color, markersize=4.5)
    return dict(color=color, linestyle=LINES[number % len(LINES)], **marker)


def panels(number, across, height):
    """(figure, that many axes), `across` beside each other, each `height` inches high."""
    down = -(-number // across)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[number:]:
        axis.set_visible(False)
    return figure, axes[:number]


def title(axis, text, across, size=10):
    """In lines that fit one of `across` panels."""
    axis.set_title(textwrap.fill(text, int(840 / size / across) - 5), fontsize=size)


def bare(axis):
    """A frame without ticks."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[["top", "right"]].set_visible(True)


def legend(figure, axes):
    """One legend below all axes, each label once, long ones in several lines; the figure grows by its height."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    longest = max(map(len, handles))
    columns = 3 if longest <= 22 and len(handles) > 2 else 2 if longest <= 43 and len(handles) > 1 else 1
    labels = [textwrap.fill(label, {1: 92, 2: 44, 3: 26}[columns]) for label in handles]
    depth = -(-len(labels) // columns)  # a legend fills its columns one after the other
    lines = sum(max(label.count("\n") + 1 for label in labels[i::depth]) for i in range(depth))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * lines + 0.15)
    how = dict(loc="outside lower center", frameon=False, handlelength=3, columnspacing=1.2, fontsize=9)
    figure.legend(handles.values(), labels, ncols=columns, **how)


def save(figure, path):
    """As PNG or PDF, by the path's end."""
    suffix = path.rpartition(".")[2].lower()
    how = {"png": {"dpi": 200}, "pdf": {"metadata": {"CreationDate": None}}}[suffix]
    with matplotlib.rc_context(SETTINGS):
        write_whole(path, lambda file: figure.savefig(file, format=suffix, facecolor="white", **how), "wb")


def draw_panels(drawn, height, across=2, **style):
    """A figure of [(title, xlabel, ylabel, [(number of its look, label, x (n,), runs (s, n)), ...]), ...].

    A line is the mean over the runs that have a value, a band their range. About eight markers on each, where others
    have none; hollow for what collapsed. style : of plot.
    """
    across = min(len(drawn), across)
    figure, axes = panels(len(drawn), across, height)
    for axis, (words, xlabel, ylabel, lines) in zip(axes, drawn):
        for number, label, x, runs in lines:
            step, its_own = max(len(x) // 8, 1), look(number, label.endswith("(collapsed)"))
            axis.plot(x, np.nanmean(runs, 0), label=label, **its_own | {"markevery": (number % step, step)} | style)
            if len(runs) > 1:
                low, high = np.nanmin(runs, 0), np.nanmax(runs, 0)
                axis.fill_between(x, low, high, color=its_own["color"], alpha=0.18, linewidth=0)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        title(axis, words, across)
    legend(figure, axes)
    return figure


# --- files of embeddings ---


def load(path):
    """The arrays of an npz by name; ValueError, one line, where it does not hold what is needed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for name in ARRAYS:
            if name in arrays or name in ARRAYS[:2]:
                real = np.float64 if arrays[name].dtype.itemsize >= 8 else np.float32
                arrays[name] = arrays[name].astype(np.int64 if "labels" in name else real, casting="same_kind")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as problem:  # numpy has many for a damaged file
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{path}: expected an npz of embeddings (n, d) and labels (n,) ({reason})") from None
    if ("query_embeddings" in arrays) != ("query_labels" in arrays):
        raise ValueError(f"{path}: query_embeddings and query_labels go together; one is missing")
    return arrays


def everything(arrays):
    """(embeddings, labels) of queries and gallery together, as the metrics of the whole space take them."""
    prefixes = ("query_", "") if "query_labels" in arrays else ("",)
    return tuple(np.concatenate([arrays[prefix + name] for prefix in prefixes]) for name in ("embeddings", "labels"))


# --- nearest images ---


def nearest_images(embeddings, labels, query_embeddings=None, query_labels=None, n=QUERIES, k=NEAREST, seed=0):
    """n queries drawn by seed (n,), their k nearest images (n, k) as the metrics rank them, and which are right (n, k).

    Arrays as `compute` takes them. All of queries or neighbours where there are fewer.
    """
    apart = query_embeddings is not None
    gallery, labels = as_tensors(embeddings, labels, least=1 if apart else 2)
    queries, own = as_tensors(query_embeddings, query_labels, least=1) if apart else (gallery, labels)
    drawn = np.random.default_rng(seed).choice(len(queries), min(n, len(queries)), replace=False)
    rows = torch.from_numpy(np.sort(drawn))
    nearest = nearest_neighbours(queries[rows], gallery, k + (not apart))
    if not apart:
        nearest = torch.stack([found[found != own][:k] for found, own in zip(nearest, rows)])
    return rows.numpy(), nearest.numpy(), (labels[nearest] == own[rows, None]).numpy()


def panel(queries, neighbours, right, names, title):
    """A figure of queries (q, h, w, 3), uint8, each with its neighbours (q, k, h, w, 3): ✓ right (q, k), ✗ wrong.

    names (q,): what is written beside each query.
    """
    figure, axes = panels(right.size + len(right), 1 + right.shape[1], WIDTH / (1 + NEAREST))
    lines = axes.reshape(len(right), -1)
    for line, query, its_own, marks, name in zip(lines, queries, neighbours, right, names):
        line[0].imshow(query)
        words = textwrap.fill(name, 12, max_lines=4, placeholder=" …")
        line[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8)
        for axis, image, hit in zip(line[1:], its_own, marks):
            axis.imshow(image)
            color = RIGHT if hit else WRONG
            axis.spines[:].set(color=color, linewidth=2.5, linestyle="-" if hit else (0, (2, 1)), capstyle="butt")
            box = dict(boxstyle="circle,pad=0.15" if hit else "square,pad=0.15", color=color)
            where = dict(transform=axis.transAxes, ha="center", va="center", clip_on=False)
            axis.text(0.9, 0.9, "✓" if hit else "✗", color="white", fontsize=8, bbox=box, **where)
    for column, axis in enumerate(lines[0]):
        axis.set_title(str(column) if column else "query", fontsize=9)
    for axis in axes:
        bare(axis)
    figure.suptitle(textwrap.fill(title, 90), fontsize=10)  # a run may have a long name
    return figure


# --- singular values ---


def shares(embeddings):
    """Singular values of embeddings (n, d), largest first, as shares of their sum: float64 (min(n, d),)."""
    values = collapse.singular_values(as_tensors(embeddings, np.zeros(len(embeddings)))[0])
    return (values / values.sum()).numpy()


def spectrum(spaces, with_rank=False):
    """The picture of collapse, of [(title, [(number of its look, label, [shares of a run, ...]), ...]), ...]."""
    drawn = []
    for words, entries in spaces:
        lines = []
        for number, label, runs in entries:
            least, rank = min(map(len, runs)), collapse.effective_rank(torch.from_numpy(runs[0]))
            label += f": effective rank {rank:.1f} of {least}" if with_rank else ""
            lines.append((number, label, np.arange(1, least + 1), [run[:least] for run in runs]))
        drawn.append((words, "singular value, largest first", "share of their sum", lines))
    figure = draw_panels(drawn, 3.2)
    for axis in figure.axes:
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 1e-6))  # below is the rounding of float32
    return figure


# --- t-SNE ---


def flat_points(embeddings, labels, seed=0, most=POINTS):
    """t-SNE of at most `most` rows: points (m, 2), their labels (m,), and the classes to colour, drawn by seed.

    These are CLASSES of the classes with several images, whose rows come first. Raises ValueError where there are fewer
    than four rows or all are equal. Source: van der Maaten & Hinton, JMLR 2008.
    """
    from sklearn.manifold import TSNE

    embeddings, labels = as_tensors(embeddings, labels)
    labels, generator = labels.numpy(), np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    drawn = np.sort(generator.permutation(classes[counts > 1])[:CLASSES])
    order = generator.permutation(len(labels))
    rows = order[np.argsort(~np.isin(labels[order], drawn), kind="stable")][:most]
    points = well_scaled([embeddings[rows]])[0].numpy()
    if len(points) < 4 or (points == points[0]).all():
        raise ValueError(f"t-SNE needs four images that are not all alike, these are {len(points)}")
    start = "pca" if points.shape[1] > 1 else "random"  # it wants two components
    fit = TSNE(perplexity=min(30, (len(points) - 1) / 3), init=start, random_state=seed)
    return fit.fit_transform(points), labels[rows], drawn


def tsne(spaces, seed=0, most=POINTS):
    """A figure of {name: (embeddings, labels)} side by side, at most three in a line."""
    across, shown = min(len(spaces), 3), []
    figure, axes = panels(len(spaces), across, WIDTH / across + 0.3)
    for axis, (name, (embeddings, labels)) in zip(axes, spaces.items()):
        points, of_points, classes = flat_points(embeddings, labels, seed, most)
        bare(axis)
        axis.plot(*points[~np.isin(of_points, classes)].T, ".", color="0.8", markersize=3)
        for number, value in enumerate(classes):
            mark = look(number) | dict(linestyle="", markersize=6, markeredgecolor="white", markeredgewidth=0.4)
            axis.plot(*points[of_points == value].T, **mark)
        some = f"{len(points):,} of {len(labels):,} images, {len(classes)} of {len(np.unique(labels)):,} classes"
        shown.append(f"t-SNE of {some} in colour")
        title(axis, name, across, 9)
    figure.suptitle("; ".join(dict.fromkeys(shown)), fontsize=9)
    return figure
