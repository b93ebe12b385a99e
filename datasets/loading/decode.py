"""Reading image files as people have them: upright RGB, decoded no larger than needed, and broken ones named."""

import io
import os

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

try:  # faster than Pillow by a fifth where nothing is reduced; deprecated, so it may be missing one day
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")  # no others: Pillow runs Ghostscript on PostScript named .jpg
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height
BITS, WHITE = 258, 262  # TIFF tags BitsPerSample and PhotometricInterpretation, where 0 says that 0 is white


class BrokenImage(ValueError):
    """One line that names a file which cannot be decoded; what is not UTF-8 in its name is spelled out, for terminals.

    A DataLoader raises a worker's exception anew, with the worker's traceback as its text: the line is its end.
    """

    advice = "repair or remove the file, or give --skip_broken"

    def __init__(self, text):
        line = text.split(f"{type(self).__name__}: ")[-1].strip()
        super().__init__(line.encode(errors="backslashreplace").decode())


def image_names(names):
    """Those that are images by their suffix, sorted, without what macOS leaves beside them (._name)."""
    return sorted(n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))


def read(path, plan=None, margin=1.0):
    """An image file as uint8 RGB pixels (h, w, 3), upright: (pixels, (full size, box, target)).

    Parameters
    ----------
    plan : function (height, width) → ((top, left, height, width), (h, w)), optional
        The part that is wanted and the pixels it is to become, from the size of the whole image: box and target, None
        without a plan. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size (by its DCT) where the part still has
        `margin` times those pixels; the pixels are those of the whole image all the same.

    Raises BrokenImage, one line, for a file that cannot be decoded.
    """
    try:
        with open(path, "rb") as file:
            return decode(file.read(), plan, margin)
    except Exception as problem:  # Pillow raises whatever comes: OSError, SyntaxError, ValueError, struct.error, ...
        if isinstance(problem, UnidentifiedImageError):
            reason = "the file is empty" if os.path.getsize(path) == 0 else f"not an image in {', '.join(FORMATS)}"
        else:
            reason = " ".join((getattr(problem, "strerror", None) or str(problem) or type(problem).__name__).split())
        raise BrokenImage(f"{path}: cannot be decoded as an image ({reason})") from problem


def decode(data, plan, margin):
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        is_jpeg = image.format == "JPEG"
        if not is_jpeg:
            image.load()  # its errors are not EXIF's: Pillow reads a PNG to its end to find that
        try:
            turned = image.getexif().get(ORIENTATION, 1)
        except Exception:  # damaged EXIF beside a good image
            turned = 1
        full = image.size if turned in (5, 6, 7, 8) else image.size[::-1]
        box, target = plan(*full) if plan else (None, None)
        reduction = min(box[2] / target[0], box[3] / target[1]) / margin if box else 1
        if is_jpeg and reduction >= 2:
            # never smaller than asked for: draft takes the largest of 1/2, 1/4, 1/8 with at least this size
            image.draft(None, (int(image.size[0] / reduction), int(image.size[1] / reduction)))
        elif is_jpeg and turned == 1 and image.mode in ("RGB", "L"):
            pixels = whole_jpeg(data)
            if pixels is not None:
                return pixels, (full, box, target)
        upright = ImageOps.exif_transpose(image) if turned != 1 else image  # which is a copy
        return np.asarray(upright if upright.mode == "RGB" else rgb(upright, image)), (full, box, target)


def whole_jpeg(data):
    """A JPEG by torchvision: the same pixels as Pillow's, without its copies. None where it cannot; Pillow says why."""
    if decode_jpeg is None:
        return None
    try:
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return pixels.permute(1, 2, 0).numpy()
    except (RuntimeError, ValueError):
        return None


def rgb(image, file):
    """8-bit RGB of an image that was opened as `file`; ValueError where no value of its grey is said to be white."""
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns if such a palette goes to RGB directly
        image = image.convert("RGBA")
    if image.mode.startswith("I;16") or image.mode == "I" and file.format == "PNG":  # as older Pillows have 16 bits
        tags = getattr(file, "tag_v2", {})  # a TIFF's 12 bits come as 16, and its white may be 0
        grey = np.asarray(image).astype(np.int64) >> tags.get(BITS, (16,))[0] - 8  # convert would clip at 255
        image = Image.fromarray((255 - grey if tags.get(WHITE) == 0 else grey).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"its grey is in {kind}, of which none is said to be white; save it with 8 or 16 bits")
    return image.convert("RGB")


class Reader(torch.utils.data.Dataset):
    """Item i: (pixels, full size) of paths[i], its shorter side at most `shorter` pixels, or a BrokenImage's line."""

    def __init__(self, paths, shorter=None):
        self.paths, self.shorter = paths, shorter

    def __len__(self):
        return len(self.paths)

    def plan(self, height, width):
        return (0, 0, height, width), within(height, width, self.shorter)

    def __getitem__(self, i):
        try:
            pixels, (full, _, target) = read(self.paths[i], self.plan if self.shorter else None)
        except BrokenImage as problem:
            return str(problem)
        if target and target != pixels.shape[:2]:
            pixels = np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR))
        return torch.from_numpy(np.array(pixels)), full


class Check(Reader):
    """Item i: what is wrong with paths[i], or an empty text. Only the verdict leaves the worker."""

    def __getitem__(self, i):
        item = super().__getitem__(i)
        return item if isinstance(item, str) else ""


def within(height, width, shorter):
    """The size with a shorter side of at most `shorter` pixels, aspect ratio kept."""
    factor = min(1, shorter / min(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def as_is(item):
    return item


def in_parallel(reader, workers, desc):
    """The items of a Reader in order, read by worker processes, under a progress bar."""
    workers = min(workers, os.cpu_count() or 1)
    loader = torch.utils.data.DataLoader(
        reader, batch_size=None, collate_fn=as_is, num_workers=workers, generator=torch.Generator()
    )
    return tqdm(loader, total=len(reader), desc=desc, unit=" images", leave=False, disable=None, dynamic_ncols=True)


def broken(paths, workers=0, desc="checking images", quick=False):
    """{index: line} of the files that cannot be decoded; `quick`: JPEGs at 1/8 of their size, but to their end."""
    return {i: line for i, line in enumerate(in_parallel(Check(paths, 1 if quick else None), workers, desc)) if line}
