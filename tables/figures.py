"""Figures of a report's tables: curves, the first metric against a flag and against the rate, spaces that runs left."""

import os
from collections import Counter

import numpy as np
import pandas as pd

from evaluation import pictures
from tables.rows import factor, heading, is_antico, label_of
from utilities import run as main_run

MOST, PANELS = 10, 12  # lines of a panel, panels of a figure
PROXIES = 2000  # of many classes about so many, evenly chosen: 2 million pairs show the same distribution
FLAT, SPACES = 400, 9  # points of a t-SNE, and how many of them
SHARE = "coding_rate@share"


def write_all(tables, out):
    """({title: path of a PNG}, [why there is no further figure, ...])."""
    figures = {
        "": ("Against epochs: mean over seeds, their range as a band", curves),
        "_hyper": ("Against a flag: mean over seeds, their range as a band", against_flags),
        "_rate": ("Against the coding rate's share, one point a run", against_rate),
        "_spectrum": ("Singular values of the embeddings that the runs left", spectrum),
        "_proxies": ("Similarity of the class proxies in the last checkpoints", proxies),
        "_tsne": ("t-SNE of the embeddings that the runs left, the same classes in each", tsne),
    }
    drawn, none = {}, []
    tables = [table for table in tables if table.decimals.keys() - {"seconds"}]
    if not tables:
        return {}, [f"no {out}.png: no run that counts has measured anything"]
    for suffix, (title, draw) in figures.items():
        try:
            figure = draw(tables)
            for end in (".pdf", ".png"):
                pictures.save(figure, f"{out}{suffix}{end}")
            drawn[title] = f"{out}{suffix}.png"
        except ValueError as problem:  # the tables do not need that file
            none.append(f"no {out}{suffix}.png: {problem}")
    return drawn, none


# --- which row is drawn where, and how ---


def ways_of(rows):
    """Ways to part rows: for each row its panel, and its label there, which looks alike in all panels."""
    kinds = [r.head.replace(f" over {r.family}", "") if is_antico(r.flags) else "base loss alone" for r in rows]
    yield [("", row.full) for row in rows]
    yield [(row.family, kind) for row, kind in zip(rows, kinds)]
    yield [(row.full.removeprefix(row.head).strip(" ()"), row.head) for row in rows]


def parts_of(tables, has, why):
    """[(title, [(number of its look, label, runs), ...]), ...], a panel each, of the runs that `has` what is drawn.

    Of many rows the first of ways_of that leaves few lines in each panel; what collapsed is a line of its own.
    ValueError with `why` where no run has it.
    """
    panels = {}
    for table in tables:
        for way in ways_of(table.rows):
            sizes = Counter(panel for panel, _ in way)
            if len(set(way)) == len(table.rows) and max(sizes.values()) <= MOST and len(sizes) <= PANELS:
                break
        else:
            raise ValueError(f"{len(table.rows)} rows are too many lines")
        labels = list(dict.fromkeys(label for _, label in way))
        for row, (panel, label) in zip(table.rows, way):
            title = ", ".join(filter(None, [table.name if len(tables) > 1 else "", panel]))
            for kind, more in (("", ""), ("collapsed", " (collapsed)")):
                runs = [run for run in row.every[row.every["kind"] == kind].itertuples() if has(run)]
                if runs:
                    panels.setdefault(title, []).append((labels.index(label), label + more, runs))
    if not panels:
        raise ValueError(why)
    return list(panels.items())


def first_metric(table):
    """What figures show: Recall@1, or the first that was measured."""
    metrics = [metric for metric in table.decimals if metric != "seconds"]
    return "e_recall@1" if "e_recall@1" in metrics else metrics[0]


def unit(metric):
    return f"{heading(metric)}, %" if factor(metric) == 100 else heading(metric)


# --- metrics.csv ---


def curves(tables):
    """Each row's mean over its seeds against epochs that all have measured: a mean never changes its seeds."""
    panels = parts_of(tables, lambda run: len(run.metrics) > 2, "no run was evaluated in three epochs")
    columns = {name for table in tables for metrics in table.runs["metrics"] for name in metrics}
    metrics = dict.fromkeys([first_metric(tables[0]), SHARE, "effective_rank"][: 3 if len(panels) <= 4 else 1])
    shown = [name for name in (f"{tables[0].given.split}/{metric}" for metric in metrics) if name in columns]
    drawn = []
    for title, entries in panels:
        for name in shown:
            metric, lines = name.partition("/")[2], []
            for number, label, runs in entries:
                series = [run.metrics.set_index("epoch").get(name) for run in runs]
                if all(its_own is not None for its_own in series):
                    table = factor(metric) * pd.concat(series, axis=1).dropna()
                    lines.append((number, label, table.index, table.to_numpy().T))
            drawn.append((title, "epoch", unit(metric), lines))
    figure = pictures.draw_panels(drawn, 2.4, len(shown) if len(shown) > 1 else 2)
    for axis in figure.axes:
        axis.xaxis.get_major_locator().set_params(nbins=6, integer=True)
    return figure


def sweeps(table):
    """{(base loss, numeric flag): [[rows that differ in it alone, rising], ...]} of three values and more."""
    found, rows = {}, [row for row in table.rows if len(row.runs)]
    for name in table.given.by or dict.fromkeys(name for row in rows for name in row.flags):
        lines = {}
        for row in rows:
            if isinstance(row.flags.get(name), (int, float)):
                others = frozenset(item for item in row.flags.items() if item[0] != name)
                lines.setdefault((row.head, others), []).append(row)
        for line in lines.values():
            if len(line) > 2:
                found.setdefault((line[0].family, name), []).append(sorted(line, key=lambda row: row.flags[name]))
    return found


