"""Image files of every mode, depth and orientation become the RGB that people see."""

import struct
import warnings

import numpy as np
import pytest
from miniatures import LAYOUTS, noise, select, write
from PIL import EpsImagePlugin, Image

import datasets
from datasets.loading import decode


@pytest.mark.parametrize(
    "mode, suffix, value",
    [
        ("L", "jpg", 200),
        ("P", "png", None),
        ("RGBA", "png", 200),
        ("CMYK", "jpg", 200),
        ("1", "png", None),
        ("LA", "png", 200),
        ("RGB", "bmp", 200),
    ],
)
def test_image_modes_become_rgb(mode, suffix, value, tmp_path):
    path = tmp_path / f"ein Bild, größer.{suffix}"
    write(path, mode=mode, size=(20, 30))
    pixels, _ = decode.read(path)
    assert pixels.shape == (30, 20, 3) and pixels.dtype == np.uint8
    assert value is None or np.abs(pixels.astype(int) - value).max() <= 3
    assert np.array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert decode.read(tmp_path / "x.png")[0][0, :, 0].tolist() == [0, 128, 255]


def tiff(path, bits, photometric, data, orientation=1, width=3):
    """A TIFF of one row of uncompressed grey (Adobe, TIFF 6.0); photometric 0: white is 0, 1: black is 0."""
    tags = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        274: orientation,
        277: 1,
        278: 1,
        279: len(data),
    }
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


def test_grey_tiffs_of_more_than_eight_bits_keep_their_shades(tmp_path):
    sixteen = struct.pack("<3H", 0, 32768, 65535)
    tiff(tmp_path / "16.tif", 16, 1, sixteen)
    assert decode.read(tmp_path / "16.tif")[0][0, :, 2].tolist() == [0, 128, 255]
    tiff(tmp_path / "inverse.tif", 16, 0, sixteen)  # the tag says that 0 is white
    assert decode.read(tmp_path / "inverse.tif")[0][0, :, 0].tolist() == [255, 127, 0]
    tiff(tmp_path / "12.tif", 12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0]))  # 0, 2048, 4095
    assert decode.read(tmp_path / "12.tif")[0][0, :, 0].tolist() == [0, 128, 255]
    tiff(tmp_path / "turned.tif", 12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0]), orientation=3)
    assert decode.read(tmp_path / "turned.tif")[0][0, :, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize(
    "values, words",
    [
        (np.float32([[0, 0.5, 1]]), "floats"),
        (np.float32([[0, 100, 255]]), "floats"),
        (np.int32([[0, 200, 60000]]), "32-bit integers"),
    ],
)
def test_grey_without_a_white_is_refused_and_can_be_skipped(values, words, tmp_path):
    """Floats and 32-bit integers became black, or white: nothing says what their range is."""
    LAYOUTS["folder", "classes"](tmp_path)
    Image.fromarray(values).save(tmp_path / "x" / "grey.tiff")
    line = f"grey.tiff: cannot be decoded as an image .its grey is in .*{words}.*save it with 8 or 16 bits"
    with pytest.raises(datasets.BrokenImage, match=line):
        decode.read(tmp_path / "x" / "grey.tiff")
    for more in ([], ["--cache", tmp_path / "cache"]):
        assert [path[-9:] for path in select("folder", tmp_path, "--skip_broken", *more).skipped] == ["grey.tiff"]


def test_no_file_is_handed_to_ghostscript(tmp_path, monkeypatch):
    """PostScript by the name of a photograph is refused, and so is every format that the suffixes do not name."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: ran.append(args) or Image.new("RGB", (9, 9)).im)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    for kind, suffix in (("EPS", "jpg"), ("EPS", "tif"), ("PPM", "png"), ("ICO", "bmp")):
        noise(tmp_path / f"x.{suffix}", format=kind)
        with pytest.raises(datasets.BrokenImage, match="not an image in JPEG, PNG, BMP, GIF, WEBP, TIFF"):
            decode.read(tmp_path / f"x.{suffix}")
    assert not ran


def test_every_listed_suffix_is_read_and_a_camera_s_jpeg_of_two_pictures(tmp_path):
    for suffix in decode.SUFFIXES:
        noise(tmp_path / f"x{suffix}")
        assert decode.read(tmp_path / f"x{suffix}")[0].shape == (70, 90, 3)
    second = Image.new("RGB", (90, 70))
    Image.open(tmp_path / "x.jpg").save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(decode.read(tmp_path / "two.jpg")[0].astype(int) - decode.read(tmp_path / "x.jpg")[0]).mean() < 5


@pytest.mark.parametrize("turned", range(1, 9))
def test_images_are_turned_upright(turned, tmp_path):
    noise(tmp_path / "plain.jpg", (48, 32), quality=95)
    image, exif = Image.open(tmp_path / "plain.jpg"), Image.Exif()
    exif[decode.ORIENTATION] = turned
    image.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    pixels, (full, _, _) = decode.read(tmp_path / "turned.jpg")
    flips = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    assert full == pixels.shape[:2] and np.array_equal(
        pixels, flips[turned](np.asarray(Image.open(tmp_path / "turned.jpg")))
    )


def test_damaged_exif_is_no_obstacle(tmp_path):
    noise(tmp_path / "x.jpg")
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        Image.open(tmp_path / "x.jpg").save(tmp_path / "y.jpg", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode.read(tmp_path / "y.jpg")[0].shape == (70, 90, 3)


def test_nothing_but_broken_images_is_an_error(tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    for path in (tmp_path / "CUB_200_2011" / "images").glob("[12]0[01]*/*"):
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match="--skip_broken: every image of the test split is broken, the first: .*the file is empty"
    ):
        select("cub200", tmp_path, "--skip_broken")


def test_a_palette_with_transparency_gives_no_warning(tmp_path):
    Image.new("RGB", (20, 20), (200, 30, 30)).convert("P").save(tmp_path / "x.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode.read(tmp_path / "x.png")[0].shape == (20, 20, 3)
