"""Recorded runs of the published program, repeated by main.py: python -m tests.trajectories FILE.npz ...

A file holds the flags, all weights before the first step, the batches, and what came of them; images.npz beside it the
images. Here they go through the whole of main.main, and a line a file says how far apart the two runs are. Exit status
1 where that is more than rounding.
"""

import contextlib
import csv
import io
import shlex
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.models.resnet import BasicBlock

import architectures
import criteria
import datasampler
import datasets
import main as program

RECALLS = [f"e_recall@{k}" for k in (1, 2, 4, 8)]
DEFAULTS = ["--no_train_metrics", "--not_pretrained", "--evaluation_metrics", *RECALLS]  # the recorded flags win
OF_ITS_MACHINE = {"--dataset", "--source_path", "--save_path"}
# less than 1e-6 of a recall, which counts images, is the rounding of how it is written down
LIMITS = {"losses": 1e-9, "weights": 1e-8, "rates": 0, "recalls": 1e-6}


def resnet():
    """The small backbone of the recorded runs: (B, 3, H, W) → (B, 24, h, w), with torchvision's names."""

    def layer(width, planes, stride=1):
        branch = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        return nn.Sequential(BasicBlock(width, planes, stride, branch if width != planes or stride > 1 else None))

    stem = dict(conv1=nn.Conv2d(3, 8, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(8), relu=nn.ReLU())
    layers = dict(layer1=layer(8, 8), layer2=layer(8, 16, 2), layer3=layer(16, 16, 2), layer4=layer(16, 24))
    return nn.Sequential(OrderedDict(**stem, maxpool=nn.MaxPool2d(3, 2, 1), **layers))


class RecordedBatches(datasampler.Batches):
    def __init__(self, opt, batches):
        super().__init__(batches.shape[1], opt.seed, rank=0, world=1)
        self.recorded, self.n_batches = batches.tolist(), len(batches) // opt.n_epochs

    def batches(self, generator):
        return self.recorded[(self.epoch - 1) * self.n_batches : self.epoch * self.n_batches]


def split(images, name):
    pixels, labels = torch.from_numpy(images[name]), images[f"{name}_labels"].tolist()
    names, paths = {c: f"class {c}" for c in labels}, [f"{name} {i}" for i in range(len(labels))]
    return datasets.Split(lambda keys, seeds: [pixels[key] for key in keys], range(len(labels)), labels, names, paths)


def our_names(recorded, state):
    """{recorded name: ours} of a module's tensors: by name; or by order, where the shapes are the same one by one, with
    or without a flow's integers (its layers may be numbered otherwise: names mislead); or by the ends of names."""
    if recorded.keys() <= state.keys():
        return {name: name for name in recorded}
    for ours in (state, {name: value for name, value in state.items() if value.is_floating_point()}):
        if [value.shape for value in recorded.values()] == [tuple(value.shape) for value in ours.values()]:
            return dict(zip(recorded, ours))
    ends = {name: [ours for ours in state if f".{ours}".endswith(f".{name}")] for name in recorded}
    if unclear := [name for name, found in ends.items() if len(found) != 1]:
        raise ValueError(f"which of our tensors is {unclear[0]} cannot be told: {', '.join(state)}")
    return {name: ours for name, (ours,) in ends.items()}


def load(module, init, prefix):
    """Fill a module with the recorded tensors of its prefix; {recorded name: function that gives ours}."""
    recorded = {name.removeprefix(prefix): init[name] for name in init if name.startswith("criterion.") == bool(prefix)}
    state = module.state_dict()
    names = our_names(recorded, {name: state[name] for name in state if not name.endswith("num_batches_tracked")})
    for name, ours in names.items():
        if recorded[name].size != state[ours].numel():
            raise ValueError(f"{prefix}{name}: is {recorded[name].shape}, our {ours} {tuple(state[ours].shape)}")
        state[ours].copy_(torch.from_numpy(recorded[name]).reshape(state[ours].shape))
    # from a new state_dict each time: moved to a device or memory format, a module holds other tensors
    return {prefix + name: lambda ours=ours: module.state_dict()[ours] for name, ours in names.items()}


def replay(recorded, images):
    """Our run of a recorded one: what came of it, by the names of the recorded file."""
    init = {name.removeprefix("init/"): value for name, value in recorded.items() if name.startswith("init/")}
    dtype = torch.from_numpy(init["last_linear.weight"]).dtype
    select_network, select_criterion = architectures.select, criteria.select
    readers, losses, rates, weights = {}, [], [], {}

    def network(opt):
        net = select_network(opt).to(dtype)
        for constants in net.buffers(recurse=False):  # 0.485, ...: rounded to float32 they are 1e-8 off in float64
            constants.copy_((constants * 1e6).round() / 1e6)
        net.features, net.last_linear = resnet().to(dtype), nn.Linear(24, opt.embed_dim, dtype=dtype)
        readers.update(load(net, init, ""))
        return net.train()  # BatchNorm of the new features is frozen by this, if the flags say so

    def criterion(opt, n_classes):
        torch.manual_seed(0)  # for a flow's permutations where the file lacks them: the published ones are of 0, 1, ...
        loss = select_criterion(opt, n_classes).to(dtype)
        if n_classes == len(set(images["train_labels"])):  # not a check of the flags, before the data are there
            readers.update(load(loss, init, "criterion."))
            loss.register_forward_hook(lambda module, inputs, value: losses.append(float(value.detach())))
        return loss

    def after_step(optimizer, *_):
        rates.append([group["lr"] for group in optimizer.param_groups])
        norms = {f"step{len(rates)}_norm/{name}": read for name, read in readers.items()}
        weights.update({name: float(read().double().norm()) for name, read in norms.items() if name in recorded})

    flags = shlex.split(str(recorded["flags"]))
    flags = [word for before, word in zip(["", *flags], flags) if not OF_ITS_MACHINE & {before, word}]
    splits = datasets.Splits(train=split(images, "train"), test=split(images, "test"))
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(architectures, "select", network),
        mock.patch.object(criteria, "select", criterion),
        mock.patch.object(datasets, "select", lambda *_, **__: splits),
        mock.patch.object(datasampler, "select", lambda opt, *_, **__: RecordedBatches(opt, recorded["batches"])),
        mock.patch.object(torch.cuda, "is_available", lambda: False),  # recorded on a CPU
        register_optimizer_step_post_hook(after_step),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        if status := program.main([*DEFAULTS, *flags, "--kernels", "0", "--save_path", folder]):
            raise ValueError(f"main.py ended with status {status}")
        (metrics,) = Path(folder).rglob("metrics.csv")
        with open(metrics, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) > 0]
    recalls = [[float(row[f"test/{name}"]) for name in RECALLS] for row in rows]
    weights.update({f"end/{name}": read().numpy() for name, read in readers.items()})
    return dict(losses=losses, learning_rates=rates, test_recall=recalls, **weights)


