"""Tables, figures and a page of runs: python -m tables.report RUNS... --out results/name

Each of RUNS is a run's folder (config.json, metrics.csv) or holds such folders. Rows are told apart by every flag that
acts on training; runs that differ in the seed alone make one row. tables/README.md says what counts.
"""

import argparse
import base64
import math
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from scipy import stats

from tables import figures
from tables.rows import base_command, base_loss, collect, factor, heading, is_antico, make_rows, text_of
from utilities.command_line import OneLineParser, lookup, one_line_errors
from utilities.folders import write_whole

ROWS = {
    "last": "last epoch",
    "best-test": "best epoch on the test split (as published tables; it flatters)",
    "best-val": "best epoch on the validation split",
}
LEVEL = 0.05  # of the test and, as 1 - LEVEL, of the confidence interval


# --- numbers ---


@dataclass
class Table:
    """The rows of one data set, and the numbers of the runs that count, in the units shown."""

    given: argparse.Namespace  # split, row, by, ...
    name: str
    title: str
    rows: list
    runs: pd.DataFrame
    decimals: dict  # {metric: of its means}
    values: dict  # {row: DataFrame, a line a seed, a column a metric}
    cells: dict  # {row: {metric: its numbers by name}}, see `cell`


def measured(runs, split):
    """The shown metrics of a split, a line a run, a column a metric, in the units shown."""
    table = pd.DataFrame(list(runs["chosen"]), index=runs.index).dropna(axis=1, how="all")
    names = [name for name in table if name.startswith(f"{split}/")] + [name for name in table if name == "seconds"]
    table = table[names].rename(columns=lambda name: name.removeprefix(f"{split}/"))
    return table * [factor(metric) for metric in table]


def make_tables(runs, given):
    """A Table a data set. Raises ValueError, one line, for names that the runs do not have."""
    flags = {name: 0 for its_own in runs["flags"] for name in its_own}
    for name in given.by:
        lookup("--by", name, {flag: 0 for flag in flags if flag != "loss"})  # has its column
    every, counts = measured(runs, given.split), runs["chosen"].any()
    if counts and set(every) <= {"seconds"}:
        raise ValueError(f"--split {given.split}: no run has measured it")
    names = {name: name for name in every} | {heading(name): name for name in every}
    wanted = [lookup("--columns", name, names) for name in given.columns if counts] or every.columns
    kinds, tables = list(dict.fromkeys(runs["data"])), []
    for data in kinds:
        name = next(n for i, n in enumerate(data) if [other[i] for other in kinds].count(n) == 1)
        part = runs[runs["data"] == data]
        own, rows = measured(part, given.split), make_rows(part, given.by, given.tuned)
        decimals = {metric: digits(metric, own[metric]) for metric in wanted if metric in own}
        values = {row: own.loc[row.runs.index, list(decimals)].set_index(row.runs["seed"]) for row in rows}
        cells = {r: {m: cell(m, values[r][m], values[r.base][m] if r.base else ()) for m in decimals} for r in rows}
        tables.append(Table(given, name, max(data[2], name, key=len), rows, part, decimals, values, cells))
    return tables


def digits(metric, values):
    """One decimal of a percentage; else three digits of the largest value, at most six decimals."""
    largest = values.abs().max()
    if factor(metric) == 100 or metric == "seconds":
        return int(metric != "seconds")
    return min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest > 0 else 0


def cell(metric, ours, base):
    """A row's numbers: mean, std (n - 1), n, and over the seeds of the base too the difference, its interval and p.

    No test with one pair, nor where all differences are equal: their spread is 0 and would make anything significant.
    """
    numbers = dict(mean=ours.mean(), std=ours.std(), n=ours.count(), pairs=0)
    if len(base) and metric != "seconds":  # which tell of the machine
        both = pd.concat([ours, base], axis=1, join="inner").dropna()
        d = both.iloc[:, 0] - both.iloc[:, 1]
        numbers |= dict(pairs=len(d), difference=d.mean())
        if len(d) > 1 and d.max() - d.min() > 1e-9 * both.abs().max(axis=None):  # else equal but for rounding
            test = stats.ttest_1samp(d, 0)
            low, high = test.confidence_interval(1 - LEVEL)
            numbers |= dict(low=low, high=high, p=test.pvalue)
    return numbers


# --- tables of texts ---


def means(table):
    lines = []
    for row in table.rows:
        n, collapsed = len(row.runs), row.runs["collapsed"].sum()
        count = f"{n} of {len(row.every)}" if n < len(row.every) else f"{n}"
        count += f" ({collapsed} collapsed)" if collapsed else ""
        line = {"loss": row.label, **{name: text_of(row.flags.get(name, "-")) for name in table.given.by}, "n": count}
        cells = table.cells[row].items()
        lines.append(line | {heading(m): mean_text(numbers, n, table.decimals[m]) for m, numbers in cells})
    return pd.DataFrame(lines)


def mean_text(numbers, n, decimals):
    if not numbers["n"]:
        return "-"
    spread = f" ± {numbers['std']:.{decimals}f}" if numbers["n"] > 1 else ""
    return f"{numbers['mean']:.{decimals}f}{spread}" + (f" (n = {numbers['n']})" if numbers["n"] < n else "")


