"""The cache of decoded images: made once, anew when a file changes, damaged, replaced."""

import os
import pickle

import pytest
import torch
from miniatures import noise, splits_of

import datasets
from datasets import images


@pytest.fixture
def few(tmp_path):
    """Eight images of 90 x 70 pixels in two classes, and the function that selects them with a cache."""
    for c in "ab":
        for i in range(4):
            noise(tmp_path / "data" / c / f"{i}.jpg", seed=i)
    return lambda *more: splits_of(tmp_path / "data", "--cache", tmp_path / "cache", *more)


def the_file(folder):
    (path,) = (folder / "cache").iterdir()
    return path


def test_the_cache_is_made_once_and_anew_when_a_source_file_changes(few, tmp_path, monkeypatch):
    built, write = [], images.write_cache
    monkeypatch.setattr(images, "write_cache", lambda *args: (built.append(1), write(*args)))
    first, again = few(), few()
    assert len(built) == 1 and torch.equal(first.test[0][0], again.test[0][0])
    noise(tmp_path / "data" / "b" / "0.jpg", seed=77)
    changed = few()
    assert len(built) == 2 and torch.equal(changed.test[1][0], first.test[1][0])
    assert not torch.equal(changed.test[0][0], first.test[0][0]) and the_file(tmp_path)  # the former one is gone
    os.utime(tmp_path / "data" / "a" / "0.jpg", (1, 1))
    few()
    (tmp_path / "data" / "a" / "1.jpg").unlink()
    assert len(few().train) == 3 and len(built) == 4


@pytest.mark.parametrize("damage", ["shorter", "longer", "index", "empty", "a link to itself"])
def test_a_cache_that_is_not_whole_is_made_anew(few, damage, tmp_path):
    image = few().train.unaugmented()[3][0]
    path = the_file(tmp_path)
    whole = path.read_bytes()
    if damage == "a link to itself":
        path.unlink(), path.symlink_to(path)
    else:
        flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
        path.write_bytes(dict(shorter=whole[:-1], longer=whole + b"x", index=flipped, empty=b"")[damage])
    assert torch.equal(few().train.unaugmented()[3][0], image) and path.read_bytes() == whole


def read_in_a_process(split, workers):
    """All images by a DataLoader; the line of the BrokenImage that stops it."""
    with pytest.raises(datasets.BrokenImage) as problem:
        list(torch.utils.data.DataLoader(split, num_workers=workers))
    return str(problem.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_with_other_content_of_the_same_size_is_refused(few, workers, tmp_path):
    few()
    content = bytearray(the_file(tmp_path).read_bytes())
    content[2 * 90 * 70 * 3 + 5000] ^= 1  # one bit of the third image
    the_file(tmp_path).write_bytes(content)
    split = few().train
    assert split[1][0].shape == (3, 64, 64)  # an image that is whole
    assert f"{the_file(tmp_path)} is damaged or cut off (image 2); delete it" in read_in_a_process(split, workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_cut_off_during_a_run_is_one_line_and_no_sigbus(few, workers, tmp_path):
    split = few().test
    assert len(list(torch.utils.data.DataLoader(split, num_workers=workers))) == 4  # every image is read and checked
    os.truncate(the_file(tmp_path), 0)
    assert "is damaged or cut off (image 4)" in read_in_a_process(split, workers)


def test_a_run_goes_on_with_its_cache_when_another_run_has_replaced_it(few, tmp_path):
    image, unread = few().test[0][0], few().test
    for split in (unread, splits_of(tmp_path / "data").test):
        assert torch.equal(pickle.loads(pickle.dumps(split))[0][0], image)  # as in a spawned worker
    noise(tmp_path / "data" / "b" / "0.jpg", seed=77)
    few()
    assert torch.equal(unread[0][0], image)


def test_odd_files_are_skipped_with_the_cache_as_without(few, tmp_path, capsys):
    """Broken links, links in a loop, names that are not UTF-8: left out and named if they cannot be read, else used."""
    folder = tmp_path / "data" / "b"
    (folder / "nowhere.jpg").symlink_to("nothing")
    (folder / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "data" / "circle").symlink_to("circle")  # among the classes
    (folder / os.fsdecode(b"\xffgood.jpg")).write_bytes((folder / "0.jpg").read_bytes())
    (folder / os.fsdecode(b"\xffbad.jpg")).write_bytes(b"no image")
    plain = splits_of(tmp_path / "data", "--skip_broken")
    for kernels in (1, 0):  # built, then opened
        cached = few("--skip_broken", "--kernels", kernels)
        assert cached.skipped == plain.skipped and len(cached.skipped) == 3
        assert cached.test.paths == plain.test.paths and torch.equal(cached.test[4][0], plain.test[4][0])
        assert "3 of 12 images left out; the first: " in capsys.readouterr().out
    for select in (few, lambda: splits_of(tmp_path / "data")):
        with pytest.raises(datasets.BrokenImage, match="nowhere.jpg: cannot be decoded as an image .No such file"):
            [select().test[i] for i in range(7)]
    with pytest.raises(datasets.BrokenImage, match=r"/\\xffbad.jpg: cannot be"):  # a terminal can show it
        images.read(folder / os.fsdecode(b"\xffbad.jpg"))
