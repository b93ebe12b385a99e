"""Augmentations of photographs by name, and the evaluation's crop: uint8 RGB tensors; the model normalises."""

import math

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2


class View:
    """What becomes of an image: a part of it, resized, then steps.

    area : share of the image's area that a random crop takes; None: all of it, its shorter side at size · 256 / 224
    steps : functions of the uint8 tensor (3, h, w), such as torchvision v2 transforms
    """

    def __init__(self, size, area, steps):
        self.size, self.steps = size, steps
        self.crop = v2.RandomResizedCrop(size, scale=area) if area else None

    def plan(self, height, width):
        """((top, left, height, width), (h, w)): the part and what it is resized to."""
        if self.crop:
            box = self.crop.make_params([torch.empty(1).expand(3, height, width)])  # its size is all that is looked at
            return (box["top"], box["left"], box["height"], box["width"]), (self.size, self.size)
        shorter = round(self.size * 256 / 224)
        longer = int(shorter * max(height, width) / min(height, width))
        return (0, 0, height, width), (shorter, longer) if height <= width else (longer, shorter)

    def __call__(self, pixels, full=None):
        """pixels (h, w, 3) of an image of size `full` before the cache made it smaller → uint8 (3, size, size)."""
        full = full or pixels.shape[:2]
        part = resized_part(pixels, full, *self.plan(*full))
        for step in self.steps:
            part = step(part)
        return part.contiguous()


def resized_part(pixels, full, box, target):
    """The part `box` (top, left, height, width) of an image of size `full`, resized: uint8 (3, *target).
    pixels: (h, w, 3) uint8, of the whole image, maybe made smaller."""
    top, left, height, width = box
    if pixels.shape[:2] == full:
        part = pixels[top : top + height, left : left + width]
        part = torch.from_numpy(part.copy()).permute(2, 0, 1)  # resize would copy it too, and slower
        return v2.functional.resize_image(part, list(target), antialias=True)
    # in a smaller image the part's edges are between pixels, which only Pillow's resize can take
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
    if name == "red":
        return View(size, None, [v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    area = {"base": (0.08, 1.0), "big": (0.4, 1.0), "adv": (0.08, 1.0)}[name]
    colour = [v2.ColorJitter(0.2, 0.2, 0.2, 0.2), v2.RandomGrayscale(0.2)] if name in ("big", "adv") else []
    return View(size, area, [*colour, v2.RandomHorizontalFlip()])


def evaluation(size):
    """Resize the shorter side to 256 (for size 224), crop the centre."""
    return View(size, None, [v2.CenterCrop(size)])
