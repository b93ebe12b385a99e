"""A run: its parts, how far it is, and its folder with the last two checkpoints and the best."""

import contextlib
import io
import os
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch

from utilities import distributed, folders, records
from utilities.folders import remove_unfinished, write_whole

LAST, BEFORE, NEW = "checkpoint.pt", "checkpoint_before.pt", "checkpoint_new.pt"
PARTS = ("model", "criterion", "optimizer", "scheduler", "scaler")  # what has a state_dict
PROGRESS = ("epoch", "step", "sums", "rows", "seconds", "before")


class Run(SimpleNamespace):
    """All that main.build puts together, and how far the run is:

    epoch, the last whole one (0 is the evaluation of the untrained network); step, the steps done of the one after it;
    sums, {loss term: its sum over these}; rows, those of metrics.csv; seconds of all starts, up to `counted`; before,
    the metrics of collapse before training.
    facts, {name: number or string} of data and network, are those that a checkpoint must share.
    """

    epoch, step, seconds, waited, newest, keep, net, compiled, before = -1, 0, 0.0, 0.0, "", True, None, False, None

    def __init__(self, **fields):
        super().__init__(sums={}, rows=[], saved=time.monotonic(), counted=time.monotonic(), **fields)
        self.writer, self.being_written, self.config = ThreadPoolExecutor(1), [], None

    @property
    def place(self):
        epoch = f"epoch {self.epoch}" if self.epoch >= 0 else "the start"
        return epoch + (f", step {self.step} of the next" if self.step else "")

    @property
    def best_split(self):
        """best.pt follows the validation split where there is one, else the test split, as published tables do."""
        return next(name for name in ("val", "test", "train") if name in self.evaluated)

    def add(self, terms):
        """Count one step with these loss terms. Does not wait for the device."""
        self.step += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + torch.as_tensor(value).detach().double()

    def means(self):
        """{loss term: its mean over the epoch's steps so far}; FloatingPointError where the loss is not finite."""
        means = {name: float(value) / max(self.step, 1) for name, value in self.sums.items()}
        if not abs(means.get("loss", 0)) < torch.inf:
            raise FloatingPointError("the loss is not finite")
        return means

    def note_divergence(self, problem):
        """Write diverged.json, so that a table's queue does not start it again; the line to print."""
        terms = ", ".join(f"{name} {value:g}" for name, value in self.criterion.logs.items())
        reason = f"{problem}, in epoch {self.epoch + 1}, {self.step} steps done (last loss terms: {terms})"
        if distributed.rank() == 0:
            records.write_json(os.path.join(self.folder, folders.DIVERGED), {"reason": reason})
        return f"{reason}; start anew with a lower --lr, a longer --warmup or another weight"

    def end_epoch(self, row):
        """Count an epoch with its row of metrics.csv, and save it: also as best.pt where it is the best so far by the
        first of --storage_metrics, as best_<metric>.pt by each further one. Epoch 0 is no candidate."""
        files, first = [], self.opt.storage_metrics[0]
        for metric in self.opt.storage_metrics if row["epoch"] > 0 else ():
            *before, value = [r.get(f"{self.best_split}/{metric}") for r in (*self.rows[1:], row)]
            if value is not None and all(other is None or other < value for other in before):
                files.append("best.pt" if metric == first else f"best_{metric}.pt")
        if self.opt.store_improvements and "best.pt" in files:
            files.append(f"improved_epoch{row['epoch']:04d}.pt")
        self.check()  # before it is counted
        self.count_seconds()
        row["seconds"] = round(self.seconds, 2)
        self.epoch, self.step, self.sums, self.rows = row["epoch"], 0, {}, [*self.rows, row]
        self.save(*files)
        self.trackers.log(row)

    def check(self):
        """FloatingPointError where the loss or the weights are not finite: such a state is not saved."""
        self.means()
        weights = [*self.model.state_dict().values(), *self.criterion.state_dict().values()]
        if not torch.stack([w.isfinite().all() for w in weights]).all():
            raise FloatingPointError("the weights are not finite")

    def count_seconds(self):
        now = time.monotonic()
        self.seconds, self.counted = self.seconds + now - self.counted, now

    def save(self, *also):
        """Write checkpoint.pt, after the files `also`, which lack the optimizer; the one before it is kept. Of several
        processes, which all have the same state, the first writes, in a thread for which the next save waits."""
        self.check()
        self.count_seconds()
        self.written()
        state = {}
        if distributed.rank() == 0:
            state = {name: on_cpu(getattr(self, name).state_dict()) for name in PARTS}
            state |= on_cpu({name: getattr(self, name) for name in PROGRESS}) | self.facts
        self.being_written.append(self.writer.submit(self.write, state, also, self.keep, self.place))
        self.saved, self.keep = time.monotonic(), True

    def write(self, state, also, keep, place):
        """The place of the state, once it is written; of none, on the other processes, at once."""
        if not state:
            return place
        last, before, new = (os.path.join(self.folder, name) for name in (LAST, BEFORE, NEW))
        if also:
            learned = pack({name: value for name, value in state.items() if name != "optimizer"})
            for name in also:
                write_whole(os.path.join(self.folder, name), lambda file: file.write(learned), "wb")
        whole = pack(state)
        write_whole(new, lambda file: file.write(whole), "wb")
        if keep and os.path.exists(last):
            os.replace(last, before)
        os.replace(new, last)
        records.write_rows(self.folder, state["rows"])
        self.write_config()
        return place

    def written(self):
        """Wait until what was saved last is on the disk. OSError where it cannot be written."""
        while self.being_written:
            self.newest = self.being_written.pop().result()

    def write_config(self):
        """Write down that a run goes on: with its first new checkpoint, or at its end."""
        if self.config and distributed.rank() == 0:
            records.write_json(os.path.join(self.folder, "config.json"), self.config)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, folders.DIVERGED))
        self.config = None

    def restore(self, folder):
        """Go on from the newest whole checkpoint of a folder, which this process then holds. ValueError, one line, if
        none is whole, or it is of other data or another network."""

        def read():
            self.lock = folders.lock(os.path.join(folder, ".lock"))
            if self.lock is None:
                raise ValueError(f"--resume {folder}: another process is training this run now")
            return newest(folder)

        name, state = distributed.on_first(read)
        if not name:
            return
        for fact, value in self.facts.items():
            if state.get(fact) != value:
                line = f"that run has {fact} {state.get(fact)}, here it is {value}; give it its own data and flags"
                raise ValueError(f"--resume {folder}: {line}")
        for part in PARTS:
            getattr(self, part).load_state_dict(state[part])
        vars(self).update({name: state[name] for name in PROGRESS if name in state})
        self.sums = {name: value.to(self.device) for name, value in self.sums.items()}
        self.newest, self.keep = self.place, name != BEFORE  # a damaged one does not take the place of the good one

    def open_folder(self, config):
        """Claim a folder for a new run, or clear up an old one that goes on."""
        opt = self.opt

        def prepare():
            folder = opt.resume
            if not folder:
                folder = folders.claim(opt.save_path, opt.dataset, folders.run_name(opt.savename, opt.group, opt.seed))
                self.lock = folders.lock(os.path.join(folder, ".lock"))
                records.write_json(os.path.join(folder, "config.json"), config)
                return folder
            diverged, place = folders.divergence(folder), dict(from_epoch=self.epoch, from_step=self.step)
            place |= {"after_divergence": diverged} if diverged else {}
            self.config = records.describe_resumed(folders.read_config(folder), config, **place)
            if diverged:
                print(f"note: this run diverged before ({diverged}); on a CPU it does so again", file=sys.stderr)
            remove_unfinished(folder)
            if self.rows:  # metrics.csv may be lost, or ahead of the checkpoint
                records.write_rows(folder, self.rows)
            return folder

        self.folder = distributed.on_first(prepare)


