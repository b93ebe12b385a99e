"""What makes two runs the same one, and how far a run is on disk. Without torch, which takes seconds."""

import csv
import glob
import json
import os
from dataclasses import dataclass

from utilities.flags import HOUSEKEEPING, acting, defaults
from utilities.folders import all_flags, divergence, read_config

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def key(flags):
    """The flags that act on a run, as one string: runs with the same key are the same run.

    flags : {name: value}, all of a run's; one that is missing, as in older runs, counts as its default.
    """
    tell_apart = {name: value for name, value in acting(flags).items() if name not in HOUSEKEEPING | {"given"}}
    if "source_path" in tell_apart:
        # what is counted on reading is the same data wherever it lies; the rest is known by its place
        if tell_apart["dataset"] == "folder" or tell_apart["allow_partial"] or tell_apart["skip_broken"]:
            tell_apart["source_path"] = os.path.realpath(tell_apart["source_path"])
        else:
            del tell_apart["source_path"]
    return json.dumps(tell_apart, sort_keys=True)


@dataclass
class Record:
    """A run's folder, read."""

    folder: str
    key: str
    epoch: int = -1  # the last in metrics.csv
    finished: bool = False
    columns: frozenset = frozenset()  # of metrics.csv, filled in its last row
    seconds: float = 0.0  # of training and evaluation
    commit: str = ""
    diverged: str = ""  # why its own numbers ended it, which they would again


def read(folder):
    """The Record of a folder. Raises ValueError, one line, where its config.json is damaged."""
    config = read_config(folder)
    flags = all_flags(config)
    try:
        # a flag that the program no longer has counts, unless it did nothing then
        gone = {name for name in config.get("without_effect", {}) if name not in defaults()}
        record = Record(folder, key({name: value for name, value in flags.items() if name not in gone}))
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise ValueError(f"{os.path.join(folder, 'config.json')}: not of this program ({problem})") from problem
    history = config.get("history") or [{}]
    record.commit = history[-1].get("commit") or config.get("commit") or ""
    try:
        with open(os.path.join(folder, "metrics.csv"), encoding="utf-8", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        record.epoch, record.seconds = int(last["epoch"]), float(last["seconds"])
        record.columns = frozenset(name for name, value in last.items() if value)
        record.finished = record.epoch >= flags["n_epochs"]
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        pass  # none yet, or a damaged one: --resume writes it anew from the checkpoint
    record.diverged = "" if record.finished else divergence(folder)
    return record


def scan(folder):
    """({key: Record}, lines on folders that are left out) of the runs in <save_path>/<dataset>.

    Of several with one key it is the finished one, else of those that did not diverge the one that is farthest.
    """
    records, problems = {}, []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "config.json"))):
        try:
            record = read(os.path.dirname(path))
        except ValueError as problem:
            problems.append(f"{problem}; left out")
            continue
        other = records.get(record.key)
        if other is None or rank(record) > rank(other):
            records[record.key] = record
    return records, problems


def rank(record):
    return record.finished, not record.diverged, record.epoch
