"""Image files of every mode, depth and orientation become the RGB that people see; broken ones are named."""

import struct

import numpy as np
import pytest
from miniatures import noise, write
from PIL import EpsImagePlugin, Image

import datasets
from datasets import images
from datasets.layout import class_folders


@pytest.mark.parametrize("kind", "L.jpg P.png CMYK.jpg 1.png RGB.bmp".split())
def test_image_modes_become_rgb(kind, tmp_path):
    mode, suffix = kind.split(".")
    path = tmp_path / f"ein Bild, größer.{suffix}"
    write(path, mode=mode, size=(20, 30))
    pixels = images.read(path)
    assert pixels.shape == (30, 20, 3) and pixels.dtype == np.uint8
    assert mode in "P1" or np.abs(pixels.astype(int) - 200).max() <= 3
    assert np.array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))


def tiff(path, bits, photometric, data, orientation=1):
    """A TIFF of one row of three uncompressed greys (Adobe, TIFF 6.0); photometric 0: white is 0, 1: black is 0."""
    tags = {256: 3, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 274: orientation, 277: 1, 278: 1,
            279: len(data)}  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


def test_grey_of_more_than_eight_bits_keeps_its_shades(tmp_path):
    sixteen, twelve = struct.pack("<3H", 0, 32768, 65535), bytes([0x00, 0x08, 0x00, 0xFF, 0xF0])  # 0, 2048, 4095
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "16.png", transparency=7)
    tiff(tmp_path / "16.tif", 16, 1, sixteen)
    tiff(tmp_path / "inverse.tif", 16, 0, sixteen)
    tiff(tmp_path / "12.tif", 12, 1, twelve)
    tiff(tmp_path / "turned.tif", 12, 1, twelve, orientation=3)
    upright = {"16.png": [0, 128, 255], "16.tif": [0, 128, 255], "inverse.tif": [255, 127, 0], "12.tif": [0, 128, 255]}
    for name, greys in {**upright, "turned.tif": [255, 128, 0]}.items():
        assert images.read(tmp_path / name)[0, :, 2].tolist() == greys, name


def test_no_file_is_handed_to_ghostscript(tmp_path, monkeypatch):
    """PostScript by the name of a photograph is refused, and none is found in a folder."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: ran.append(args) or Image.new("RGB", (9, 9)).im)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    for suffix in ("jpg", "tif", "eps", "jfif"):
        noise(tmp_path / "a" / f"x.{suffix}", format="EPS")
        with pytest.raises(datasets.BrokenImage, match="not an image in JPEG, PNG, .*AVIF"):
            images.read(tmp_path / "a" / f"x.{suffix}")
    assert [path[-6:] for _, paths in class_folders(tmp_path) for path in paths] == ["/x.jpg", "/x.tif"] and not ran


def test_a_camera_s_jpeg_of_two_pictures(tmp_path):
    noise(tmp_path / "x.jpg")
    second = Image.new("RGB", (90, 70))
    Image.open(tmp_path / "x.jpg").save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(images.read(tmp_path / "two.jpg").astype(int) - images.read(tmp_path / "x.jpg")).mean() < 5


def test_images_are_turned_upright(tmp_path):
    noise(tmp_path / "plain.jpg", (48, 32), quality=95)
    flips = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.transpose(1, 0, 2),
             lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).transpose(1, 0, 2), np.rot90]  # fmt: skip
    for turned, flip in enumerate(flips, 1):
        image, exif = Image.open(tmp_path / "plain.jpg"), Image.Exif()
        exif[images.ORIENTATION] = turned
        image.save(tmp_path / "turned.jpg", quality=95, exif=exif)
        as_stored = np.asarray(Image.open(tmp_path / "turned.jpg"))
        assert np.array_equal(images.read(tmp_path / "turned.jpg"), flip(as_stored)), turned


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_left_aside(tmp_path):
    noise(tmp_path / "x.jpg")
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        Image.open(tmp_path / "x.jpg").save(tmp_path / "y.jpg", exif=exif)
        assert images.read(tmp_path / "y.jpg").shape == (70, 90, 3)


@pytest.mark.filterwarnings("error:Palette images")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(mode, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 1 if mode == "LA" else 3), dtype=np.uint8)
    alpha = np.linspace(0, 255, 35).astype(np.uint8).reshape(5, 7, 1)
    image = Image.fromarray(np.dstack([colours, alpha]))
    if mode == "P":  # each colour of the palette has its alpha
        image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
        image.putpalette(colours.tobytes())
        image.info["transparency"] = alpha.tobytes()
    if mode == "RGB":  # one colour is transparent
        image, alpha = Image.fromarray(colours), 255 * (colours != colours[0, 0]).any(2, keepdims=True)
        image.info["transparency"] = tuple(colours[0, 0].tolist())
    image.save(tmp_path / "x.png")
    assert np.abs(images.read(tmp_path / "x.png") - (alpha / 255 * colours + 255 - alpha)).max() <= 1


@pytest.mark.parametrize("kind", ["progressive", "comment", "icc_profile", "restart_marker_blocks", "CMYK", "L"])
def test_jpegs_by_torchvision_are_pillows(kind, tmp_path, monkeypatch):
    noise(tmp_path / "x.jpg", (370, 210))
    options = dict(progressive=True, comment=b"c" * 300, icc_profile=b"p" * 70000, restart_marker_blocks=2)
    image = Image.open(tmp_path / "x.jpg").convert(kind if kind.isupper() else "RGB")
    image.save(tmp_path / "y.jpg", **{kind: options[kind]} if kind in options else {})
    fast = images.read(tmp_path / "y.jpg")
    monkeypatch.setattr(images, "decode_jpeg", None)
    assert np.abs(images.read(tmp_path / "y.jpg").astype(int) - fast).max() <= 1


def test_every_kind_of_broken_image_is_named(tmp_path):
    noise(tmp_path / "whole.jpg"), noise(tmp_path / "whole.png")
    jpg, png = (tmp_path / "whole.jpg").read_bytes(), (tmp_path / "whole.png").read_bytes()
    Image.fromarray(np.float32([[0, 0.5, 1]])).save(tmp_path / "grey.tiff")  # nothing says which value is white
    broken = {
        "grey.tiff": (None, "8 or 16 bits"),
        "short é.jpg": (jpg[: len(jpg) // 2], "truncated"),
        "short.png": (png[: len(png) // 2], "truncated"),
        "head only.jpg": (jpg[:30], "."),
        "empty.jpg": (b"", "the file is empty"),
        "page.jpg": (b"<html>404</html>", "not an image"),
        "damaged.png": (png[:41] + b"\xff" * 4 + png[45:], "."),
        "gone.jpg": (None, "No such file"),
    }
    for name, (data, words) in broken.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(datasets.BrokenImage, match=f"{name}: cannot be decoded as an image .*{words}") as problem:
            images.read(tmp_path / name)
        assert "\n" not in str(problem.value)
