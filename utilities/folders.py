"""The folder of a run: claimed by one process, found again, and its config.json. Without torch, which takes seconds."""

import contextlib
import functools
import glob
import itertools
import json
import os
import subprocess

from utilities.files import write_whole

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

DIVERGED = "diverged.json"


def run_name(savename, group, seed):
    return f"{group}_s{seed}" if savename == "group_plus_seed" else savename


def read_config(folder):
    """The config.json of a run's folder. Raises ValueError, one line, if there is none or it is damaged."""
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config["flags"], dict):
            raise TypeError("flags")
        return config
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: no run there (a folder with config.json and checkpoint.pt)") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path}: damaged ({type(problem).__name__})") from problem


def write_config(folder, config):
    write_whole(os.path.join(folder, "config.json"), lambda file: json.dump(config, file, indent=2, default=str))


def all_flags(config):
    """Every flag of a run as it was, those that acted on nothing included."""
    return {**config.get("without_effect", {}), **config["flags"]}


def note_divergence(folder, reason):
    """Leave diverged.json: the run's own numbers ended it, and would again."""
    write_whole(os.path.join(folder, DIVERGED), lambda file: json.dump({"reason": reason}, file, indent=2))


def divergence(folder):
    """Why the run of a folder diverged in its last start, "" where it did not."""
    try:
        with open(os.path.join(folder, DIVERGED), encoding="utf-8") as file:
            return str(json.load(file)["reason"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"{DIVERGED} there says so, but is damaged"


def forget_divergence(folder):
    """As the run goes on."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, DIVERGED))


def claim(save_path, dataset, name):
    """A new folder <save_path>/<dataset>/<name>, or <name>-2, -3, ...: made here and by nobody else."""
    base = os.path.join(save_path, dataset, name)
    try:
        os.makedirs(os.path.dirname(base), exist_ok=True)
        for folder in numbered(base):
            try:
                os.mkdir(folder)
                return folder
            except FileExistsError:
                pass
    except OSError as problem:
        raise ValueError(f"--save_path {save_path}: {base} cannot be made ({problem.strerror})") from problem


def numbered(base):
    """base, base-2, base-3, ..."""
    yield base
    yield from (f"{base}-{number}" for number in itertools.count(2))


def find(save_path, dataset, name):
    """The newest run of that name: of <name>, <name>-2, ... the last with a config.json; None without any."""
    base = os.path.join(save_path, dataset, name)
    others = [path for path in glob.glob(glob.escape(base) + "-*") if path[len(base) + 1 :].isdigit()]
    runs = [base, *sorted(others, key=lambda path: int(path[len(base) + 1 :]))]
    runs = [folder for folder in runs if os.path.isfile(os.path.join(folder, "config.json"))]
    return runs[-1] if runs else None


HELD = []  # open files that hold a lock


def lock(folder):
    """Keep other processes from going on with the same run. Raises ValueError, one line, if one does already.

    The lock is POSIX's: data workers do not inherit it, and hold it no longer than the process that was killed.
    """
    if fcntl is None:
        return
    handle = open(os.path.join(folder, ".lock"), "a")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handle.close()
        raise ValueError(f"--resume {folder}: another process is training this run now") from None
    except OSError:
        pass  # a file system without locks
    HELD.append(handle)


def release():
    """Give back what `lock` took, as the process's end does."""
    while HELD:
        HELD.pop().close()


def short(commit):
    """A commit as people write it, with its '+' where it has one."""
    return commit[:8] + ("+" if commit.endswith("+") else "")


@functools.cache
def commit():
    """The checkout's commit, with '+' behind it where tracked files were changed; "" outside a checkout."""

    def git(*words):
        folder = os.path.dirname(os.path.abspath(__file__))
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=folder).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
