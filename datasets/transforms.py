"""Augmentations of photographs by name, and the evaluation's crop: uint8 RGB tensors; the model normalises."""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import v2

RATIO = (3 / 4, 4 / 3)  # width to height of random resized crops, torchvision's default
# share of the image's area that a crop takes
AREA = {"base": (0.08, 1.0), "big": (0.4, 1.0), "adv": (0.08, 1.0), "red": None}
COLOURED = ("big", "adv")


def resized(size):
    return round(size * 256 / 224)


def flip(image):
    """torchvision's RandomHorizontalFlip without the time it takes to find out what an image is."""
    return image.flip(-1) if torch.rand(1) < 0.5 else image


def colour():
    return [v2.ColorJitter(0.2, 0.2, 0.2, 0.2), v2.RandomGrayscale(0.2)]


class View:
    """What becomes of an image: a part of it, resized to a target (both known before it is decoded), then steps.

    area : share of the image's area that a random crop takes; None: all of it, its shorter side at size · 256 / 224
    steps : functions of the uint8 tensor (3, h, w), such as torchvision v2 transforms
    margin : pixels that the decoded part keeps at least, as a multiple of the target's
    """

    def __init__(self, size, area, steps, margin):
        self.size, self.steps, self.margin = size, steps, margin
        self.crop = v2.RandomResizedCrop(size, scale=area, ratio=RATIO, antialias=True) if area else None

    def plan(self, height, width):
        """((top, left, height, width), (h, w)): the part and what it is resized to."""
        if self.crop:
            box = self.crop.make_params([torch.empty(1).expand(3, height, width)])  # its size is all that is looked at
            return (box["top"], box["left"], box["height"], box["width"]), (self.size, self.size)
        shorter, longer = resized(self.size), int(resized(self.size) * max(height, width) / min(height, width))
        return (0, 0, height, width), (shorter, longer) if height <= width else (longer, shorter)

    def __call__(self, pixels, full, box, target):
        """pixels (h, w, 3) of an image of size `full` before it was reduced → uint8 (3, size, size)."""
        part = resized_part(pixels, full, box, target)
        for step in self.steps:
            part = step(part)
        return part.contiguous()


def resized_part(pixels, full, box, target):
    """The part `box` (top, left, height, width) of an image of size `full`, resized: uint8 (3, *target).

    pixels : (h, w, 3) uint8, of the whole image, maybe reduced
    """
    top, left, height, width = box
    if pixels.shape[:2] == full:
        part = pixels[top : top + height, left : left + width]
        part = torch.from_numpy(part.copy()).permute(2, 0, 1)  # resize would copy it too, and slower
        return v2.functional.resize_image(part, list(target), antialias=True)
    # a reduced image has the part's edges between its pixels, which only Pillow's resize can take
    down, right = pixels.shape[0] / full[0], pixels.shape[1] / full[1]
    y, x = int(top * down), int(left * right)
    bottom, end = (top + height) * down, (left + width) * right
    image = Image.fromarray(np.ascontiguousarray(pixels[y : math.ceil(bottom), x : math.ceil(end)]))
    edges = left * right - x, top * down - y, min(end - x, image.width), min(bottom - y, image.height)
    return v2.functional.pil_to_tensor(image.resize(target[::-1], Image.Resampling.BILINEAR, box=edges))


def training(name, size):
    """The training augmentation `name` to size × size pixels.

    - base: random resized crop (8 to 100 % of the area), flip. As published.
    - big: crops of 40 to 100 %, colour jitter, a fifth in grey, flip.
    - adv: base with colour jitter and a fifth in grey.
    - red: resize to 256/224 of the size, random crop, flip: reduced, it keeps the scale.
    """
    steps = [*(colour() if name in COLOURED else []), flip]
    if AREA[name] is None:
        return View(size, None, [v2.RandomCrop(size), *steps], margin=2)  # a whole image loses more by it than a crop
    return View(size, AREA[name], steps, margin=1)


