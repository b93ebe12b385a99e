"""glyphs, the embedded data set: letters of the world's scripts in the faces that matplotlib installs.

Class = letter, images = the letter in different faces; dark on white, one size and one baseline, so that o and O differ.
Letters that look the same (Latin A, Greek Alpha, Cyrillic A) are one class. Classes are ordered by code point; the first
half is for training, the last for testing. python -m datasets.sheet FILE.png draws some of it.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
import unicodedata
import zipfile
import zlib

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

from datasets.split import Split, Splits

RECIPE = 1  # to be raised when what is rendered changes: the cache is named by it
SIZE, FONT_SIZE, BASELINE = 64, 36, 45  # pixels
MIN_FACES = 12
# letters whose renderings differ by less are one class, see `lookalikes`. Most pairs that are one shape lie below, é and è at 0.03. No value
# parts all: Ŏ and Ǒ (0.009, other marks) are merged; è and ѐ (0.012), Γ and Г (0.026) are not, but their identical renderings are dropped
SAME = 0.01
FACES = [
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
]
FACES += ["STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf"]
# Computer Modern's files keep TeX's own encoding: only the ASCII letters stand where Unicode has them
ASCII_FACES = ["cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf"]

# strength of the training augmentation: (rotation and shear in degrees, log scale, shift as a share of the width, erased square)
AUGMENTATIONS = {
    "red": (4, 0.05, 0.04, 0.0),
    "base": (8, 0.12, 0.08, 0.0),
    "big": (15, 0.25, 0.15, 0.0),
    "adv": (8, 0.12, 0.08, 0.3),
}


def font_folder():
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf")


def faces():
    """FACES, then the ASCII_FACES that this matplotlib has: before 3.11 it lacks cmti10, and 52 training images with it."""
    return FACES + [face for face in ASCII_FACES if os.path.isfile(os.path.join(font_folder(), face))]


def is_letter(code):
    """A letter that is not a compatibility form of another (KELVIN SIGN, DOUBLE-STRUCK C, ...)."""
    return unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lo") and unicodedata.normalize(
        "NFKC", chr(code)
    ) == chr(code)


def render():
    """All letters that enough faces have: ink (n, SIZE, SIZE) uint8, code points (n,), face numbers (n,)."""
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageDraw, ImageFont
    from tqdm import tqdm

    folder = font_folder()
    have = [
        {c for c in FT2Font(os.path.join(folder, f)).get_charmap() if is_letter(c) and (c < 128 or f in FACES)}
        for f in faces()
    ]
    count = {}
    for letters in have[: len(FACES)]:
        for c in letters:
            count[c] = count.get(c, 0) + 1
    ink, codes, numbers = [], [], []
    for number, (face, letters) in enumerate(
        zip(tqdm(faces(), desc="glyphs: rendering", leave=False, disable=None), have)
    ):
        font = ImageFont.truetype(os.path.join(folder, face), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        for c in sorted(c for c in letters if count.get(c, 0) >= MIN_FACES):
            image = Image.new("L", (SIZE, SIZE))
            left, _, right, _ = font.getbbox(chr(c), anchor="ls")
            ImageDraw.Draw(image).text(
                (round((SIZE - right - left) / 2), BASELINE), chr(c), fill=255, font=font, anchor="ls"
            )
            image = np.asarray(image)
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            if image.any() and not border.any():  # neither blank nor cut off
                ink.append(image), codes.append(c), numbers.append(number)
    return np.stack(ink), np.array(codes), np.array(numbers)


def lookalikes(ink, codes, faces):
    """Class of each image: the smallest code point among the letters that look like its letter.

    Two letters look the same if |a - b|² / (|a|² + |b|²) of their renderings a and b, as the median over the faces that
    have both, is below SAME. The relation is made transitive.
    """
    letters = np.unique(codes)
    row = np.searchsorted(letters, codes)
    differences = []
    for face in np.unique(faces):
        here = faces == face
        points = torch.from_numpy(ink[here].reshape(here.sum(), -1)).float() / 255
        energy = points.square().sum(1)
        both = energy[:, None] + energy[None, :]
        full = np.full((len(letters), len(letters)), np.nan, dtype=np.float32)
        full[np.ix_(row[here], row[here])] = 1 - (2 * points @ points.T / both).numpy()
        differences.append(full)
    differences = np.stack(differences)
    near = np.argwhere(np.triu(np.nanmin(np.where(np.isnan(differences), 9, differences), 0) < SAME, 1))
    parent = np.arange(len(letters))
    for i, j in near:
        if np.nanmedian(differences[:, i, j]) < SAME:
            a, b = sorted((find(parent, i), find(parent, j)))
            parent[b] = a
    return np.array([letters[find(parent, r)] for r in row])


def find(parent, i):
    while parent[i] != i:
        i = parent[i]
    return i


def build():
    """The data set's arrays: ink (n, SIZE, SIZE) uint8, code, face and cls (the class's smallest code point), each (n,)."""
    ink, code, face = render()
    cls = lookalikes(ink, code, face)
    # one image of each rendering in a class, none of a rendering that two classes share (serif italic т is an m, say)
    order = np.lexsort((face, code, cls))
    ink, code, face, cls = ink[order], code[order], face[order], cls[order]
    seen = {}
    for i, image in enumerate(ink):
        seen.setdefault(image.tobytes(), []).append(i)
    kept = sorted(same[0] for same in seen.values() if len(set(cls[same])) == 1)
    # letters of few faces left (all of them shared) say nothing
    _, where, count = np.unique(cls[kept], return_inverse=True, return_counts=True)
    kept = np.array(kept)[count[where] >= 4]
    return dict(ink=ink[kept], code=code[kept], face=face[kept], cls=cls[kept])


def cache_file():
    import PIL

    key = hashlib.sha256(f"{RECIPE} {PIL.__version__} {unicodedata.unidata_version}".encode())
    for face in faces():
        with open(os.path.join(font_folder(), face), "rb") as file:
            key.update(file.read())
    folder = os.environ.get("ANTICO_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "antico"
    )
    return os.path.join(folder, f"glyphs-{key.hexdigest()[:16]}.npz")


def load():
    """The arrays of `build`, from the cache where it is whole, else rendered and cached."""
    path = cache_file()
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("ink", "code", "face", "cls")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        arrays = build()  # not there, or damaged
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".npz")
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        if temporary:
            with contextlib.suppress(OSError):  # a full disk keeps no half a file
                os.remove(temporary)
        print(
            f"note: glyphs are not cached, {path} cannot be written ({problem.strerror}); ANTICO_CACHE names another folder"
        )
    return arrays


def augment(images, strength, seeds):
    """Random rotation, shear, scale and shift of white-background images (n, H, W) float, and a white square for `adv`. No mirroring.

    Each image is changed by its own seed alone.
    """
    degrees, scale, shift, erased = AUGMENTATIONS[strength]
    n, size = len(images), images.shape[-1]
    uniform = torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    signed = uniform * 2 - 1
    angle, shear = signed[:, 0] * np.radians(degrees), (signed[:, 1] * np.radians(degrees)).tan()
    sx, sy = (signed[:, 2:4] * scale).exp().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    linear = torch.stack(
        [torch.stack([sx * cos, sx * (shear * cos - sin)], 1), torch.stack([sy * sin, sy * (shear * sin + cos)], 1)], 1
    )
    grid = affine_grid(
        torch.cat([linear, signed[:, 4:6, None] * 2 * shift], 2), (n, 1, size, size), align_corners=False
    )
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
    """Splits of the glyphs data set; images (3, input_size, input_size)."""
    arrays = load()
    images = 255 - torch.from_numpy(arrays["ink"])
    if input_size < SIZE:  # once, since it is small
        images = torch.cat([resize(part, input_size).round().to(torch.uint8) for part in images.split(1024)])
    # a partial and no closure: data workers that are spawned get it pickled
    fetch_keys = functools.partial(fetch, images, input_size, augmentation)

    files = faces()
    names = {c: f"U+{c:04X} {unicodedata.name(chr(c))}" for c in np.unique(arrays["cls"]).tolist()}
    paths = [f"{files[f]}:U+{c:04X}" for f, c in zip(arrays["face"], arrays["code"])]
    classes = sorted(names)
    first = set(classes[: len(classes) // 2])
    cls = arrays["cls"].tolist()

    def half(keys, augmented):
        return Split(fetch_keys, keys, [cls[k] for k in keys], names, [paths[k] for k in keys], augmented)

    return Splits(
        train=half([k for k, c in enumerate(cls) if c in first], True),
        test=half([k for k, c in enumerate(cls) if c not in first], False),
    )
