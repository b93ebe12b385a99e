"""The cache of decoded images: made once, anew when a file changes, damaged, replaced."""

import os
import pickle

import numpy as np
import pytest
import torch
from miniatures import noise, splits_of

import datasets
import main
from datasets.loading import cache, decode


def test_the_cache_is_made_once_and_anew_when_a_source_file_changes(tmp_path, monkeypatch):
    for c in "ab":
        for i in range(3):
            noise(tmp_path / "data" / c / f"{i}.jpg", seed=i)
    built = []
    build = cache.build
    monkeypatch.setattr(cache, "build", lambda *args: (built.append(1), build(*args)))
    select = lambda: splits_of(tmp_path / "data", "--cache", tmp_path / "cache")  # noqa: E731
    first, again = select(), select()
    assert len(built) == 1 and torch.equal(first.test[0][0], again.test[0][0])
    noise(tmp_path / "data" / "b" / "0.jpg", seed=77)
    changed = select()
    assert (
        len(built) == 2
        and not torch.equal(changed.test[0][0], first.test[0][0])
        and torch.equal(changed.test[1][0], first.test[1][0])
    )
    assert len(os.listdir(tmp_path / "cache")) == 2  # the former one is gone
    os.utime(tmp_path / "data" / "a" / "0.jpg", (1, 1))
    select()
    (tmp_path / "data" / "a" / "1.jpg").unlink()
    assert len(select().train) == 2 and len(built) == 4
    data = next((tmp_path / "cache").glob("*.u8"))
    data.write_bytes(data.read_bytes()[:-1])  # not whole
    select()
    next((tmp_path / "cache").glob("*.json")).write_text("{")
    assert select().train[0][0].shape == (3, 64, 64) and len(built) == 6


def test_cache_problems_are_one_line_and_leave_nothing(tmp_path, monkeypatch):
    for i in range(120):
        noise(tmp_path / "data" / "ab"[i % 2] / f"{i}.jpg", (16, 16), seed=i)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"--cache {tmp_path / 'file'}.*: cannot be written"):
        splits_of(tmp_path / "data", "--cache", tmp_path / "file")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match="GB are needed, 0.0 GB are free"):
        splits_of(tmp_path / "data", "--cache", tmp_path / "cache")
    (tmp_path / "data" / "a" / "2.jpg").write_bytes(b"")
    with pytest.raises(datasets.BrokenImage, match="a/2.jpg: cannot be decoded as an image .the file is empty"):
        splits_of(tmp_path / "data", "--cache", tmp_path / "cache")
    assert not os.listdir(tmp_path / "cache")


@pytest.fixture
def few(tmp_path):
    """Eight images in two classes, and the function that selects them with a cache."""
    for c in "ab":
        for i in range(4):
            noise(tmp_path / "data" / c / f"{i}.jpg", seed=i)
    return lambda *more: splits_of(tmp_path / "data", "--cache", tmp_path / "cache", *more)


def the(folder, pattern):
    (path,) = (folder / "cache").glob(pattern)
    return path


