"""Unpacking the benchmarks' archives, hostile ones, interruptions, and --verify."""

import bz2
import io
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
from miniatures import CUB, LAYOUTS, select, write

from datasets import cars196, cub200, inshop, online_products, prepare
from datasets.loading import unpack

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def tar_of(folder, path, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(folder / name, arcname=name)
    return path


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for found in sorted(folder.rglob("*")):
            file.write(found, found.relative_to(folder).as_posix())
    return path


def run(name, target, *more):
    return prepare.main([name, "--source_path", str(target), *map(str, more)])


@pytest.fixture
def counts(monkeypatch):
    """The miniatures' counts as if they were the published ones."""
    for module in (cub200, cars196, online_products):
        monkeypatch.setattr(module, "COUNTS", {"train": (2, 6), "test": (2, 6)})
    monkeypatch.setattr(inshop, "COUNTS", {"train": (2, 6), "query": (2, 2), "gallery": (2, 4)})


def archives_of(name, root):
    """The data set's downloads, with the names and the layout that they have."""
    LAYOUTS[name, "archive"](root / "made")
    made, out = root / "made", root / "downloads"
    out.mkdir()
    if name == "cub200":
        (made / "attributes.txt").write_text("1 x\n")  # lies beside the folder in the archive
        return [tar_of(made, out / "CUB_200_2011.tgz")]
    if name == "online_products":
        return [zip_of(made, out / "Stanford_Online_Products.zip")]
    if name == "cars196":
        shutil.move(made / "cars_annos.mat", out / "cars_annos.mat")
        return [tar_of(made, out / "car_ims.tgz"), out / "cars_annos.mat"]
    shutil.move(made / "Eval" / "list_eval_partition.txt", out / "list_eval_partition.txt")
    return [zip_of(made, out / "img.zip"), out / "list_eval_partition.txt"]


@pytest.mark.parametrize("name", ["cub200", "cars196", "online_products", "inshop"])
def test_archives_become_a_data_set_that_loads(name, tmp_path, counts, capsys):
    archives = archives_of(name, tmp_path)
    assert run(name, tmp_path / "data", "--archive", *archives, "--verify", "--kernels", 0) == 0
    text = capsys.readouterr().out
    assert f"{name}: whole" in text and f"{name}: all 12 images can be decoded" in text
    splits = select(name, tmp_path / "data")
    assert splits.partial == "" and len(splits.train) == 6 and splits.train[5][0].shape == (3, 32, 32)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.[jJ]*")}
    assert run(name, tmp_path / "data", "--archive", *archives) == 0  # a second time writes no image again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.[jJ]*")} == before and len(
        before
    ) == 12


@pytest.mark.parametrize("mode", ["w", "w:bz2", "w:xz"])
def test_other_compressions(mode, tmp_path, counts):
    LAYOUTS["cub200", "archive"](tmp_path / "made")
    assert run("cub200", tmp_path / "data", "--archive", tar_of(tmp_path / "made", tmp_path / "a", mode)) == 0
    assert not list((tmp_path / "data").rglob("._*"))  # macOS' litter stays behind


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


def test_damaged_and_wrong_archives_are_one_line(tmp_path, counts, capsys):
    (tmp_path / "page.tgz").write_bytes(b"<html>404 not found</html>")
    whole = archives_of("cub200", tmp_path)[0].read_bytes()
    (tmp_path / "half.tgz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.tgz").write_bytes(b"")
    for name in ("page.tgz", "half.tgz", "empty.tgz"):
        assert run("cub200", tmp_path / "data", "--archive", tmp_path / name) == 2
        text = capsys.readouterr().err
        assert (
            text.count("\n") == 1
            and f"{tmp_path / name}: " in text
            and ("not a tar or zip" in text or "damaged" in text or "nothing of" in text)
        )
    assert run("cub200", tmp_path / "data", "--archive", tmp_path / "none.tgz") == 2
    assert "CUB_200_2011.tgz of CUB-200-2011" in capsys.readouterr().err
    assert run("folder", tmp_path / "data", "--archive", tmp_path / "half.tgz") == 2
    assert "has no archive of its own" in capsys.readouterr().err


def test_partial_data_is_an_error_unless_allowed(tmp_path, capsys):
    archive = archives_of("cub200", tmp_path)[0]
    assert run("cub200", tmp_path / "data", "--archive", archive) == 2
    assert (
        "is not whole: train: found 2 classes, 6 images, expected 100 classes, 5,864 images" in capsys.readouterr().err
    )
    assert run("cub200", tmp_path / "data", "--allow_partial") == 0
    assert "cub200: PARTIAL: train: found 2" in capsys.readouterr().out


def test_verify_lists_the_broken_images(tmp_path, counts, capsys):
    LAYOUTS["cub200", "archive"](tmp_path)
    for c, i in ((0, 1), (3, 2)):
        (tmp_path / "CUB_200_2011" / "images" / CUB[c] / f"b_{i}.jpg").write_bytes(b"no")
    for kernels in (0, 2):
        assert run("cub200", tmp_path, "--verify", "--kernels", kernels) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(": ")[0].split("/")[-2:] for line in lines[-3:-1]] == [
            [CUB[0], "b_1.jpg"],
            [CUB[3], "b_2.jpg"],
        ]
        assert lines[-1] == "cub200: 2 of 12 images are broken"


def test_a_file_that_another_program_left_half_is_written_again(tmp_path, counts):
    archive = archives_of("cub200", tmp_path)[0]
    assert run("cub200", tmp_path / "data", "--archive", archive) == 0
    image = tmp_path / "data" / "CUB_200_2011" / "images" / CUB[2] / "b_0.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    assert run("cub200", tmp_path / "data", "--archive", archive) == 0 and image.read_bytes() == whole


def test_it_can_be_interrupted_and_repeated(tmp_path):
    """A process that is stopped while it unpacks leaves whole files only, and the same command goes on from there."""
    for i in range(100):
        write(tmp_path / "made" / "CUB_200_2011" / "images" / f"{i % 200 + 1:03d}.A" / f"{i}.jpg")
    archive = tar_of(tmp_path / "made", tmp_path / "a.tar", "w")
    words = ["cub200", "--allow_partial", "--archive", str(archive), "--source_path", str(tmp_path / "data")]
    slow = """import shutil, sys, time
from datasets import prepare
copy = shutil.copyfileobj
shutil.copyfileobj = lambda *files: (time.sleep(0.02), copy(*files))
sys.exit(prepare.main())"""
    for how, status, few in ((signal.SIGINT, 130, 5), (signal.SIGKILL, -9, 40)):
        process = subprocess.Popen([sys.executable, "-c", slow, *words], cwd=HERE, stderr=subprocess.PIPE, text=True)
        while len(list((tmp_path / "data").rglob("*.jpg"))) < few:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        _, text = process.communicate(timeout=60)
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.jpg")}
        assert process.returncode == status and few <= len(written) < 100
        assert how == signal.SIGKILL or "the same command goes on from here" in text
        for path in written:
            assert path.read_bytes() == (tmp_path / "made" / path.relative_to(tmp_path / "data")).read_bytes()
    assert run(*words[:1], tmp_path / "data", *words[1:4]) == 0
    assert len(list((tmp_path / "data").rglob("*.jpg"))) == 100
    assert all(path.stat().st_mtime_ns == modified for path, modified in written.items())