def differences(table):
    """Of the rows that have a base, to it."""
    lines = []
    for row in (row for row in table.rows if row.base):
        common = [str(seed) for seed in row.runs["seed"] if seed in set(row.base.runs["seed"])]
        line = {"loss": row.full, "seeds": ", ".join(common) or "none"}
        cells = [(metric, numbers) for metric, numbers in table.cells[row].items() if metric != "seconds"]
        lines.append(
            line | {heading(m): difference_text(m, numbers, len(common), table.decimals[m]) for m, numbers in cells}
        )
    return pd.DataFrame(lines)


def difference_text(metric, numbers, n, decimals):
    """With one decimal more than the means of what is no percentage; **bold** is significant, better or worse."""
    if not numbers["pairs"]:
        return "-"
    decimals, p = decimals + (factor(metric) == 1), numbers.get("p")
    text = f"{numbers['difference']:+.{decimals}f}" + (f" (n = {numbers['pairs']})" if numbers["pairs"] < n else "")
    if p is None:
        return text if numbers["pairs"] == 1 else f"{text} (all equal: no test)"
    text += f" [{numbers['low']:.{decimals}f}, {numbers['high']:.{decimals}f}] "
    text += f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    return f"**{text}**" if p < LEVEL else text


def caption(table):
    """What the numbers are, and what is not the same in all runs."""
    flags, given = pd.DataFrame([row.flags for row in table.rows]), table.given
    facts = [f"{name} {flags[name][0]}" for name in ("arch", "embed_dim", "n_epochs") if flags[name].nunique() == 1]
    best = f" by {' or '.join(sorted(set(table.runs['best_by'])))}" if given.row != "last" else ""
    percent = ", ".join(heading(metric) for metric in table.decimals if factor(metric) == 100)
    lines = [", ".join([table.title, *facts, f"{given.split} split, {ROWS[given.row]}{best}; percent: {percent}"])]
    lines.append("Mean ± standard deviation (n - 1) over n seeds")
    if tests := sum("p" in numbers for cells in table.cells.values() for numbers in cells.values()):
        lines.append(
            "Difference: mean over the seeds that both have, [95% confidence interval], p of the paired t-test; "
            f"**bold: p < {LEVEL}**, not corrected for the number of tests, which is {tests} here"
        )
    usual = {f"{name} {text_of(value)}" for row in table.rows for name, value in row.usual.items()}
    lines += [f"In brackets: what differs from {', '.join(sorted(usual))}"] if usual else []
    differ = facts_that_differ(table)
    return ". ".join(lines + ([f"Not the same in all runs: {', '.join(differ)}"] if differ else [])) + "."


def facts_that_differ(table):
    """Names of what may change numbers though it is no training flag, where the runs that count do not agree."""
    counted = table.runs[table.runs["kind"] == ""].itertuples()
    starts = [{**run.config, **start} for run in counted for start in ({}, *run.config.get("history", ()))]
    facts = pd.json_normalize(starts).astype(str)
    names = ("commit", "device", "machine", "processes", "versions.", "flags.search", "flags.kmeans_restarts")
    return sorted(n.split(".")[-1] for n in facts if n.startswith(names) and facts[n].nunique() > 1)


# --- tables of numbers ---


def wide(table):
    """A line a row, in the units shown."""
    lines = []
    for row in table.rows:
        by = {name: text_of(row.flags.get(name, "")) for name in table.given.by}
        line = {"data set": table.name, "loss": row.label, **by, "n": len(row.runs)}
        line |= {"left out": len(row.every) - len(row.runs), "collapsed": row.runs["collapsed"].sum()}
        line |= {"seeds": " ".join(map(str, row.runs["seed"])), "base": row.base.full if row.base else ""}
        for metric, numbers in table.cells[row].items():
            line[heading(metric)] = numbers["mean"]
            names = ("std", "n", "difference", "low", "high", "p")
            line |= {f"{heading(metric)} {name}": numbers.get(name) for name in names}
        lines.append(line)
    return pd.DataFrame(lines)


def long(tables, given):
    """A line a run that counts and metric, as measured (not in percent), with every flag that differs: for pandas."""
    flags = pd.DataFrame([row.flags for table in tables for row in table.rows]).map(lambda v: None if v is False else v)
    differ, lines = sorted({*given.by, *flags.columns[flags.nunique(dropna=False) > 1]}), []
    for table, row in ((table, row) for table in tables for row in table.rows):
        texts = {name: text_of(row.flags.get(name, "")) for name in differ}
        for run in row.runs.itertuples():
            line = {"folder": run.folder, "data set": table.name, "label": row.full, "seed": run.seed, **texts}
            line |= {"split": given.split, "row": given.row, "epoch": int(run.chosen["epoch"])}
            for metric in table.decimals:
                value = run.chosen.get(metric if metric == "seconds" else f"{given.split}/{metric}")
                lines.append({**line, "metric": metric, "value": value})
    names = ["folder", "data set", "label", "seed", *differ, "split", "row", "epoch", "metric", "value"]
    return pd.DataFrame(lines, columns=names).dropna(subset="value")


