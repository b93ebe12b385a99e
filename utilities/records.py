"""What a run writes down: config.json, metrics.csv (one row an epoch), TensorBoard, Weights & Biases."""

import csv
import importlib.metadata
import json
import os
import platform
import sys
import time
import zlib

from utilities import distributed, folders
from utilities.folders import write_whole

PACKAGES = "torch torchvision numpy faiss-gpu faiss-cpu scikit-learn pillow matplotlib timm FrEIA".split()
PACKAGES += ["pytorch-metric-learning"]


def describe(run, device_name):
    """The config.json of a new run: the flags that act, those that do not, and what else decides its numbers."""
    opt = run.opt
    flags = {name: value for name, value in vars(opt).items() if name not in ("wandb_key", "resume", "list", "given")}
    key = opt.wandb_key or "<your_wandb_key>"
    versions = {each.name: each.version for each in importlib.metadata.distributions() if each.name in PACKAGES}
    return dict(
        flags={name: value for name, value in flags.items() if name not in run.idle},
        without_effect={name: value for name, value in flags.items() if name in run.idle},
        seed=opt.seed,
        partial=run.partial,
        skipped_broken=run.skipped,
        data=run.facts,
        device=device_name,
        processes=distributed.world(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions={"python": platform.python_version(), **versions},
        commit=folders.commit() or None,
        command=[word.replace(key, "(key)") for word in [os.path.basename(sys.argv[0]), *sys.argv[1:]]],
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        history=[],
    )


def write_json(path, content):
    write_whole(path, lambda file: json.dump(content, file, indent=2, default=str))


def describe_resumed(former, new, **place):
    """The config.json of a run that goes on: its own, with the flags of now, and in `history` what was changed when."""
    before, after = folders.all_flags(former), folders.all_flags(new)
    changed = {name: [before.get(name), value] for name, value in after.items() if before.get(name) != value}
    entry = {name: new[name] for name in ("command", "commit", "device", "machine", "processes", "versions")}
    entry |= dict(when=new["started"], changed=changed, **place)
    flags = dict(flags=new["flags"], without_effect=new["without_effect"])
    return {**former, **flags, "history": [*former.get("history", []), entry]}


def write_rows(folder, rows):
    """metrics.csv, with the union of the rows' columns in order of appearance."""

    def write(file):
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    write_whole(os.path.join(folder, "metrics.csv"), write)


def name_of_data(opt):
    """In the names of the files that --evaluate_only leaves: the checkpoint, the data and, of a folder, which."""
    path = os.path.abspath(opt.source_path)
    folder = f"_{os.path.basename(path)}_{zlib.crc32(os.fsencode(path)):08x}" if opt.dataset == "folder" else ""
    return f"{os.path.basename(opt.checkpoint).removesuffix('.pt')}_{opt.dataset}{folder}"


def write_evaluation(opt, epoch, partial, metrics):
    """Print the metrics of --evaluate_only, and write them beside the checkpoint."""
    of = f"{opt.checkpoint}: epoch {epoch}, {opt.dataset}, {opt.arch}, {opt.embed_dim} dimensions"
    print(f"{of}; PARTIAL DATA: {partial}" if partial else of)
    print("\n".join(f"{name:32s} {value:.6f}" for name, value in metrics.items()))
    path = os.path.join(os.path.dirname(os.path.abspath(opt.checkpoint)), f"{name_of_data(opt)}.json")
    names = ("checkpoint", "dataset", "source_path", "input_size", "search", "kmeans_restarts", "seed")
    write_json(path, dict(epoch=epoch, partial=partial, metrics=metrics, **{n: getattr(opt, n) for n in names}))
    print(f"written: {path}")


def tensorboard(run, config):  # → (function that logs a row, function that ends)
    from torch.utils.tensorboard import SummaryWriter

    # what was logged of later epochs, before the run went on from an older checkpoint, is taken back
    writer = SummaryWriter(os.path.join(run.folder, "tensorboard"), purge_step=run.epoch + 1)

    def log(row):
        for name in row.keys() - {"epoch"}:
            writer.add_scalar(name, row[name], row["epoch"])
        writer.flush()

    return log, writer.close


def weights_and_biases(run, config):
    import wandb

    opt = run.opt
    if opt.wandb_key != "<your_wandb_key>":
        os.environ["WANDB_API_KEY"] = opt.wandb_key  # its own login would write the key to a file
    name = folders.run_name(opt.savename, opt.group, opt.seed)
    log = wandb.init(project=opt.project, group=opt.group, name=name, config=config, dir=run.folder)
    return lambda row: log.log(row, step=row["epoch"]), log.finish


TRACKERS = {"tensorboard": tensorboard, "log_online": weights_and_biases}


class Trackers:
    """log(row) and close() for the trackers that were asked for, on the first process. One that fails is left out:
    whatever a foreign library says of its network must not end the run."""

    def __init__(self, run, config):
        here = TRACKERS if distributed.rank() == 0 else {}
        self.open = {flag: start for flag, start in here.items() if getattr(run.opt, flag)}
        self.open = self.each(lambda start: start(run, config))

    def each(self, action):
        """{flag: what the action gives for its tracker}."""
        done = {}
        for flag, tracker in self.open.items():
            try:
                done[flag] = action(tracker)
            except Exception as problem:
                line = f"note: --{flag}: {problem or type(problem).__name__}; the run goes on without it"
                print(line, file=sys.stderr)
        return done

    def log(self, row):
        self.open = {flag: self.open[flag] for flag in self.each(lambda tracker: tracker[0](row))}

    def close(self):
        self.each(lambda tracker: tracker[1]())
