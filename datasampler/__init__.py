"""Which images make a batch, by name, and the batches on the device.

Everything random is a function of (seed, epoch, step) and of nothing else: not of what was drawn before it.
"""

import functools
import hashlib
import itertools
import math
import os
import time

import torch

from utilities.signals import shield_worker


def derive(*numbers):
    """A seed, 0 to 2^63 - 1, from whole numbers and words; other arguments give an unrelated one."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


class Batches(torch.utils.data.Sampler):
    """What the samplers share: iterating yields one process's batches, lists of indices, of the epoch of `set_epoch`.

    What is drawn depends on seed and epoch alone, and is drawn alike by every process: of each batch of bs images,
    process `rank` yields its bs / world. An epoch can be entered at any batch: set_epoch(epoch, start=k) skips the
    first k, and what follows is what would have followed.
    """

    def __init__(self, bs, seed, rank, world):
        self.bs, self.seed, self.rank, self.world = bs, seed, rank, world
        self.epoch, self.start, self.n_batches = 0, 0, 0

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __len__(self):  # of what is left of the epoch
        return max(self.n_batches - self.start, 0)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for number, batch in enumerate(self.batches(generator)):
            if number >= self.start:
                share = self.bs // self.world
                yield batch[self.rank * share : (self.rank + 1) * share]


class ClassBatches(Batches):
    """Batches of bs / samples_per_class classes with samples_per_class images each, for labels (n,).

    - distinct=False (`class_random`, published): classes and their images are drawn with replacement: of a class of n
      images, one pair in n is an image twice. An epoch has len(labels) // bs batches, at least one.
    - distinct=True (`class_balanced`): the classes of a batch are distinct, and an epoch covers every image, in as few
      batches as that takes. What fills up the last group of a class, or a batch, is drawn at random; no group has an
      image twice, unless its class has fewer than samples_per_class.
    """

    def __init__(self, labels, bs, samples_per_class, distinct=False, seed=0, rank=0, world=1):
        super().__init__(bs, seed, rank, world)
        labels = torch.as_tensor(labels)
        self.members = list(labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist()))
        self.samples_per_class, self.classes_per_batch = samples_per_class, bs // samples_per_class
        self.n_batches, self.batches = max(len(labels) // bs, 1), self.covering if distinct else self.at_random
        if distinct:
            groups = [-(-len(m) // samples_per_class) for m in self.members]
            self.n_batches = max(-(-sum(groups) // self.classes_per_batch), max(groups))

    def at_random(self, generator):
        for _ in range(self.n_batches):
            classes = torch.randint(len(self.members), (self.classes_per_batch,), generator=generator)
            members, size = [self.members[c] for c in classes.tolist()], (self.samples_per_class,)
            yield torch.cat([m[torch.randint(len(m), size, generator=generator)] for m in members]).tolist()

    def covering(self, generator):
        """Every class's images in groups; the groups in a row, class after class, are dealt out to the batches in turn.

        A class has at most as many groups as there are batches, so no batch gets two of one class.
        """
        dealt, turn = [{} for _ in range(self.n_batches)], 0  # {class: its images}
        for c in torch.randperm(len(self.members), generator=generator).tolist():
            for group in self.groups(self.members[c], generator):
                dealt[turn % self.n_batches][c] = group
                turn += 1
        for b in torch.randperm(self.n_batches, generator=generator).tolist():
            batch = dealt[b]
            if len(batch) < self.classes_per_batch:  # filled up with other classes
                others = torch.randperm(len(self.members), generator=generator).tolist()
                others = [c for c in others if c not in batch][: self.classes_per_batch - len(batch)]
                batch |= {c: next(self.groups(self.members[c], generator)) for c in others}
            classes = list(batch)
            order = torch.randperm(len(classes), generator=generator).tolist()
            yield [i for place in order for i in batch[classes[place]]]

    def groups(self, members, generator):
        """Lists of samples_per_class images that cover a class."""
        size, shuffled = self.samples_per_class, members[torch.randperm(len(members), generator=generator)]
        for group in shuffled.split(size):
            if len(group) < size:  # filled up with others of the class, or with the same where it is too small
                others = members[~torch.isin(members, group)]
                more = others[torch.randperm(len(others), generator=generator)[: size - len(group)]]
                again = members[torch.randint(len(members), (size - len(group) - len(more),), generator=generator)]
                group = torch.cat([group, more, again])
            yield group.tolist()


class RandomBatches(Batches):
    """`random`: every image once an epoch in random order, whatever its class; the last, smaller one is left out. Fewer
    images than a batch takes make one batch, filled up with some of them again."""

    def __init__(self, labels, bs, seed=0, rank=0, world=1):
        super().__init__(bs, seed, rank, world)
        self.n_images, self.n_batches = len(labels), max(len(labels) // bs, 1)

    def batches(self, generator):
        order = torch.randperm(self.n_images, generator=generator).tolist()
        order += torch.randint(self.n_images, (max(self.bs - self.n_images, 0),), generator=generator).tolist()
        for first in range(0, self.n_batches * self.bs, self.bs):
            yield order[first : first + self.bs]


class Draws:
    """A sampler's batches as lists of (index, seed of its augmentation). That depends on the run's seed, the epoch, the
    step and the place in the batch: not on the number of workers or processes, nor on where the epoch was entered."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        s = self.sampler
        for step, batch in enumerate(s, start=s.start):
            first = s.rank * len(batch)
            yield [(i, derive(s.seed, s.epoch, step, first + place)) for place, i in enumerate(batch)]


