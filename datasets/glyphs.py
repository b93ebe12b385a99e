"""glyphs, the embedded data set: letters of the world's scripts in the faces that matplotlib installs.

Class = letter, images = the letter in different faces; dark on white, one size and one baseline, so that o and O
differ. Letters that look the same (Latin A, Greek Alpha, Cyrillic A) are one class. Classes are ordered by code point;
the first half is for training, the last for testing.
"""

import collections
import contextlib
import functools
import hashlib
import os
import unicodedata

import numpy as np
import pandas as pd
import PIL
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse.csgraph import connected_components
from torch.nn.functional import affine_grid, grid_sample, interpolate
from tqdm import tqdm

from datasets.split import Split, Splits
from utilities.folders import write_whole

ABOUT = "1,218 letters of five scripts in several faces, built in, no download"

RECIPE = 1  # to be raised when what is rendered changes: the cache is named by it
SIZE, FONT_SIZE, BASELINE = 64, 36, 45  # pixels
MIN_FACES = 12
# letters whose renderings differ by less are one class, see `lookalikes`. Most pairs of one shape lie below, é and è
# at 0.03. No value parts all: Ŏ and Ǒ (0.009, other marks) are merged; è and ѐ (0.012), Γ and Г (0.026) are not,
# but their identical renderings are dropped
SAME = 0.01
SLANTS = {"Sans": "Oblique", "SansMono": "Oblique", "Serif": "Italic"}
STYLES = [(family, style) for family, slant in SLANTS.items() for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")]
FACES = [f"DejaVu{family}{style}.ttf" for family, style in STYLES]
FACES += ["STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf"]
# Computer Modern's files keep TeX's own encoding: only the ASCII letters stand where Unicode has them
ASCII_FACES = ["cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf"]

# of the training images: (rotation and shear in degrees, log scale, shift as a share of the width, erased square)
AUGMENTATIONS = {
    "red": (4, 0.05, 0.04, 0.0),
    "base": (8, 0.12, 0.08, 0.0),
    "big": (15, 0.25, 0.15, 0.0),
    "adv": (8, 0.12, 0.08, 0.3),
}


def faces():
    """{face: path} of FACES, then of the ASCII_FACES that this matplotlib has: before 3.11 it lacks cmti10 and its 52
    training images."""
    import matplotlib  # takes half a second, which only this data set needs

    paths = {f: os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f) for f in FACES + ASCII_FACES}
    return {face: path for face, path in paths.items() if face in FACES or os.path.isfile(path)}


def is_letter(code):
    """A letter that is not a compatibility form of another (KELVIN SIGN, DOUBLE-STRUCK C, ...)."""
    letter = chr(code)
    return unicodedata.category(letter) in ("Lu", "Ll", "Lt", "Lo") and unicodedata.normalize("NFKC", letter) == letter


def render():
    """All letters that enough faces have: ink (n, SIZE, SIZE) uint8, code points (n,), face numbers (n,)."""
    from matplotlib.ft2font import FT2Font

    paths = faces().values()
    codes_of = [{code for code in FT2Font(path).get_charmap() if is_letter(code)} for path in paths]
    count = collections.Counter(code for codes in codes_of[: len(FACES)] for code in codes)
    ink, codes, numbers = [], [], []
    for number, path in enumerate(tqdm(paths, desc="glyphs: rendering", leave=False, disable=None)):
        font = ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for code in sorted(codes_of[number]):
            if count[code] >= MIN_FACES and (number < len(FACES) or code < 128):
                image = letter_image(chr(code), font)
                if image is not None:
                    ink.append(image), codes.append(code), numbers.append(number)
    return np.stack(ink), np.array(codes), np.array(numbers)


def letter_image(letter, font):
    """The ink of a letter, (SIZE, SIZE) uint8; None if it is blank or cut off."""
    image = Image.new("L", (SIZE, SIZE))
    left, _, right, _ = font.getbbox(letter, anchor="ls")
    ImageDraw.Draw(image).text((round((SIZE - right - left) / 2), BASELINE), letter, fill=255, font=font, anchor="ls")
    ink = np.asarray(image)
    return ink if ink.any() and not np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).any() else None


def lookalikes(ink, codes, faces):
    """Class of each image: the smallest code point among the letters that look like its letter.

    Two letters look the same if |a - b|² / (|a|² + |b|²) of their renderings a and b, as the median over the faces
    that have both, is below SAME. The relation is made transitive.
    """
    letters, row = np.unique(codes, return_inverse=True)
    differences = []
    for face in np.unique(faces):
        here = faces == face
        points = torch.from_numpy(ink[here].reshape(here.sum(), -1)).float() / 255
        energy = points.square().sum(1)
        both = energy[:, None] + energy[None, :]
        of_all = np.full((len(letters), len(letters)), np.nan, dtype=np.float32)
        of_all[np.ix_(row[here], row[here])] = 1 - (2 * points @ points.T / both).numpy()
        differences.append(of_all)
    differences = np.stack(differences)
    same = np.nan_to_num(differences, nan=9).min(0) < SAME  # where the median can be below
    for i, j in np.argwhere(same):
        same[i, j] = np.nanmedian(differences[:, i, j]) < SAME
    _, group = connected_components(same, directed=False)
    return letters[np.unique(group, return_index=True)[1]][group[row]]  # each group's smallest: letters are in order


