"""Our training loop against a plain one: python -m benchmarks.training [--small]

Both train the same network on the same images with the same loss and Adam; a turn is some steps of each, one after the
other. The plain loop is what one writes first: a DataLoader, forward, loss, backward, step. `plain` leaves memory
format and Adam as torch has them; `plain, tuned` has our channels-last memory, fused Adam and, on a GPU, compiled
network and loss, so that what differs is the loop alone. A ratio above 1 says how many times faster ours is: of the
fastest turns, and the median over the turns.
"""

import contextlib
import functools
import io
import os
import statistics
import sys
import tempfile

import torch

import architectures
import criteria
import datasampler
import main as program
import parameters
from benchmarks import head, heading, parser, row, turns
from benchmarks import input as inputs
from datasampler import derive
from utilities import device as devices
from utilities.signals import Signals

PEERS = {"plain": False, "plain, tuned": True}
COLUMNS = ("workload", "ours, ms a step:", "peer", "ms a step:", "ratio of the fastest:", "median ratio:", "wanted:")


def build(folder, *flags):
    """A Run of main.py with these flags, begun and not trained, in a folder of its own."""
    fixed = "--checkpoint_minutes 1000000 --no_train_metrics --n_epochs 1 --evaluation_metrics e_recall@1".split()
    opt = parameters.parse(["--save_path", folder, *fixed, *map(str, flags)])
    device, name = devices.choose_device(opt)
    with contextlib.redirect_stdout(io.StringIO()):  # its opening line
        return program.begin(program.build(opt, device, Signals()), name)


def ours(run, steps):
    """Train so many steps by main.train_epoch."""
    run.sampler.n_batches, run.step, run.sums = steps, 0, {}
    program.train_epoch(run, epoch=1)


def network_of(run, tuned):
    """(model, what is called for it, criterion, Adam) that begin as the run's did."""
    opt, device = run.opt, run.device
    torch.manual_seed(opt.seed)
    model = architectures.select(opt).to(device, memory_format=torch.channels_last if tuned else torch.preserve_format)
    torch.manual_seed(derive(opt.seed, "criterion"))
    criterion = criteria.select(opt, run.criterion.n_classes).to(device)
    groups = model.param_groups(opt.lr) + criterion.param_groups(opt.lr)
    optimizer = torch.optim.Adam(groups, lr=opt.lr, weight_decay=opt.decay, **({"fused": True} if tuned else {}))
    called = functools.partial(torch.compile, dynamic=False) if tuned and run.compiled else lambda x: x
    return model, called(model), called(criterion), optimizer


def plain(run, tuned, network=None):
    """A function that trains so many steps on the run's images by the plain loop."""
    model, net, criterion, optimizer = network or network_of(run, tuned)
    device, split, workers = run.device, run.loader.dataset, run.loader.num_workers
    sampler = datasampler.select(run.opt, split.labels)
    sampler.set_epoch(1)
    how = dict(num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda")
    loader = torch.utils.data.DataLoader(split, batch_sampler=sampler, **how)

    def train(steps):
        sampler.n_batches = steps
        model.train()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            if tuned:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=run.dtype, enabled=run.dtype is not None):
                embeddings = net(images)
            loss = criterion(embeddings, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


def loops(run):
    """{"ours", "plain", "plain, tuned": function that trains so many steps}."""
    return {"ours": functools.partial(ours, run), **{name: plain(run, tuned) for name, tuned in PEERS.items()}}


def workloads(folder, small):
    """(what, flags of main.py, steps of a turn)."""
    both = "--loss antico_batch_proxy --antico_w 30 --lr 1e-3 --loss_oproxy_lrmulti 10".split()
    glyphs, bs = "--dataset glyphs --arch conv4_normalize --kernels 0".split(), 32 if small else 112
    yield f"conv4 at 32 px, glyphs, in memory, batch {bs}", [*glyphs, "--bs", bs, *both], 2 if small else 12
    size, bs, network = (32, 8, "conv4_normalize") if small else (224, 16, "resnet18_frozen_normalize")
    images, workers = os.path.join(folder, "images"), 0 if small else 2
    inputs.make(images, "CUB's, 500 x 375", 8 if small else 180)
    flags = ["--dataset", "folder", "--source_path", images, "--arch", network, "--not_pretrained"]
    what = f"{network.split('_')[0]} at {size} px, JPEGs of 500 x 375, {workers} workers, batch {bs}"
    yield what, [*flags, "--input_size", size, "--kernels", workers, "--bs", bs, *both], 2 if small else 3


def main(argv=None):
    args = parser(__doc__, 5).parse_args(argv)
    repeats = 1 if args.small else args.repeats
    print(f"{heading(f'{repeats} turns', args.small)}\n\n{head(*COLUMNS)}")
    with tempfile.TemporaryDirectory() as folder:
        for what, flags, steps in workloads(folder, args.small):
            run = build(os.path.join(folder, "runs"), *flags)
            times = turns({name: functools.partial(loop, steps) for name, loop in loops(run).items()}, repeats)
            for peer in PEERS:
                median = statistics.median(other / mine for mine, other in zip(times["ours"], times[peer]))
                mine, other = (1e3 * min(times[name]) / steps for name in ("ours", peer))
                print(row(what, f"{mine:.1f}", peer, f"{other:.1f}", other / mine, median, "≥ 1"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
