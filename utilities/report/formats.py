"""Tables as Markdown, CSV and LaTeX, and the runs behind them as a long CSV."""

import csv
import io

from utilities.report import rows as row_names
from utilities.report.captions import caption, title
from utilities.report.tables import SOURCE

DASH = "-"


# --- what the cells say ---


def mean_text(cell, column, n):
    """The mean of a Cell with its deviation; how many runs measured it, where that is not every run of the row."""
    if cell is None:
        return DASH
    spread = "" if cell.std is None else f" ± {cell.std:.{column.decimals}f}"
    return f"{cell.mean:.{column.decimals}f}{spread}" + (f" (n = {len(cell.values)})" if len(cell.values) != n else "")


def difference_text(difference, column, with_p=True):
    if difference is None:
        return DASH
    digits = column.decimals + (column.factor == 1)  # one more than the means of what is no percentage
    text = f"{difference.mean:+.{digits}f}"
    if difference.p is None:
        return text if difference.pairs == 1 else f"{text} ({difference.why})"
    p = f"p = {difference.p:.3f}" if difference.p >= 0.001 else "p < 0.001"
    return f"{text} [{difference.low:.{digits}f}, {difference.high:.{digits}f}]" + (f" {p}" if with_p else "")


def count_text(row):
    return f"{len(row.runs)} of {len(row.all_runs)}" if row.left else str(len(row.runs))


def means(table):
    """(headings, [[cell text, ...], ...]) of the table of means; the published row, if any, is the last."""
    headings = ["loss", *table.by, "n", *(column.heading for column in table.columns)]
    body = []
    for row in table.rows:
        values = [row_names.text_of(row.flags[name]) if name in row.flags else DASH for name in table.by]
        cells = [mean_text(row.cells[column], column, len(row.runs)) for column in table.columns]
        body.append([row.label, *values, count_text(row), *cells])
    if table.published is not None:
        cells = [f"{table.published:.1f}" if c.metric == "e_recall@1" else DASH for c in table.columns]
        body.append([published_label(), *(DASH for _ in table.by), DASH, *cells])
    return headings, body


def published_label():
    return f"published, not run here: ProxyAnchor, {SOURCE}"


def differences(table, narrow=False):
    """The same of the differences to the base: a cell is (text, whether it is significant). None where none has one.

    narrow: for a printed page, without p, the base, which the row names, and rows that have none.
    """
    columns = [column for column in table.columns if column.metric != "seconds"]
    if not any(row.base for row in table.compared) or not columns:
        return None
    body = []
    for row in table.compared:
        if narrow and not row.base:
            continue
        cells = []
        for column in columns:
            difference = row.differences.get(column)
            text = difference_text(difference, column, with_p=not narrow)
            cells.append((text, difference is not None and difference.significant))
        base = "no run of its base with the same flags"
        if row.base:
            base = row.base.full
        elif row.flags.get("antico_base") == "none":
            base = "has none"
        words = (row.full, pairs_text(row)) if narrow else (row.full, base, pairs_text(row))
        body.append([(text, False) for text in words] + cells)
    headings = ["loss", "seeds"] if narrow else ["loss", "base", "seeds in common"]
    return [*headings, *(column.heading for column in columns)], body


def pairs_text(row):
    if not row.base:
        return DASH
    seeds = sorted({run.seed for run in row.runs} & {run.seed for run in row.base.runs})
    return ", ".join(map(str, seeds)) or "none"


def left_lines(runs):
    """A line a run that does not count: its folder, why, and what to do."""
    order = ("diverged", "collapsed", "unfinished", "partial", "repeated")
    runs = sorted(runs, key=lambda run: order.index(run.kind))
    return [(run.folder, run.reason, run.advice) for run in runs]


# --- Markdown ---


def markdown(tables, split, which, failed=()):
    """A table a data set, then lines on runs that failed."""
    parts = []
    for table in tables:
        if len(tables) > 1:
            parts.append(f"## {title(table)}")
        headings, body = means(table)
        parts.append(pipes(headings, body, 1 + len(table.by)))
        compared = differences(table)
        if compared:
            text = [[f"**{cell}**" if bold else cell for cell, bold in row] for row in compared[1]]
            parts.append(f"{table.difference}:\n\n" + pipes(compared[0], text, 3))
        parts.append(". ".join(caption(table, split, which)) + ".")
        if table.left:
            lines = [
                f"- `{folder}`: {reason}. **To do:** {advice}." for folder, reason, advice in left_lines(table.left)
            ]
            parts.append(
                f"**Left out of the means, {len(table.left)} of {len(table.runs)} runs:**\n\n" + "\n".join(lines)
            )
    if failed:
        parts.append("**Failed:**\n\n" + "\n".join(f"- {line}" for line in failed))
    return "\n\n".join(parts) + "\n"


