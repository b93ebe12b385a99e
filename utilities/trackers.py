"""What a run writes down: config.json, metrics.csv (one row an epoch), protocol.json, TensorBoard, Weights & Biases."""

import contextlib
import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time

from utilities import folders
from utilities.files import remove_unfinished, write_whole

PACKAGES = ("torch", "torchvision", "numpy", "faiss-gpu", "faiss-cpu", "scikit-learn", "pillow", "matplotlib")
SECRET = "wandb_key"


def versions():
    """{package: version} of those that are installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


def command(argv):
    """The words of a command line without the Weights & Biases key."""
    words, flag = [], f"--{SECRET}"
    for before, word in zip(["", *argv], argv):
        hidden = "(not written)" if before == flag else f"{flag}=(not written)"
        words.append(hidden if before == flag or word.startswith(f"{flag}=") else word)
    return words


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def describe(opt, without_effect, **facts):
    """The config.json of a new run: the flags that act, those that do not, and what else decides its numbers."""
    flags = {name: value for name, value in vars(opt).items() if name not in (SECRET, "resume", "list", "given")}
    return dict(
        flags={name: value for name, value in flags.items() if name not in without_effect},
        without_effect={name: value for name, value in flags.items() if name in without_effect},
        seed=opt.seed,
        **facts,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions=versions(),
        commit=folders.commit() or None,
        command=command([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        started=now(),
        history=[],
    )


def open_folder(opt, config, progress):
    """Claim a folder for a new run, or write down that an old one goes on: (folder, Trackers on the first process)."""

    def prepare(config):
        folder = opt.resume
        if not folder:
            folder = folders.claim(opt.save_path, opt.dataset, folders.run_name(opt.savename, opt.group, opt.seed))
            folders.lock(folder)
        remove_unfinished(folder)
        if opt.resume:
            config = describe_resumed(folders.read_config(folder), config, progress.epoch, progress.step)
            tell_divergence(folder, config)
        folders.write_config(folder, config)
        if progress.rows:  # metrics.csv may be lost, or ahead of the checkpoint
            write_rows(folder, progress.rows, opt.storage_metrics[0])
        return folder, config

    from utilities import distributed  # and torch with it, which a report need not wait for

    folder, config = distributed.on_first(lambda: prepare(config))
    return folder, Trackers(folder, opt, config) if distributed.rank() == 0 else None


def tell_divergence(folder, config):
    """That the run which goes on has diverged before: on the console and in its history."""
    reason = folders.divergence(folder)
    if reason:
        print(f"note: this run diverged before ({reason}); on a CPU it does so again", file=sys.stderr)
        config["history"][-1]["after_divergence"] = reason
        folders.forget_divergence(folder)


def describe_resumed(former, new, epoch, step):
    """The config.json of a run that goes on: its own, with the flags of now, and in `history` what was changed when."""
    before, after = folders.all_flags(former), folders.all_flags(new)
    changed = {name: [before.get(name), value] for name, value in after.items() if before.get(name) != value}
    entry = dict(when=new["started"], from_epoch=epoch, from_step=step, changed=changed)
    entry.update({name: new[name] for name in ("command", "commit", "device", "machine", "processes", "versions")})
    kept = {name: value for name, value in former.items() if name not in ("flags", "without_effect", "history")}
    flags = dict(flags=new["flags"], without_effect=new["without_effect"])
    return {**flags, **kept, "history": [*former.get("history", []), entry]}


def protocol_rows(rows, metric):
    """{"last", "best-test", "best-val": row}, of the evaluated epochs, as far as there are such.

    last: the final epoch. best-test: the highest test/<metric>, the convention of published tables, which flatters.
    best-val: the highest val/<metric>. The first of equals counts.
    """

    def evaluated(row):
        return any("/" in name and not name.startswith("loss/") for name, value in row.items() if value is not None)

    known = [row for row in rows if evaluated(row)]
    chosen = {"last": known[-1]} if known else {}
    for split in ("test", "val"):
        measured = [row for row in rows if row.get(f"{split}/{metric}") is not None]
        if measured:
            chosen[f"best-{split}"] = max(measured, key=lambda row: row[f"{split}/{metric}"])
    return chosen


def write_rows(folder, rows, metric):
    """metrics.csv, with the union of the rows' columns in order of appearance, and protocol.json."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def write(file):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    write_whole(os.path.join(folder, "metrics.csv"), write)
    chosen = {"chosen_by": metric, **protocol_rows(rows, metric)}
    write_whole(os.path.join(folder, "protocol.json"), lambda file: json.dump(chosen, file, indent=2))