# name → function of (labels, bs, samples_per_class, seed=, rank=, world=)
SAMPLERS = {
    "class_random": ClassBatches,
    "class_balanced": functools.partial(ClassBatches, distinct=True),
    "random": lambda labels, bs, samples_per_class, **more: RandomBatches(labels, bs, **more),
}


def select(opt, labels, rank=0, world=1):
    """The batch sampler that --data_sampler names, over the training labels, for process `rank` of `world`."""
    each, n_classes, n_drawn, problem = opt.samples_per_class, len(labels.unique()), opt.bs // opt.samples_per_class, ""
    if opt.bs % world:
        unit = math.lcm(world, each)
        lower = opt.bs - opt.bs % unit
        problem = f"--bs {opt.bs}: cannot be shared by {world} processes; {lower or unit} or {lower + unit} can"
    elif opt.data_sampler == "class_balanced" and n_drawn > n_classes:
        taken = f"--data_sampler class_balanced: --bs {opt.bs} takes {n_drawn} distinct classes of {each} images"
        problem = f"{taken}, the training split has {n_classes}; --bs {n_classes * each} at the most"
    elif opt.dataset == "folder" and n_classes == 1:  # such as training/ beside testing/
        problem = f"--source_path {opt.source_path}: one class to train on; each folder is one, but train and test"
    if problem:
        raise ValueError(problem)
    return SAMPLERS[opt.data_sampler](labels, opt.bs, each, seed=opt.seed, rank=rank, world=world)


def loader(opt, split, sampler, device):
    """Batches of an augmented split for training on `device`, by --kernels processes."""
    workers = min(opt.kernels, os.cpu_count() or 1)
    how = dict(num_workers=workers, persistent_workers=workers > 0, worker_init_fn=shield_worker)
    how |= dict(generator=torch.Generator(), pin_memory=device.type == "cuda")  # else workers draw from torch's
    return torch.utils.data.DataLoader(split, batch_sampler=Draws(sampler), **how)


copy_stream = functools.cache(torch.cuda.Stream)  # one a run: memory freed on a stream is kept for that stream


def timed(loader):
    """The loader's batches; loader.waited, in seconds: most of the epoch where the input is the limit."""
    loader.waited, start = 0.0, time.monotonic()
    for number, batch in enumerate(loader):
        loader.waited += time.monotonic() - start if number else 0  # the first waits for processes to start
        yield batch
        start = time.monotonic()


def prefetch(loader, device):
    """The loader's batches, images on the device, labels on the CPU; a GPU copies the next while it trains on these."""
    if device.type == "cpu":
        for images, labels in timed(loader):
            yield images.contiguous(memory_format=torch.channels_last), labels
        return
    stream, ready = copy_stream(device), None
    for batch in itertools.chain(timed(loader), [None]):
        if batch:
            with torch.cuda.stream(stream):
                batch = batch[0].to(device, non_blocking=True), batch[1]
                copied = stream.record_event()
        if ready:
            torch.cuda.current_stream().wait_event(ready[2])
            ready[0].record_stream(torch.cuda.current_stream())
            yield ready[0].contiguous(memory_format=torch.channels_last), ready[1]
        ready = batch and (*batch, copied)
