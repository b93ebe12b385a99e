"""The table and the figure of a group of runs: python -m utilities.report FOLDER... --out results/name

Each FOLDER is a run's (config.json, metrics.csv) or holds such folders. Runs of one loss that differ in the seed make
one row: mean, and ± standard deviation where there are several. --row picks the epoch: last, best-test (as published
tables do; it flatters) or best-val, by the first of --storage_metrics; the caption says which.
"""

import argparse
import csv
import glob
import json
import os
import statistics
import sys

from utilities.files import write_whole
from utilities.trackers import protocol_rows

COLUMNS = {  # heading: (column of metrics.csv, factor, decimals)
    "Recall@1": ("test/e_recall@1", 100, 1),
    "Recall@2": ("test/e_recall@2", 100, 1),
    "Recall@4": ("test/e_recall@4", 100, 1),
    "Recall@8": ("test/e_recall@8", 100, 1),
    "NMI": ("test/nmi", 100, 1),
    "mAP@R": ("test/mAP@R", 100, 1),
    "coding rate": ("test/coding_rate@share", 100, 1),
    "seconds": ("seconds", 1, 0),
}


def read_run(folder):
    """(config, rows) of one run; values of rows are floats, None where a cell is empty."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    with open(os.path.join(folder, "metrics.csv"), encoding="utf-8", newline="") as file:
        return config, [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


def find_runs(folders):
    found = [f for given in folders for f in [given, *sorted(glob.glob(os.path.join(given, "**"), recursive=True))]]
    return list(dict.fromkeys(os.path.normpath(f) for f in found if os.path.isfile(os.path.join(f, "metrics.csv"))))


def group_runs(folders, by=()):
    """{label: [(config, rows), ...]}: the label is the loss, with the flags `by` and what else differs between runs but the seed."""
    runs = [read_run(f) for f in find_runs(folders)]
    if not runs:
        raise ValueError(f"{' '.join(folders)}: no run there (a folder with config.json and metrics.csv)")
    aside = {
        "seed",
        "group",
        "savename",
        "loss",
        "antico_base",
        "antico_form",
        "loss_ac_w_align",
        "antico_w",
        "antico_type",
        "resume",
    } - set(by)
    values = {}  # of each flag, in the runs that it acts on
    for config, _ in runs:
        for name, value in config["flags"].items():
            values.setdefault(name, set()).add(json.dumps(value))
    differing = [name for name in values if name not in aside and len(values[name]) > 1]
    groups = {}
    for config, rows in runs:
        extra = ", ".join(f"{name} {config['flags'][name]}" for name in differing if name in config["flags"])
        groups.setdefault(config["flags"]["loss"] + (f" ({extra})" if extra else "") + incomplete(config), []).append(
            (config, rows)
        )
    return groups


def incomplete(config):
    """What a row's label says of a run on less than the whole data set."""
    skipped = len(config.get("skipped_broken", ()))
    return (" [partial data]" if config.get("partial") else "") + (
        f" [{skipped} broken images skipped]" if skipped else ""
    )


ROWS = {
    "last": "last epoch",
    "best-test": "best epoch on the test split (as published tables; flatters)",
    "best-val": "best epoch on the validation split",
}


def chosen_row(config, rows, which):
    """The row of a run that --row names; ValueError, one line, where the run has none."""
    if which == "last":
        return rows[-1]
    metric = config["flags"].get("storage_metrics", ["e_recall@1"])[0]
    found = protocol_rows(rows, metric).get(which)
    if found is None:
        raise ValueError(
            f"--row {which}: a run of {config['flags']['loss']} has no {which.removeprefix('best-')}/{metric}; --row last needs none"
        )
    return found


def cell(runs, column, factor, decimals, split="test", which="last"):
    values = [chosen_row(config, rows, which).get(column.replace("test/", f"{split}/")) for config, rows in runs]
    values = [v * factor for v in values if v is not None]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread}"


def table(groups, split="test", which="last"):
    """[[heading, ...], [label, value, ...], ...] of strings; shares in percent."""
    return [["loss", *COLUMNS]] + [
        [label, *(cell(runs, *spec, split, which) for spec in COLUMNS.values())] for label, runs in groups.items()
    ]


def markdown(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "| " + " | ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths))) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    return "\n".join(lines)


def caption(groups, split="test", which="last"):
    config, rows = next(iter(groups.values()))[0]
    which_search = " Search: ivf, approximate." if config["flags"].get("search") == "ivf" else ""
    flags, seeds = config["flags"], sorted({c["seed"] for runs in groups.values() for c, _ in runs})
    lacking = next((c["partial"] for runs in groups.values() for c, _ in runs if c.get("partial")), "")
    return (
        (f"PARTIAL DATA ({lacking}). " if lacking else "")
        + f"{flags['dataset']}, {flags['arch']}, {flags['embed_dim']} dimensions, {int(rows[-1]['epoch'])} epochs, {split} split, {ROWS[which]}; "
        f"seed {', '.join(map(str, seeds))}; {config['device']}. Percent; coding rate as a share of its maximum; "
        f"seconds of training and evaluation.{which_search}"
    )


def figure(groups, path, split="test"):
    """Recall@1 and the coding rate's share of a split against epochs, one line a loss: the mean of its seeds, their range as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    for axis, heading in zip(axes, ("Recall@1", "coding rate")):
        column, factor, _ = COLUMNS[heading]
        column = column.replace("test/", f"{split}/")
        for i, (label, runs) in enumerate(groups.items()):
            found = {}
            for _, rows in runs:
                for row in rows:
                    if row.get(column) is not None:
                        found.setdefault(row["epoch"], []).append(row[column] * factor)
            epochs = sorted(found)
            axis.plot(
                epochs,
                [statistics.fmean(found[e]) for e in epochs],
                label=label,
                color=f"C{i}",
                marker="o",
                markersize=3,
                linewidth=1.6,
                linestyle="-" if label.startswith("antico") else "--",
            )
            if len(runs) > 1:
                axis.fill_between(
                    epochs,
                    [min(found[e]) for e in epochs],
                    [max(found[e]) for e in epochs],
                    color=f"C{i}",
                    alpha=0.15,
                    linewidth=0,
                )
        axis.set(
            xlabel="epoch",
            ylabel="%",
            title=f"{heading}{' / its maximum' if heading == 'coding rate' else ''}, {split} classes",
        )
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8.5, loc="lower right")
    write_whole(path, lambda file: fig.savefig(file, dpi=150, format="png"), "wb")
    plt.close(fig)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m utilities.report", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="folders of runs")
    parser.add_argument("--out", required=True, help="path without suffix of the .md, .csv and .png to write")
    parser.add_argument(
        "--split", default="test", choices=["train", "val", "test"], help="split whose metrics are shown"
    )
    parser.add_argument("--row", default="last", choices=list(ROWS), help="epoch whose metrics are shown")
    parser.add_argument("--by", nargs="+", default=[], metavar="FLAG", help="flags that tell rows apart, e.g. antico_w")
    given = parser.parse_args(argv)
    try:
        groups = group_runs(given.folders, given.by)
        rows = table(groups, given.split, given.row)
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    text = f"{markdown(rows)}\n\n{caption(groups, given.split, given.row)}\n"
    write_whole(given.out + ".md", lambda file: file.write(text))
    write_whole(given.out + ".csv", lambda file: csv.writer(file, lineterminator="\n").writerows(rows))
    figure(groups, given.out + ".png", given.split)
    print(text)
    print(f"written: {given.out}.md, {given.out}.csv, {given.out}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
