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

import jinja2
import pandas as pd
from scipy import stats

from tables import figures
from tables.rows import base_command, base_loss, collect, factor, heading, is_antico, make_rows, text_of, unusual
from utilities.command_line import OneLineParser, one_line_errors
from utilities.files import write_whole
from utilities.registry import lookup

ROWS = {
    "last": "last epoch",
    "best-test": "best epoch on the test split (as published tables; it flatters)",
    "best-val": "best epoch on the validation split",
}
LEVEL = 0.05  # of the test and, as 1 - LEVEL, of the confidence interval
KINDS = ("diverged", "collapsed", "unfinished", "partial", "repeated")  # of runs that do not count
TEX = str.maketrans({c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$",
    ">": "$>$", "|": r"\textbar{}",
})  # fmt: skip


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
    lines = {number: {} if chosen is None else chosen for number, chosen in runs["chosen"].items()}
    table = pd.DataFrame.from_dict(lines, orient="index").reindex(runs.index).dropna(axis=1, how="all")
    names = [name for name in table if name.startswith(f"{split}/")] + [name for name in table if name == "seconds"]
    table = table[names].rename(columns=lambda name: name.removeprefix(f"{split}/"))
    return table * [factor(metric) for metric in table]


def make_tables(runs, given):
    """A Table a data set. Raises ValueError, one line, for names that the runs do not have."""
    flags = {name: 0 for its_own in runs["flags"] for name in its_own}
    for name in given.by:
        lookup("--by", name, flags)
    every, counts = measured(runs, given.split), runs["chosen"].notna().any()
    if counts and set(every) <= {"seconds"}:
        advice = {"val": "; --use_tv_split makes one", "train": "; it is measured without --no_train_metrics"}
        raise ValueError(f"--split {given.split}: no run has measured it{advice.get(given.split, '')}")
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


# --- tables of texts and of numbers ---


def means(table):
    lines = []
    for row in table.rows:
        n, collapsed = len(row.runs), row.runs["collapsed"].sum()
        count = (f"{n} of {len(row.every)}" if len(row.left) else f"{n}") + (
            f" ({collapsed} collapsed)" if collapsed else ""
        )
        line = {"loss": row.label, **{name: text_of(row.flags.get(name, "-")) for name in table.given.by}, "n": count}
        lines.append(
            line | {heading(m): mean_text(found, n, table.decimals[m]) for m, found in table.cells[row].items()}
        )
    return pd.DataFrame(lines)


def mean_text(numbers, n, decimals):
    if not numbers["n"]:
        return "-"
    spread = f" ± {numbers['std']:.{decimals}f}" if numbers["n"] > 1 else ""
    return f"{numbers['mean']:.{decimals}f}{spread}" + (f" (n = {numbers['n']})" if numbers["n"] < n else "")


def differences(table):
    """To the base; an empty table where no row has one."""
    lines = []
    for row in (row for row in table.rows if is_antico(row.flags) and any(row.base for row in table.rows)):
        base = row.base.full if row.base else "has none" if base_loss(row.flags) == "none" else "no run of it"
        common = sorted(set(row.runs["seed"]) & set(row.base.runs["seed"])) if row.base else "-"
        line = {"loss": row.full, "base": base, "seeds": ", ".join(map(str, common)) or "none"}
        shown = {metric: found for metric, found in table.cells[row].items() if metric != "seconds"}
        lines.append(line | {heading(m): difference_text(m, found, table.decimals[m]) for m, found in shown.items()})
    return pd.DataFrame(lines)


def difference_text(metric, numbers, decimals):
    """With one decimal more than the means of what is no percentage; **bold** is significant, better or worse."""
    if not numbers["pairs"]:
        return "-"
    decimals, p = decimals + (factor(metric) == 1), numbers.get("p")
    text = f"{numbers['difference']:+.{decimals}f}"
    if p is None:
        return text if numbers["pairs"] == 1 else f"{text} (all equal: no test)"
    text += f" [{numbers['low']:.{decimals}f}, {numbers['high']:.{decimals}f}] "
    text += f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    return f"**{text}**" if p < LEVEL else text


def wide(table):
    """The same in numbers, in the units shown."""
    lines = []
    for row in table.rows:
        by = {name: text_of(row.flags.get(name, "")) for name in table.given.by}
        line = {"data set": table.name, "loss": row.label, **by, "n": len(row.runs), "left out": len(row.left)}
        line |= {"collapsed": row.runs["collapsed"].sum(), "seeds": " ".join(map(str, row.runs["seed"]))}
        line |= {"base": row.base.full if row.base else ""}
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


# --- words ---