def evaluation(size):
    """Resize the shorter side to 256 (for size 224), crop the centre."""
    return View(size, None, [v2.CenterCrop(size)], margin=2)


class Square:
    """The view for `OnDevice`: the whole image as a square of 1.5 · size pixels; its aspect ratio goes beside it."""

    def __init__(self, size):
        self.size, self.margin = round(1.5 * size), 1

    def plan(self, height, width):
        return (0, 0, height, width), (self.size, self.size)

    def __call__(self, pixels, full, box, target):
        return resized_part(pixels, full, box, target).contiguous(), torch.tensor(full[1] / full[0])


class OnDevice:
    """The training augmentation `name` of a whole batch on its device, drawn for each image on its own.

    (squares (B, 3, S, S) uint8, aspect ratios (B,) width / height, seeds (B,)) → uint8 (B, 3, size, size). Each image
    is changed by its own seed alone, drawn from on the CPU, so that it gets the same crop on every device. Crops of a
    square have 1.5 · size pixels at most to draw from and are sampled bilinearly: small crops are softer than the
    workers' (see benchmarks/input.py for by how much).
    """

    def __init__(self, name, size):
        self.area, self.size = AREA[name], size
        self.colour = v2.Compose(colour()) if name in COLOURED else None

    def boxes(self, aspects, uniform):
        """(top, left, height, width), each (B,), as shares of the image, from uniform numbers (B, 22) in 0..1.

        By torchvision's rule, vectorised: ten tries, then a central crop.
        """
        tries, (top, left) = uniform[:, :20].unflatten(1, (2, 10)), uniform[:, 20:].unbind(1)
        if self.area is None:
            side = self.size / resized(self.size) * aspects.clamp(max=1)  # the image is 1 high and `aspects` wide
            height, width = side, side
        else:
            area = aspects[:, None] * between(self.area, tries[:, 0])
            ratio = between(tuple(map(math.log, RATIO)), tries[:, 1]).exp()
            heights, widths = (area / ratio).sqrt(), (area * ratio).sqrt()
            fits = (heights <= 1) & (widths <= aspects[:, None])
            first = fits.int().argmax(1, keepdim=True)
            height = torch.where(fits.any(1), heights.gather(1, first)[:, 0], (aspects / RATIO[0]).clamp(max=1))
            width = torch.where(fits.any(1), widths.gather(1, first)[:, 0], aspects.clamp(max=RATIO[1]))
            top, left = (torch.where(fits.any(1), place, 0.5) for place in (top, left))
        return top * (1 - height), left * (1 - width / aspects), height, width / aspects

    def __call__(self, squares, aspects, seeds):
        seeds = seeds.tolist()
        uniform = torch.stack([torch.rand(23, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        top, left, height, width = self.boxes(aspects.cpu().float(), uniform[:, 1:])
        flip = torch.where(uniform[:, 0] < 0.5, -1.0, 1.0)
        zero = torch.zeros_like(top)
        theta = torch.stack([width * flip, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], 1)
        theta = theta.view(-1, 2, 3).to(squares.device, non_blocking=True)
        grid = affine_grid(theta, (len(squares), 3, self.size, self.size), align_corners=False)
        images = grid_sample(squares.float(), grid, padding_mode="border", align_corners=False)
        images = images.round().clamp(0, 255).to(torch.uint8)
        if self.colour:
            with torch.random.fork_rng(devices=[]):
                images = torch.stack([self.coloured(image, seed) for image, seed in zip(images, seeds)])
        return images.contiguous(memory_format=torch.channels_last)

    def coloured(self, image, seed):
        torch.default_generator.manual_seed(seed)  # what torchvision's transforms draw from
        return self.colour(image)


def between(bounds, uniform):
    """Uniform numbers in 0..1 → in the bounds (low, high)."""
    return bounds[0] + (bounds[1] - bounds[0]) * uniform