def tensorboard(folder, opt, config):
    """(function that logs a row, function that ends): TensorBoard's files in <folder>/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(os.path.join(folder, "tensorboard"))

    def log(row):
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    return log, writer.close


def weights_and_biases(folder, opt, config):
    """(function that logs a row, function that ends). The key goes to the library through this process's environment
    alone: its own login would write it to a file, and its record of the command line would hold it."""
    if opt.wandb_key not in ("", "<your_wandb_key>"):
        os.environ["WANDB_API_KEY"] = opt.wandb_key
    sys.argv[1:] = command(sys.argv[1:])
    import wandb

    name = folders.run_name(opt.savename, opt.group, opt.seed)
    run = wandb.init(project=opt.project, group=opt.group, name=name, config=config, dir=folder)
    return lambda row: run.log(row, step=row["epoch"]), run.finish


class Trackers:
    """log(row) and close() for the trackers that were asked for. One that fails is left out from then on."""

    def __init__(self, folder, opt, config):
        wanted = {"--tensorboard": tensorboard} if opt.tensorboard else {}
        wanted |= {"--log_online": weights_and_biases} if opt.log_online else {}
        self.open, self.secret = {}, opt.wandb_key
        for flag, start in wanted.items():
            self.guarded(flag, lambda flag=flag, start=start: self.open.update({flag: start(folder, opt, config)}))

    def guarded(self, flag, action):
        try:
            action()
        except Exception as problem:  # whatever a foreign library says; a missing one was told before the run
            self.open.pop(flag, None)
            reason = (str(problem) or type(problem).__name__).splitlines()[0]
            reason = reason.replace(self.secret, "(key)") if self.secret else reason
            print(f"note: {flag}: {reason}; the run goes on without it", file=sys.stderr)

    def log(self, row):
        for flag, (log, _) in list(self.open.items()):
            self.guarded(flag, lambda log=log: log(row))

    def close(self):
        for flag, (_, end) in list(self.open.items()):
            self.guarded(flag, end)


def check(opt):
    """ValueError, one line, if a tracker's library is missing: before the run begins."""
    for wanted, flag, package in (
        (opt.tensorboard, "--tensorboard", "tensorboard"),
        (opt.log_online, "--log_online", "wandb"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise ValueError(f"{flag}: needs the package {package}: pip install {package}")


def write_evaluation(opt, epoch, partial, metrics):
    """Print the metrics of --evaluate_only, and write them beside the checkpoint, where one of other data stays."""
    notes = ["approximate search"] * (opt.search == "ivf") + [f"PARTIAL DATA: {partial}"] * bool(partial)
    what = f"{opt.checkpoint}: epoch {epoch}, {opt.dataset}, {opt.arch}, {opt.embed_dim} dimensions"
    print("; ".join([what, *notes]))
    print("\n".join(f"{name:32s} {value:.6f}" for name, value in metrics.items()))
    folder, name = os.path.split(os.path.abspath(opt.checkpoint))
    source = os.path.abspath(opt.source_path) if opt.dataset != "glyphs" else ""
    of = dict(checkpoint=name, dataset=opt.dataset, source_path=source, search=opt.search, seed=opt.seed)
    of["input_size"] = opt.input_size
    for base in folders.numbered(os.path.join(folder, f"evaluation_{os.path.splitext(name)[0]}")):
        path = f"{base}.json"
        if not os.path.exists(path) or same_record(path, of):
            break
    record = {**of, "epoch": epoch, "partial": partial, "metrics": metrics}
    write_whole(path, lambda file: json.dump(record, file, indent=2))
    print(f"written: {path}")


def same_record(path, of):
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        return all(record.get(name) == value for name, value in of.items())
    except (OSError, ValueError, AttributeError):
        return False