def caption(table):
    """What the numbers are, their units, the test, what differs within and between rows."""
    flags, given = pd.DataFrame([row.flags for row in table.rows]), table.given
    words = {"arch": "{}", "embed_dim": "{} dimensions", "n_epochs": "{} epochs"}
    facts = [text.format(flags[name][0]) for name, text in words.items() if flags[name].nunique() == 1]
    best = f" by {' or '.join(sorted(set(table.runs['best_by'])))}" if given.row != "last" else ""
    lines = [", ".join([table.title, *facts, f"{given.split} split, {ROWS[given.row]}{best}"])]
    percent = ", ".join(heading(metric) for metric in table.decimals if factor(metric) == 100)
    units = {"coding_rate@share": "coding rate: share of its maximum", "effective_rank": "effective rank: of embed_dim"}
    lines.append("; ".join([f"Percent: {percent}", *(units[metric] for metric in table.decimals if metric in units)]))
    several = any(len(row.runs) > 1 for row in table.rows)
    spread = "n: runs with different seeds; mean ± standard deviation over them (n - 1)"
    lines.append(spread if several else "One seed a row: no deviation and no test")
    usual = {f"{name} {text_of(value)}" for row in table.rows for name, value in unusual(row, table.rows)[1].items()}
    lines += [f"In brackets: what differs from {', '.join(sorted(usual))}"] if usual else []
    lines += ["Each row has flags of its own, tuned for it; the csv of the runs has them"] if given.tuned else []
    if several and any(row.base for row in table.rows):
        tests = sum("p" in numbers for cells in table.cells.values() for numbers in cells.values())
        lines.append(
            "Difference: mean of (row - base) over the seeds that both have, [95% confidence interval], p of the "
            f"two-sided paired t-test; **bold: p < {LEVEL}**, better or worse; not corrected for the number of tests, "
            f"which is {tests} here"
        )
    seeds = {", ".join(map(str, row.runs["seed"])) for row in table.rows if len(row.runs)}
    lines.append(f"Seed {seeds.pop()}" if len(seeds) == 1 else "Seeds differ between rows")
    return ". ".join(lines + facts_that_differ(table)) + "."


def facts_that_differ(table):
    """Sentences on commits, versions, machines and search where the runs that count do not agree."""
    facts = []
    for row, run in ((row, run) for row in table.rows for run in row.runs.itertuples()):
        own = {name: run.every.get(name) for name in ("search", "kmeans_restarts")}
        own |= dict(row=row.full, processes=run.config.get("processes"))
        for start in (run.config, *run.config.get("history", ())):
            commit = re.sub(r"^([0-9a-f]{8})[0-9a-f]{32}", r"\1", str(start.get("commit")))
            versions = {f"version of {name}": version for name, version in (start.get("versions") or {}).items()}
            facts.append(dict(own, commit=commit, device=start.get("device"), machine=start.get("machine"), **versions))
    facts = pd.DataFrame(facts, dtype=object)
    groups = facts.groupby("row") if len(facts) else {}
    return [
        f"{name.capitalize()} differs {'within' if groups[name].nunique(dropna=False).max() > 1 else 'between'} rows: "
        + ", ".join(sorted(map(str, facts[name].unique())))
        for name in facts.columns.drop("row", errors="ignore")
        if facts[name].nunique(dropna=False) > 1
    ]


# --- files ---


def section(table):
    """What is shown of a table: [(title, DataFrame of texts, how many columns are words)], words, lists, runs."""
    same = "each with its own flags, same" if table.given.tuned else "same flags and"
    title, differ = f"Difference to the base loss, {same} seeds", differences(table)
    texts = [("", means(table), 1 + len(table.given.by))] + ([(title, differ, 3)] if len(differ) else [])
    left = table.runs[table.runs["kind"] != ""].sort_values(
        "kind", key=lambda kinds: kinds.map(KINDS.index), kind="stable"
    )
    lacking = [row for row in table.rows if is_antico(row.flags) and not row.base and base_loss(row.flags) != "none"]
    commands = [f"`{command}`" for command in dict.fromkeys(map(base_command, lacking))]
    lists = {
        f"Left out of the means, {len(left)} of {len(table.runs)} runs": [
            f"`{run.folder}`: {run.reason}. **To do:** {run.advice}." for run in left.itertuples()
        ],
        "Base losses that no run has": commands if len(commands) <= 3 else [],  # of a sweep they may be many
    }
    named = [(row, run) for row in table.rows for run in row.every.itertuples()]
    return dict(title=table.title, texts=texts, caption=caption(table), lists=lists, runs=named)


