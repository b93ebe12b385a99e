"""The benchmarks' archives become data sets that load; damaged and hostile ones leave nothing; --verify."""

import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from miniatures import CUB, LAYOUTS, select, write

from datasets import emoji, prepare

IMAGE = "CUB_200_2011/images/001.A/1.jpg"


def run(name, target, *more):
    return prepare.main([name, "--source_path", str(target), *map(str, more)])


def archives_of(name, root):
    """The data set's downloads, with the names and the layout that they have."""
    LAYOUTS[name, "archive"](root / "made")
    made, out = root / "made", root / "downloads"
    out.mkdir()
    if name == "cub200":
        (made / "attributes.txt").write_text("1 x\n")  # lies beside the folder in the archive
        return [shutil.make_archive(out / "CUB_200_2011", "gztar", made)]
    if name == "online_products":
        return [shutil.make_archive(out / "Stanford_Online_Products", "zip", made)]
    if name == "cars196":
        shutil.move(made / "cars_annos.mat", out / "cars_annos.mat")
        return [shutil.make_archive(out / "car_ims", "gztar", made), out / "cars_annos.mat"]
    shutil.move(made / "Eval" / "list_eval_partition.txt", out / "list_eval_partition.txt")
    return [shutil.make_archive(out / "img", "zip", made), out / "list_eval_partition.txt"]


def packed(path, kind, files):
    """Write an archive of {name: bytes}: "zip", or a mode of tarfile."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for i, (name, data) in enumerate(files.items()):
                file.writestr(name, data, (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)[i % 2])
    else:
        with tarfile.open(path, kind) as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def refused(tmp_path, capsys, path="a.tgz"):
    """The line that says why; nothing is left."""
    assert run("cub200", tmp_path / "data", "--allow_partial", "--archive", tmp_path / path) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith(f"error: {tmp_path / path}: cannot be unpacked (")
    assert not (tmp_path / "data").exists()
    return text


@pytest.mark.parametrize("name", ["cub200", "cars196", "online_products", "inshop"])
def test_archives_become_a_data_set_that_loads(name, tmp_path, counts, capsys):
    archives = archives_of(name, tmp_path)
    assert run(name, tmp_path / "data", "--archive", *archives, "--verify", "--kernels", 0) == 0
    text = capsys.readouterr().out
    assert f"{name}: whole" in text and f"{name}: 0 of 12 images are broken" in text
    splits = select(name, tmp_path / "data")
    assert splits.partial == "" and len(splits.train) == 6 and splits.train[5][0].shape == (3, 32, 32)
    files = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    next(path for path in files if path.suffix.lower() == ".jpg").write_bytes(b"half")
    assert run(name, tmp_path / "data", "--archive", *archives) == 0  # a second time repairs what is there
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()} == files


def test_damaged_and_wrong_archives_are_one_line_and_leave_nothing(tmp_path, capsys):
    whole = Path(archives_of("cub200", tmp_path)[0]).read_bytes()
    packed(tmp_path / "other.zip", "zip", {"images/x.jpg": b"x"})
    for data in (b"<html>404 not found</html>", b"", (tmp_path / "other.zip").read_bytes()):
        (tmp_path / "a.tgz").write_bytes(data)
        assert "damaged, or has nothing of CUB_200_2011" in refused(tmp_path, capsys)
    (tmp_path / "a.tgz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, capsys)
    assert "CUB_200_2011.tgz of CUB-200-2011" in refused(tmp_path, capsys, "none.tgz")  # where it is to be had
    (tmp_path / "mine").mkdir()  # what was there stays, empty or not
    assert run("cub200", tmp_path / "mine", "--archive", tmp_path / "a.tgz") == 2 and (tmp_path / "mine").is_dir()
    with pytest.raises(SystemExit):
        run("folder", tmp_path / "data", "--archive", tmp_path / "a.tgz")
    assert "has no archive of its own" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_of_archives_with_one_flipped_bit_no_wrong_byte_has_a_final_name(kind, tmp_path, capsys):
    """100 bits spread over the archive: each unpacks the original bytes, or is refused in one line."""
    draw = random.Random(kind)
    names = [f"CUB_200_2011/images/{c}.A/ü{i}.jpg" for c in ("001", "101") for i in range(2)]
    files = {name: draw.randbytes(150) + b"abc" * 50 for name in names}
    packed(tmp_path / "a", kind, files)
    assert run("cub200", tmp_path / "data", "--allow_partial", "--archive", tmp_path / "a") == 0
    whole, n_refused = (tmp_path / "a").read_bytes(), 0
    for bit in draw.sample(range(8 * len(whole)), 100):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a").write_bytes(flipped)
        status = run("cub200", tmp_path / "data", "--allow_partial", "--archive", tmp_path / "a")
        text = capsys.readouterr().err
        assert (status, text) == (0, "") or status == 2 and text.count("\n") == 1 and text.startswith("error: "), bit
        for path in (tmp_path / "data").rglob("*.jpg"):
            assert path.read_bytes() == files[path.relative_to(tmp_path / "data").as_posix()], bit
        n_refused += status == 2
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
    assert n_refused > 60


@pytest.mark.parametrize(
    "name, kind, link",
    [("../../x", tarfile.REGTYPE, ""), ("out", tarfile.SYMTYPE, "/tmp"), ("out", tarfile.SYMTYPE, "../../.."),
     ("passwd", tarfile.LNKTYPE, "/etc/passwd"), ("pipe", tarfile.FIFOTYPE, ""), ("null", tarfile.CHRTYPE, "")],
)  # fmt: skip
def test_hostile_tars_write_nothing(name, kind, link, tmp_path, capsys):
    name = f"CUB_200_2011/{name}"
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for entry in (tarfile.TarInfo(IMAGE), tarfile.TarInfo(name)):
            entry.type, entry.linkname = (kind, link) if entry.name == name else (tarfile.REGTYPE, "")
            tar.addfile(entry, io.BytesIO())
    refused(tmp_path, capsys)
    assert os.listdir(tmp_path) == ["a.tgz"]


@pytest.mark.parametrize("kind", ["w:gz", "zip"])
def test_nothing_is_written_beside_what_a_data_set_names(kind, tmp_path):
    names = ["/tmp_of_antico/x", "notes.txt", IMAGE] + ["../x", "CUB_200_2011/a/..\\..\\..\\x"] * (kind == "zip")
    packed(tmp_path / "a", kind, dict.fromkeys(names, b"x"))
    run("cub200", tmp_path / "data", "--allow_partial", "--archive", tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == ["a", "data"] and os.listdir(tmp_path / "data") == ["CUB_200_2011"]


@pytest.mark.parametrize("kernels", [0, 2])
def test_verify_lists_the_broken_images_also_of_partial_data(tmp_path, kernels, capsys):
    LAYOUTS["cub200", "archive"](tmp_path)
    for c, i in ((0, 1), (3, 2)):
        (tmp_path / "CUB_200_2011" / "images" / CUB[c] / f"b_{i}.jpg").write_bytes(b"no")
    assert run("cub200", tmp_path, "--verify", "--kernels", kernels) == 2
    assert run("cub200", tmp_path, "--verify", "--allow_partial", "--kernels", kernels) == 1
    text = capsys.readouterr().out
    assert text.count("cannot be decoded") == 4 and text.count("cub200: 2 of 12 images are broken") == 2
    assert f"{CUB[0]}/b_1.jpg: cannot" in text and f"{CUB[3]}/b_2.jpg: cannot" in text
    assert text.count("cub200: PARTIAL: train: found 2 classes, 6 images, expected 100 classes, 5,864 images") == 2
    assert "skip_broken" not in text  # which is main.py's


def emoji_packages(root):
    """npm's four tarballs. Facebook has no 1f600, which is then no class; nor is the skin tone of 1f44b."""
    names, absent = [f"{c}.png" for c in "2b50 1f600 1f44b 3299 00a9 1f44b-1f3fb".split()], ("facebook", "1f600.png")
    listing = [{"image": n} | {f"has_img_{v}": (v, n) != absent for v in emoji.VENDORS} for n in names[:-1]]
    write(root / "x.png", "RGBA", (64, 64))
    for vendor in emoji.VENDORS:
        files = {f"package/img/{vendor}/64/{n}": (root / "x.png").read_bytes() for n in names if (vendor, n) != absent}
        packed(root / f"{vendor}.tgz", "w:gz", files | {"package/emoji.json": json.dumps(listing).encode()})
    return sorted(root.glob("*.tgz"))


