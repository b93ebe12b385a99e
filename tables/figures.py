"""Figures of a report's tables: curves, the first metric against a flag and against the rate, spaces that runs left."""

import itertools
import os
import re

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

from evaluation import pictures
from tables.rows import COLLAPSED, factor, heading, is_antico, label_of
from utilities import run as main_run

MOST, PANELS = 10, 12  # lines of a panel, panels of a figure
PROXIES = 1000  # of many classes about so many, evenly chosen: half a million pairs show the same distribution
FLAT, SPACES = 400, 9  # points of a t-SNE, and how many of them
SHARE = "coding_rate@share"


def write_all(tables, out):
    """({title: path of a PNG}, [why there is no further figure, ...])."""
    figures = {"": curves, "_hyper": against_flags, "_rate": against_rate}
    figures |= {"_spectrum": spectrum, "_proxies": proxies, "_tsne": tsne}
    drawn, none = {}, []
    tables = [table for table in tables if table.decimals]
    for suffix, draw in figures.items() if tables else ():
        try:
            figure = draw(tables)
            for end in (".pdf", ".png"):
                pictures.save(figure, f"{out}{suffix}{end}")
            drawn[draw.__doc__] = f"{out}{suffix}.png"
        except ValueError as problem:  # the tables do not need that file
            none.append(f"no {out}{suffix}.png: {problem}")
    return drawn, none


def ways_of(rows):
    """Ways to part rows: for each row its panel, and its label there, which looks alike in all panels."""
    kinds = [r.head.replace(f" over {r.family}", "") if is_antico(r.flags) else "base loss alone" for r in rows]
    yield [("", row.label) for row in rows]
    yield [(row.family, kind) for row, kind in zip(rows, kinds)]
    yield [(row.label.removeprefix(row.head).strip(" ()"), row.head) for row in rows]


def parts_of(tables, why, line_of, *words):
    """[(title, *words, [(number of its look, label, *line_of(runs)), ...]), ...]: panels of few lines, by the first of
    ways_of that gives such. Collapsed runs are a line of their own. ValueError with `why` where line_of finds none."""
    panels = {}
    for table in tables:
        for way in ways_of(table.rows):
            names = [panel for panel, _ in way]
            if len({*way}) == len(way) and max(map(names.count, names)) <= MOST and len({*names}) <= PANELS:
                break
        else:
            panels, why = {}, f"{len(table.rows)} rows are too many lines"
            break
        labels = list(dict.fromkeys(label for _, label in way))
        for row, (panel, label) in zip(table.rows, way):
            title = ", ".join(filter(None, [table.name if len(tables) > 1 else "", panel]))
            for runs, more in ((row.runs, ""), (row.every[row.every["reason"] == COLLAPSED], " (collapsed)")):
                if line := len(runs) and line_of([*runs.itertuples()]):
                    panels.setdefault(title, []).append((labels.index(label), label + more, *line))
    if not panels:
        raise ValueError(why)
    return [(title, *words, lines) for title, lines in panels.items()]


def first_metric(table):
    return min(table.decimals, key=lambda metric: metric != "e_recall@1")


def unit(metric):
    return f"{heading(metric)}, %" if factor(metric) == 100 else heading(metric)


def curves(tables):
    """Against epochs: mean over the seeds, all of them in each epoch, and their range as a band."""
    split, why = tables[0].given.split, "no run was evaluated in three epochs"

    def panels(metric):
        def curve(runs):
            series = [run.metrics.set_index("epoch").reindex(columns=[f"{split}/{metric}"]) for run in runs]
            table = factor(metric) * pd.concat(series, axis=1).dropna()
            return len(table) > 1 and max(map(len, series)) > 2 and (table.index, table.to_numpy().T)

        return parts_of(tables, why, curve, "epoch", unit(metric))

    metrics = dict.fromkeys([first_metric(tables[0]), SHARE, "effective_rank"])
    shown = [panels(metric) for metric in metrics if metric in tables[0].decimals]
    shown = shown if len(shown[0]) <= 4 else shown[:1]
    drawn = [panel for beside in itertools.zip_longest(*shown) for panel in beside if panel]
    figure = pictures.draw_panels(drawn, 2.4, len(shown) if len(shown) > 1 else 2)
    for axis in figure.axes:
        axis.xaxis.get_major_locator().set_params(nbins=6, integer=True)
    return figure


