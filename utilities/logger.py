"""A run's folder: config.json, metrics.csv (one row an epoch), and Weights & Biases where it is asked for."""

import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time

from utilities.checkpoint import write_whole

PACKAGES = ("torch", "torchvision", "numpy", "faiss-gpu", "faiss-cpu", "scikit-learn", "pillow", "matplotlib")


def run_name(savename, group, seed):
    return f"{group}_s{seed}" if savename == "group_plus_seed" else savename


def run_folder(save_path, dataset, name, resume=False):
    """<save_path>/<dataset>/<name>; with -2, -3, ... behind it where that run exists already and is not resumed."""
    base = folder = os.path.join(save_path, dataset, name)
    count = 1
    while not resume and os.path.exists(os.path.join(folder, "config.json")):
        count += 1
        folder = f"{base}-{count}"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as problem:
        raise ValueError(f"--save_path {save_path}: {folder} cannot be made ({problem.strerror})") from problem
    return folder


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def commit():
    """The checkout's commit, with '+' behind it where tracked files were changed; None outside a checkout."""
    def git(*words):
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True,
                              cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def protocol_rows(rows, metric):
    """{"last", "best-test", "best-val": row}, of the evaluated epochs, as far as there are such.

    last: the final epoch. best-test: the highest test/<metric>, the convention of published tables, which flatters.
    best-val: the highest val/<metric>. The first of equals counts.
    """
    values = {split: [row for row in rows if row.get(f"{split}/{metric}") is not None] for split in ("test", "val")}
    known = [row for row in rows if any("/" in name and not name.startswith("loss/") for name in row if row[name] is not None)]
    chosen = {"last": known[-1]} if known else {}
    for split, found in values.items():
        if found:
            chosen[f"best-{split}"] = max(found, key=lambda row: row[f"{split}/{metric}"])
    return chosen


def write_protocol(folder, rows, metric):
    """Write protocol_rows to <folder>/protocol.json and return them."""
    chosen = protocol_rows(rows, metric)
    write_whole(os.path.join(folder, "protocol.json"), lambda file: json.dump({"chosen_by": metric, **chosen}, file, indent=2))
    return chosen


class RunLog:
    """Writes one run down. Rows may have different columns; metrics.csv has their union, in order of appearance.

    partial : what the data lacks, a line, empty where it is whole; skipped : paths of broken images that were left out
    """

    def __init__(self, folder, opt, device, rows=(), partial="", skipped=()):
        self.folder, self.rows = folder, list(rows)
        config = dict(flags=vars(opt), seed=opt.seed, partial=partial, skipped_broken=list(skipped), device=device,
                      machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
                      versions=versions(), commit=commit(), command=[os.path.basename(sys.argv[0]), *sys.argv[1:]],
                      started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        write_whole(os.path.join(folder, "config.json"), lambda file: json.dump(config, file, indent=2, default=str))
        self.online = start_wandb(opt, config) if opt.log_online else None

    def row(self, **values):
        self.rows.append(values)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))

        def write(file):
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

        write_whole(os.path.join(self.folder, "metrics.csv"), write)
        if self.online:
            self.online.log(values, step=values["epoch"])

    def close(self):
        if self.online:
            self.online.finish()


def start_wandb(opt, config):
    try:
        import wandb
    except ImportError as problem:
        raise ValueError("--log_online: needs Weights & Biases: pip install wandb") from problem
    if opt.wandb_key != "<your_wandb_key>":
        wandb.login(key=opt.wandb_key)
        config["flags"] = {**config["flags"], "wandb_key": "(given)"}
    return wandb.init(project=opt.project, group=opt.group, name=run_name(opt.savename, opt.group, opt.seed), config=config)
