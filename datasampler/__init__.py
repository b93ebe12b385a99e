"""Which images make a batch: class-balanced batch samplers, by name."""

import torch

__all__ = ["SAMPLERS", "ClassBatches", "select"]


class ClassBatches(torch.utils.data.Sampler):
    """Batches of bs / samples_per_class classes with samples_per_class images each; iterating yields lists of indices.

    - distinct=False (`class_random`, published): every class of a batch is drawn with replacement from all classes.
      An epoch has len(labels) // bs batches.
    - distinct=True (`class_balanced`): the classes of a batch are distinct, and an epoch goes through all classes, in
      a new order each time, as often as it takes to see about len(labels) images; the last classes of an epoch are
      filled up with others.

    Within a class images are drawn without replacement, or with it where the class has fewer than samples_per_class.
    What is drawn depends on seed and epoch (`set_epoch`) alone.

    Parameters
    ----------
    labels : sequence of int (n,)

    Raises
    ------
    ValueError
        If distinct classes are asked for and there are fewer than a batch takes, or if samples_per_class does not
        divide bs.
    """

    def __init__(self, labels, bs, samples_per_class, distinct=False, seed=0):
        labels = torch.as_tensor(labels)
        if len(labels) == 0:
            raise ValueError("--data_sampler: the training split has no image")
        if bs % samples_per_class:
            raise ValueError(f"--bs {bs} is not divisible by --samples_per_class {samples_per_class}")
        self.members = [torch.nonzero(labels == c).flatten() for c in labels.unique()]
        self.classes_per_batch, self.samples_per_class = bs // samples_per_class, samples_per_class
        self.distinct, self.seed, self.epoch = distinct, seed, 0
        n_classes = len(self.members)
        if distinct and self.classes_per_batch > n_classes:
            raise ValueError(
                f"--data_sampler class_balanced: --bs {bs} --samples_per_class {samples_per_class} takes {self.classes_per_batch} "
                f"distinct classes, the training split has {n_classes}; --bs {n_classes * samples_per_class} at the most"
            )
        self.n_batches = max(len(labels) // bs, 1)
        if distinct:
            self.n_batches = max(self.n_batches, -(-n_classes // self.classes_per_batch))

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        n_classes, k = len(self.members), self.classes_per_batch
        queue = torch.empty(0, dtype=torch.long)
        for _ in range(self.n_batches):
            if self.distinct:
                if len(queue) < k:  # what is left first, then a new round without those
                    again = torch.randperm(n_classes, generator=generator)
                    queue = torch.cat([queue, again[~torch.isin(again, queue)], again[torch.isin(again, queue)]])
                classes, queue = queue[:k], queue[k:]
            else:
                classes = torch.randint(n_classes, (k,), generator=generator)
            yield [i for c in classes.tolist() for i in self.draw(self.members[c], generator)]

    def draw(self, members, generator):
        if len(members) < self.samples_per_class:
            return members[torch.randint(len(members), (self.samples_per_class,), generator=generator)].tolist()
        return members[torch.randperm(len(members), generator=generator)[: self.samples_per_class]].tolist()


SAMPLERS = {"class_random": dict(distinct=False), "class_balanced": dict(distinct=True)}


def select(opt, labels):
    """The batch sampler that --data_sampler names, over the training labels."""
    return ClassBatches(labels, opt.bs, opt.samples_per_class, seed=opt.seed, **SAMPLERS[opt.data_sampler])
