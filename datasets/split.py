"""A split of a data set, and the splits that a data set has."""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch


class Split(torch.utils.data.Dataset):
    """Images with labels: split[i] → (uint8 image (3, H, W), int label). split[i, seed] augments by that seed.

    fetch : function (n keys, n seeds or None) → n images; each is augmented by its seed alone, or not without seeds
    keys, paths : what `fetch` is asked for, one an image; where each comes from, for people
    classes, names : of each image, any sortable values; {class: str}. `.labels` numbers those present 0..C-1 in order
    numbering : classes that `.labels` numbers instead, so that splits share their labels (query and gallery)
    """

    def __init__(self, fetch, keys, classes, names, paths, augmented=False, numbering=None):
        present = sorted(set(classes) if numbering is None else numbering)
        number = {c: i for i, c in enumerate(present)}
        self.fetch, self.names, self.augmented = fetch, names, augmented
        self.keys, self.classes, self.paths = list(keys), list(classes), list(paths)
        self.labels = torch.tensor([number[c] for c in classes], dtype=torch.long)
        self.class_names = [names[c] for c in present]

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, i):
        return self.__getitems__([i])[0]

    def __getitems__(self, indices):  # what DataLoader calls for a batch
        indices, seeds = zip(*(i if isinstance(i, tuple) else (i, None) for i in indices))
        new = [int(torch.randint(2**62, ())) if seed is None else seed for seed in seeds] if self.augmented else None
        images = self.fetch([self.keys[i] for i in indices], new)
        return [(image, int(self.labels[i])) for image, i in zip(images, indices)]

    def subset(self, indices, augmented=None):
        """The images at `indices`, with labels numbered anew."""
        keys, classes, paths = ([values[i] for i in indices] for values in (self.keys, self.classes, self.paths))
        return Split(self.fetch, keys, classes, self.names, paths, self.augmented if augmented is None else augmented)

    def unaugmented(self):
        """The same images as the evaluation wants them."""
        return self.subset(range(len(self)), augmented=False)


class QueryGallery(NamedTuple):
    """A test split in two: queries are searched in the gallery. Their labels are numbered alike."""

    query: Split
    gallery: Split


@dataclass
class Splits:
    train: Split
    test: Optional[Split] = None
    val: Optional[Split] = None
    query: Optional[Split] = None
    gallery: Optional[Split] = None
    partial: str = ""  # what the data lacks of the published counts, a line; empty where it is whole
    skipped: tuple = ()  # paths of the broken images that --skip_broken left out

    @property
    def tested(self):
        """What the evaluation takes as the test split: a Split, or a QueryGallery."""
        return self.test if self.query is None else QueryGallery(self.query, self.gallery)


def train_val_split(train, share, by_samples=False, seed=0):
    """(train, val): `share` of the classes, drawn by seed, stay in training; by_samples: of each class's images."""
    generator = torch.Generator().manual_seed(seed)
    if by_samples:
        kept = torch.zeros(len(train), dtype=torch.bool)
        for c in range(len(train.class_names)):
            members = torch.nonzero(train.labels == c).flatten()
            order = torch.randperm(len(members), generator=generator)
            kept[members[order[: max(1, round(share * len(members)))]]] = True
    else:
        order = torch.randperm(len(train.class_names), generator=generator)
        kept = torch.isin(train.labels, order[: round(share * len(order))])
    return train.subset(kept.nonzero()[:, 0].tolist()), train.subset((~kept).nonzero()[:, 0].tolist(), augmented=False)


def subset_of_classes(train, n_classes=None, n_images=None, seed=0):
    """`train` with n_classes of its classes and at most n_images of each, drawn by seed; None takes all. With one
    seed, the images of a smaller subset are among those of a larger one."""
    n_present = len(train.class_names)
    generator = torch.Generator().manual_seed(seed)
    kept_classes = torch.randperm(n_present, generator=generator)[:n_classes]
    order = torch.randperm(len(train), generator=generator)
    order = order[torch.sort(train.labels[order], stable=True).indices]  # class after class, shuffled within
    counts = train.labels.bincount(minlength=n_present)
    place = torch.arange(len(train)) - (counts.cumsum(0) - counts)[train.labels[order]]  # within its class
    kept = torch.isin(train.labels[order], kept_classes) & (place < (n_images or len(train)))
    return train.subset(order[kept].sort().values.tolist())
