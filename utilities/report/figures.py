"""Figures from metrics.csv: curves over epochs, Recall@1 against a hyperparameter and against the rate's share."""

import statistics

from utilities.report import rows as row_names
from utilities.report import spaces, style
from utilities.report.tables import column as make_column
from utilities.report.tables import heading, measured

CURVES = 3  # the first metric, the rate's share and the effective rank, as far as they were measured


def draw_all(tables, split):
    """{suffix of the file's name: figure or a line that says why there is none}."""
    draw = {
        "": lambda: curves(tables, split),
        "_hyper": lambda: against_hyperparameter(tables, split),
        "_rate": lambda: against_rate(tables, split),
        "_spectrum": lambda: spaces.spectrum(tables, split),
        "_proxies": lambda: spaces.proxies(tables),
        "_tsne": lambda: spaces.tsne(tables, split),
    }
    drawn = {}
    for suffix, function in draw.items():
        try:
            drawn[suffix] = function()
        except spaces.Unreadable as problem:  # the tables do not need that file
            drawn[suffix] = str(problem)
    return drawn


def first_metric(table):
    """The Column that figures show: Recall@1, or the first that was measured."""
    columns = [c for c in table.columns if c.metric != "seconds"]
    return next((c for c in columns if c.metric == "e_recall@1"), columns[0] if columns else None)


def unit(column):
    return f"{column.heading}, %" if column.factor == 100 else column.heading


def panel_title(table, tables, more=""):
    return ", ".join(filter(None, [table.name if len(tables) > 1 else "", more]))


# --- against epochs ---


def curve_columns(table, split):
    values = measured(table.runs, split)  # also of metrics that --columns left out
    wanted = [first_metric(table).metric] if first_metric(table) else []
    wanted += [name for name in ("coding_rate@share", "effective_rank") if name in values]
    return [make_column(name, values[name]) for name in dict.fromkeys(wanted)][:CURVES]


