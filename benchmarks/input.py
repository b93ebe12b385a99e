"""Images a second of the input against torchvision's plain pipeline: python -m benchmarks.input [--small]

The plain one is ImageFolder with RandomResizedCrop(224), RandomHorizontalFlip, ToTensor, Normalize in a DataLoader;
both read the same JPEGs, which the script makes (with a photograph's spectrum, at the size and bytes named in the
table), in the same batches with 2 workers. Passes are taken in turns; rates are medians. A pass ends when every batch
is in the main process, ours as uint8 (its normalisation is the network's, on its device). What the outputs differ by,
in levels of 0..255, is measured on equal random crops.
"""

import io
import os
import statistics
import sys
import tempfile

import numpy as np
import torch
from PIL import Image
from torchvision import datasets as plain_datasets
from torchvision import transforms

import datasets
import parameters
from benchmarks import head, heading, parser, row, turns

SIZE, BATCH = 224, 90
KINDS = {"CUB's, 500 x 375": (500, 375, 97_000), "800 x 800": (800, 800, 160_000), "400 x 300": (400, 300, 25_000)}
WANTED = {"without cache": 2, "--cache": 5}  # times the plain pipeline's rate
# mean absolute difference in levels that counts as agreement; a cached image's shorter side has at most 392 pixels
TOLERANCE = {"without cache": 1, "--cache": 5}


def photograph(width, height, size, generator):
    """A JPEG (bytes) of about `size` bytes: noise whose amplitude falls with frequency, as in photographs."""
    real, imaginary = (generator.normal(size=(3, height, width // 2 + 1)) for _ in range(2))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    field = np.fft.irfft2((real + 1j * imaginary) / np.maximum(frequency, 1) ** 1.1, (height, width))
    field /= field.std(axis=(1, 2), keepdims=True)
    gray = 0.85 * field[:1] + 0.5 * field  # the channels of photographs go together
    image = Image.fromarray((120 + 55 * gray).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    made = []
    for quality in range(30, 97, 6):
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        made.append(data.getvalue())
    return min(made, key=lambda jpeg: abs(len(jpeg) - size))


def make(folder, kind, n, n_classes=8, different=24):
    """n JPEGs of training classes and two test classes of two in a folder of --dataset folder; their mean size."""
    generator = np.random.default_rng(0)
    made = [photograph(*KINDS[kind], generator) for _ in range(min(n, different))]  # nothing remembers them
    places = [("train", f"class{i % n_classes}", i) for i in range(n)]
    for split, name, i in [*places, *(("test", f"other{i % 2}", i) for i in range(4))]:
        path = os.path.join(folder, split, name, f"{i}.jpg")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(made[i % len(made)])
    return sum(len(made[i % len(made)]) for i in range(n)) / n


def split_of(folder, *flags):
    return datasets.select(parameters.parse(["--dataset", "folder", "--source_path", folder, *flags]), SIZE).train


def plain_split(folder, *more):
    """torchvision's: (image, label) after crop, flip and `more`."""
    steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), *more]
    return plain_datasets.ImageFolder(os.path.join(folder, "train"), transforms.Compose(steps))


def passes(split, workers, n):
    """A function that goes n times through the split."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).repeat(n).split(BATCH)
    how = dict(num_workers=workers, persistent_workers=workers > 0)
    loader = torch.utils.data.DataLoader(split, batch_sampler=order, **how)

    def through():
        for _ in loader:
            pass

    return through


def difference(folder, split):
    """Mean absolute difference, in levels, of a split's training images from the plain pipeline's with equal crops."""
    plain = plain_split(folder, transforms.PILToTensor())
    count, total = min(len(plain), 48), 0.0
    for i in range(count):
        torch.manual_seed(i)
        wanted, _ = plain[i]
        ours, _ = split[split.paths.index(plain.samples[i][0]), i]  # augmented by the same seed
        total += float((ours.float() - wanted.float()).abs().mean())
    return total / count


def rows(kind, n, workers, n_passes, repeats):
    """Print the table's rows of one kind of JPEGs; whether a difference is beyond its tolerance."""
    wrong = False
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        size = make(folder, kind, n)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        cached = split_of(folder, "--cache", cache)
        splits = {"without cache": split_of(folder), "--cache": cached}
        plain = plain_split(folder, transforms.ToTensor(), transforms.Normalize(mean, std))
        works = {name: passes(split, workers, n_passes) for name, split in {"plain": plain, **splits}.items()}
        times = turns(works, repeats)
        rates = {name: n_passes * n / statistics.median(found) for name, found in times.items()}
        for name, split in splits.items():
            differs, ours, ratio = difference(folder, split), f"{name}: {rates[name]:.0f}", rates[name] / rates["plain"]
            wrong |= differs > TOLERANCE[name]
            cells = f"{size / 1e3:.0f}", f"{rates['plain']:.0f}", ours, ratio, f"≥ {WANTED[name]}", differs
            print(row(kind, *cells), flush=True)
    return wrong


def main(argv=None):
    args = parser(__doc__, 5).parse_args(argv)
    n, workers, n_passes, repeats = (6, 0, 1, 1) if args.small else (180, 2, 4, args.repeats)
    what = (
        f"{workers} workers, {os.cpu_count()} cores, training augmentation base to {SIZE} x {SIZE}, batches of {BATCH}"
    )
    print(f"{heading(what, args.small)}\n")
    print(head("JPEGs", "kB each:", "plain, images/s:", "ours", "ratio:", "wanted:", "differs by (levels):"))
    wrong = any([rows(kind, n, workers, n_passes, repeats) for kind in KINDS])
    tolerances = ", ".join(f"{name} {value}" for name, value in TOLERANCE.items())
    print(f"\nTolerance, levels on average: {tolerances}: {'exceeded' if wrong else 'kept'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
