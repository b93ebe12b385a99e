"""The words under a table: what its numbers are, their units and test, and what differs that is no flag."""

import re

from utilities.report import rows as row_names
from utilities.report.collect import ROWS, best_by
from utilities.report.data import in_words
from utilities.report.tables import LEVEL


def title(table):
    """The data set in words; its name where that says more."""
    return max(in_words(table.data), table.name, key=len)


def caption(table, split, which):
    """[a sentence, ...]: what the numbers are, their units, the test, what differs within and between rows."""
    flags = [row.flags for row in table.rows]
    common = {name: flags[0].get(name) for name in ("arch", "embed_dim", "n_epochs")}
    words = {"arch": "{}", "embed_dim": "{} dimensions", "n_epochs": "{} epochs"}
    facts = [
        words[n].format(v).removesuffix("s" if v == 1 else "")
        for n, v in common.items()
        if v is not None and all(f.get(n) == v for f in flags)
    ]
    chosen = sorted({best_by(run) for row in table.rows for run in row.runs})
    best = f" by {' or '.join(chosen)}" if which != "last" else ""
    lines = [", ".join([title(table), *facts, f"{split} split, {ROWS[which]}{best}"])]
    percent = [column.heading for column in table.columns if column.factor == 100]
    units = [f"Percent: {', '.join(percent)}"] if percent else []
    units += ["coding rate: share of its maximum"] if "coding rate" in percent else []
    units += ["effective rank: of embed_dim"] if any(c.metric == "effective_rank" for c in table.columns) else []
    units += ["seconds: of training and evaluation"] if any(c.metric == "seconds" for c in table.columns) else []
    lines += ["; ".join(units)] if units else []
    several = any(len(row.runs) > 1 for row in table.rows)
    spread = "n: runs with different seeds; mean ± standard deviation over them (n - 1)"
    lines.append(spread if several else "one seed a row: no deviation and no test")
    collapsed = sum(run.collapsed for row in table.rows for run in row.runs)
    lines += (
        [f"{collapsed} of the {len(table.runs)} runs collapsed, and count (--count_collapsed)"] if collapsed else []
    )
    differences = [d for row in table.rows for d in row.differences.values() if d is not None]
    tests = sum(d.p is not None for d in differences)
    if table.compared and not any(row.base for row in table.compared):
        lines.append("no difference to a base loss: no run of one with the same flags")
    if differences and table.tuned:
        lines.append("Each row has flags of its own, tuned for it; the csv of the runs has them")
    if differences and not several:
        lines.append("Difference: row - base")
    elif differences:
        alone = "; no test of a single common seed" if any(d.pairs == 1 for d in differences) else ""
        lines.append(
            "Difference: mean of (row - base) over the seeds that both have, [95% confidence interval], p of the "
            f"two-sided paired t-test; **bold: p < {LEVEL}**, better or worse; not corrected for the number of tests, "
            f"which is {tests} here{alone}"
        )
    return lines + centers(table) + seeds_of(table) + facts_that_differ(table)


def centers(table):
    """Sentences on the rows of which others change one flag."""
    heads = dict.fromkeys(row.head for row in table.rows)
    centers_of = [row_names.center_of([row for row in table.rows if row.head == head]) for head in heads]
    return [f"brackets with one flag: all others as in {row.full}" for row in centers_of if row]


def seeds_of(table):
    seeds = {row.full: ", ".join(str(run.seed) for run in row.runs) for row in table.rows if row.runs}
    if len(set(seeds.values())) <= 1:
        return [f"seed {text}" for text in set(seeds.values())]
    return ["seeds differ: " + "; ".join(f"{label}: {text}" for label, text in seeds.items())]


def facts_that_differ(table):
    """Sentences on commits, versions, machines and search where the runs that count do not agree."""
    lines = []
    every = {name for row in table.rows for run in row.runs for name in facts_of(run)}
    for name in sorted(every):
        values = [{value for run in row.runs for value in facts_of(run).get(name, ["unknown"])} for row in table.rows]
        within = [row.full for row, inside in zip(table.rows, values) if len(inside) > 1]
        union = sorted(set().union(*values))
        if within:
            lines.append(f"{name} differs within a row ({'; '.join(within)}): {', '.join(union)}")
        elif len(union) > 1:
            lines.append(f"{name} differs between rows: {', '.join(union)}")
        elif (name, union) == ("search", ["ivf"]):
            lines.append("search: ivf, approximate")
    return lines


def facts_of(run):
    """{fact: [values]} that are no flags of training, of every start of the run."""
    starts = [run.config, *(entry for entry in run.config.get("history") or () if isinstance(entry, dict))]
    facts = {}
    for start in starts:
        for name in ("commit", "device", "machine"):
            facts.setdefault(name, []).append(short(start.get(name)))
        for package, version in (start.get("versions") or {}).items():
            facts.setdefault(f"version of {package}", []).append(str(version))
    facts["processes"] = [str(run.config.get("processes") or 1)]
    for name in ("search", "kmeans_restarts"):
        if run.setting(name) is not None:
            facts[name] = [str(run.setting(name))]
    return facts


def short(value):
    """A commit as people write it; + : files were changed."""
    hexadecimal = re.fullmatch(r"([0-9a-f]{8})[0-9a-f]{32}(\+?)", str(value))
    return hexadecimal[1] + hexadecimal[2] if hexadecimal else str(value or "unknown")