def read_in_a_process(split, workers):
    """All images by a DataLoader; the line of the BrokenImage that stops it."""
    with pytest.raises(datasets.BrokenImage) as problem:
        list(torch.utils.data.DataLoader(split, num_workers=workers))
    return str(problem.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_with_other_content_of_the_same_size_is_refused(few, workers, tmp_path):
    whole = few().train.unaugmented()[2][0]
    data = the(tmp_path, "*.u8")
    content = bytearray(data.read_bytes())
    content[2 * 90 * 70 * 3 + 5000] ^= 1  # one bit of the third image
    data.write_bytes(content)
    split = few().train
    assert split[1][0].shape == (3, 64, 64)  # an image that is whole
    line = read_in_a_process(split, workers)
    assert line == (
        f"--cache {tmp_path / 'cache'}: {data} is damaged or cut off (image 2); "
        "delete it, and the next run makes it anew"
    )
    data.unlink()
    assert torch.equal(few().train.unaugmented()[2][0], whole)


def test_a_cache_of_junk_stops_a_run_with_one_line(few, tmp_path, capsys):
    splits_of(tmp_path / "data", "--cache", tmp_path / "cache", size=32)  # conv4's
    data = the(tmp_path, "*.u8")
    data.write_bytes(np.random.default_rng(0).bytes(data.stat().st_size))
    flags = "--dataset folder --arch conv4_normalize --n_epochs 1 --bs 4 --kernels 0 --loss multisimilarity".split()
    for flag, folder in (("--source_path", "data"), ("--cache", "cache"), ("--save_path", "runs")):
        flags += [flag, str(tmp_path / folder)]
    assert main.main(flags) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith(f"error: --cache {tmp_path / 'cache'}: {data} is damaged")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_cut_off_during_a_run_is_one_line_and_no_sigbus(few, workers, tmp_path):
    split = few().test
    assert len(list(torch.utils.data.DataLoader(split, num_workers=workers))) == 4  # every image is read and checked
    os.truncate(the(tmp_path, "*.u8"), 0)
    assert "is damaged or cut off (image 4)" in read_in_a_process(split, workers)


def test_a_run_goes_on_with_its_cache_when_another_run_has_replaced_it(few, tmp_path):
    image, unread = few().test[0][0], few().test
    noise(tmp_path / "data" / "b" / "0.jpg", seed=77)
    few()
    assert torch.equal(unread[0][0], image)
    with pytest.raises(datasets.BrokenImage, match=r"--cache .*\.u8 cannot be read .No such file or directory.$"):
        pickle.loads(pickle.dumps(unread))[0]  # as in a spawned worker, which opens it only now


@pytest.mark.parametrize("text", ["[]", "{}", "null", "3", "", "[" * 100_000, '{"shapes": [], "broken": {}}'])
def test_a_damaged_index_is_made_anew(few, text, tmp_path):
    image = few().train.unaugmented()[3][0]
    whole = the(tmp_path, "*.json").read_bytes()
    for damaged in (text.encode(), whole[:-1] + text.encode(), whole.replace(b"90", b"09", 1)):
        the(tmp_path, "*.json").write_bytes(damaged)
        assert torch.equal(few().train.unaugmented()[3][0], image) and the(tmp_path, "*.json").read_bytes() == whole


@pytest.mark.parametrize("pattern", ["*.json", "*.u8"])
def test_links_in_a_loop_in_the_cache_are_replaced(few, pattern, tmp_path):
    few()
    path = the(tmp_path, pattern)
    path.unlink()
    path.symlink_to(path)
    assert few().train[3][0].shape == (3, 64, 64) and not path.is_symlink()


def test_odd_files_are_skipped_with_the_cache_as_without(few, tmp_path, capsys):
    """Broken links, links in a loop, names that are not UTF-8: left out and named if they cannot be read, else used."""
    folder = tmp_path / "data" / "b"
    (folder / "nowhere.jpg").symlink_to("nothing")
    (folder / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "data" / "circle").symlink_to("circle")  # among the classes
    for name, data in ((b"\xffgood.jpg", (folder / "0.jpg").read_bytes()), (b"\xffbad.jpg", b"no image")):
        try:
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:
                file.write(data)
        except OSError:
            pytest.skip("this file system has UTF-8 names only")
    plain = splits_of(tmp_path / "data", "--skip_broken").test
    for workers in (0, 1, 0):  # built twice, then opened
        cached = few("--skip_broken", "--kernels", workers)
        skipped = sorted(os.fsencode(os.path.basename(path)) for path in cached.skipped)
        assert skipped == [b"nowhere.jpg", b"round.jpg", b"\xffbad.jpg"]
        assert cached.test.paths == plain.paths and torch.equal(cached.test[4][0], plain[4][0])
        assert "3 of 12 images left out" in capsys.readouterr().out
        if workers:
            the(tmp_path, "*.json").unlink()
    for select in (few, lambda: [splits_of(tmp_path / "data").test[i] for i in range(7)]):
        with pytest.raises(datasets.BrokenImage, match="nowhere.jpg: cannot be decoded as an image .No such file"):
            select()
    with pytest.raises(datasets.BrokenImage) as problem:
        decode.read(plain.paths[4].replace("good", "bad"))
    assert "/\\udcffbad.jpg: cannot be" in str(problem.value) and str(problem.value).encode()  # a terminal can show it


def test_an_empty_cache_flag_is_one_line(few, tmp_path):
    with pytest.raises(ValueError, match="^--cache: is empty; give a folder"):
        splits_of(tmp_path / "data", "--cache", "")
