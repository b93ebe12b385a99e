"""Pictures: how every figure looks (colours never tell alone), and nearest images, singular values and t-SNE."""

import textwrap

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from evaluation import collapse
from evaluation.retrieval import as_sets, as_tensors, together
from evaluation.search import nearest_neighbours, well_scaled
from utilities.folders import reading, write_whole

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito, 2008
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
WIDTH = 7.0  # inches: the text of a page; at half of it, a column, type of 10 points is still 5
SETTINGS = {
    "font.size": 9, "axes.labelsize": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.handlelength": 3, "legend.columnspacing": 1.2,
    "lines.linewidth": 1.7, "pdf.fonttype": 42, "text.usetex": False,
}  # fmt: skip
POINTS, CLASSES = 2000, 10  # of t-SNE: drawn, and told apart among them
ARRAYS = ("embeddings", "labels", "query_embeddings", "query_labels")


def look(number, hollow=False):
    """Keyword arguments of plot, the same for a number in all figures."""
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    how = dict(color=color, linestyle=LINES[number % len(LINES)], marker=marker, markersize=4.5)
    return how | dict(markerfacecolor="white" if hollow else color)


def words(text, width, **how):
    """A name in lines of so many letters; nothing of it is mathematics."""
    return textwrap.fill(text, width, **how).replace("$", r"\$")