def build():
    """Arrays: ink (n, SIZE, SIZE) uint8; code, face and cls (the smallest code point of the class), each (n,)."""
    ink, code, face = render()
    cls = lookalikes(ink, code, face)
    # one image of each rendering in a class, none of a rendering that two classes share (serif italic т is an m, say)
    order = np.lexsort((face, code, cls))
    ink, code, face, cls = ink[order], code[order], face[order], cls[order]
    images = pd.DataFrame({"rendering": [image.tobytes() for image in ink], "cls": cls})
    images = images[images.groupby("rendering").cls.transform("nunique") == 1].drop_duplicates("rendering")
    # letters of few faces left (all of them shared) say nothing
    kept = images.index[images.groupby("cls").cls.transform("size") >= 4]
    return dict(ink=ink[kept], code=code[kept], face=face[kept], cls=cls[kept])


def cache_file():
    import matplotlib

    versions = RECIPE, PIL.__version__, unicodedata.unidata_version, matplotlib.__version__, *faces()
    key = hashlib.sha256(" ".join(map(str, versions)).encode()).hexdigest()[:16]
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "antico")
    return os.path.join(os.environ.get("ANTICO_CACHE") or usual, f"glyphs-{key}.npz")


def load():
    """The arrays of `build`, from the cache where it is whole, else rendered and cached."""
    path = cache_file()
    with contextlib.suppress(Exception):  # not there, or damaged, which zipfile, zlib and numpy tell in their own ways
        with np.load(path) as file:
            return dict(file)
    arrays = build()
    try:
        write_whole(path, lambda file: np.savez_compressed(file, **arrays), "wb")
    except OSError as problem:
        print(f"note: glyphs are not cached ({path}: {problem.strerror}); ANTICO_CACHE names another folder")
    return arrays


def augment(images, strength, seeds):
    """Random rotation, shear, scale and shift of images (n, H, W) on white, and a white square for `adv`; no mirroring.

    Each image is changed by its own seed alone.
    """
    degrees, scale, shift, erased = AUGMENTATIONS[strength]
    n, size = len(images), images.shape[-1]
    uniform = torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    signed = uniform * 2 - 1
    angle, shear = signed[:, 0] * np.radians(degrees), (signed[:, 1] * np.radians(degrees)).tan()
    sx, sy = (signed[:, 2:4] * scale).exp().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    linear = torch.stack([sx * cos, sx * (shear * cos - sin), sy * sin, sy * (shear * sin + cos)], 1).view(n, 2, 2)
    theta = torch.cat([linear, signed[:, 4:6, None] * 2 * shift], 2)
    grid = affine_grid(theta, (n, 1, size, size), align_corners=False)
    moved = 255 - grid_sample(255 - images[:, None], grid, align_corners=False)[:, 0]  # outside is white
    if erased:
        corner, side = uniform[:, 6:, None, None] * (1 - erased) * size, erased * size
        y, x = torch.arange(size).view(1, -1, 1), torch.arange(size).view(1, 1, -1)
        inside = (y >= corner[:, 0]) & (y < corner[:, 0] + side) & (x >= corner[:, 1]) & (x < corner[:, 1] + side)
        moved = moved.masked_fill(inside, 255)
    return moved


def resize(images, size):
    return interpolate(images[:, None].float(), size=(size, size), mode="bilinear", antialias=True)[:, 0]


def fetch(images, size, augmentation, keys, seeds):
    """The images at `keys` as uint8 (n, 3, size, size)."""
    batch = images[keys].float() if images.shape[-1] == size else resize(images[keys], size)
    batch = (batch if seeds is None else augment(batch, augmentation, seeds)).round().clamp(0, 255).to(torch.uint8)
    return batch[:, None].expand(-1, 3, -1, -1).contiguous()


def splits(input_size=32, augmentation="base"):
    """The splits; images (3, input_size, input_size)."""
    arrays = load()
    images = 255 - torch.from_numpy(arrays["ink"])
    if input_size < SIZE:  # once, since it is small
        images = torch.cat([resize(part, input_size).round().to(torch.uint8) for part in images.split(1024)])
    fetch_keys = functools.partial(fetch, images, input_size, augmentation)  # which can be pickled
    names = {c: f"U+{c:04X} {unicodedata.name(chr(c))}" for c in np.unique(arrays["cls"]).tolist()}
    files = list(faces())
    paths = [f"{files[f]}:U+{c:04X}" for f, c in zip(arrays["face"], arrays["code"])]
    classes = arrays["cls"].tolist()
    every = Split(fetch_keys, range(len(classes)), classes, names, paths)
    in_train = every.labels < len(names) // 2
    train, test = (part.nonzero()[:, 0].tolist() for part in (in_train, ~in_train))
    return Splits(train=every.subset(train, augmented=True), test=every.subset(test, augmented=False))
