"""Tables, figures and a page of runs: python -m tables.report RUNS... --out results/name

Each of RUNS is a run's folder (config.json, metrics.csv) or holds such folders. tables/README.md says what counts.
"""

import argparse
import base64
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from scipy import stats

from tables import figures
from tables.rows import collect, factor, heading, label_of, make_rows, text_of
from utilities.command_line import OneLineParser, lookup, one_line_errors
from utilities.folders import write_whole

ROWS = {
    "last": "last epoch",
    "best-test": "best epoch on the test split (as published tables; it flatters)",
    "best-val": "best epoch on the validation split",
}
SPLITS = ("test", "val", "train")
LEVEL = 0.05  # of the test and, as 1 - LEVEL, of the confidence interval
NUMBERS = ("mean", "std", "n", "difference", "low", "high", "p")  # of a row and metric, see `cell`


@dataclass
class Table:
    """The rows of one data set; their .values and .cells are of the runs that count, in the units shown."""

    given: argparse.Namespace  # split, row, by, ...
    name: str
    title: str
    rows: list
    runs: pd.DataFrame
    decimals: dict  # {metric: of its means}
    texts: dict = None  # {title: DataFrame}
    lists: dict = None  # {title: lines below it}
    numbers: pd.DataFrame = None  # of X.csv


def measured(runs, split):
    """The metrics of a split, a line a run, a column a metric, in the units shown."""
    table = pd.DataFrame(list(runs["chosen"]), index=runs.index).filter(regex=f"^{split}/").dropna(axis=1, how="all")
    table.columns = table.columns.str.removeprefix(f"{split}/")
    return table * [*map(factor, table)]


def make_tables(runs, given):
    """A Table a data set. Raises ValueError, one line, for names that the runs do not have."""
    wanted, every, kinds, tables = (), measured(runs, given.split), list(dict.fromkeys(runs["data"])), []
    if runs["chosen"].any():
        lookup("--split", given.split, {split: 0 for split in SPLITS if len(measured(runs, split).columns)})
        names = {name: name for name in every} | {heading(name): name for name in every}
        wanted = [lookup("--columns", name, names) for name in given.columns]
    for name in given.by:
        lookup("--by", name, {flag: 0 for flags in runs["flags"] for flag in flags if flag != "loss"})
    for data in kinds:
        name = next((n for i, n in enumerate(data) if [other[i] for other in kinds].count(n) == 1), data[-1])
        part = runs[runs["data"] == data]
        own, rows = measured(part, given.split), make_rows(part, given.by, given.tuned)
        decimals = {m: digits(m, own[m].abs().max()) for m in wanted or every if m in own}
        for row in rows:
            row.values = own.loc[row.runs.index, list(decimals)].set_index(row.runs["seed"])
        for row in rows:
            row.cells = {m: cell(row.values[m], row.base and row.base.values[m]) for m in decimals}
        tables.append(Table(given, name, max(data[2], name, key=len), rows, part, decimals))
        fill(tables[-1])
    return tables


def digits(metric, largest):
    """One decimal of a percentage; else three digits of the largest value, at most six decimals."""
    if factor(metric) == 100 or not largest > 0:
        return int(factor(metric) == 100)
    return min(max(2 - int(np.floor(np.log10(largest))), 0), 6)


def cell(ours, base):
    """A row's numbers: mean, std (n - 1), n, and over the seeds of the base too the difference, its interval and p."""
    numbers = dict(mean=ours.mean(), std=ours.std(), n=ours.count(), pairs=0)
    if base is not None:
        d = (ours - base).dropna()
        numbers |= dict(pairs=len(d), difference=d.mean())
        # equal differences, but for rounding, have a spread of 0, which would make anything significant
        if len(d) > 1 and np.ptp(d) > 1e-9 * max(ours.abs().max(), base.abs().max()):
            test = stats.ttest_1samp(d, 0)
            low, high = test.confidence_interval(1 - LEVEL)
            numbers |= dict(low=low, high=high, p=test.pvalue)
    return numbers


