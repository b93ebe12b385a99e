"""Runs as their folders tell them: config.json and metrics.csv, the flags that acted, and whether the numbers count."""

import contextlib
import csv
import datetime
import math
import os
import re
import shlex
from dataclasses import dataclass, field

from utilities import folders
from utilities.collapse import is_collapse
from utilities.flags import MAY_CHANGE, acting
from utilities.report.data import data_of
from utilities.trackers import protocol_rows

# these tell no rows apart: the data do so otherwise, see data.py
NO_ROW = (MAY_CHANGE - {"n_epochs"}) | {
    "seed", "dataset", "allow_partial", "skip_broken", "evaluate_only", "checkpoint", "data_ssl_set", "internal_split",
}  # fmt: skip
ROWS = {
    "last": "last epoch",
    "best-test": "best epoch on the test split (as published tables; it flatters)",
    "best-val": "best epoch on the validation split",
}


@dataclass
class Run:
    """A run's folder, read. `reason` and `advice` are set where its numbers do not count."""

    folder: str
    config: dict
    rows: list  # of metrics.csv: {column: float, None where a cell is empty}
    flags: dict  # those that act on training, {name: value}, lists as tuples, without what is None
    seed: int
    epochs: int  # that it was to have
    chosen: dict = field(default_factory=dict)  # the row that the report shows
    collapsed: bool = False
    kind: str = ""  # why it does not count, in one word: unfinished, diverged, collapsed, partial, repeated
    reason: str = ""
    advice: str = ""

    @property
    def data(self):
        return data_of(self.config, folders.all_flags(self.config))

    def setting(self, name):
        """A flag's value, whether it acted or not; None where the run has no such flag."""
        return folders.all_flags(self.config).get(name)

    @property
    def key(self):
        return self.data, tuple(sorted((name, value) for name, value in self.flags.items()))


def find_runs(given):
    """Every folder under the given ones that holds a run, each once, in natural order. Raises ValueError, one line."""

    def natural(name):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    def walk(top):
        seen, unreadable = set(), []
        for folder, below, files in os.walk(top, followlinks=True, onerror=unreadable.append):
            real = os.path.realpath(folder)
            below[:] = [] if real in seen else sorted(below, key=natural)  # links may lead round in a circle
            if real not in seen and {"metrics.csv", "config.json"} & set(files) and is_ours(folder, files):
                yield real, os.path.normpath(folder)
            seen.add(real)
        if unreadable:
            raise unreadable[0]

    runs = {}
    for top in given:
        top = str(top).removesuffix(".log") if os.path.isfile(top) else top  # a queue's log of a run: RUNS/* has it too
        if not os.path.isdir(top):
            raise ValueError(f"{top}: {'a file, not a folder of runs' if os.path.exists(top) else 'no such folder'}")
        here = dict(walk(top))
        if not here:
            raise ValueError(f"{top}: no run there (a folder with config.json and metrics.csv)")
        for real, folder in here.items():
            runs.setdefault(real, folder)
    return list(runs.values())


def is_ours(folder, files):
    """Whether config.json is a run's: other programs write files of that name too."""
    if {"metrics.csv", ".lock", "checkpoint.pt"} & set(files):
        return True
    with (
        contextlib.suppress(OSError),
        open(os.path.join(folder, "config.json"), encoding="utf-8", errors="replace") as f,
    ):
        return '"flags"' in f.read()
    return True


def read_run(folder):
    """The Run of a folder. Raises ValueError, one line that names the file, where one is damaged."""
    config = folders.read_config(folder)
    seed, every = config.get("seed"), folders.all_flags(config)
    problem = next((n for n in ("loss", "dataset", "arch") if not isinstance(every.get(n), str)), None)
    problem = problem or (None if isinstance(seed, int) else "seed")
    if problem:
        raise ValueError(f"{os.path.join(folder, 'config.json')}: damaged (no {problem})")
    rows = read_rows(os.path.join(folder, "metrics.csv"))
    done = int(rows[-1]["epoch"]) if rows else 0
    asked = every.get("n_epochs")
    if not isinstance(asked, int):
        raise ValueError(f"{os.path.join(folder, 'config.json')}: damaged (no n_epochs)")
    epochs = max(asked, done)  # --resume with fewer epochs than were trained does not untrain
    try:
        flags = {**acting_flags(config, every), "n_epochs": epochs}
    except (TypeError, AttributeError, KeyError) as wrong:
        raise ValueError(f"{os.path.join(folder, 'config.json')}: damaged ({wrong})") from wrong
    return Run(folder, config, rows, flags, seed, epochs)


