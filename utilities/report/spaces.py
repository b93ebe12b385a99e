"""Figures of the spaces themselves, from what runs leave: embeddings_<split>.npz, and the proxies in checkpoint.pt."""

import os
import textwrap

import numpy as np

from utilities.report import rows as row_names
from utilities.report import style
from utilities.report.style import every

CLASSES, IMAGES, PANELS = 10, 25, 9  # of the t-SNE figure
MANY = 8  # lines of a panel, from which it is parted where it can be
PROXIES = 2000  # of many classes so many, evenly chosen: 2 million pairs show the same distribution


class Unreadable(ValueError):
    """A file of a figure that is damaged; the line names it."""


def lines_of(table, name=""):
    """[(number, label, runs)] a row: those that count, and apart those that collapsed; with `name`, that left it."""
    lines = []
    for number, row in enumerate(table.rows):
        for kind in ("", "collapsed"):
            runs = [run for run in row.all_runs if run.kind == kind and os.path.exists(os.path.join(run.folder, name))]
            if runs:
                lines.append((number, row.full + (" (collapsed)" if kind else ""), runs))
    return lines


def parts_of(table, name=""):
    """[(title, entries of lines_of), ...], a panel each: one, or with many rows one for each value of what is varied,
    each base loss, each flag where one at a time is varied, or each loss.

    Then a loss, or a variant of AntiCo, has the same look in all, and the title says what differs: embed_dim 64.
    """
    lines, rows = lines_of(table, name), table.rows
    ways = (by_value, by_base, by_flag, by_loss) if len(rows) > MANY else ()
    places = next(filter(None, (way(rows) for way in ways)), None)
    if places is None:
        return [("", lines)]
    parts = {panel: [] for of_row in places for panel, _, _ in of_row}
    for number, label, runs in lines:
        for panel, look, words in places[number]:
            parts[panel].append((look, words + label.removeprefix(rows[number].full), runs))
    return [(panel, entries) for panel, entries in parts.items() if entries]


# ways to part rows: for each row its places [(panel, number of its look there, its label there), ...]; None where it
# does not fit


def varied(rows):
    """What tells each row from others of its loss."""
    return [row.full.removeprefix(row.head).strip(" ()") for row in rows]


def by_value(rows):
    values, heads = varied(rows), list(dict.fromkeys(row.head for row in rows))
    members = {value: sorted(row.head for row, its in zip(rows, values) if its == value) for value in values}
    if len(set(map(tuple, members.values()))) > 1 or not all(1 < len(m) <= MANY for m in members.values()):
        return None
    return [[(value, heads.index(row.head), row.head)] for row, value in zip(rows, values)]


def by_base(rows):
    bases = [row_names.family(row) for row in rows]
    kinds = [row.head.removesuffix(f" over {base}") for row, base in zip(rows, bases)]
    kinds = [kind if row_names.is_antico(row.flags) else "base loss alone" for row, kind in zip(rows, kinds)]
    if len(set(bases)) < 2 or len(set(zip(bases, kinds))) < len(rows):  # a look would not tell two rows apart
        return None
    looks = list(dict.fromkeys(kinds))
    return [[(base, looks.index(kind), kind)] for base, kind in zip(bases, kinds)]


def by_flag(rows):
    """Each flag's values, among them that of the row in the center; rows of a name of their own are a panel too."""
    center = row_names.center_of([row for row in rows if row.head == rows[0].head])
    if not center or len({row_names.family(row) for row in rows}) > 1:
        return None
    same = [row for row in rows if row.head == center.head]
    others = [row for row in rows if row is center or row.head != center.head]
    heads = [row.head for row in others]
    places = [[] for _ in rows]
    for name in row_names.differing(same):
        values = sorted((row.flags.get(name) for row in same), key=row_names.sortable)
        looks = list(dict.fromkeys([center.flags.get(name), *values]))
        for row, place in zip(rows, places):
            value = row.flags.get(name)
            if row is center or (row.head == center.head and value != center.flags.get(name)):
                place.append((name, looks.index(value), row_names.shown(name, value)))
    for number, row in enumerate(others if len(others) > 1 else ()):
        words = row.head if heads.count(row.head) == 1 else row.full
        places[next(n for n, other in enumerate(rows) if other is row)].append(("loss", number, words))
    return places