def against_flags(tables):
    """Against a flag that is varied alone: mean over seeds, their range as a band; level: a base without the flag."""
    looks, panels = {}, {}  # of each label the same look in all panels
    for table in tables:
        metric = first_metric(table)
        rows = [row for row in table.rows if row.values[metric].count()]
        for name in table.given.by or dict.fromkeys(name for row in rows for name in row.flags):
            alike = {}
            for row in (row for row in rows if isinstance(row.flags.get(name), (int, float))):
                alike.setdefault(frozenset(row.flags.items() - {(name, row.flags[name])}), []).append(row)
            for same in (same for same in alike.values() if len(same) > 2):
                values = pd.DataFrame({row.flags[name]: row.values[metric] for row in same}).sort_index(axis=1)
                title = ", ".join([table.name] * (len(tables) > 1) + [same[0].family])
                found, base = {label_of(same[0], [name]): values.to_numpy()}, same[0].base
                if base and name not in base.flags and base.values[metric].count():
                    found[base.label] = [[base.values[metric].mean()] * len(same)]
                for label, runs in found.items():
                    line = looks.setdefault(label, len(looks)), label, values.columns, runs
                    panels.setdefault((title, f"--{name}", unit(metric)), {})[label] = line
    if not panels:
        raise ValueError("no numeric flag alone tells three rows of a loss apart")
    figure = pictures.draw_panels([(*words, [*lines.values()]) for words, lines in panels.items()], 3.0)
    for axis, lines in zip(figure.axes, panels.values()):
        values = sorted({value for _, _, values, _ in lines.values() for value in values})
        positive = [value for value in values if value > 0]
        if values[0] >= 0 and positive[-1] / positive[0] >= 5:
            axis.set_xscale("symlog", linthresh=positive[0]) if values[0] == 0 else axis.set_xscale("log")
        if len(values) <= 8:
            axis.set_xticks(values, [f"{value:g}" for value in values], minor=False)
            axis.minorticks_off()
    return figure


def against_rate(tables):
    """The first metric against the coding rate's share, a point a run; hollow: collapsed, in no mean."""
    metric = first_metric(tables[0])
    names = [f"{tables[0].given.split}/{name}" for name in (SHARE, metric)]

    def points(runs):
        table = pd.DataFrame([run.chosen for run in runs]).reindex(columns=names).dropna()
        return len(table) and metric != SHARE and (100 * table[names[0]], [factor(metric) * table[names[1]]])

    why, xlabel = f"no run measured {SHARE} and another metric", "coding rate / its maximum, %"
    panels = parts_of(tables, why, points, xlabel, unit(metric))
    return pictures.draw_panels(panels, 3.0, linestyle="none", markersize=7, markevery=None)


def left_spaces(tables, line_of):
    """parts_of the runs that left embeddings of what they were evaluated on: [(seed, (embeddings, labels)), ...]."""
    split = tables[0].given.split

    def line(runs):
        left = []
        for run in runs:
            path = os.path.join(run.folder, f"embeddings_{split}.npz")
            if os.path.exists(path):
                arrays, data = pictures.load(path), run.every["dataset"]
                n = len(arrays["labels"])
                of = f"{arrays.get('dataset', data)} {arrays.get('split', split)}, {n} images"
                if of != (its_own := f"{data} {split}, {run.n_images or n} images"):
                    raise ValueError(f"{path}: holds {of}; its run was evaluated on {its_own}")
                left.append((run.seed, pictures.everything(arrays)))
        return left and line_of(left)

    return parts_of(tables, f"no run left embeddings_{split}.npz (--save_embeddings)", line)


def spectrum(tables):
    """Singular values of the embeddings that the runs left: mean over the seeds, their range as a band."""
    return pictures.spectrum(left_spaces(tables, lambda left: ([pictures.shares(space[0]) for _, space in left],)))


def tsne(tables):
    """t-SNE of the embeddings that the runs left, the same classes in each."""
    lines = [(title, *line) for title, lines in left_spaces(tables, lambda left: left[0]) for line in lines]
    named = {f"{title}, {row}, seed {seed}".removeprefix(", "): space for title, _, row, seed, space in lines[:SPACES]}
    return pictures.tsne(named, most=FLAT)


def proxies(tables):
    """Cosine similarities of the class proxies in the last checkpoint, each pair once, of each row's first run."""
    edges = np.linspace(-1, 1, 81)

    def histogram(runs):
        path = os.path.join(runs[0].folder, main_run.LAST)
        # a checkpoint is large, and is not opened where the loss has no proxies
        if any(re.fullmatch("loss_.*lrmulti", name) for name in runs[0].flags) and os.path.exists(path):
            saved = main_run.load(path)["criterion"]
            learned = next(value for name, value in saved.items() if name.split(".")[-1] == "proxies")
            cosines = 1 - pdist(learned[:: -(-len(learned) // PROXIES)].double().numpy(), "cosine")
            return (edges[1:] + edges[:-1]) / 2, [100 * np.histogram(cosines, edges)[0] / len(cosines)]

    words = "cosine similarity of two classes' proxies", "pairs, %"
    return pictures.draw_panels(parts_of(tables, "no run's checkpoint.pt has proxies", histogram, *words), 3.2)
