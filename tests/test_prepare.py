"""The benchmarks' archives become data sets that load; interruptions, and --verify. Hostile ones: test_unpack.py."""

import os
import signal
import subprocess
import sys
import time

import pytest
from archives import archives_of, run, tar_of
from miniatures import CUB, LAYOUTS, select, write

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
    """A process that is stopped while it unpacks has put nothing in its place; what is there already stays as it is."""
    for i in range(100):
        write(tmp_path / "made" / "CUB_200_2011" / "images" / f"{i % 200 + 1:03d}.A" / f"{i}.jpg")
    archive = tar_of(tmp_path / "made", tmp_path / "a.tar", "w")
    words = ["cub200", "--allow_partial", "--archive", str(archive), "--source_path", str(tmp_path / "data")]
    slow = """import shutil, sys, time
from datasets import prepare
copy = shutil.copyfileobj
shutil.copyfileobj = lambda *files: (time.sleep(0.02), copy(*files))
sys.exit(prepare.main())"""
    for how, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = subprocess.Popen([sys.executable, "-c", slow, *words], cwd=HERE, stderr=subprocess.PIPE, text=True)
        while len(list((tmp_path / "data").rglob("*"))) < 5:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        _, text = process.communicate(timeout=60)
        assert process.returncode == status and not list((tmp_path / "data").rglob("*.jpg"))
        assert how == signal.SIGKILL or text == "\nstopped; give the same command again\n"
        assert (tmp_path / "data").exists() == (how == signal.SIGKILL)  # a hidden folder is left of the latter
    modified = []
    for _ in range(2):
        assert run(*words[:1], tmp_path / "data", *words[1:4]) == 0
        images = sorted((tmp_path / "data" / "CUB_200_2011").rglob("*.jpg"))
        modified.append([path.stat().st_mtime_ns for path in images])
        for path in images:
            assert path.read_bytes() == (tmp_path / "made" / path.relative_to(tmp_path / "data")).read_bytes()
    assert len(images) == 100 and modified[0] == modified[1]