def pipes(headings, body, left):
    """A Markdown table, padded; the first `left` columns to the left."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [headings, *body]]
    widths = [max(map(len, column)) for column in zip(*lines)]

    def line(cells):
        return (
            "| "
            + " | ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths)))
            + " |"
        )

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])


# --- CSV ---


def wide_csv(tables):
    """The table in numbers, in the units shown: means, deviations, and differences to the base."""
    columns = list(dict.fromkeys((column.metric, column.heading) for table in tables for column in table.columns))
    by = tables[0].by
    names = ["data set", "loss", *by, "n", "left out", "seeds", "base"]
    for _, name in columns:
        names += [name, f"{name} std", f"{name} n", f"{name} difference", f"{name} low", f"{name} high", f"{name} p"]
    lines = []
    for table in tables:
        for row in table.rows:
            line = {"data set": table.name, "loss": row.label, "n": len(row.runs), "left out": len(row.left)}
            line |= {name: row_names.text_of(row.flags[name]) for name in by if name in row.flags}
            line |= {"seeds": " ".join(str(run.seed) for run in row.runs), "base": row.base.full if row.base else ""}
            for column, cell in row.cells.items():
                line |= numbers(column.heading, cell, row.differences.get(column))
            lines.append(line)
        if table.published is not None:
            lines.append({"data set": table.name, "loss": published_label(), "Recall@1": table.published})
    return csv_text(names, lines)


def numbers(name, cell, difference):
    values = {}
    if cell:
        values = {name: cell.mean, f"{name} std": cell.std, f"{name} n": len(cell.values)}
    if difference:
        values |= {f"{name} difference": difference.mean, f"{name} low": difference.low}
        values |= {f"{name} high": difference.high, f"{name} p": difference.p}
    return {
        key: value if value is None or isinstance(value, int) else float(f"{value:.10g}")
        for key, value in values.items()
    }


def long_csv(tables, split, which):
    """One line a run that counts and metric, as measured (not in percent), with every flag that differs: for pandas."""
    every = [row for table in tables for row in table.rows]
    flags = sorted(set(row_names.differing(every)) | {name for table in tables for name in table.by})
    names = ["folder", "data set", "label", "seed", *flags, "split", "row", "epoch", "metric", "value"]
    lines = []
    for table in tables:
        for row in table.rows:
            values = {name: row_names.text_of(row.flags[name]) for name in flags if name in row.flags}
            for run in row.runs:
                line = {"folder": run.folder, "data set": table.name, "label": row.full, "seed": run.seed, **values}
                line |= {"split": split, "row": which, "epoch": int(run.chosen["epoch"])}
                for column in table.columns:
                    value = run.chosen.get(column.name(split))
                    if value is not None:
                        lines.append({**line, "metric": column.metric, "value": value})
    return csv_text(names, lines)


def csv_text(names, lines):
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


# --- LaTeX ---

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"\textbar{}",
    '"': "''", "\n": " ", "×": r"$\times$",
}  # fmt: skip


FIT_OR_NOT = r"\providecommand{\resizebox}[3]{#3}"  # as wide as it is, in a document without graphicx


def tex(text):
    """Text as LaTeX shows it; characters that pdflatex may not know become a question mark."""
    return "".join(TEX.get(c, c if " " <= c < "\x7f" else "?") for c in str(text))


def latex(tables, split, which, failed=()):
    """A table environment a data set; the document needs \\usepackage{booktabs}. What failed is a comment."""
    parts = [r"% needs \usepackage{booktabs}, and graphicx to fit the page; written by python -m utilities.report"]
    parts.append(FIT_OR_NOT)
    for table in tables:
        lines = [". ".join(caption(table, split, which)).replace("**", "") + "."]
        lines += [f"{len(table.left)} of {len(table.runs)} runs left out of the means."] if table.left else []
        headings, body = means(table)
        parts += [r"\begin{table}", r"\centering\small", rf"\caption{{{tex(' '.join(lines))}}}"]
        parts += tabular(headings, [[(cell, False) for cell in row] for row in body], 1 + len(table.by))
        compared = differences(table, narrow=True)
        if compared:
            headings, body = compared
            seeds = {row[1][0] for row in body}
            if len(seeds) == 1:  # a column with the same in all
                headings, body = [headings[0], *headings[2:]], [[row[0], *row[2:]] for row in body]
            of_seeds = f" ({seeds.pop()})" if len(seeds) == 1 else ""
            parts += [r"\par\medskip", tex(f"{table.difference}{of_seeds}:"), r"\par\smallskip"]
            parts += tabular(headings, body, 1 if of_seeds else 2)
        parts += [r"\end{table}"]
        parts += [
            comment(f"left out: {folder}: {reason}; {advice}") for folder, reason, advice in left_lines(table.left)
        ]
    return "\n".join([*parts, *(comment(f"failed: {line}") for line in failed)]) + "\n"


def comment(text):
    return "% " + " ".join(text.split())


def tabular(headings, body, left):
    """booktabs lines, made smaller where wider than the page; a cell is (text, whether it is bold)."""
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
    lines = [rf"{fit}\begin{{tabular}}{{{'l' * left}{'r' * (len(headings) - left)}}}", r"\toprule"]
    lines += [" & ".join(map(tex, headings)) + r" \\", r"\midrule"]
    for row in body:
        lines.append(" & ".join(rf"\textbf{{{tex(cell)}}}" if bold else tex(cell) for cell, bold in row) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}}"]
