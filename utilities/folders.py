"""A run's folder: claimed, locked, found again, and its config.json; files that are written whole. Without torch."""

import contextlib
import fcntl
import functools
import glob
import itertools
import json
import os
import shutil
import subprocess
import time
import weakref
from pathlib import Path

from utilities.command_line import line_of

DIVERGED = "diverged.json"
UNFINISHED = ".writing-"
DAY = 24 * 3600  # seconds


def run_name(savename, group, seed):
    return f"{group}_s{seed}" if savename == "group_plus_seed" else savename


@contextlib.contextmanager
def reading(path, wanted="a file of this program"):
    """Whatever error a damaged file leads to becomes a ValueError of one line."""
    try:
        yield
    except Exception as problem:
        reason = line_of(problem).splitlines()[0]
        raise ValueError(f"{path}: not {wanted}, or a damaged one ({reason})") from problem


def read_config(folder):
    """The config.json of a run's folder. Raises ValueError, one line, if there is none or it is damaged."""
    path = Path(folder, "config.json")
    if not path.is_file():
        raise ValueError(f"{folder}: no run there (a folder with config.json and checkpoint.pt)")
    with reading(path):
        config = json.loads(path.read_text(encoding="utf-8"))
        all_flags(config)["loss"]
    return config


def all_flags(config):
    """Every flag of a run as it was, those that acted on nothing included."""
    return {**config.get("without_effect", {}), **config["flags"]}


def flags_of_run(given, known):
    """(saved flags, folder) of the run that --resume names; (saved flags, None) of --evaluate_only's; else ({}, None).

    given : {flag: value} of the command line; known : {flag: its default, role, may_change}, of parameters.py
    """
    named = {**{name: flag.default for name, flag in known.items()}, **given}
    if named["evaluate_only"] and named["checkpoint"]:
        folder = os.path.dirname(os.path.abspath(named["checkpoint"]))
        saved = all_flags(read_config(folder)) if os.path.isfile(os.path.join(folder, "config.json")) else {}
        return {n: value for n, value in saved.items() if n in known and known[n].role != "housekeeping"}, None
    folder = named["resume"]
    if folder is True:
        folder = find(named["save_path"], named["dataset"], run_name(named["savename"], named["group"], named["seed"]))
    if folder in (None, False):
        return {}, None
    config = read_config(folder or "--resume ''")
    saved = {name: value for name, value in all_flags(config).items() if name in known}
    gone = [name for name, value in config["flags"].items() if name not in known and value]
    unlike = [f"that run has --{name}, which this version does not; start it anew" for name in gone]
    for name, value in given.items():
        if not known[name].may_change and saved.get(name, value) != value:
            before, now = (" ".join(map(str, v)) if isinstance(v, list) else v for v in (saved[name], value))
            advice = "leave it out, or start a new run without --resume"
            unlike.append(f"that run has --{name} {before}, not {now}; {advice}")
    if unlike:
        raise ValueError(f"--resume {folder}: {unlike[0]}")
    if not set(saved.get("storage_metrics", ())) <= set(given.get("evaluation_metrics", saved["evaluation_metrics"])):
        del saved["storage_metrics"]  # best.pt goes by another metric from now on
    return saved, folder


def claim(save_path, dataset, name):
    """A new folder <save_path>/<dataset>/<name>, or <name>-2, -3, ...: made here and by nobody else."""
    base = os.path.join(save_path, dataset, name)
    os.makedirs(os.path.dirname(base), exist_ok=True)
    for folder in itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            return folder


def find(save_path, dataset, name):
    """The newest run of that name: of <name>, <name>-2, ... the last with a config.json; None without any."""
    base = os.path.join(save_path, dataset, name)
    others = [path for path in glob.glob(glob.escape(base) + "-*") if path[len(base) + 1 :].isdigit()]
    runs = [base, *sorted(others, key=lambda path: int(path[len(base) + 1 :]))]
    return next((run for run in reversed(runs) if os.path.isfile(os.path.join(run, "config.json"))), None)


def lock(path):
    """The open file that keeps other processes off while it or a copy of it is open; None where one has it already.
    Forked processes, such as data workers, close their copy at once: a run that was killed holds nothing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle = open(path, "a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if isinstance(problem, BlockingIOError):  # another's; else a file system without locks
            return None
    copy = weakref.ref(handle)
    os.register_at_fork(after_in_child=lambda: copy() and copy().close())
    return handle


def divergence(folder):
    """Why the run of a folder diverged in its last start (diverged.json), "" where it did not."""
    path = Path(folder, DIVERGED)
    return json.loads(path.read_text(encoding="utf-8"))["reason"] if path.exists() else ""


@functools.cache
def commit():
    """The checkout's commit, with '+' behind it where tracked files were changed; "" outside a checkout."""
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    how = dict(capture_output=True, text=True, cwd=os.path.dirname(__file__))
    return subprocess.run(words, **how).stdout.strip() if shutil.which("git") else ""


def write_whole(path, write, mode="w"):
    """Call write(file) on a temporary file beside `path`, flush it to disk, and only then give it that name.

    A crash or a full disk leaves the former file as it was. Raises OSError that names `path`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f"{UNFINISHED}{os.getpid()}-{name}")
    try:
        os.makedirs(folder, exist_ok=True)
        # csv needs its line ends untouched
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror or str(problem), str(path)) from problem
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def remove_unfinished(folder, age=0):
    """Delete what a killed process left of files that it was writing, untouched for `age` seconds."""
    for path in glob.glob(os.path.join(glob.escape(folder), f"{UNFINISHED}*")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.path.getmtime(path) >= age:
                os.unlink(path)