def against_flags(tables):
    """The first metric against each numeric flag that is varied alone; a base without the flag is a level line."""
    numbers, panels = {}, []  # of each label the same look in all panels
    for table, (family, name), found in ((table, *item) for table in tables for item in sweeps(table).items()):
        metric, lines = first_metric(table), {}
        for rows in found:
            values = pd.DataFrame({row.flags[name]: table.values[row][metric] for row in rows}).dropna(
                axis=1, how="all"
            )
            lines[label_of(rows[0], [name])] = values.columns, values.to_numpy()
            base = rows[0].base
            if base and name not in base.flags:
                lines[base.full] = values.columns, [[table.values[base][metric].mean()] * len(values.columns)]
        lines = [(numbers.setdefault(label, len(numbers)), label, *line) for label, line in lines.items()]
        title = f"{table.name}, {family}" if len(tables) > 1 else family
        panels.append((title, f"--{name}", unit(metric), lines))
    if not panels:
        raise ValueError("no numeric flag alone tells three rows of a loss apart")
    figure = pictures.draw_panels(panels, 3.0)
    for axis, (_, _, _, lines) in zip(figure.axes, panels):
        set_scale(axis, sorted({value for _, _, values, _ in lines for value in values}))
    return figure


def set_scale(axis, values):
    """Logarithmic where the values go over a factor of 5 or more; ticks where there are runs."""
    positive = [value for value in values if value > 0]
    if values[0] >= 0 and positive[-1] / positive[0] >= 5:
        axis.set_xscale("symlog", linthresh=positive[0]) if values[0] == 0 else axis.set_xscale("log")
    if len(values) <= 8:
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()


def against_rate(tables):
    """The first metric against the coding rate's share, one point a run; hollow: a collapsed one, in no mean."""
    split, metric = tables[0].given.split, first_metric(tables[0])
    names, why = [f"{split}/{SHARE}", f"{split}/{metric}"], f"no run measured {SHARE} and another metric"
    if metric == SHARE:
        raise ValueError(why)
    panels = []
    for title, entries in parts_of(tables, lambda run: not {*names} - run.chosen.keys(), why):
        lines = []
        for number, label, runs in entries:
            x, y = np.array([[run.chosen[name] for name in names] for run in runs]).T
            lines.append((number, label, 100 * x, [factor(metric) * y]))
        panels.append((title, "coding rate / its maximum, %", unit(metric), lines))
    return pictures.draw_panels(panels, 3.0, linestyle="none", markersize=7, markevery=None)


# --- what runs leave ---


def spaces_left(tables):
    """(parts_of the runs that left embeddings, a function of such a run to its embeddings and labels)"""
    name = f"embeddings_{tables[0].given.split}.npz"
    why = f"no run left {name} (--save_embeddings)"
    panels = parts_of(tables, lambda run: os.path.exists(os.path.join(run.folder, name)), why)
    return panels, lambda run: pictures.everything(pictures.load(os.path.join(run.folder, name)))


def spectrum(tables):
    """Singular values of the embeddings: a row's mean over its seeds, their range as a band."""
    panels, load = spaces_left(tables)
    for title, entries in panels:
        entries[:] = [(*entry, [pictures.shares(load(run)[0]) for run in runs]) for *entry, runs in entries]
    return pictures.spectrum(panels)


def tsne(tables):
    """The same classes in the first run of each of the first rows, side by side."""
    panels, load = spaces_left(tables)
    runs = [(f"{title}, {label}".removeprefix(", "), runs[0]) for title, part in panels for _, label, runs in part]
    return pictures.tsne({f"{title}, seed {run.seed}": load(run) for title, run in runs[:SPACES]}, most=FLAT)


def similarities(proxies):
    """Cosine similarities between different proxies (C, d), each pair once."""
    chosen = proxies[:: -(-len(proxies) // PROXIES)]
    unit = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    return np.clip((unit @ unit.T)[np.triu_indices(len(unit), 1)], -1, 1)


def load_proxies(run):
    """The proxies (C, d) of a run's checkpoint: what its criterion learns with one row a class."""
    saved = main_run.load(os.path.join(run.folder, main_run.LAST))["criterion"]
    return next(value.double().numpy() for name, value in saved.items() if name.split(".")[-1] == "proxies")


def proxies(tables):
    """How similar the class proxies are: the distribution of the cosines between them, of each row's first run."""

    def has(run):  # a checkpoint is large, and is not opened where the loss has no proxies
        learns = any(name.startswith("loss_") and name.endswith("lrmulti") for name in run.flags)
        return learns and os.path.exists(os.path.join(run.folder, main_run.LAST))

    panels, edges = [], np.linspace(-1, 1, 81)
    for title, entries in parts_of(tables, has, "no run's checkpoint.pt has proxies"):
        lines = []
        for number, label, runs in entries:
            cosines = similarities(load_proxies(runs[0]))
            share = 100 * np.histogram(cosines, edges)[0] / len(cosines)
            lines.append((number, label, (edges[1:] + edges[:-1]) / 2, [share]))
        panels.append((title, "cosine similarity of two classes' proxies", "pairs, %", lines))
    return pictures.draw_panels(panels, 3.2)