def by_loss(rows):
    heads, values = [row.head for row in rows], varied(rows)
    counts = [heads.count(head) for head in set(heads)]
    if min(counts) < 2 or max(counts) > MANY or len(counts) < 2:
        return None
    looks = list(dict.fromkeys(values))
    return [[(head, looks.index(value), value or "alone")] for head, value in zip(heads, values)]


def load_embeddings(folder, split):
    """(embeddings (n, d) float64, labels (n,)) of a run; with queries apart, the gallery's."""
    path = os.path.join(folder, f"embeddings_{split}.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            embeddings, labels = file["embeddings"].astype(np.float64), file["labels"]
    except Exception as problem:  # numpy and zipfile have many for a damaged file
        raise Unreadable(f"{path}: damaged ({str(problem).splitlines()[0]})") from problem
    if embeddings.ndim != 2 or len(embeddings) != len(labels) or not len(labels) or not np.isfinite(embeddings).all():
        raise Unreadable(f"{path}: damaged (its embeddings are not finite rows, one a label)")
    return embeddings, labels


def singular_values(embeddings):
    """Of the embeddings as they come, not centred, largest first, as shares of their sum: float64 (min(n, d),)."""
    rows = np.linalg.qr(embeddings, mode="r") if embeddings.shape[0] > embeddings.shape[1] else embeddings
    values = np.linalg.svd(rows, compute_uv=False)
    if not values[0] > 0:
        return np.full(len(values), np.nan)
    values = np.maximum(values, values[0] * np.finfo(np.float32).eps)  # below is rounding of what was saved
    return values / values.sum()


def spectrum(tables, split):
    """Singular values of the embeddings that runs left: a row's mean over its seeds, their range as a band."""
    name = f"embeddings_{split}.npz"
    panels = [(table, *part) for table in tables for part in parts_of(table, name) if part[1]]
    if not panels:
        return f"no run left {name} (--save_embeddings)"
    figure, axes = style.grid(len(panels))
    for axis, (table, title, lines) in zip(axes, panels):
        for number, label, runs in lines:
            values = [singular_values(load_embeddings(run.folder, split)[0]) for run in runs]
            values = np.stack([v[: min(map(len, values))] for v in values])
            x, look = np.arange(1, values.shape[1] + 1), style.look(number, "(collapsed)" in label)
            axis.plot(x, values.mean(0), label=label, markevery=every(number, len(x)), **look)
            if len(runs) > 1:
                axis.fill_between(x, values.min(0), values.max(0), color=look["color"], alpha=0.18, linewidth=0)
        axis.set(yscale="log", xlabel="singular value, largest first", ylabel="share of their sum")
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 1e-6))  # below is the rounding of float32
        axis.set_title(style.wrapped([table.name, name, title], len(panels)))
    style.legend(figure, axes)
    return figure


def load_proxies(folder):
    """The proxies (C, d) of a run's checkpoint, or None: what its criterion learns with one row a class."""
    from utilities import state

    path = os.path.join(folder, "checkpoint.pt")
    try:
        saved = state.load(path)
        names = sorted(name for name in saved["criterion"] if name.split(".")[-1] == "proxies")
        proxies = saved["criterion"][names[0]].double().numpy() if names else None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise Unreadable(str(problem) if path in str(problem) else f"{path}: damaged ({problem})") from problem
    return proxies


def has_proxies(flags):
    """Whether the loss may have some, as it has a rate for them: a checkpoint is large, and is not opened in vain."""
    return any(name.endswith("lrmulti") for name in flags)


def similarities(proxies):
    """Cosine similarities between different proxies, each pair once."""
    chosen = proxies[np.unique(np.linspace(0, len(proxies) - 1, min(len(proxies), PROXIES)).astype(int))]
    unit = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-300)
    return np.clip((unit @ unit.T)[np.triu_indices(len(unit), 1)], -1, 1)


