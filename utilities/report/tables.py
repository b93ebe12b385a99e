"""Means over seeds, differences to the base loss with their tests, and the words under a table."""

import math
import re
import statistics
from dataclasses import dataclass

from utilities.registry import lookup
from utilities.report import rows as row_names
from utilities.report.data import Data, names

LEVEL = 0.05  # of the test and, as 1 - LEVEL, of the confidence interval
PERCENT = re.compile(r"([ec]_)?(recall@\d+|nmi|f1|mAP(@R|_\w+)|R-precision)|coding_rate@share")
HEADINGS = {
    "nmi": "NMI",
    "f1": "F1",
    "c_nmi": "NMI (cosine)",
    "c_f1": "F1 (cosine)",
    "coding_rate@share": "coding rate",
}
# Recall@1 in percent, 512 dimensions: the README of the authors' repository (Kim et al., CVPR 2020)
SOURCE = "its authors' repository, github.com/tjddus9597/Proxy-Anchor-CVPR2020"
PUBLISHED = {
    ("cub200", "bninception"): 69.1, ("cub200", "resnet50"): 69.9, ("cars196", "bninception"): 86.4,
    ("cars196", "resnet50"): 87.7, ("online_products", "bninception"): 79.2,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    metric: str  # as --evaluation_metrics names it, or seconds
    heading: str
    factor: int  # 100: shown in percent
    decimals: int

    def name(self, split):
        """Of the column in metrics.csv."""
        return self.metric if self.metric == "seconds" else f"{split}/{self.metric}"

    def value(self, run, split):
        """As shown; None where the run did not measure it."""
        value = run.chosen.get(self.name(split))
        return None if value is None else value * self.factor


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation (n - 1; None for one run) over the seeds that measured it."""

    values: dict  # {seed: value}
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """A row minus its base over their common seeds. low, high, p: None where there is no test, `why` says why."""

    pairs: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    why: str = ""

    @property
    def significant(self):
        return self.p is not None and self.p < LEVEL


@dataclass
class Table:
    """The rows of one data set."""

    data: Data
    name: str  # of the data set, among those of the other tables
    rows: list
    columns: list
    by: list
    published: float | None = None  # Recall@1 of ProxyAnchor in percent
    tuned: bool = False  # each row has flags of its own choice

    @property
    def difference(self):
        """The heading of the differences."""
        return (
            f"Difference to the base loss, {'each with its own flags, same' if self.tuned else 'same flags and'} seeds"
        )

    @property
    def runs(self):
        return [run for row in self.rows for run in row.all_runs]

    @property
    def left(self):
        return [run for row in self.rows for run in row.left]

    @property
    def compared(self):
        """Rows that have a base, or should have."""
        return [row for row in self.rows if row_names.is_antico(row.flags)]


def paired(row, base):
    """The Difference of two Cells over their common seeds, None without one: paired t-test, Student's interval.

    No test with one pair, nor where all differences are equal: their spread is 0 and would make anything significant.
    """
    seeds = sorted(set(row.values) & set(base.values))
    differences = [row.values[seed] - base.values[seed] for seed in seeds]
    if not differences:
        return None
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return Difference(1, mean, why="1 pair: no test")
    largest = max(abs(cell.values[seed]) for cell in (row, base) for seed in seeds)
    if max(differences) - min(differences) <= 1e-9 * largest:  # equal but for rounding
        return Difference(n, mean, why="all equal: no test")
    from scipy import stats

    test = stats.ttest_rel([row.values[s] for s in seeds], [base.values[s] for s in seeds])
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(n, mean, mean - half, mean + half, float(test.pvalue))


def cell(runs, column, split):
    values = {run.seed: column.value(run, split) for run in runs}
    values = {seed: value for seed, value in values.items() if value is not None}
    if not values:
        return None
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    return Cell(values, statistics.fmean(values.values()), spread)


def heading(metric):
    recall = re.fullmatch(r"([ec])_recall@(\d+)", metric)
    if recall:
        return f"Recall@{recall[2]}" + (" (cosine)" if recall[1] == "c" else "")
    return HEADINGS.get(metric, metric.replace("_", " ") if metric == "effective_rank" else metric)


def decimals(values):
    """Of numbers that are no percentages: three digits of the largest, at most six decimals."""
    largest = max((abs(value) for value in values), default=0)
    return min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest > 0 else 0


def measured(runs, split):
    """{metric: [values]} of the shown epochs on a split; of all epochs where no run has a shown one."""
    shown = [run.chosen for run in runs if run.chosen] or [row for run in runs for row in run.rows]
    values = {}
    for row in shown:
        for name, value in row.items():
            if value is not None and math.isfinite(value) and (name == "seconds" or name.startswith(f"{split}/")):
                values.setdefault(name.removeprefix(f"{split}/"), []).append(value)
    return values


def metrics_of(runs, split, wanted):
    """Names of the metrics to show: those that are wanted, or all. ValueError, one line, for what was not measured."""
    known = sorted(measured(runs, split), key=lambda name: name == "seconds")  # last
    if not set(known) - {"seconds"} and any(run.rows for run in runs):
        advice = {"val": "; --use_tv_split makes one", "train": "; it is measured without --no_train_metrics"}
        raise ValueError(f"--split {split}: no run has measured it{advice.get(split, '')}")
    names = {name: name for name in known} | {heading(name): name for name in known}
    return list(dict.fromkeys(lookup("--columns", name, names) for name in wanted)) or known


def column(metric, values):
    if PERCENT.fullmatch(metric):
        return Column(metric, heading(metric), 100, 1)
    return Column(metric, heading(metric), 1, 0 if metric == "seconds" else decimals(values))


def check_by(runs, by):
    """ValueError, one line, for a flag of --by that does not act in these runs."""
    acting = dict.fromkeys(name for run in runs for name in run.flags)
    for name in by:
        if name not in acting and any(run.setting(name) is not None for run in runs):
            raise ValueError(f"--by {name}: does not act on the training of these runs, so it tells no rows apart")
        lookup("--by", name, acting)


def make_tables(runs, split, by=(), wanted=(), tuned=False):
    """A Table a data set. Raises ValueError, one line, for names that the runs do not have."""
    by = list(dict.fromkeys(by))
    check_by(runs, by)
    metrics, tables = metrics_of(runs, split, wanted), []
    grouped = row_names.group(runs, tuned)
    short = names(grouped)
    for data, rows in grouped.items():
        values = measured([run for row in rows for run in row.all_runs], split)
        columns = [column(metric, values[metric]) for metric in metrics if metric in values]
        for row in rows:
            row.label = row_names.label_of(row, rows, by)
            row.cells = {column: cell(row.runs, column, split) for column in columns}
        if by:
            rows.sort(key=lambda row: [row_names.sortable(row.flags.get(name)) for name in by])
        compare(rows, columns)
        tables.append(Table(data, short[data], rows, columns, by, published(data, rows, columns, split), tuned))
    return tables


def compare(rows, columns):
    for row in rows:
        for column in columns:
            ours, theirs = row.cells[column], row.base.cells[column] if row.base else None
            if ours and theirs and column.metric != "seconds":  # which tell of the machine
                row.differences[column] = paired(ours, theirs)


def published(data, rows, columns, split):
    """Recall@1 of ProxyAnchor by its authors, where data, backbone and dimension of all rows are theirs; else None."""
    backbones = {str(row.flags.get("arch")).split("_")[0] for row in rows}
    theirs = all(row.flags.get("embed_dim") == 512 and not row.flags.get("use_tv_split") for row in rows)
    proxyanchor = any("ProxyAnchor" in row.head or "oproxy anchor" in row.head for row in rows)
    recall = any(column.metric == "e_recall@1" for column in columns)
    if not (theirs and proxyanchor and recall and split == "test" and len(backbones) == 1):
        return None
    return PUBLISHED.get((data[0], backbones.pop()))
