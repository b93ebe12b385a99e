"""Images a second of the input: torchvision's plain v1 pipeline on PIL images against ours, in one run.

    python -m benchmarks.input

The plain one is ImageFolder with RandomResizedCrop(224), RandomHorizontalFlip, ToTensor, Normalize in a DataLoader;
both read the same JPEGs, which the script makes (with a photograph's spectrum, at the size and bytes named in the
table), in the same batches with as many workers. Passes are taken in turns; rates are medians. A pass ends when every
batch is in the main process, ours as uint8 (its normalisation is the network's, on its device). What the outputs differ
by, in levels of 0..255, is measured on equal random crops.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torchvision import datasets as plain_datasets
from torchvision import transforms as plain_transforms

import datasets
import parameters

SIZE, BATCH = 224, 90
KINDS = {
    "CUB's, 500 x 375": (500, 375, 97_000),
    "800 x 800": (800, 800, 160_000),
    "400 x 300": (400, 300, 25_000),
}  # width, height, bytes
# mean absolute difference in levels that counts as agreement: a reduced JPEG, a cached image with a shorter side of at
# most 392 pixels, a square of 336
TOLERANCE = {"without cache": 2, "--cache": 5, "--cache --gpu_augment": 6}
WANTED = {"without cache": "≥ 2", "--cache": "≥ 5", "--cache --gpu_augment": "-"}  # times the plain pipeline's rate
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photograph(width, height, size, generator):
    """A JPEG (bytes) of about `size` bytes: noise whose amplitude falls with frequency, as in photographs."""
    real, imaginary = (generator.normal(size=(3, height, width // 2 + 1)) for _ in range(2))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    field = np.fft.irfft2((real + 1j * imaginary) / np.maximum(frequency, 1) ** 1.1, (height, width))
    field /= field.std(axis=(1, 2), keepdims=True)
    gray = 0.85 * field[:1] + 0.5 * field  # the channels of photographs go together
    image = Image.fromarray((120 + 55 * gray).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    best = None
    for quality in range(30, 97, 6):
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        if best is None or abs(data.tell() - size) < abs(len(best) - size):
            best = data.getvalue()
    return best


def make(folder, kind, n):
    generator, total = np.random.default_rng(0), 0
    # 24 different ones are enough: nothing remembers them
    made = [photograph(*KINDS[kind], generator) for _ in range(min(n, 24))]
    for i in range(n):
        path = os.path.join(folder, "train", f"class{i % 8}", f"{i}.jpg")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        total += len(made[i % len(made)])
        with open(path, "wb") as file:
            file.write(made[i % len(made)])
    os.makedirs(os.path.join(folder, "test", "other"), exist_ok=True)
    for name in ("x.jpg", "y.jpg"):
        Image.new("RGB", (300, 300)).save(os.path.join(folder, "test", "other", name))
    return total / n


def split_of(folder, *flags, cache=None):
    flags = ["--dataset", "folder", "--source_path", folder, *flags, *(["--cache", cache] if cache else [])]
    return datasets.select(parameters.parse(flags), SIZE).train


def plain_steps():
    return plain_transforms.Compose([plain_transforms.RandomResizedCrop(SIZE), plain_transforms.RandomHorizontalFlip()])


def plain_split(folder):
    steps = [*plain_steps().transforms, plain_transforms.ToTensor(), plain_transforms.Normalize(MEAN, STD)]
    return plain_datasets.ImageFolder(os.path.join(folder, "train"), plain_transforms.Compose(steps))


def loader_of(split, workers, passes):
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).repeat(passes)
    options = dict(num_workers=workers, persistent_workers=workers > 0)
    return torch.utils.data.DataLoader(split, batch_sampler=order.split(BATCH), **options)


def rates(splits, workers, passes, repeats):
    """Median images/s of each split, their passes taken in turns; a first turn does not count."""
    loaders = {name: loader_of(split, workers, passes) for name, split in splits.items()}
    times = {name: [] for name in splits}
    for turn in range(repeats + 1):
        for name, loader in loaders.items():
            start = time.perf_counter()
            for _ in loader:
                pass
            if turn:
                times[name].append(passes * len(splits[name]) / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def difference(folder, split):
    """Mean absolute difference, in levels, of a split's training images from the plain pipeline's with equal crops."""
    plain, total = plain_datasets.ImageFolder(os.path.join(folder, "train")), 0.0
    count = min(len(plain), 48)
    for i in range(count):
        path, image = plain.samples[i][0], plain[i][0]
        torch.manual_seed(i)
        wanted = plain_transforms.functional.pil_to_tensor(plain_steps()(image)).float()
        index = split.fetch.paths.index(path)
        torch.manual_seed(i)
        if split.on_device is None:
            ours = split.fetch.one(index, split.fetch.training)
        else:
            ours = cropped_on_device(split, index, image)
        total += float((ours.float() - wanted).abs().mean())
    return total / count


def cropped_on_device(split, index, image):
    """What --gpu_augment makes of an image with the crop and flip that the plain pipeline draws from torch now."""
    box = plain_transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
    flipped = torch.rand(1) < 0.5
    square, aspect = split.fetch.one(index, split.fetch.training)
    sizes = (image.height, image.width, image.height, image.width)
    draws = (torch.rand(1, generator=torch.Generator().manual_seed(number)) for number in range(1000))
    seed = next(number for number, draw in enumerate(draws) if (draw < 0.5) == flipped)  # flips as the plain one
    split.on_device.boxes = lambda *_: [torch.tensor([pixels / size]) for pixels, size in zip(box, sizes)]
    ours = split.on_device(square[None], aspect[None], torch.tensor([seed]))[0]
    del split.on_device.boxes
    return ours


def rows(kind, args):
    """Print the table's rows of one kind of JPEGs; whether a difference is beyond its tolerance."""
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        size = make(folder, kind, args.images)
        cache = os.path.join(folder, "cache")
        splits = {
            "without cache": split_of(folder),
            "--cache": split_of(folder, cache=cache),
            "--cache --gpu_augment": split_of(folder, "--gpu_augment", cache=cache),
        }
        measured = rates({"plain": plain_split(folder), **splits}, args.workers, args.passes, args.repeats)
        for name, split in splits.items():
            differs = difference(folder, split)
            wrong |= differs > TOLERANCE[name]
            cells = f"{kind} | {size / 1e3:.0f} | {measured['plain']:.0f} | {name}: {measured[name]:.0f}"
            ratio = measured[name] / measured["plain"]
            print(f"| {cells} | {ratio:.2f} | {WANTED[name]} | {differs:.2f} |", flush=True)
    return wrong


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=180, help="JPEGs of each kind")
    parser.add_argument("--passes", type=int, default=4, help="times that a pass goes through them")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each pipeline")
    args = parser.parse_args(argv)
    print(f"{args.workers} workers, {os.cpu_count()} cores; torch {torch.__version__}; ", end="")
    print(f"training augmentation base to {SIZE} x {SIZE}, batches of {BATCH}\n")
    print("| JPEGs | kB each | plain, images/s | ours | ratio | wanted | differs by (levels) |")
    print("|---|---:|---:|---|---:|---:|---:|")
    wrong = any([rows(kind, args) for kind in KINDS])
    tolerances = ", ".join(f"{name} {value}" for name, value in TOLERANCE.items())
    print(f"\nTolerance, levels on average: {tolerances}: {'exceeded' if wrong else 'kept'}")
    print("With --gpu_augment the rate is that of the workers; crops and flips are then the device's work.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