def proxies(tables):
    """How similar the class proxies are: the distribution of the cosines between them, of each row's first run."""
    panels = []
    for table in tables:
        for title, lines in parts_of(table, "checkpoint.pt"):
            rows = [(number, label, runs[0]) for number, label, runs in lines if has_proxies(runs[0].flags)]
            rows = [(number, label, run, load_proxies(run.folder)) for number, label, run in rows]
            rows = [entry for entry in rows if entry[3] is not None and len(entry[3]) > 1]
            panels += [(table, title, rows)] if rows else []
    if not panels:
        return "no run's checkpoint.pt has proxies"
    figure, axes = style.grid(len(panels))
    for axis, (table, title, rows) in zip(axes, panels):
        values = {entry[:2]: similarities(entry[3]) for entry in rows}
        low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
        bins = min(max(int(min(map(len, values.values())) ** 0.5), 8), 60)  # of few pairs each bin needs some
        edges = np.linspace(max(low - 0.02, -1), min(high + 0.02, 1), bins + 1)
        for (number, label), cosines in values.items():
            share = 100 * np.histogram(cosines, edges)[0] / len(cosines)
            axis.plot(
                (edges[1:] + edges[:-1]) / 2,
                share,
                label=label,
                markevery=(number % 8, 8),
                **style.look(number, "(collapsed)" in label),
            )
        axis.set(xlabel="cosine similarity of two classes' proxies", ylabel="pairs, %")
        seeds = sorted({entry[2].seed for entry in rows})
        parts = [table.name, f"checkpoint.pt of seed {', '.join(map(str, seeds))}", title]
        axis.set_title(style.wrapped(parts, len(panels)))
    style.legend(figure, axes)
    return figure


def tsne(tables, split):
    """t-SNE (van der Maaten and Hinton, JMLR 2008) of the same classes in each row's first run, side by side."""
    name = f"embeddings_{split}.npz"
    every_row = [(table, *entry) for table in tables for entry in lines_of(table, name)]
    panels = every_row[:PANELS]
    if not panels:
        return f"no run left {name} (--save_embeddings)"
    figure, axes = style.squares(len(panels), 2.6)
    for axis, (table, _, label, runs) in zip(axes, panels):
        points, labels = flat(*load_embeddings(runs[0].folder, split))
        for number, value in enumerate(np.unique(labels)):
            look = style.look(number)
            axis.plot(*points[labels == value].T, look["marker"], color=look["color"], markersize=3.2, alpha=0.8)
        place = f"{table.name}: " if len(tables) > 1 else ""
        words = f"{place}{label}, seed\u00a0{runs[0].seed}"  # in one line
        axis.set_title("\n".join(textwrap.wrap(words, 30)), fontsize=9)
    more = f", the first {len(panels)} of {len(every_row)} rows" if len(every_row) > len(panels) else ""
    figure.suptitle(f"{name} of one run each{more}", fontsize=9)
    return figure


def flat(embeddings, labels):
    """(points (n, 2), labels) of the first classes with several images, at most IMAGES of each."""
    from sklearn.manifold import TSNE

    values, counts = np.unique(labels, return_counts=True)
    classes = values[counts > 1][:CLASSES] if (counts > 1).any() else values[: CLASSES * IMAGES]
    chosen = np.concatenate([np.flatnonzero(labels == value)[:IMAGES] for value in classes])
    if len(chosen) < 4 or not np.ptp(embeddings[chosen], axis=0).any():  # t-SNE of one point is nothing
        return np.zeros((len(chosen), 2)), labels[chosen]
    start = "pca" if min(embeddings.shape[1], len(chosen)) >= 2 else "random"
    # of so few points the exact gradient is the faster one: the other waits for its threads a thousand times
    fit = TSNE(perplexity=min(30, (len(chosen) - 1) / 3), init=start, random_state=0, method="exact")
    return fit.fit_transform(embeddings[chosen].astype(np.float32)), labels[chosen]
