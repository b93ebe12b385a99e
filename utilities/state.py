"""The state of a run: how far it is, and its checkpoints."""

import hashlib
import io
import os
import time
import zipfile
from dataclasses import asdict, dataclass, field, fields

import torch

from utilities import distributed, folders
from utilities.files import write_whole

LAST, BEFORE, NEW = "checkpoint.pt", "checkpoint_before.pt", "checkpoint_new.pt"
MARK = b"AntiCo sha256:"  # it and the digest follow torch's zip file, as its comment


class Damaged(ValueError):
    """A checkpoint that cannot be read, or whose bytes are not those that were written."""


class NotFinite(ValueError):
    """A loss or weights with NaN or infinity, which are not saved."""


@dataclass
class Progress:
    """How far a run is, in numbers and plain containers."""

    epoch: int = -1  # the last whole one; 0 is the evaluation of the untrained network, -1 is before that
    step: int = 0  # steps done of the epoch after it
    sums: dict = field(default_factory=dict)  # {loss term: its sum over these steps}, 0-dimensional tensors
    best: dict = field(default_factory=dict)  # {storage metric: its highest value}
    rows: list = field(default_factory=list)  # of metrics.csv
    seconds: float = 0.0  # of training and evaluation, over all starts

    def __post_init__(self):
        self.finite = self.step  # steps of the epoch before the first whose loss is not finite, a number or a tensor

    def add(self, terms):
        """Count one step with these loss terms, `loss` among them. Does not wait for the device."""
        self.step += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + torch.as_tensor(value).detach().double()
        self.finite = self.finite + self.sums["loss"].isfinite()  # a sum stays as it is after NaN or infinity

    def means(self):
        """{loss term: mean over the epoch's steps so far}. Waits for the device. Raises NotFinite."""
        if self.finite < self.step:
            raise NotFinite(f"the loss is not finite, in step {self.finite + 1} of epoch {self.epoch + 1}")
        return {name: float(value) / max(self.step, 1) for name, value in self.sums.items()}

    def end_epoch(self, row, split, metrics, all_better=False):
        """Count the epoch with its row; names of the files that it is to be kept in as the best so far.

        best.pt is of the first of the metrics, as measured on `split`, best_<metric>.pt of each further one; with
        `all_better` every epoch that improves the first has a file of its own.
        """
        files = []
        for metric in metrics:
            name = f"{split}/{metric}"  # rows know the split, which --resume may change
            before = [former[name] for former in self.rows if former.get(name) is not None]
            if row.get(name) is not None and row[name] > max(before, default=float("-inf")):
                self.best[metric] = row[name]
                files.append("best.pt" if metric == metrics[0] else f"best_{metric}.pt")
        self.rows.append(row)
        self.epoch, self.step, self.sums, self.finite = self.epoch + 1, 0, {}, 0
        if all_better and "best.pt" in files:
            files.append(f"improved_epoch{self.epoch:04d}.pt")
        return files


def save(path, state):
    """Write `state` (tensors, numbers, strings, lists, dicts) so that `load` reads it without unpickling code."""
    buffer = io.BytesIO()  # torch's own writer gives another error than OSError on a full disk
    torch.save(state, buffer)
    with buffer.getbuffer() as whole:
        whole[-2:] = (len(MARK) + 32).to_bytes(2, "little")  # the comment's length ends a zip file's last record
        digest = hashlib.sha256(whole).digest()
        write_whole(path, lambda file: file.writelines([whole, MARK, digest]), "wb")


def load(path):
    """A file of `save` on the CPU. Raises Damaged, one line, if it cannot be read or a bit of it has flipped."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        whole, mark, digest = data.rpartition(MARK)
        if mark and hashlib.sha256(whole).digest() != digest:
            raise ValueError("its checksum is wrong")
        if not mark:  # of torch.save, without a comment: each part has a checksum, at which torch does not look
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                wrong = file.testzip() or file.comment or data[-2:] != b"\0\0"
            if wrong:
                raise ValueError("its checksum or its end is wrong")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as problem:  # torch and zipfile have many for a damaged file
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise Damaged(f"{path}: not a checkpoint of this program, or a damaged one ({reason})") from problem


def is_whole(path):
    try:
        load(path)
        return True
    except (FileNotFoundError, Damaged):
        return False


def load_model(path):
    """A checkpoint that --evaluate_only names. Raises FileNotFoundError or ValueError, one line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--checkpoint {path}: no such file")
    saved = load(path)
    if not isinstance(saved, dict) or not {"model", "arch", "embed_dim", "epoch"} <= set(saved):
        raise ValueError(f"--checkpoint {path}: not a run's checkpoint.pt or best.pt")
    return saved


