"""What the runs of one table share: the data that they were trained and tested on."""

import os
from typing import NamedTuple


class Data(NamedTuple):
    dataset: str
    place: str  # the folder's name of one's own images
    n_classes: int | None
    n_images: int | None  # None where they differ from seed to seed: a part of the classes was drawn
    tested: str  # then: the images and classes that nothing was drawn from, as config.json counts them
    images_each: int | None  # --train_images
    skipped: int  # broken images that were left out


def data_of(config, flags):
    """The Data of a run's config.json; flags : {name: value} of all, whether they acted or not."""
    facts, dataset = config.get("data") or {}, flags.get("dataset")
    source = os.path.basename(os.path.normpath(str(flags.get("source_path") or "")))
    drawn = bool(flags.get("use_tv_split") or flags.get("train_classes"))
    parts = str(facts.get("contents") or "").split(", ") if drawn else []
    return Data(
        dataset, source if dataset == "folder" else "", facts.get("n_classes"),
        None if drawn else facts.get("n_images"),
        ", ".join(part for part in parts if not part.startswith(("train ", "val "))),
        flags.get("train_images"), len(config.get("skipped_broken") or ()),
    )  # fmt: skip


def in_words(data):
    size = f" ({data.n_images} training images of {data.n_classes} classes)" if data.n_images and data.n_classes else ""
    if data.n_classes and not data.n_images:
        each = f", at most {data.images_each} images each" if data.images_each else ""
        size = f" ({data.n_classes} training classes{each})"
    broken = f", {data.skipped} broken images skipped" if data.skipped else ""
    return f"{data.dataset}{' ' + data.place if data.place else ''}{size}{broken}"


def names(every):
    """{Data: name in titles and csv files}: the data set's, and where several have the same, what tells them apart."""

    def short(data):
        name = f"{data.dataset} {data.place}".strip()
        each = f" x {data.images_each} images" if data.images_each else ""
        alone = [(other.dataset, other.place) for other in every].count((data.dataset, data.place)) == 1
        return name if alone else f"{name}, {data.n_classes} classes{each}"

    named = {data: short(data) for data in every}
    for longer in (in_words, lambda data: f"{in_words(data)}, tested on {data.tested}"):
        given = list(named.values())
        named = {data: longer(data) if given.count(name) > 1 else name for data, name in named.items()}
    return named
