"""Which images make a batch, by name, and the batches on the device.

Everything random is a function of (seed, epoch, step) and of nothing else: not of what was drawn before it.
"""

import hashlib
import itertools
import math
import os
from functools import partial

import torch

from utilities.signals import shield_worker

__all__ = ["SAMPLERS", "ClassBatches", "Draws", "RandomBatches", "derive", "loader", "prefetch", "select"]


def derive(*numbers):
    """A seed, 0 to 2^63 - 1, from whole numbers and words; other arguments give an unrelated one."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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

    - distinct=False (`class_random`, published): every class of a batch is drawn with replacement from all classes.
      An epoch has len(labels) // bs batches.
    - distinct=True (`class_balanced`): the classes of a batch are distinct, and an epoch covers every image, in as few
      batches as that takes. What fills up the last group of a class, or a batch, is drawn at random.

    Within a group images are drawn without replacement, or with it where the class has fewer than samples_per_class.
    Raises ValueError where there are fewer distinct classes than a batch takes.
    """

    def __init__(self, labels, bs, samples_per_class, distinct=False, seed=0, rank=0, world=1):
        super().__init__(bs, seed, rank, world)
        labels = torch.as_tensor(labels)
        self.members = list(labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist()))
        self.samples_per_class, self.classes_per_batch = samples_per_class, bs // samples_per_class
        self.distinct, n_classes = distinct, len(self.members)
        if distinct and self.classes_per_batch > n_classes:
            flags = f"--data_sampler class_balanced: --bs {bs} --samples_per_class {samples_per_class}"
            most = f"the training split has {n_classes}; --bs {n_classes * samples_per_class} at the most"
            raise ValueError(f"{flags} takes {self.classes_per_batch} distinct classes, {most}")
        self.n_batches = max(len(labels) // bs, 1)
        if distinct:
            groups = [-(-len(m) // samples_per_class) for m in self.members]
            self.n_batches = max(-(-sum(groups) // self.classes_per_batch), max(groups))

    def batches(self, generator):
        return self.covering(generator) if self.distinct else self.at_random(generator)

    def at_random(self, generator):
        for _ in range(self.n_batches):
            classes = torch.randint(len(self.members), (self.classes_per_batch,), generator=generator)
            yield [i for c in classes.tolist() for i in self.draw(self.members[c], generator)]

    def covering(self, generator):
        """Every class's images in groups; the groups in a row, class after class, are dealt out to the batches in turn.

        A class has at most as many groups as there are batches, so no batch gets two of one class, and all get the same
        number or one less.
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
                batch |= {c: self.draw(self.members[c], generator) for c in others}
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

    def draw(self, members, generator):
        if len(members) < self.samples_per_class:
            return members[torch.randint(len(members), (self.samples_per_class,), generator=generator)].tolist()
        return members[torch.randperm(len(members), generator=generator)[: self.samples_per_class]].tolist()


class RandomBatches(Batches):
    """`random`: every image once an epoch in random order, whatever its class; the last, smaller batch is left out.

    Fewer images than a batch takes make one batch, filled up with some of them again.
    """

    def __init__(self, labels, bs, seed=0, rank=0, world=1):
        super().__init__(bs, seed, rank, world)
        self.n_images, self.n_batches = len(labels), max(len(labels) // bs, 1)

    def batches(self, generator):
        size = self.bs
        order = torch.randperm(self.n_images, generator=generator).tolist()
        order += torch.randint(self.n_images, (max(size - self.n_images, 0),), generator=generator).tolist()
        for b in range(self.n_batches):
            yield order[b * size : (b + 1) * size]


class Draws(torch.utils.data.Sampler):
    """A sampler's batches as lists of (index, seed), for a DataLoader over an augmented split.

    The seed is that of the image's augmentation. It depends on the run's seed, the epoch, the step and the place in the
    batch, and so neither on the number of workers or processes nor on where the epoch was entered.
    """

    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return len(self.sampler)

    def __iter__(self):
        s = self.sampler
        for step, batch in enumerate(s, start=s.start):
            first = s.rank * len(batch)
            yield [(i, derive(s.seed, s.epoch, step, first + place)) for place, i in enumerate(batch)]


# name → function of (labels, bs, samples_per_class, seed=, rank=, world=)
SAMPLERS = {
    "class_random": ClassBatches,
    "class_balanced": partial(ClassBatches, distinct=True),
    "random": lambda labels, bs, samples_per_class, **more: RandomBatches(labels, bs, **more),
}


def select(opt, labels, rank=0, world=1):
    """The batch sampler that --data_sampler names, over the training labels, for process `rank` of `world`."""
    if opt.bs % world:
        unit = math.lcm(world, opt.samples_per_class)
        lower = opt.bs - opt.bs % unit
        raise ValueError(f"--bs {opt.bs}: cannot be shared by {world} processes; {lower or unit} or {lower + unit} can")
    sampler = SAMPLERS[opt.data_sampler]
    return sampler(labels, opt.bs, opt.samples_per_class, seed=opt.seed, rank=rank, world=world)


def loader(opt, split, sampler, device):
    """Batches of an augmented split for training on `device`, by --kernels processes."""
    workers = min(opt.kernels, os.cpu_count() or 1)
    return torch.utils.data.DataLoader(
        split,
        batch_sampler=Draws(sampler),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=shield_worker,
        generator=torch.Generator(),  # its own, or the base seed would be drawn from torch's
    )


def prefetch(loader, device):
    """The loader's (images, labels) on the device; on a GPU the next is copied while the last is trained on."""
    if device.type == "cpu":
        for images, labels in loader:
            yield images.contiguous(memory_format=torch.channels_last), labels
        return
    stream, ready = torch.cuda.Stream(device), None
    for batch in itertools.chain(loader, [None]):
        if batch:
            with torch.cuda.stream(stream):
                batch = [tensor.to(device, non_blocking=True) for tensor in batch]
                copied = stream.record_event()
        if ready:
            torch.cuda.current_stream().wait_event(ready[2])
            for tensor in ready[:2]:
                tensor.record_stream(torch.cuda.current_stream())
            yield ready[0].contiguous(memory_format=torch.channels_last), ready[1]
        ready = batch and (*batch, copied)