def curves(tables, split):
    """Each row's mean over its seeds against epochs, the seeds' range as a band; what collapsed as lines of its own."""
    shown = [(t, curve_columns(t, split), *part) for t in tables for part in spaces.parts_of(t) if part[1]]
    width = max((len(columns) for _, columns, _, _ in shown), default=0)
    if not width:
        return f"nothing was measured on the {split} split" if shown else "no run counts"
    figure, axes = style.panels(len(shown), width, 2.9 if len(shown) < 3 else 2.2)
    for line, (table, columns, title, entries) in zip(axes, shown):
        for axis, column in zip(line, columns):
            drawn = [draw_curve(axis, *entry, column, split) for entry in entries]
            name = "coding rate / maximum" if column.metric == "coding_rate@share" else column.heading
            if of_line := panel_title(table, tables, title):  # above its middle
                axis.set(ylabel=unit(column), title=of_line if axis is line[(width - 1) // 2] else "")
            else:
                axis.set(ylabel="%" if column.factor == 100 else "", title=name)
            axis.set_xlabel("epoch")
            style.whole_numbers(axis)
            style.at_least(axis, "y" if column.factor == 100 else "")
            if max(drawn) == 1:
                axis.margins(x=0.5)
        for axis in line[len(columns) :]:
            axis.set_visible(False)
    style.legend(figure, [axis for line in axes for axis in line])
    return figure


def draw_curve(axis, number, label, runs, column, split):
    """The number of epochs drawn: those that all runs have measured, so that a mean never changes its seeds."""
    series, name = [], column.name(split)
    for run in runs:
        series.append({r["epoch"]: r[name] * column.factor for r in run.rows if r.get(name) is not None})
    epochs = sorted(set.intersection(*map(set, series)))
    if not epochs:
        return 0
    look = style.look(number, "(collapsed)" in label)
    mean = [statistics.fmean(values[epoch] for values in series) for epoch in epochs]
    axis.plot(epochs, mean, label=label, markevery=style.every(number, len(epochs)), **look)
    if len(series) > 1:
        ends = [[end(values[epoch] for values in series) for epoch in epochs] for end in (min, max)]
        axis.fill_between(epochs, *ends, color=look["color"], alpha=0.18, linewidth=0)
    return len(epochs)


# --- against a hyperparameter ---


def sweeps(table):
    """[(numeric flag, [rows of one loss that differ in it alone, ...]), ...], those of --by where it is given."""
    families, swept = {}, {}
    for row in table.rows:
        if row.runs:
            families.setdefault(row.head, []).append(row)
    for rows in families.values():
        names, center = row_names.differing(rows), row_names.center_of(rows)
        for name in names if center or len(names) == 1 else ():
            alike = [r for r in rows if all(r.flags.get(n) == (center or r).flags.get(n) for n in names if n != name)]
            if all(is_number(row.flags.get(name)) for row in alike):
                swept.setdefault(name, []).append(sorted(alike, key=lambda row: row.flags[name]))
    return [(name, lists) for name, lists in swept.items() if name in table.by or not table.by]


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def against_hyperparameter(tables, split):
    """The first metric against each numeric flag that is varied alone: the mean a line, each run a point; a base
    without the flag a level line."""
    panels = [(table, *sweep) for table in tables if first_metric(table) for sweep in sweeps(table)]
    if not panels:
        return "no numeric flag alone tells rows of a loss apart"
    figure, axes = style.grid(len(panels))
    for axis, (table, name, families) in zip(axes, panels):
        column = first_metric(table)
        values = sorted({row.flags[name] for rows in families for row in rows})
        for rows in families:
            draw_sweep(axis, table, rows, name, column, split)
        for base in dict.fromkeys(id(row.base) for rows in families for row in rows if row.base):
            row = next(row for row in table.rows if id(row) == base)
            if name not in row.flags and row.cells[column]:
                look = style.look(heads(table).index(row.head))
                axis.axhline(row.cells[column].mean, color=look["color"], linestyle=look["linestyle"], label=row.full)
        set_scale(axis, values)
        axis.set(xlabel=f"--{name}", ylabel=unit(column), title=panel_title(table, tables))
    style.legend(figure, axes)
    return figure


def heads(table):
    """The losses, whatever their flags: each has one look in all panels."""
    return list(dict.fromkeys(row.head for row in table.rows))


def draw_sweep(axis, table, rows, name, column, split):
    rows = [row for row in rows if row.cells[column]]
    if not rows:
        return
    look = style.look(heads(table).index(rows[0].head))
    axis.plot([row.flags[name] for row in rows], [row.cells[column].mean for row in rows], label=rows[0].head, **look)
    for row in rows:
        points = list(row.cells[column].values.values())
        axis.plot(
            [row.flags[name]] * len(points), points, look["marker"], color=look["color"], alpha=0.45, markersize=4
        )


def set_scale(axis, values):
    """Logarithmic where the values go over a factor of 5 or more; ticks where there are runs."""
    positive = [value for value in values if value > 0]
    if min(values) >= 0 and positive and max(positive) / min(positive) >= 5:
        axis.set_xscale("symlog", linthresh=min(positive)) if min(values) == 0 else axis.set_xscale("log")
    if len(values) <= 8:
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()


# --- against the rate's share ---


def against_rate(tables, split):
    """The first metric against the coding rate's share, one point a run; hollow: a collapsed one, in no mean."""
    name, panels = f"{split}/coding_rate@share", []
    for table in tables:
        column = first_metric(table)
        if not column or column.metric == "coding_rate@share":
            continue

        def shows(run, column=column):
            return run.chosen.get(name) is not None and column.value(run, split) is not None

        for title, lines in spaces.parts_of(table):
            points = [(number, label, [run for run in runs if shows(run)]) for number, label, runs in lines]
            if any(runs for _, _, runs in points):
                panels.append((table, column, title, points))
    if not panels:
        return f"no run measured coding_rate@share and {heading('e_recall@1')} on the {split} split"
    figure, axes = style.grid(len(panels))
    for axis, (table, column, title, points) in zip(axes, panels):
        for number, label, runs in points:
            look = style.look(number, "(collapsed)" in label) | {"linestyle": "none", "markersize": 7}
            x, y = [100 * run.chosen[name] for run in runs], [column.value(run, split) for run in runs]
            if runs:
                axis.plot(x, y, label=label, **look)
        style.at_least(axis, "xy" if column.factor == 100 else "x")
        axis.set(xlabel="coding rate / its maximum, %", ylabel=unit(column))
        axis.set_title(style.wrapped([table.name if len(tables) > 1 else "", title], len(panels)))
    style.legend(figure, axes)
    return figure