@matplotlib.rc_context(SETTINGS)
def panels(number, across, height, bare=False):
    """A figure of that many axes, `across` beside each other, each `height` inches high; bare: frames without ticks."""
    down = -(-number // across)
    figure = Figure(figsize=(WIDTH, height * down), layout="constrained")
    for i in range(number):
        axis = figure.add_subplot(down, across, i + 1)
        if bare:
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[["top", "right"]].set_visible(True)
    return figure


@matplotlib.rc_context(SETTINGS)
def save(figure, path):
    """In the format of the path's end; ValueError, one line, for one that matplotlib does not know."""
    suffix = path.rpartition(".")[2].lower()
    undated = {"CreationDate": None} if suffix == "pdf" else None  # the same figure is the same file
    write_whole(path, lambda file: figure.savefig(file, format=suffix, dpi=200, metadata=undated), "wb")


@matplotlib.rc_context(SETTINGS)
def draw_panels(drawn, height, across=2, **style):
    """A figure of [(title, xlabel, ylabel, [(number of its look, label, x (n,), runs (s, n)), ...]), ...]: means over
    the runs that have a value, and bands of their range, one legend below; hollow: collapsed. style: of plot."""
    across = min(len(drawn), across)
    figure = panels(len(drawn), across, height)
    for axis, (title, xlabel, ylabel, lines) in zip(figure.axes, drawn):
        for number, label, x, runs in lines:
            step, its_own = max(len(x) // 8, 1), look(number, label.endswith("(collapsed)"))
            axis.plot(x, np.nanmean(runs, 0), label=label, **its_own | {"markevery": (number % step, step)} | style)
            if len(runs) > 1:
                low, high = np.nanmin(runs, 0), np.nanmax(runs, 0)
                axis.fill_between(x, low, high, color=its_own["color"], alpha=0.18, linewidth=0)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.set_title(words(title, 84 // across - 5), fontsize=10)
    handles = {words(line.get_label(), 92): line for axis in figure.axes for line in axis.get_lines()}
    columns = min(max(110 // (max(map(len, handles), default=0) + 14), 1), 3)  # of 110 letters, 14 for the line
    legend = figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)
    return figure


def load(path):
    """The arrays of an npz by name; ValueError, one line, where it does not hold what is needed."""
    with open(path, "rb") as file, reading(path, "an npz of embeddings (n, d) and labels (n,)"):
        arrays = dict(np.load(file, allow_pickle=False))
        for name in {*ARRAYS[:2], *arrays}:
            real = np.float64 if arrays[name].dtype.itemsize >= 8 else np.float32
            kind = np.int64 if "label" in name else real if "embeddings" in name else str
            arrays[name] = arrays[name].astype(kind, casting="same_kind")
    return arrays


def measured(arrays):
    """What of a file's arrays `compute` takes."""
    return {name: arrays[name] for name in ARRAYS if name in arrays}


def everything(arrays):
    """(embeddings, labels) of queries and gallery together."""
    return together(*as_sets(**measured(arrays)))


def nearest_images(arrays, n=8, k=8, seed=0):
    """n queries that the seed draws (n,), their k nearest images (n, k), and which of these are right (n, k)."""
    gallery, queries = as_sets(**measured(arrays))
    asked, own = queries or gallery
    rows = torch.from_numpy(np.sort(np.random.default_rng(seed).choice(len(own), min(n, len(own)), replace=False)))
    nearest = nearest_neighbours(asked[rows], gallery[0], k + (queries is None))
    if queries is None:
        nearest = torch.stack([found[found != row][:k] for found, row in zip(nearest, rows)])
    return rows.numpy(), nearest.numpy(), (gallery[1][nearest] == own[rows, None]).numpy()


@matplotlib.rc_context(SETTINGS)
def panel(images, right, names, title):
    """A figure of images (q, 1 + k, h, w, 3), uint8: queries, their names (q,), neighbours: ✓ right (q, k), ✗ wrong."""
    lines, across = images.shape[:2]
    figure = panels(lines * across, across, WIDTH / 9, bare=True)
    axes = np.array(figure.axes).reshape(lines, across)
    for axis, image in zip(axes.flat, images.reshape(-1, *images.shape[2:])):
        axis.imshow(image)
    for axis, name in zip(axes[:, 0], names):
        axis.set_ylabel(words(name, 12, max_lines=4, placeholder=" …"), rotation=0, ha="right", va="center", fontsize=8)
    for axis, hit in zip(axes[:, 1:].flat, right.flat):
        # blue and vermilion, since many do not tell red from green
        mark, color, dashes, shape = ("✓", COLORS[0], "-", "circle") if hit else ("✗", COLORS[1], (0, (2, 1)), "square")
        axis.spines[:].set(color=color, linewidth=2.5, linestyle=dashes, capstyle="butt")
        how = dict(bbox=dict(boxstyle=f"{shape},pad=0.15", color=color), ha="center", va="center", color="white")
        axis.annotate(mark, (0.9, 0.9), xycoords="axes fraction", fontsize=8, **how)
    for column, axis in enumerate(axes[0]):
        axis.set_title(str(column) if column else "query", fontsize=9)
    figure.suptitle(words(title, 90), fontsize=10)  # a run may have a long name
    return figure


def shares(embeddings):
    """Singular values of embeddings (n, d), largest first, as shares of their sum: float64 (min(n, d),)."""
    values = collapse.singular_values(embeddings)
    return (values / values.sum()).numpy()


def spectrum(spaces):
    """The picture of collapse, of [(title, [(number of its look, label, [shares of a run, ...]), ...]), ...]."""
    axes = "singular value, largest first", "share of their sum"
    placed = [(words, [(*of, np.arange(1, len(runs[0]) + 1), runs) for *of, runs in of_it]) for words, of_it in spaces]
    figure = draw_panels([(words, *axes, lines) for words, lines in placed], 3.2)
    for axis in figure.axes:
        axis.set_yscale("log")
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 1e-6))  # below is the rounding of float32
    return figure


def flat_points(embeddings, labels, seed=0, most=POINTS):
    """t-SNE (van der Maaten & Hinton, JMLR 2008) of some rows: points (m, 2), their labels (m,), classes to colour."""
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
    how = dict(perplexity=min(30, (len(points) - 1) / 3), init="pca" if points.shape[1] > 1 else "random")
    return TSNE(random_state=seed, **how).fit_transform(points), labels[rows], drawn


@matplotlib.rc_context(SETTINGS)
def tsne(spaces, seed=0, most=POINTS):
    """A figure of {name: (embeddings, labels)} side by side, at most three in a line."""
    across, shown = min(len(spaces), 3), []
    figure = panels(len(spaces), across, WIDTH / across + 0.3, bare=True)
    for axis, (name, (embeddings, labels)) in zip(figure.axes, spaces.items()):
        points, of_points, classes = flat_points(embeddings, labels, seed, most)
        axis.plot(*points[~np.isin(of_points, classes)].T, ".", color="0.8", markersize=3)
        for number, value in enumerate(classes):
            mark = look(number) | dict(linestyle="", markersize=6, markeredgecolor="white", markeredgewidth=0.4)
            axis.plot(*points[of_points == value].T, **mark)
        some = f"{len(points):,} of {len(labels):,} images, {len(classes)} of {len(np.unique(labels)):,} classes"
        shown.append(f"t-SNE of {some} in colour")
        axis.set_title(words(name, 93 // across - 5), fontsize=9)
    figure.suptitle("; ".join(dict.fromkeys(shown)), fontsize=9)
    return figure