def fill(table):
    """Give a table its texts, its numbers, and the lists of what is not in it."""
    means, differences, numbers = [], [], []
    for row in table.rows:
        n, collapsed, cells = len(row.runs), row.runs["collapsed"].sum(), row.cells.items()
        by = {"loss": label_of(row, table.given.by)}
        by |= {name: text_of(row.flags.get(name, "")) for name in table.given.by}
        count = f"{n} of {len(row.every)}" if n < len(row.every) else f"{n}"
        line = {name: text or "-" for name, text in by.items()}
        line |= {"n": count + (f" ({collapsed} collapsed)" if collapsed else "")}
        means.append(line | {heading(m): mean_text(own, n, table.decimals[m]) for m, own in cells})
        if row.base:
            seeds = [str(seed) for seed in row.values.index.intersection(row.base.values.index)]
            texts = {heading(m): difference_text(m, own, len(seeds), table.decimals[m]) for m, own in cells}
            differences.append({"loss": row.label, "seeds": ", ".join(seeds) or "none", **texts})
        line = {"data set": table.name, **by, "n": n, "left out": len(row.every) - n, "collapsed": collapsed}
        line |= {"seeds": " ".join(map(str, row.values.index)), "base": row.base.label if row.base else ""}
        line |= {f"{heading(m)} {name}".removesuffix(" mean"): own.get(name) for m, own in cells for name in NUMBERS}
        numbers.append(line)
    kind = "flags tuned for each" if table.given.tuned else "same flags"
    texts = {"": means, f"Difference to the base loss, {kind}, same seeds": differences}
    table.texts = {title: pd.DataFrame(lines) for title, lines in texts.items() if lines}
    left = table.runs[table.runs["reason"] != ""].sort_values("reason", key=lambda text: text.str[0], kind="stable")
    title = f"Left out of the means, {len(left)} of {len(table.runs)} runs"
    table.lists = {title: [f"`{run.folder}`: {run.reason}" for run in left.itertuples()]}
    table.lists["Base losses that no run has"] = [*dict.fromkeys(f"`{r.lacks}`" for r in table.rows if r.lacks)]
    table.numbers = pd.DataFrame(numbers)


def mean_text(numbers, n, decimals):
    if not numbers["n"]:
        return "-"
    spread = f" ± {numbers['std']:.{decimals}f}" if numbers["n"] > 1 else ""
    return f"{numbers['mean']:.{decimals}f}{spread}" + (f" (n = {numbers['n']})" if numbers["n"] < n else "")


def difference_text(metric, numbers, n, decimals):
    """With one decimal more than the means of what is no percentage; **bold** is significant, better or worse."""
    if not numbers["pairs"]:
        return "-"
    decimals, p = decimals + (factor(metric) == 1), numbers.get("p")
    text = f"{numbers['difference']:+.{decimals}f}" + (f" (n = {numbers['pairs']})" if numbers["pairs"] < n else "")
    if p is None:
        return text if numbers["pairs"] == 1 else f"{text} (all equal: no test)"
    interval = f"[{numbers['low']:.{decimals}f}, {numbers['high']:.{decimals}f}]"
    text = f"{text} {interval} p = {p:.3f}" if p >= 0.001 else f"{text} {interval} p < 0.001"
    return f"**{text}**" if p < LEVEL else text


def caption(table):
    """What the numbers are, and what is not the same in all runs."""
    flags, given = pd.DataFrame([row.flags for row in table.rows]), table.given
    network = ("arch", "embed_dim", "input_size", "n_epochs")
    facts = [f"{name} {flags[name][0]}" for name in network if flags[name].nunique() == 1]
    best = f" by {' or '.join(sorted(set(table.runs['best_by'])))}" if given.row != "last" else ""
    percent = ", ".join(heading(metric) for metric in table.decimals if factor(metric) == 100)
    best += f"; percent: {percent}" if percent else ""
    lines = [", ".join([table.title, *facts, f"{given.split} split, {ROWS[given.row]}{best}"])]
    lines.append("Mean ± standard deviation (n - 1) over n seeds")
    if tests := sum("p" in numbers for row in table.rows for numbers in row.cells.values()):
        test = "[95% confidence interval], p of the paired t-test"
        bold = f"**bold: p < {LEVEL}**, not corrected for the number of tests, which is {tests} here"
        lines.append(f"Difference: mean over the seeds that both have, {test}; {bold}")
    usual = sorted({f"{name} {text}" for row in table.rows for name, (text, usual) in row.told.items() if usual})
    lines += [f"In brackets: what differs from {', '.join(usual)}"] if usual else []
    configs = [config for row in table.rows for config in row.runs["config"]]
    starts = [{**config, **start} for config in configs for start in ({}, *config.get("history", ()))]
    others = r"^(commit|device|machine|processes|versions\.|flags\.(search|kmeans_restarts)$)"  # may change numbers too
    starts = pd.json_normalize(starts).filter(regex=others)
    differ = sorted(name.split(".")[-1] for name in starts if starts[name].astype(str).nunique() > 1)
    lines += [f"Not the same in all runs: {', '.join(differ)}"] if differ else []
    return ". ".join(lines) + "."