def on_cpu(state):
    """A copy of nested containers, with their tensors on the CPU, which training does not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return type(state)({key: on_cpu(value) for key, value in state.items()})
    return type(state)(map(on_cpu, state)) if isinstance(state, (list, tuple)) else state


def pack(state):
    """The bytes of a checkpoint; torch's own writer gives another error than OSError on a full disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def load(path, *parts):
    """A checkpoint with these parts, on the CPU. Raises ValueError, one line, if there is none, or it is damaged."""
    with folders.reading(path, "a checkpoint of this program"):
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # the first part with a wrong checksum, at which torch does not look
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
        lacking = [part for part in parts if not isinstance(state, dict) or part not in state]
        if damaged or lacking:
            raise ValueError(damaged or f"has no {lacking[0]}")
    return state


def newest(folder):
    """(file name, state) of the newest whole checkpoint, ("", None) without any. ValueError if none is whole."""
    problems = []
    for name in (NEW, LAST, BEFORE):  # NEW is there if the run was killed between two renames
        if os.path.exists(path := os.path.join(folder, name)):
            try:
                state = load(path, *PARTS)  # a best.pt has no optimizer
                print(*(f"note: {line}; going on from {name}, the one before it\n" for line in problems), end="")
                return name, state
            except ValueError as problem:
                problems.append(str(problem))
    if problems:
        raise ValueError(f"{'; '.join(problems)}; start the run anew without --resume")
    return "", None