def markdown(sections, failed):
    parts = []
    for part in sections:
        parts += [f"## {part['title']}"] if len(sections) > 1 else []
        for title, texts, words in part["texts"]:
            sides = ["left"] * words + ["right"] * (len(texts.columns) - words)
            parts += [f"{title}:"] if title else []
            parts.append(texts.to_markdown(index=False, colalign=sides, disable_numparse=True))
        parts.append(part["caption"])
        parts += [f"**{title}:**\n\n- " + "\n- ".join(lines) for title, lines in part["lists"].items() if lines]
    return "\n\n".join(parts + (["**Failed:**\n\n- " + "\n- ".join(failed)] if failed else [])) + "\n"


def tex(text):
    """Text as LaTeX shows it; characters that pdflatex may not know become a question mark."""
    plain = text.translate(TEX).encode("ascii", "replace").decode()
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", plain)


def latex(sections, failed):
    """booktabs tables, made smaller where wider than the page; what was left out or failed is in comments."""
    parts = [r"% needs \usepackage{booktabs,graphicx}; written by python -m tables.report"]
    for part in sections:
        for title, texts, words in part["texts"]:
            if title:  # p and the base, which the row names, are too much for a printed page
                texts = texts[texts["seeds"] != "-"].drop(columns="base").replace(r" p [=<] [\d.]+", "", regex=True)
            sides = "l" * (words - bool(title)) + "r" * (len(texts.columns) - words + bool(title))
            tabular = texts.map(tex).rename(columns=tex).to_latex(index=False, escape=False, column_format=sides)
            parts += [r"\begin{table}\centering\small", rf"\caption{{{tex(title or part['caption'])}}}"]
            parts += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", tabular + r"}\end{table}"]
        parts += [f"% {title}: {line}" for title, lines in part["lists"].items() for line in lines]
    return "\n".join(parts + ["% failed: " + " ".join(line.split()) for line in failed]) + "\n"


def page(sections, drawn, command, failed):
    """One HTML file that needs nothing else. drawn : {title: path of a PNG}"""

    def inline(path):
        with open(path, "rb") as file:
            return "data:image/png;base64," + base64.b64encode(file.read()).decode()

    def pictures(folder):
        paths = {name: os.path.join(folder, f"{name}.png") for name in ("panel", "spectrum", "tsne")}
        return {name: inline(path) for name, path in paths.items() if os.path.exists(path)}

    loader = jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__)))
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = {title: inline(path) for title, path in drawn.items()}
    names = dict(sections=sections, figures=shown, command=command, failed=failed, pictures=pictures, text_of=text_of)
    return template.get_template("page.html").render(names)


# --- the command ---


def parse(argv):
    parser = OneLineParser("python -m tables.report", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold such")
    add("--out", required=True, metavar="X", help="writes X.md X.csv X.tex X_runs.csv, X.png X.pdf, further figures")
    add("--html", nargs="?", const=True, metavar="FILE", help="also one page with all of it, X.html unless named")
    add("--split", default="test", choices=["test", "val", "train"], help="whose metrics are shown")
    add("--row", default="last", choices=list(ROWS), help="epoch whose metrics are shown")
    add("--by", nargs="+", default=[], metavar="FLAG", help="flags with a column of their own, which sort the rows")
    add("--columns", nargs="+", default=[], metavar="METRIC", help="metrics to show; all without it")
    add("--count_collapsed", action="store_true", help="collapsed runs count in the means; else they are listed below")
    add("--tuned", action="store_true", help="Each row has flags tuned for it: compare it with its base's one row")
    add("--failed", nargs="+", default=[], metavar="LINE", help="lines on runs that failed, put below the tables")
    given = parser.parse_args(argv)
    root, suffix = os.path.splitext(given.out)
    given.out = root if suffix in (".md", ".csv", ".tex", ".png", ".pdf", ".html") else given.out
    if not os.path.basename(given.out) or os.path.isdir(given.out):
        raise ValueError(f"--out {given.out}: is a folder; name the table in it, e.g. {given.out.rstrip('/')}/table")
    return given


@one_line_errors
def main(argv):
    given = parse(argv)
    tables = make_tables(collect(given), given)
    sections = [section(table) for table in tables]
    texts = {".md": markdown(sections, given.failed), ".tex": latex(sections, given.failed)}
    texts[".csv"] = pd.concat(map(wide, tables)).to_csv(index=False, float_format="%.10g")
    texts["_runs.csv"] = long(tables, given).to_csv(index=False)
    for suffix, text in texts.items():
        write_whole(given.out + suffix, lambda file, text=text: file.write(text))
    print(texts[".md"])
    drawn, none = figures.write_all(tables, given.out)
    if given.html:
        html = page(sections, drawn, shlex.join(["python", "-m", "tables.report", *argv]), given.failed)
        write_whole(f"{given.out}.html" if given.html is True else given.html, lambda file: file.write(html))
    print(*none, f"written: {given.out}.md, {', '.join([*texts, *drawn.values()])}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
