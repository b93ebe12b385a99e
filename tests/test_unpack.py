"""Hostile and damaged archives write nothing wrong, and nothing outside their folder."""

import bz2
import io
import os
import random
import shutil
import struct
import tarfile
import zipfile

import pytest
from archives import archives_of, run, tar_of
from miniatures import LAYOUTS

from datasets.loading import unpack


def entry(name, kind=tarfile.REGTYPE, link="", data=b"x"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, data


IMAGE = "CUB_200_2011/images/001.A/1.jpg"


HOSTILE = {
    "parent": ([entry("CUB_200_2011/../../x")], "which is outside the destination; refused"),
    "absolute": ([entry("/tmp/x")], "entry '/tmp/x' is outside the destination; refused"),
    "drive": ([entry("C:\\x")], "is outside the destination; refused"),
    "backslashes": ([entry("CUB_200_2011\\..\\..\\x")], "which is outside the destination; refused"),
    "link out": ([entry("CUB_200_2011", tarfile.SYMTYPE, "/tmp"), entry(IMAGE)], "has the link 'CUB_200_2011'"),
    "link in": ([entry(IMAGE), entry("CUB_200_2011/y", tarfile.SYMTYPE, "images")], "has the link"),
    "hard link": ([entry("CUB_200_2011/passwd", tarfile.LNKTYPE, "/etc/passwd")], "has the link"),
    "pipe": ([entry("CUB_200_2011/pipe", tarfile.FIFOTYPE)], "is a special file; refused"),
    "device": ([entry("CUB_200_2011/null", tarfile.CHRTYPE)], "is a special file; refused"),
    "another archive": ([entry("images/x.jpg")], "has nothing of CUB_200_2011/; is it the right archive?"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_tars_write_nothing(name, tmp_path, capsys):
    entries, words = HOSTILE[name]
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for info, data in [entry(IMAGE)] * (name != "another archive") + entries:
            tar.addfile(info, io.BytesIO(data))
    assert run("cub200", tmp_path / "data", "--archive", tmp_path / "a.tgz") == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith(f"error: {tmp_path / 'a.tgz'}: ") and words in text
    assert not (tmp_path / "data").exists()  # not even the good entry before the bad one


@pytest.mark.parametrize(
    "name, words",
    [
        ("../x", "outside the destination"),
        ("/x", "outside the destination"),
        ("Stanford_Online_Products/a/..\\..\\..\\x", "outside the destination"),
        ("link", "has the link"),
        ("secret", "has the encrypted file"),
    ],
)
def test_hostile_zips_write_nothing(name, words, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("Stanford_Online_Products/Ebay_train.txt", "x")
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16 if name == "link" else 0
        file.writestr(info, "/etc/passwd")
    if name == "secret":
        data = bytearray((tmp_path / "a.zip").read_bytes())
        for sign, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
            at = data.rindex(sign)
            data[at + flags] |= 1
        (tmp_path / "a.zip").write_bytes(data)
    assert run("online_products", tmp_path / "data", "--archive", tmp_path / "a.zip") == 2
    assert words in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_bombs_are_refused_before_a_byte_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(unpack, "SLACK", 1 << 20)
    info, _ = entry(IMAGE)
    info.size = 40 << 20
    with tarfile.open(tmp_path / "bomb.tgz", "w:gz") as tar:
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("CUB_200_2011/images/001.A/1.jpg", bytes(40 << 20))
    header = entry("x")[0]
    header.type, header.size = tarfile.XHDTYPE, 40 << 20  # a header that would be read into memory
    (tmp_path / "header.tar.bz2").write_bytes(bz2.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(41 << 20)))
    for name, words in (
        ("bomb.tgz", "20 times its size"),
        ("bomb.zip", "20 times its size"),
        ("header.tar.bz2", "20 times its size"),
    ):
        assert run("cub200", tmp_path / "data", "--archive", tmp_path / name) == 2
        text = capsys.readouterr().err
        assert words in text and text.count("\n") == 1 and not (tmp_path / "data").exists()


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("CUB_200_2011/images/001.A/1.jpg", bytes(1 << 20))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for sign, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        at = data.index(sign)
        data[at + place : at + place + 4] = struct.pack("<I", 100)
    (tmp_path / "a.zip").write_bytes(data)
    assert run("cub200", tmp_path / "data", "--archive", tmp_path / "a.zip") == 2
    assert "damaged or not whole" in capsys.readouterr().err and not list((tmp_path / "data").rglob("*.jpg*"))


def packed(path, kind, files):
    """Write an archive of [(name, bytes), ...]: "zip", or a mode of tarfile."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for i, (name, data) in enumerate(files):
                file.writestr(name, data, (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)[i % 2])
    else:
        with tarfile.open(path, kind) as tar:
            for name, data in files:
                tar.addfile(entry(name, data=data)[0], io.BytesIO(data))


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_of_archives_with_one_flipped_bit_no_wrong_byte_has_a_final_name(kind, tmp_path, capsys):
    """150 bits spread over the archive: each unpacks the original bytes, or is refused in one line."""
    draw = random.Random(kind)
    names = [f"CUB_200_2011/images/{c}.A/ü{i}.jpg" for c in ("001", "101") for i in range(2)]
    files = {name: draw.randbytes(150) + b"abc" * 50 for name in names}
    packed(tmp_path / "a", kind, files.items())
    whole, refused = (tmp_path / "a").read_bytes(), 0
    for bit in draw.sample(range(8 * len(whole)), 150):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a").write_bytes(flipped)
        code = run("cub200", tmp_path / "data", "--allow_partial", "--archive", tmp_path / "a")
        text = capsys.readouterr().err
        assert (code, text) == (0, "") or code == 2 and text.count("\n") == 1 and text.startswith("error: "), bit
        for path in (tmp_path / "data").rglob("*"):
            assert path.is_dir() or path.read_bytes() == files[path.relative_to(tmp_path / "data").as_posix()], bit
        refused += code == 2
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
    assert refused > 100


@pytest.mark.parametrize("at", ["the name in the directory", "a file beside the data set"])
def test_a_zip_that_is_damaged_in_what_is_not_wanted_is_refused(at, tmp_path, capsys):
    """A wanted file whose name was changed is none that is wanted: it would be missing without a word."""
    packed(tmp_path / "a", "zip", [(IMAGE, b"kept"), (IMAGE + "2", b"its name is hit"), ("notes", b"beside")])
    data = bytearray((tmp_path / "a").read_bytes())
    in_name, in_file = data.rindex(IMAGE.encode() + b"2"), data.index(b"PK\3\4", data.index(b"its name")) + 36
    where = in_name if at.startswith("the name") else in_file
    data[where] ^= 1
    (tmp_path / "a").write_bytes(data)
    assert run("cub200", tmp_path / "data", "--allow_partial", "--archive", tmp_path / "a") == 2
    assert "a: damaged or not whole" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_a_plain_tar_with_a_wrong_header_in_its_middle_is_refused(tmp_path, capsys):
    packed(tmp_path / "a.tar", "w:", [(IMAGE.replace("1.jpg", f"{i}.jpg"), b"x" * 600) for i in range(3)])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[1536] ^= 1  # the second header: 512 bytes of the first, 1,024 of its file
    (tmp_path / "a.tar").write_bytes(data)
    assert run("cub200", tmp_path / "data", "--allow_partial", "--archive", tmp_path / "a.tar") == 2
    assert "a.tar: damaged or not whole" in capsys.readouterr().err and not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["w:gz", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_entries_with_one_name_the_last_wins(kind, tmp_path):
    other = IMAGE + "2"
    files = [(IMAGE, b"first"), (IMAGE, b"2nd.."), (other, b"x"), (IMAGE, b"third"), (other, b"long")]
    packed(tmp_path / "a", kind, files)
    for _ in range(2):
        assert run("cub200", tmp_path / "data", "--archive", tmp_path / "a", "--allow_partial") == 0
        found = [(tmp_path / "data" / name).read_bytes() for name in (IMAGE, other)]
        assert found == [b"third", b"long"]


def test_no_planted_link_is_written_through(tmp_path, counts, capsys):
    """In the place of a file: out of the folder it is refused, within it the link is replaced and not its file."""
    archives = archives_of("cars196", tmp_path)
    victim, outside = tmp_path / "data" / "victim", tmp_path / "outside"
    for name in ("car_ims/000001.jpg", "cars_annos.mat"):
        planted = tmp_path / "data" / "cars196" / name
        for path in (victim, outside):
            planted.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("keep")
            planted.unlink(missing_ok=True)
            planted.symlink_to(path)
            assert run("cars196", tmp_path / "data", "--archive", *archives) == (0 if path == victim else 2)
            text = capsys.readouterr().err
            assert path.read_text() == "keep" and planted.is_symlink() == (path == outside)
            assert (path == victim) == (text == "") and text.count("\n") <= 1
        planted.unlink()
    assert not list((tmp_path / "data").glob(".unpacking*"))


def test_a_file_is_not_put_through_a_link_out_of_the_folder(tmp_path, capsys):
    annotations = archives_of("cars196", tmp_path)[1]
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "cars196").symlink_to(tmp_path / "elsewhere")
    assert run("cars196", tmp_path / "data", "--archive", annotations) == 2
    assert "outside the destination; refused" in capsys.readouterr().err and not os.listdir(tmp_path / "elsewhere")


def test_no_link_in_the_folder_is_followed_out_of_it(tmp_path, capsys):
    LAYOUTS["cub200", "archive"](tmp_path / "made")
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "CUB_200_2011").symlink_to(tmp_path / "elsewhere")
    assert run("cub200", tmp_path / "data", "--archive", tar_of(tmp_path / "made", tmp_path / "a.tgz")) == 2
    assert "outside the destination; refused" in capsys.readouterr().err and not os.listdir(tmp_path / "elsewhere")