def relative(ours, theirs):
    """Length of the difference of two tensors as a share of the recorded one's."""
    ours, theirs = np.ravel(ours).astype(np.float64), np.ravel(theirs).astype(np.float64)
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-300)


def compare(path):
    """Print how far our run is from the recorded one; whether that is near enough."""
    with np.load(path) as file, np.load(path.parent / "images.npz") as images:
        recorded, ours = dict(file), replay(file, images) if "losses" in file else None
    if not ours:
        print(f"{path.stem}: holds no run")
        return True

    def of_tensors(kind):
        return np.max([relative(ours[name], recorded[name]) for name in recorded if kind in name], initial=0)

    rates = zip(ours["learning_rates"], recorded["learning_rates"].tolist(), strict=True)
    apart = {
        "losses": np.max([relative(*pair) for pair in zip(ours["losses"], recorded["losses"], strict=True)]),
        "weights": of_tensors("end/"),
        "norms": of_tensors("_norm/"),
        # which rates there are, not of which group: the published optimizer has backbone and head in one
        "rates": any(set(mine) != set(theirs) for mine, theirs in rates),
        "recalls": np.abs(ours["test_recall"] - recorded["test_recall"]).max(),
    }
    limits = LIMITS | ({"losses": 1e-5, "weights": 1e-5} if ours["end/last_linear.weight"].dtype == np.float32 else {})
    wrong = [what for what, limit in limits.items() if not apart[what] <= limit]  # NaN is wrong too
    words = {what: f"{value:.2g}" for what, value in apart.items()} | {"rates": "differ" if apart["rates"] else "equal"}
    line = ", ".join(f"{what} {word}" for what, word in words.items())
    print(f"{path.stem}: {line}" + (f"; TOO FAR: {', '.join(wrong)}" if wrong else ""), flush=True)
    return not wrong


def main(paths):
    torch.set_num_threads(1)  # as recorded
    near = []
    for path in paths:
        try:
            near.append(compare(Path(path)))
        except (OSError, ValueError, SystemExit) as problem:  # the last of a flag that is unknown here
            print(f"{path}: not repeated: {problem}")
            near.append(False)
    return 0 if near and all(near) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
