"""Checkpoints: whole or told to be damaged, never of a run that diverged; and a disk that is full at any write."""

import errno
import itertools
import json
import os
import random
import signal

import pytest
import torch
from runs import SMALL, image_folder, outcome, same
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

import main
from utilities import folders
from utilities.run import BEFORE, LAST, load


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    images = image_folder(tmp_path_factory.mktemp("images"))
    return [*SMALL, *images, *"--kernels 0 --n_epochs 1".split()]


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory):
    """The folder of a run that nobody disturbs."""
    place = tmp_path_factory.mktemp("whole")
    assert main.main([*argv, "--save_path", str(place)]) == 0
    return place / "folder" / "Sample_Run_s0"


def test_a_flipped_bit_is_told_or_changes_nothing(whole, tmp_path):
    path, data, saved, told = tmp_path / LAST, (whole / LAST).read_bytes(), load(whole / LAST), 0
    name = 8 * data.rindex(b"archive/data/0")  # in the zip file's directory, which has no checksum
    for bit in [*random.Random(0).sample(range(8 * data.index(b"PK\1\2")), 300), *range(name, name + 8 * 14)]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert same(load(path), saved), bit
        except ValueError as problem:
            assert str(path) in str(problem) and "\n" not in str(problem)
            told += 1
    assert told > 300


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_between_the_renames_the_new_checkpoint_counts(argv, whole, tmp_path, monkeypatch, capsys, renames):
    real, done = os.replace, []

    def replace(source, target):
        if os.path.basename(target) in (LAST, BEFORE):
            done.append(target)
            if len(done) > 3 + renames:  # of the second step's checkpoint
                raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            main.main([*argv, "--save_path", str(tmp_path)])
    capsys.readouterr()
    assert main.main([*argv, "--save_path", str(tmp_path), "--resume"]) == 0
    assert "going on after epoch 0, step 2 of the next" in capsys.readouterr().out
    assert same(outcome(whole), outcome(tmp_path / "folder" / "Sample_Run_s0"))


@pytest.mark.parametrize("what", ["loss", "loss and a signal", "weights"])
def test_a_run_that_diverges_says_where_and_keeps_its_last_good_checkpoint(argv, tmp_path, capsys, what):
    """In or after the third step."""
    steps = itertools.count(1)

    def loss_is_nan(module, inputs, loss):
        if isinstance(module, main.criteria.AntiCo) and next(steps) == 3:
            if "signal" in what:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss * torch.nan

    def weights_are_infinite(optimizer, *_):
        if next(steps) == 3:
            optimizer.param_groups[0]["lr"] = torch.inf

    register, hook = register_module_forward_hook, loss_is_nan
    if what == "weights":
        register, hook = register_optimizer_step_pre_hook, weights_are_infinite
    with register(hook):
        assert main.main([*argv, "--save_path", str(tmp_path)]) == 1
    text, folder = capsys.readouterr().err, tmp_path / "folder" / "Sample_Run_s0"
    assert "not finite, in epoch 1, 3 steps done (last loss terms: " in text and text.count("\n") == 1
    assert "beta " in text and f"--resume {folder}" in text and "epoch 0, step 2 of the next" in text
    assert load(folder / LAST)["step"] == 2
    assert "not finite, in epoch 1" in json.loads((folder / folders.DIVERGED).read_text())["reason"]
    # it may still go on, and is told
    assert main.main(["--resume", str(folder)]) == 0
    assert "diverged before" in capsys.readouterr().err and not folders.divergence(str(folder))
    (entry,) = json.loads((folder / "config.json").read_text())["history"]
    assert "not finite" in entry["after_divergence"] and load(folder / LAST)["epoch"] == 1


def test_a_full_disk_is_one_line_at_every_write(argv, whole, tmp_path, monkeypatch, capsys):
    """The first run finds it full at config.json, the second at the next file, and so on; all of them can go on."""
    real, left = os.fsync, []

    def full(number):
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number), left.pop()

    for n in range(20):
        left[:], flags = [None] * n, [*argv, "--save_path", str(tmp_path / str(n))]
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            status = main.main(flags)
        text, folder = capsys.readouterr().err, tmp_path / str(n) / "folder"
        if status == 0:
            break
        assert status == 2 and str(folder) in text and "No space left" in text and text.count("\n") == 1
        assert "Last checkpoint: epoch" not in text or list(folder.glob(f"*/{LAST}"))  # what is said is there
        assert all(map(load, folder.glob("*/*.pt"))) and not list(folder.glob(f"*/{folders.UNFINISHED}*"))
        assert main.main([*flags, "--resume"]) == 0 and capsys.readouterr()
        assert same(outcome(whole), outcome(max(folder.iterdir())))
    assert n > 8