def test_emoji_come_by_npm_or_by_hand_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    """npm is pretended: none, one that fails, one that has the packages and is interrupted first."""
    npm, data, archives = tmp_path / "npm", tmp_path / "data", emoji_packages(tmp_path / "made")
    monkeypatch.setattr(emoji, "COUNTS", {"train": (2, 8), "test": (2, 8)})
    monkeypatch.setenv("PATH", str(tmp_path))
    for script, reason in ("", "npm"), ("echo npm error no route >&2; exit 1", "(no route)"):
        npm.write_text(f"#!/bin/sh\n{script}\n")
        npm.chmod(0o755 if script else 0)
        assert run("emoji", data) == 2 and not data.exists()
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and reason in text and "npm pack emoji-datasource-google@16.0.0 " in text
    with pytest.raises(FileNotFoundError, match="python -m datasets.prepare emoji --source_path DIR"):
        select("emoji", data)
    npm.write_text(f'#!/bin/sh\n[ "$*" = "pack {" ".join(emoji.NPM)}" ] && /bin/cp {" ".join(map(str, archives))} .\n')
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # in the second package
        patch.setattr(tarfile, "copyfileobj", Mock(side_effect=[None] * 9 + [KeyboardInterrupt]))
        run("emoji", data)
    assert not data.exists() and run("emoji", data) == 0 and os.listdir(data) == ["emoji"]
    assert run("emoji", tmp_path / "by hand", "--archive", *archives) == 0
    npm.unlink()
    (data / "emoji" / "apple" / "1f44b.png").unlink()  # counted, and no class moves to the other half
    assert run("emoji", data) == 2 and "1 listed images are missing, first " in capsys.readouterr().out
    for folder, n in (data, 7), (tmp_path / "by hand", 8):
        splits = select("emoji", folder, size=64)
        assert splits.train.class_names == ["1f44b.png", "2b50.png"] and len(splits.train) == n
        assert splits.test.class_names == ["00a9.png", "3299.png"] and splits.test.labels.tolist() == [1] * 4 + [0] * 4
