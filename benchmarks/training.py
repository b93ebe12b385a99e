"""Our training loop against a plain one, in one run: python -m benchmarks.training [--quick]

Both train the same network on the same images with the same loss and Adam; a turn is some steps of each, one after the
other. The plain loop is what one writes first: a DataLoader, forward, loss, backward, step. `plain` leaves memory
format and Adam as torch has them; `plain, tuned` has our channels-last memory and fused Adam, so that what differs is
the loop alone. A ratio above 1 says how many times faster ours is: of the fastest turns, and the median over the turns.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time

import torch

import architectures
import criteria
import datasampler
import main as program
import parameters
from benchmarks import input as inputs
from utilities import device as devices
from utilities import folders, interrupts, state
from utilities.randomness import derive


def build(folder, *flags):
    """A Run of main.py with these flags, built and not trained, in a folder of its own."""
    fixed = "--checkpoint_minutes 1000000 --no_train_metrics --n_epochs 1".split()
    flags = ["--save_path", folder, *fixed, *map(str, flags)]
    opt = parameters.parse(flags)
    device, name = devices.choose_device(opt)
    with contextlib.redirect_stdout(io.StringIO()):  # its opening line
        run = program.build(opt, device, name, interrupts.Interrupts())
    folders.release()
    return run


def ours(run, steps):
    """A function that trains that many steps by main.train_epoch."""
    run.sampler.n_batches = steps

    def epoch():
        run.progress = state.Progress()
        program.train_epoch(run, epoch=1)

    return epoch


def network_of(run, tuned):
    """(model, criterion, Adam) that begin as the run's did."""
    opt = run.opt
    torch.manual_seed(opt.seed)
    model = architectures.select(opt).to(run.device)
    torch.manual_seed(derive(opt.seed, "criterion"))
    criterion = criteria.select(opt, run.criterion.n_classes).to(run.device)
    groups = model.param_groups(opt.lr) + criterion.param_groups(opt.lr)
    how = {"fused": True} if tuned else {}
    if tuned:
        model.to(memory_format=torch.channels_last)
    return model, criterion, torch.optim.Adam(groups, lr=opt.lr, weight_decay=opt.decay, **how)


def plain(run, steps, network, tuned=False):
    """A function that trains `network` on the run's images for that many steps by the plain loop."""
    model, criterion, optimizer = network
    device, split, workers = run.device, run.loader.dataset, run.loader.num_workers
    sampler = datasampler.select(run.opt, split.labels)
    sampler.n_batches = steps
    sampler.set_epoch(1)
    loader = torch.utils.data.DataLoader(
        split,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def epoch():
        model.train()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            if tuned:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=run.dtype, enabled=run.dtype is not None):
                embeddings = model(images)
            loss = criterion(embeddings, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def three(run, steps):
    """{"ours", "plain", "plain, tuned": function that trains so many steps}."""
    peers = {"plain": False, "plain, tuned": True}
    loops = {name: plain(run, steps, network_of(run, tuned), tuned) for name, tuned in peers.items()}
    return {"ours": ours(run, steps), **loops}


def in_turns(epochs, turns, device, clock=time.perf_counter):
    """{name: seconds of each of its turns} of functions taken in turns; a first turn does not count."""
    times = {name: [] for name in epochs}
    for turn in range(turns + 1):
        for name, epoch in epochs.items():
            start = clock()
            epoch()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(clock() - start)
    return times


def ratios(times, peer):
    """(of the fastest turns, median of the turns): how many times faster `ours` is."""
    of_turns = [other / mine for mine, other in zip(times["ours"], times[peer])]
    return min(times[peer]) / min(times["ours"]), statistics.median(of_turns)


def workloads(folder, quick):
    """(what, images of a batch, flags, steps of a turn)."""
    both = "--loss antico_batch_proxy --lr 1e-3 --loss_oproxy_lrmulti 10 --evaluation_metrics e_recall@1".split()
    glyphs = "--dataset glyphs --arch conv4_normalize --kernels 0".split()
    yield "conv4 at 32 px, glyphs, in memory", 32 if quick else 112, [*glyphs, *both], 2 if quick else 12
    size, bs, network = (32, 8, "conv4_normalize") if quick else (224, 16, "resnet18_frozen_normalize")
    images, workers = os.path.join(folder, "images"), 0 if quick else 2
    inputs.make(images, "CUB's, 500 x 375", 8 if quick else 180)
    flags = [
        "--dataset",
        "folder",
        "--source_path",
        images,
        "--arch",
        network,
        "--not_pretrained",
        "--input_size",
        size,
    ]
    what = f"{network.split('_')[0]} at {size} px, JPEGs of 500 x 375, {workers} workers"
    yield what, bs, [*flags, "--kernels", workers, *both], 2 if quick else 3


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each")
    parser.add_argument("--quick", action="store_true", help="two turns of two steps on small images, not to be timed")
    cpu_time = "processor time of the main process, not the wall clock's: for a machine that others use; not for a GPU"
    parser.add_argument("--cpu_time", action="store_true", help=cpu_time)
    args = parser.parse_args(argv)
    clock = time.process_time if args.cpu_time else time.perf_counter
    turns = 2 if args.quick else args.turns
    gpu, cpu = torch.cuda.is_available(), f"CPU, {torch.get_num_threads()} threads"
    clock_name = "; processor time" if args.cpu_time else ""
    print(f"{torch.cuda.get_device_name() if gpu else cpu}; torch {torch.__version__}; {turns} turns{clock_name}\n")
    print("| workload | ours, ms a step | peer | ms a step | ratio of the fastest | median ratio | wanted |")
    print("|---|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for what, bs, flags, steps in workloads(folder, args.quick):
            run = build(os.path.join(folder, "runs"), *flags, "--bs", bs)
            times = in_turns(three(run, steps), turns, run.device, clock)
            for peer in ("plain", "plain, tuned"):
                fastest, median = ratios(times, peer)
                mine, other = (f"{1e3 * min(times[name]) / steps:.1f}" for name in ("ours", peer))
                print(
                    f"| {what}, batch {bs} | {mine} | {peer} | {other} | {fastest:.2f} | {median:.2f} | ≥ 1 |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
