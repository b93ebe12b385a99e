"""Checkpoints: whole or told to be damaged, never of a run that diverged; and a disk that is full at any write."""

import errno
import json
import os
import random
import tempfile

import pytest
import torch
from runs import SMALL, image_folder, same

import main
from utilities import files, folders, state
from utilities.report import collect
from utilities.runs import records


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    return [
        *SMALL,
        *image_folder(tmp_path_factory.mktemp("images")),
        *"--kernels 0 --n_epochs 1 --checkpoint_minutes 10".split(),
    ]


def parts():
    torch.manual_seed(0)
    model, criterion = torch.nn.Linear(5, 7), torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return dict(model=model, criterion=criterion, optimizer=optimizer)


def checkpoints(folder):
    made = state.Checkpoints(parts(), {"arch": "conv4"})
    made.folder = folder
    return made


def test_every_flipped_bit_is_told(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoints(tmp_path).save(state.Progress(epoch=3, rows=[{"epoch": 3, "loss": 0.5}]))
    data = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(data)), 1000):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(state.Damaged) as error:
            state.load(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value), bit


def test_a_flipped_bit_among_the_names_is_told(tmp_path):
    """The zip's parts have checksums, its directory has none: a bit there can give a tensor the values of another."""
    path = tmp_path / "checkpoint.pt"
    state.save(path, {"a": torch.arange(100.0), "b": torch.ones(100)})
    data = path.read_bytes()
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(100.0))  # torch alone reads it as well
    directory = data.rindex(b"archive/data/0")
    for bit in range(8 * directory, 8 * (directory + 60)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(state.Damaged):
            state.load(path)


@pytest.mark.parametrize("size", [0, 1, 100, 2000, -40, -10, -1])
def test_a_truncated_file_is_told(tmp_path, size):
    path = tmp_path / "checkpoint.pt"
    state.save(path, {"weights": torch.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(state.Damaged, match="damaged"):
        state.load(path)


def test_the_last_two_are_kept_and_the_newest_whole_one_is_found(tmp_path, capsys):
    made = checkpoints(tmp_path)
    for epoch in range(3):
        made.save(state.Progress(epoch=epoch))
    assert sorted(os.listdir(tmp_path)) == [state.LAST, state.BEFORE]
    assert [state.load(tmp_path / name)["epoch"] for name in (state.LAST, state.BEFORE)] == [2, 1]
    (tmp_path / state.LAST).write_bytes(b"")
    assert state.newest(tmp_path)["epoch"] == 1 and "going on from checkpoint_before.pt" in capsys.readouterr().out
    checkpoints(tmp_path).save(state.Progress(epoch=2))  # of the run that goes on: the damaged one is not kept
    assert [state.load(tmp_path / name)["epoch"] for name in (state.LAST, state.BEFORE)] == [2, 1]
    (tmp_path / state.LAST).write_bytes(b"")
    (tmp_path / state.BEFORE).write_bytes(b"x")
    with pytest.raises(state.Damaged, match="no whole checkpoint is left"):
        state.newest(tmp_path)


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_between_the_renames_the_new_one_counts(tmp_path, monkeypatch, renames):
    made = checkpoints(tmp_path)
    for epoch in range(2):
        made.save(state.Progress(epoch=epoch))
    real, done = os.replace, []

    def replace(source, target):
        if os.path.basename(target) != state.NEW:
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        made.save(state.Progress(epoch=2))
    assert state.newest(tmp_path)["epoch"] == 2


@pytest.mark.parametrize("part, name", [("model", "weight"), ("criterion", "bias")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, part, name, value):
    made = checkpoints(tmp_path)
    made.save(state.Progress(epoch=0))
    before = (tmp_path / state.LAST).read_bytes()
    with torch.no_grad():
        getattr(made.parts[part], name).view(-1)[0] = value
    with pytest.raises(state.NotFinite, match="after step 4 of epoch 2"):
        made.save(state.Progress(epoch=1, step=4))
    assert (tmp_path / state.LAST).read_bytes() == before and os.listdir(tmp_path) == [state.LAST]


def test_restore_gives_back_what_was_saved(tmp_path):
    made, progress = checkpoints(tmp_path), state.Progress(epoch=2, rows=[{"epoch": 0}])
    progress.add({"loss": torch.tensor(0.25)})
    made.save(progress)
    other = checkpoints(tmp_path)
    torch.nn.init.zeros_(other.parts["model"].weight)
    found = other.restore(state.newest(tmp_path), tmp_path, "cpu")
    assert found == progress and other.newest == "epoch 2, step 1 of the next"
    for name, part in made.parts.items():
        assert same(part.state_dict(), other.parts[name].state_dict())
    other.facts["arch"] = "resnet18"
    with pytest.raises(ValueError, match="has arch conv4, here it is resnet18"):
        other.restore(state.newest(tmp_path), tmp_path, "cpu")


def test_means_and_the_first_bad_step():
    progress = state.Progress(epoch=0)
    values = [0.5, 1.25, float("nan"), 2.0, float("inf")]
    for value in values[:2]:
        progress.add({"loss": torch.tensor(value), "loss/rate": torch.tensor(2 * value)})
    assert progress.means() == {"loss": 0.875, "loss/rate": 1.75}
    for value in values[2:]:
        progress.add({"loss": torch.tensor(value), "loss/rate": torch.tensor(0.0)})
    with pytest.raises(state.NotFinite, match="the loss is not finite, in step 3 of epoch 1"):
        progress.means()


def test_best_follows_the_split_that_is_evaluated():
    progress = state.Progress()
    assert progress.end_epoch({"epoch": 0, "train/m": 0.9}, "train", ["m"]) == ["best.pt"]
    assert progress.end_epoch({"epoch": 1, "test/m": 0.5, "test/k": 1}, "test", ["m", "k"], True) == [
        "best.pt",
        "best_k.pt",
        "improved_epoch0001.pt",
    ]
    assert progress.end_epoch({"epoch": 2, "test/m": 0.5}, "test", ["m"]) == []  # the first of equals


def test_a_file_is_written_whole_or_stays(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, lambda file: file.write("old"))

    def half(file):
        file.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as problem:
        files.write_whole(path, half)
    assert problem.value.filename == str(path) and path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


WRITES = {"mkdir": os, "mkstemp": tempfile, "fsync": os, "replace": os}


@pytest.mark.parametrize(
    "call, number, at",
    [
        ("mkdir", errno.EROFS, 1),
        ("mkstemp", errno.EROFS, 1),
        ("fsync", errno.ENOSPC, 1),
        ("mkstemp", errno.EROFS, 2),
        ("fsync", errno.ENOSPC, 3),
        ("replace", errno.EROFS, 4),
        ("fsync", errno.ENOSPC, 4),
        ("mkstemp", errno.EROFS, 5),
        ("fsync", errno.ENOSPC, 6),
        ("fsync", errno.ENOSPC, 7),
        ("replace", errno.EROFS, 9),
        ("replace", errno.EROFS, 10),
        ("fsync", errno.ENOSPC, 8),
    ],
)
def test_a_full_or_read_only_disk_is_one_line_at_every_write(tmp_path, argv, monkeypatch, capsys, call, number, at):
    """config.json; for each of two epochs best.pt, checkpoint (with one or two renames), metrics.csv, protocol.json."""
    real, calls = getattr(WRITES[call], call), []

    def fail(*args, **more):
        calls.append(args)
        if len(calls) >= at:
            raise OSError(number, os.strerror(number), *args[:1])
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(WRITES[call], call, fail)
        status = main.main([*argv, "--save_path", str(tmp_path)])
    text = capsys.readouterr().err
    assert len(calls) >= at and status in (1, 2) and text.count("\n") == 1
    assert f"{tmp_path}" in text and os.strerror(number) in text
    folder = tmp_path / "folder" / "Sample_Run_s0"
    for path in folder.glob("*.pt"):
        state.load(path)  # whole
    if status == 1:
        kept = (folder / state.LAST).exists() or (folder / state.BEFORE).exists()
        assert ("Last good checkpoint: " if kept else "There is no checkpoint yet; ") in text
    assert not list(folder.glob(f"{files.UNFINISHED}*"))
    assert main.main([*argv, "--save_path", str(tmp_path), "--resume"]) == 0


def test_divergence_names_the_step_and_saves_nothing(tmp_path, argv, monkeypatch, capsys):
    """The loss of step 3 of epoch 1 is NaN; a checkpoint is due at every step."""
    real, steps = main.training_step, []

    def step(run, images, labels, epoch):
        terms = real(run, images, labels, epoch)
        steps.append(epoch)
        return {**terms, "loss": terms["loss"] * float("nan")} if len(steps) == 3 else terms

    monkeypatch.setattr(main, "training_step", step)
    assert main.main([*argv, "--save_path", str(tmp_path), "--checkpoint_minutes", "0"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: the loss is not finite, in step 3 of epoch 1 (last loss terms: beta ")
    assert "base " in text
    assert text.count("\n") == 1
    assert "Start anew with a lower --lr" in text
    assert "Last good checkpoint: epoch 0, step 2 of the next; go on from it with --resume" in text
    folder = tmp_path / "folder" / "Sample_Run_s0"
    assert state.load(folder / "checkpoint.pt")["step"] == 2
    # the tables and their queue know
    reason = "the loss is not finite, in step 3 of epoch 1 (last loss terms: "
    assert records.read(str(folder)).diverged.startswith(reason)
    (run,) = collect.collect([str(folder)], "test", "last")
    assert run.kind == "diverged" and run.reason.startswith(f"diverged: {reason}") and "lower --lr" in run.advice
    # it may still go on, and is told
    assert main.main([*argv, "--save_path", str(tmp_path), "--resume", str(folder)]) == 0
    assert f"note: this run diverged before ({reason}" in capsys.readouterr().err
    assert records.read(str(folder)).finished and not folders.divergence(str(folder))
    assert json.loads((folder / "config.json").read_text())["history"][0]["after_divergence"].startswith(reason)


def test_a_signal_after_a_divergence_saves_nothing(tmp_path, argv, monkeypatch, capsys):
    real = main.training_step

    def step(run, images, labels, epoch):
        run.signals.signal = main.interrupts.signal.SIGTERM  # arrives in the step
        return {"loss": real(run, images, labels, epoch)["loss"] * float("inf")}

    monkeypatch.setattr(main, "training_step", step)
    assert main.main([*argv, "--save_path", str(tmp_path)]) == 1
    text = capsys.readouterr().err
    assert "not finite, in step 1 of epoch 1" in text and text.count("\n") == 1
    assert state.load(tmp_path / "folder" / "Sample_Run_s0" / "checkpoint.pt")["step"] == 0