def read_rows(path):
    """metrics.csv as [{column: float or None}]; [] where there is none yet."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, strict=True))
        names = lines[0] if lines else []
        if "epoch" not in names or len(lines) < 2:
            raise ValueError("no column epoch" if len(lines) > 1 else "no row")
        if len(set(names)) < len(names):
            raise ValueError("a column stands twice")
        rows = []
        for number, cells in enumerate(lines[1:], 2):
            if len(cells) != len(names):
                raise ValueError(f"line {number} has {len(cells)} of {len(names)} cells")
            rows.append({name: float(cell) if cell else None for name, cell in zip(names, cells)})
        epochs = [row["epoch"] for row in rows]
        if not all(epoch is not None and epoch % 1 == 0 for epoch in epochs):
            raise ValueError("an epoch is not a whole number")
        if any(after <= before for before, after in zip(epochs, epochs[1:])):
            raise ValueError("its epochs do not rise")
        return rows
    except FileNotFoundError:
        return []
    except (ValueError, csv.Error) as problem:
        raise ValueError(f"{path}: damaged ({str(problem).splitlines()[0]})") from problem


def acting_flags(config, every):
    """{name: value} of the flags that act on this run's training; one that the run lacks has its default.

    `every` : all flags of the run, as read. What the run itself noted as without effect does not act either.
    """
    try:
        chosen = acting(every)
    except ValueError:  # a loss that there is no longer
        chosen = dict(every)
    # the network's own size where the flag was not given
    chosen["input_size"] = (config.get("data") or {}).get("input_size") or every.get("input_size")
    idle = NO_ROW | set(config.get("without_effect", ()))
    return {name: frozen(value) for name, value in chosen.items() if name not in idle and value is not None}


def frozen(value):
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def collect(given, split, which, count_collapsed=False):
    """Every Run under the given folders, with its chosen row, and with a reason where its numbers do not count."""
    runs = [read_run(folder) for folder in find_runs(given)]
    for run in runs:
        leave_out_incomplete(run)
    for run in runs:
        if not run.reason:
            run.chosen = chosen_row(run, which)
    leave_out_repeated(runs)
    for run in runs:
        if not run.reason:
            look_for_collapse(run, split, count_collapsed)
    return runs


def chosen_row(run, which):
    """The row of a finished run that --row names; ValueError, one line, where it has none."""
    if which == "last":
        return run.rows[-1]
    row = protocol_rows(run.rows, best_by(run)).get(which)
    if row is None:
        name = f"{which.removeprefix('best-')}/{best_by(run)}"
        raise ValueError(f"--row {which}: {run.folder} has measured no {name}; --row last needs none")
    return row


def best_by(run):
    """The metric by which the best epoch is chosen: the first of --storage_metrics."""
    return (run.setting("storage_metrics") or ["e_recall@1"])[0]


def leave_out(run, kind, reason, advice):
    run.kind, run.reason, run.advice = kind, reason, advice


def leave_out_incomplete(run):
    """A run on partial data, one with numbers that are not finite, one with fewer epochs than it was to have."""
    again = f"--resume {shlex.quote(run.folder)}"
    processes = run.config.get("processes") or 1
    start = "python main.py" if processes == 1 else f"torchrun --nproc_per_node={processes} main.py"
    done = int(run.rows[-1]["epoch"]) if run.rows else -1
    bad = next(((row["epoch"], name) for row in run.rows for name, v in row.items() if not math.isfinite(v or 0)), None)
    what_else = "start it anew with a lower --lr, a longer --warmup or another weight"
    if run.config.get("partial"):
        what = "complete the data (python -m datasets.prepare) and start the run anew"
        leave_out(run, "partial", f"partial data ({run.config['partial']})", what)
    elif bad:
        leave_out(run, "diverged", f"diverged: {bad[1]} is not finite in epoch {bad[0]:.0f}", what_else)
    elif done < run.epochs and (reason := folders.divergence(run.folder)):
        leave_out(run, "diverged", f"diverged: {reason}", what_else)
    elif done < run.epochs and is_running(run.folder):
        leave_out(run, "unfinished", f"is training now: epoch {max(done, 0)} of {run.epochs} done", "wait for its end")
    elif done < run.epochs:
        state = f"stopped after epoch {done} of {run.epochs}" if run.rows else "stopped before its first evaluation"
        leave_out(run, "unfinished", state, f"{start} {again}")


def is_running(folder):
    """Whether a process holds the run's lock (utilities/folders.py)."""
    try:
        with open(os.path.join(folder, ".lock")) as file:
            folders.fcntl.lockf(file, folders.fcntl.LOCK_SH | folders.fcntl.LOCK_NB)
        return False
    except (BlockingIOError, PermissionError):
        return True
    except (OSError, AttributeError):  # no lock, or a system without
        return False


def leave_out_repeated(runs):
    """Of finished runs with the same flags, data and seed the one that began first counts: not the one that suits."""
    first = {}
    for run in sorted((run for run in runs if not run.reason), key=lambda run: (began(run), run.folder)):
        other = first.setdefault((run.key, run.seed), run)
        if other is not run:
            reason = f"repeats seed {run.seed} of {other.folder}, which began first and counts"
            leave_out(run, "repeated", reason, "name only the folder that is to count, or give the run another --seed")


def began(run):
    try:
        moment = datetime.datetime.strptime(run.config["started"], "%Y-%m-%dT%H:%M:%S%z")
        return moment.timestamp()
    except (KeyError, TypeError, ValueError):
        return math.inf


def look_for_collapse(run, split, counts):
    """A collapse by the rule of training, where the shown epoch measured the rank or the rate's share."""
    rank = run.chosen.get(f"{split}/effective_rank")
    share = run.chosen.get(f"{split}/coding_rate@share")
    dimensions = run.flags.get("embed_dim", 0)
    if is_collapse(rank, share, dimensions):
        signs = [f"effective rank {rank:.1f} of {dimensions}"] if rank is not None else []
        signs += [f"coding rate {share:.1%} of its maximum"] if share is not None else []
        values = {n: run.chosen.get(f"{split}/{n}") for n in ("e_recall@1", "mAP@R")}
        signs += [f"{name} {value:.3f}" for name, value in values.items() if value is not None]
        advice = "this is a result of its method: say so, or count it with --count_collapsed"
        run.collapsed = True
        if not counts:
            leave_out(run, "collapsed", f"collapsed in epoch {run.chosen['epoch']:.0f}: {', '.join(signs)}", advice)