def long(tables, given):
    """A line a run that counts and metric, as measured (not in percent), with every flag that differs: for pandas."""
    flags = pd.DataFrame([row.flags for table in tables for row in table.rows]).map(lambda v: None if v is False else v)
    differ, lines = sorted({*given.by, *flags.columns[flags.nunique(dropna=False) > 1]}), []
    for table, row in ((table, row) for table in tables for row in table.rows):
        texts = {name: text_of(row.flags.get(name, "")) for name in differ}
        for run in row.runs.itertuples():
            line = {"folder": run.folder, "data set": table.name, "label": row.label, "seed": run.seed, **texts}
            line |= {"split": given.split, "row": given.row, "epoch": int(run.chosen["epoch"])}
            lines += [{**line, "metric": m, "value": run.chosen.get(f"{given.split}/{m}")} for m in table.decimals]
    names = ["folder", "data set", "label", "seed", *differ, "split", "row", "epoch", "metric", "value"]
    return pd.DataFrame(lines, columns=names).dropna(subset="value")


def markdown(tables):
    parts = []
    for table in tables:
        parts += [f"## {table.title}"] if len(tables) > 1 else []
        for title, texts in table.texts.items():
            sides = ["left"] + ["right"] * (len(texts.columns) - 1)
            parts += [f"{title}:"] if title else []
            parts.append(texts.to_markdown(index=False, colalign=sides, disable_numparse=True))
        parts.append(caption(table))
        parts += [f"**{title}:**\n\n- " + "\n- ".join(lines) for title, lines in table.lists.items() if lines]
    return "\n\n".join(parts) + "\n"


def latex(tables):
    """booktabs tables, made smaller where wider than the page, without p; all other words are in comments."""
    parts = [r"% needs \usepackage{booktabs,graphicx}; written by python -m tables.report"]
    size = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    for table in tables:
        for title, texts in table.texts.items():
            texts, sides = texts.replace(r" p [=<] [\d.]+", "", regex=True), "l" + "r" * (len(texts.columns) - 1)
            tabular = texts.to_latex(index=False, escape=True, column_format=sides) + "}\n"
            parts += [f"% {title or caption(table)}", size, re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", tabular)]
        parts += [f"% {title}: {line}" for title, lines in table.lists.items() for line in lines]
    return "\n".join(parts) + "\n"


def parse(argv):
    parser = OneLineParser("python -m tables.report", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold such")
    add("--out", required=True, metavar="X", help="writes X.md X.csv X.tex X_runs.csv, X.png X.pdf, further figures")
    add("--html", action="store_true", help="also one page with all of it, X.html")
    add("--split", default="test", choices=SPLITS, help="whose metrics are shown")
    add("--row", default="last", choices=list(ROWS), help="epoch whose metrics are shown")
    add("--by", nargs="+", default=[], metavar="FLAG", help="flags with a column of their own, which sort the rows")
    add("--columns", nargs="+", default=[], metavar="METRIC", help="metrics to show; all without it")
    add("--count_collapsed", action="store_true", help="collapsed runs count in the means; else they are listed below")
    add("--tuned", action="store_true", help="each row has flags tuned for it: compare it with its base's one row")
    add("--failed", nargs="+", default=[], metavar="LINE", help="lines on runs that failed, put below the tables")
    given = parser.parse_args(argv)
    if not os.path.basename(given.out) or os.path.isdir(given.out):
        parser.error(f"--out {given.out}: is a folder; name the table in it, e.g. {given.out.rstrip('/')}/table")
    return given


@one_line_errors
def main(argv):
    given = parse(argv)
    tables = make_tables(collect(given), given)
    tables[-1].lists["Failed"] = [" ".join(line.split()) for line in given.failed]
    texts = {".md": markdown(tables), ".tex": latex(tables), "_runs.csv": long(tables, given).to_csv(index=False)}
    texts[".csv"] = pd.concat(table.numbers for table in tables).to_csv(index=False, float_format="%.10g")
    for suffix, text in texts.items():
        write_whole(given.out + suffix, lambda file, text=text: file.write(text))
    print(texts[".md"])
    drawn, none = figures.write_all(tables, given.out)
    if given.html:
        text = Path(__file__).with_name("page.html").read_text()
        template = jinja2.Template(text, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        names = dict(tables=tables, figures=drawn, command=shlex.join(["python", "-m", "tables.report", *argv]))
        names |= dict(text_of=text_of, caption=caption, pictures=lambda folder: sorted(Path(folder).glob("*.png")))
        names["inline"] = lambda path: base64.b64encode(Path(path).read_bytes()).decode()
        texts[".html"] = template.render(names)
        write_whole(f"{given.out}.html", lambda file: file.write(texts[".html"]))
    print(*none, f"written: {', '.join([*(given.out + suffix for suffix in texts), *drawn.values()])}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
