"""One HTML file with everything: sortable tables, figures, what was left out, each run's flags and command."""

import base64
import contextlib
import os
import shlex

from utilities.report import formats, rows
from utilities.report.captions import caption, title

LARGEST = 3 * 2**20  # bytes of a picture that is taken into the page
PICTURES = ("panel.png", "spectrum.png", "tsne.png")  # in a run's folder, as evaluation/README.md names them


def inline(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


def pictures_of(folder):
    """[(name, data address)] of the PICTURES in a run's folder, which python -m evaluation draws."""
    pictures = []
    for name in PICTURES:
        with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, name), "rb") as file:
            data = file.read(LARGEST + 1)
            if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) <= LARGEST:
                pictures.append((name, inline(data)))
    return pictures


def describe_run(run, label):
    """What the page says of a run."""
    config = run.config
    command = shlex.join(["python", *map(str, config["command"])]) if config.get("command") else "unknown"
    flags = {name: rows.text_of(value) for name, value in sorted(run.flags.items())}
    others = {name: value for name, value in sorted(config["flags"].items()) if name not in run.flags}
    return {
        "folder": run.folder, "label": label, "seed": run.seed, "reason": run.reason, "command": command,
        "flags": flags, "others": others, "started": config.get("started", ""), "commit": config.get("commit"),
        "device": config.get("device"), "versions": config.get("versions") or {},
        "history": config.get("history") or [],
        "pictures": pictures_of(run.folder),
    }  # fmt: skip


def section(table, split, which):
    headings, body = formats.means(table)
    return {
        "title": title(table), "headings": headings, "body": body, "words": 1 + len(table.by),
        "published": table.published is not None, "difference": table.difference,
        "differences": formats.differences(table),
        "caption": ". ".join(caption(table, split, which)).replace("**", "") + ".",
        "left": formats.left_lines(table.left), "n_runs": len(table.runs),
        "runs": [describe_run(run, row.full) for row in table.rows for run in row.all_runs],
    }  # fmt: skip


def html(tables, split, which, figures, command, failed=()):
    """The page's text. figures : [(title, PNG bytes)]; failed : lines on runs that failed."""
    import jinja2

    here = os.path.dirname(os.path.abspath(__file__))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    shown = [(title, inline(png)) for title, png in figures]
    sections = [section(table, split, which) for table in tables]
    page = environment.get_template("page.html")
    return page.render(sections=sections, figures=shown, command=command, failed=failed)
