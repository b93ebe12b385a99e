"""Augmentations of photographs by name, and the evaluation's crop. They give uint8 RGB tensors; the model normalises."""

from PIL import Image, ImageOps
from torchvision.transforms import v2


def training(name, size):
    """The training augmentation `name` to size × size pixels.

    - base: random resized crop (8 to 100 % of the area), flip. As published.
    - big: crops of 40 to 100 %, colour jitter, a fifth in grey, flip.
    - adv: base with colour jitter and a fifth in grey.
    - red: resize to 256/224 of the size, random crop, flip: reduced, it keeps the scale.
    """
    color = [v2.ColorJitter(0.2, 0.2, 0.2, 0.2), v2.RandomGrayscale(0.2)]
    flip = v2.RandomHorizontalFlip()
    steps = {
        "base": [v2.RandomResizedCrop(size, antialias=True), flip],
        "big": [v2.RandomResizedCrop(size, scale=(0.4, 1), antialias=True), *color, flip],
        "adv": [v2.RandomResizedCrop(size, antialias=True), *color, flip],
        "red": [v2.Resize(resized(size), antialias=True), v2.RandomCrop(size), flip],
    }[name]
    return v2.Compose([*steps, v2.PILToTensor()])


def evaluation(size):
    """Resize the shorter side to 256 (for size 224), crop the centre."""
    return v2.Compose([v2.Resize(resized(size), antialias=True), v2.CenterCrop(size), v2.PILToTensor()])


def resized(size):
    return round(size * 256 / 224)


def read_image(path):
    """An image file as RGB, upright; ValueError, one line, that names a file which cannot be decoded."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode == "P" and "transparency" in image.info:  # Pillow warns if such a palette goes to RGB directly
                image = image.convert("RGBA")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"{path}: cannot be decoded as an image ({problem})") from problem
