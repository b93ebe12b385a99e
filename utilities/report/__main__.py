"""Tables, figures and a page of runs: python -m utilities.report RUNS... --out results/name

Each of RUNS is a run's folder (config.json, metrics.csv) or holds such folders. Rows are told apart by every flag that
acts on training; runs that differ in the seed alone make one row. utilities/report/README.md says what counts.
"""

import os
import shlex
import sys

from utilities.command_line import OneLineParser, one_line_errors
from utilities.files import write_whole
from utilities.report import formats
from utilities.report.collect import ROWS, collect
from utilities.report.tables import make_tables

SUFFIXES = (".md", ".csv", ".tex", ".png", ".pdf", ".html")
TITLES = {
    "": "Against epochs: mean over seeds, their range as a band", "_hyper": "Against the hyperparameter",
    "_rate": "Against the coding rate's share, one point a run",
    "_spectrum": "Singular values of the embeddings that the runs left",
    "_proxies": "Similarity of the class proxies in the last checkpoints",
    "_tsne": "t-SNE of the embeddings that the runs left, the same classes in each",
}  # fmt: skip


def parse(argv):
    parser = OneLineParser("python -m utilities.report", description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold such")
    add("--out", required=True, metavar="X", help="writes X.md X.csv X.tex X_runs.csv, X.png X.pdf, further figures")
    add("--html", nargs="?", const=True, metavar="FILE", help="also one page with all of it, X.html unless named")
    add("--split", default="test", choices=["test", "val", "train"], help="whose metrics are shown")
    add("--row", default="last", choices=list(ROWS), help="epoch whose metrics are shown")
    add("--by", nargs="+", default=[], metavar="FLAG", help="flags with a column of their own, which sort the rows")
    add("--columns", nargs="+", default=[], metavar="METRIC", help="metrics to show; all without it")
    add("--count_collapsed", action="store_true", help="collapsed runs count in the means; else they are listed below")
    add("--tuned", action="store_true", help="each row has flags tuned for it: compare it with its base's one row")
    add("--failed", nargs="+", default=[], metavar="LINE", help="lines on runs that failed, put below the tables")
    return parser.parse_args(argv)


def check_out(path):
    """The path without a suffix. ValueError, one line, where it names no file."""
    root, suffix = os.path.splitext(path)
    path = root if suffix in SUFFIXES else path
    if not os.path.basename(path) or os.path.isdir(path):
        raise ValueError(f"--out {path}: is a folder; name the table in it, e.g. {os.path.join(path, 'table')}")
    return path


def write_tables(out, tables, split, which, failed):
    texts = {
        ".md": formats.markdown(tables, split, which, failed), ".csv": formats.wide_csv(tables),
        ".tex": formats.latex(tables, split, which, failed), "_runs.csv": formats.long_csv(tables, split, which),
    }  # fmt: skip
    for suffix, text in texts.items():
        write_whole(out + suffix, lambda file, text=text: file.write(text))
    return texts[".md"], [out + suffix for suffix in texts]


def write_figures(out, tables, split):
    """([(title, PNG bytes)], files written, {figure: why there is none})."""
    from utilities.report import figures, style

    shown, files, none = [], [], {}
    for suffix, figure in figures.draw_all(tables, split).items():
        if isinstance(figure, str):
            stale = f"; {out}{suffix}.png is of a former report" if os.path.exists(f"{out}{suffix}.png") else ""
            none[suffix] = figure + stale
            continue
        drawn = style.finish(figure)
        for kind, data in drawn.items():
            write_whole(f"{out}{suffix}.{kind}", lambda file, data=data: file.write(data), "wb")
            files.append(f"{out}{suffix}.{kind}")
        shown.append((TITLES[suffix], drawn["png"]))
    return shown, files, none


def report(given, argv):
    given.out = check_out(given.out)
    runs = collect(given.runs, given.split, given.row, given.count_collapsed)
    tables = make_tables(runs, given.split, given.by, given.columns, given.tuned)
    text, files = write_tables(given.out, tables, given.split, given.row, given.failed)
    print(text)
    figures, drawn, none = write_figures(given.out, tables, given.split)
    files += drawn
    if given.html:
        from utilities.report import page

        path = given.out + ".html" if given.html is True else given.html
        command = shlex.join(["python", "-m", "utilities.report", *argv])
        whole = page.html(tables, given.split, given.row, figures, command, given.failed)
        write_whole(path, lambda file: file.write(whole))
        files.append(path)
    for suffix, why in none.items():
        print(f"no {given.out}{suffix}.png: {why}")
    first, *others = files
    print("written:", ", ".join([first, *(path.removeprefix(given.out) for path in others)]))


@one_line_errors
def main(argv):
    report(parse(argv), argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