# --- files ---


def section(table):
    """What is shown of a table: {title: DataFrame of texts}, their caption, {title: lines}, and (row, run) of each."""
    texts = {"": means(table)}
    if any(row.base for row in table.rows):
        flags = "flags tuned for each" if table.given.tuned else "same flags"
        texts[f"Difference to the base loss, {flags}, same seeds"] = differences(table)
    left = table.runs[table.runs["kind"] != ""].sort_values("kind", kind="stable")
    lacking = [row for row in table.rows if is_antico(row.flags) and not row.base and base_loss(row.flags) != "none"]
    lists = {
        f"Left out of the means, {len(left)} of {len(table.runs)} runs": [
            f"`{folder}`: {reason}" for folder, reason in zip(left["folder"], left["reason"])
        ],
        "Base losses that no run has": [f"`{command}`" for command in dict.fromkeys(map(base_command, lacking))],
    }
    named = [(row, run) for row in table.rows for run in row.every.itertuples()]
    return dict(title=table.title, texts=texts, caption=caption(table), lists=lists, runs=named)


def markdown(sections):
    parts = []
    for part in sections:
        parts += [f"## {part['title']}"] if len(sections) > 1 else []
        for title, texts in part["texts"].items():
            sides = ["left"] + ["right"] * (len(texts.columns) - 1)
            parts += [f"{title}:"] if title else []
            parts.append(texts.to_markdown(index=False, colalign=sides, disable_numparse=True))
        parts.append(part["caption"])
        parts += [f"**{title}:**\n\n- " + "\n- ".join(lines) for title, lines in part["lists"].items() if lines]
    return "\n\n".join(parts) + "\n"


def latex(sections):
    """booktabs tables, made smaller where wider than the page, without p; all other words are in comments."""
    parts = [r"% needs \usepackage{booktabs,graphicx}; written by python -m tables.report"]
    size = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    for part in sections:
        for title, texts in part["texts"].items():
            texts, sides = texts.replace(r" p [=<] [\d.]+", "", regex=True), "l" + "r" * (len(texts.columns) - 1)
            tabular = texts.to_latex(index=False, escape=True, column_format=sides)
            tabular = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", tabular)
            parts += [f"% {title or part['caption']}", size, tabular + "}\n"]
        parts += [f"% {title}: {line}" for title, lines in part["lists"].items() for line in lines]
    return "\n".join(parts) + "\n"


def page(**names):
    """One HTML file that needs nothing else."""
    loader = jinja2.FileSystemLoader(os.path.dirname(__file__))
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template.filters["inline"] = lambda path: base64.b64encode(Path(path).read_bytes()).decode()
    template.filters["pictures"] = lambda folder: sorted(Path(folder).glob("*.png"))
    return template.get_template("page.html").render(**names, text_of=text_of)


# --- the command ---


def parse(argv):
    parser = OneLineParser("python -m tables.report", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold such")
    add("--out", required=True, metavar="X", help="writes X.md X.csv X.tex X_runs.csv, X.png X.pdf, further figures")
    add("--html", action="store_true", help="also one page with all of it, X.html")
    add("--split", default="test", choices=["test", "val", "train"], help="whose metrics are shown")
    add("--row", default="last", choices=list(ROWS), help="epoch whose metrics are shown")
    add("--by", nargs="+", default=[], metavar="FLAG", help="flags with a column of their own, which sort the rows")
    add("--columns", nargs="+", default=[], metavar="METRIC", help="metrics to show; all without it")
    add("--count_collapsed", action="store_true", help="collapsed runs count in the means; else they are listed below")
    add("--tuned", action="store_true", help="each row has flags tuned for it: compare it with its base's one row")
    add("--failed", nargs="+", default=[], metavar="LINE", help="lines on runs that failed, put below the tables")
    given = parser.parse_args(argv)
    if not os.path.basename(given.out) or os.path.isdir(given.out):
        raise ValueError(f"--out {given.out}: is a folder; name the table in it, e.g. {given.out.rstrip('/')}/table")
    return given


@one_line_errors
def main(argv):
    given = parse(argv)
    tables = make_tables(collect(given), given)
    sections = [section(table) for table in tables]
    sections[-1]["lists"]["Failed"] = [" ".join(line.split()) for line in given.failed]
    texts = {".md": markdown(sections), ".tex": latex(sections)}
    texts[".csv"] = pd.concat(map(wide, tables)).to_csv(index=False, float_format="%.10g")
    texts["_runs.csv"] = long(tables, given).to_csv(index=False)
    for suffix, text in texts.items():
        write_whole(given.out + suffix, lambda file, text=text: file.write(text))
    print(texts[".md"])
    drawn, none = figures.write_all(tables, given.out)
    if given.html:
        command = shlex.join(["python", "-m", "tables.report", *argv])
        html = page(sections=sections, figures=drawn, command=command)
        write_whole(f"{given.out}.html", lambda file: file.write(html))
    files = [*texts, *([".html"] if given.html else []), *(path.removeprefix(given.out) for path in drawn.values())]
    print(*none, f"written: {given.out}{', '.join(files)}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