def fill(model, weights, flag):
    """Load weights; ValueError, one line that begins with `flag`, if they are not this model's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as problem:
        reason = str(problem).splitlines()[-1].strip()
        raise ValueError(f"{flag}: does not fit what is built here ({reason})") from problem


def newest(folder):
    """The state of the newest checkpoint in a folder that is whole, None without any.

    Raises Damaged if there are checkpoints and none is whole.
    """
    damaged = []
    for name in (NEW, LAST, BEFORE):  # NEW is there if the run was killed between two renames
        try:
            state = load(os.path.join(folder, name))
            for problem in damaged:
                print(f"note: {problem}; going on from {name}, the one before it")
            return state
        except FileNotFoundError:
            pass
        except Damaged as problem:
            damaged.append(problem)
    if damaged:
        reasons = "; ".join(map(str, damaged))
        raise Damaged(f"{reasons}; no whole checkpoint is left, start the run anew without --resume")
    return None


def load_resumed(folder):
    """The state that --resume goes on from, the same on all processes; None for a run that begins."""

    def read():
        folders.lock(folder)  # first, or another process might still be writing what is loaded here
        return newest(folder)

    return distributed.on_first(read) if folder else None


def place(progress):
    step = f", step {progress.step} of the next" if progress.step else ""
    return f"epoch {progress.epoch}{step}" if progress.epoch >= 0 else "before epoch 0"


class Checkpoints:
    """The checkpoints of a run's folder: the last two, and the best.

    parts : {name: module, optimizer, ...}, what has state_dict and load_state_dict
    facts : {name: number or string} that belong to the run and do not change: its data, architecture, ...
    """

    def __init__(self, parts, facts):
        self.folder, self.parts, self.facts = None, parts, facts
        self.saved, self.counted = time.monotonic(), time.monotonic()
        self.newest = ""  # where the newest checkpoint stands
        self.wrote = False  # whether checkpoint.pt is of this start

    def path(self, name):
        return os.path.join(self.folder, name)

    def minutes(self):
        """Since the last checkpoint, or since the start."""
        return (time.monotonic() - self.saved) / 60

    def seconds(self, progress):
        """Seconds of the run, over all its starts."""
        now = time.monotonic()
        progress.seconds, self.counted = progress.seconds + now - self.counted, now
        return progress.seconds

    def save(self, progress, also=()):
        """Write checkpoint.pt, after the files `also` (best.pt, ...); the checkpoint before it is kept.

        Of several processes, which all have the same state, the first writes. Raises NotFinite: a run that has diverged
        keeps its last good one.
        """
        progress.means()
        self.seconds(progress)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        weights = [w for part in ("model", "criterion") for w in state[part].values() if w.is_floating_point()]
        if not torch.stack([w.isfinite().all() for w in weights]).all():
            step = f"step {progress.step} of epoch {progress.epoch + 1}"
            where = step if progress.step else f"epoch {progress.epoch}"
            raise NotFinite(f"the weights are not finite after {where}")
        if distributed.rank() == 0:
            state.update(asdict(progress), **self.facts)
            for name in (*also, NEW):
                save(self.path(name), state)
            if self.wrote or is_whole(self.path(LAST)):  # one that was damaged does not take the place of the good one
                os.replace(self.path(LAST), self.path(BEFORE))
            os.replace(self.path(NEW), self.path(LAST))
            self.wrote = True
        self.saved = time.monotonic()
        self.newest = place(progress)

    def restore(self, state, folder, device):
        """Put a loaded state into the parts; its Progress, or that of a run that begins where the state is None.

        Raises ValueError, one line, if the data or the network are not those of the state.
        """
        if state is None:
            return Progress()
        missing = {*self.facts, *self.parts, *(f.name for f in fields(Progress))} - set(state)
        if missing:
            raise ValueError(
                f"--resume {folder}: its checkpoint is of another version of this program and has no "
                f"{', '.join(sorted(missing))}; start a new run without --resume"
            )
        for name, value in self.facts.items():
            if state[name] != value:
                raise ValueError(
                    f"--resume {folder}: that run has {name} {state[name]}, here it is {value}; "
                    "give it the data and flags that it began with"
                )
        for name, part in self.parts.items():
            if isinstance(part, torch.nn.Module):
                fill(part, state[name], f"--resume {folder}")
            else:
                part.load_state_dict(state[name])
        progress = Progress(**{f.name: state[f.name] for f in fields(Progress)})
        progress.sums = {name: value.to(device) for name, value in progress.sums.items()}
        self.newest = place(progress)
        return progress
