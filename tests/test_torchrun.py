"""torchrun ... main.py: one process's numbers, everything said once, and how it ends when something goes wrong."""

import shutil
import signal

import miniatures
import pytest
import torch
from runs import LONG, rows, run_ranks, start

import main
from utilities.run import load

FLAGS = (
    "--dataset folder --arch conv4_normalize --embed_dim 8 --bs 12 --kernels 0 --optim sgd --lr 1e-4 --data_sampler "
    "class_balanced --loss antico_pair --antico_base margin --no_train_metrics --evaluation_metrics e_recall@1 mAP@R"
).split()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """6 classes of 8 images to train, 4 steps an epoch; 25 to test, which neither 2 nor 3 divides."""
    root = tmp_path_factory.mktemp("images")
    for part, classes, n in (("train", 6, 8), ("test", 5, 5)):
        for c in range(classes):
            for i in range(n):
                seed = 1000 * (part == "test") + 50 * c + i // 2
                miniatures.noise(root / part / f"{part}{c}" / f"{i}.png", seed=seed, size=(40, 36))
    return root


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """20 steps of one process."""
    path = tmp_path_factory.mktemp("one")
    assert main.main([*FLAGS, "--source_path", str(images), "--save_path", str(path), "--n_epochs", "5"]) == 0
    return path / "folder" / "Sample_Run_s0"


def assert_close(folder, whole):
    for row, expected in zip(rows(folder), rows(whole)):
        row, expected = ({name: float(value) for name, value in r.items() if value} for r in (row, expected))
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-3)  # float32's rounding grows; float64: test_distributed


def test_two_processes_then_one_give_the_numbers_of_one(images, whole, tmp_path):
    argv = [*FLAGS, "--source_path", images, "--save_path", tmp_path / "runs", "--n_epochs", 3]
    (first, text), second = run_ranks(2, argv, tmp_path)
    assert (first, *second) == (0, 0, ""), text + second[1]
    assert "CPU x 2 processes" in text and text.count("training images") == 1 and "warn" not in text.lower()
    assert [line.split("/")[0].split()[-1] for line in text.splitlines() if line.startswith("epoch ")] == list("0123")
    (folder,) = (tmp_path / "runs" / "folder").iterdir()
    # one process goes on alone
    assert main.main(["--resume", str(folder), "--n_epochs", "5"]) == 0
    assert len(rows(folder)) == 6
    assert_close(folder, whole)
    ours, theirs = (load(path / "checkpoint.pt") for path in (folder, whole))
    for part in ("model", "criterion"):
        for name, value in theirs[part].items():
            assert torch.allclose(ours[part][name].double(), value.double(), rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_torchrun_saves_and_the_run_can_go_on(images, whole, tmp_path, number):
    argv = [*FLAGS, "--source_path", images, "--save_path", tmp_path, "--n_epochs", 2000]
    begun = start(argv, *"-m torch.distributed.run --standalone --nproc_per_node=2".split())
    assert any(line.startswith("epoch   0/") for line in iter(begun.stdout.readline, ""))
    begun.send_signal(number)
    _, err = begun.communicate(timeout=LONG)  # until the last process has closed its output
    said = err.count("stopped by SIGTERM")
    assert begun.returncode != 0 and said >= 1 and "main.py --resume" in err, err
    assert said == 1 or number == signal.SIGKILL, err
    folder = tmp_path / "folder" / "Sample_Run_s0"
    saved = load(folder / "checkpoint.pt")
    assert main.main(["--resume", str(folder), "--n_epochs", str(saved["epoch"] + 1)]) == 0
    assert [int(row["epoch"]) for row in rows(folder)] == list(range(saved["epoch"] + 2))
    assert_close(folder, whole)


def test_a_process_that_fails_ends_all_with_its_message(images, tmp_path):
    """One of the images is damaged; the one process that gets it says so, the other does not wait for it for ever."""
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "train" / "train3" / "5.png").write_bytes(b"no image")
    argv = [*FLAGS, "--source_path", tmp_path / "images", "--save_path", tmp_path / "runs", "--n_epochs", 2]
    ends = run_ranks(2, argv, tmp_path)
    text = "".join(printed for _, printed in ends)
    assert text.count("5.png: cannot be decoded") == 1 and "Traceback" not in text
    assert sorted(status for status, _ in ends) == [1, 2] and all(printed.count("error: ") <= 1 for _, printed in ends)


BAD = {  # flags: (exit status, what is said)
    "--bs 13 --samples_per_class 1": (2, "--bs 13: cannot be shared by 2 processes; 12 or 14 can"),
    "--source_path nowhere": (2, "nowhere"),
    "--arch conv4 --grad_cache 3": (2, "_frozen"),
    "--lr 1e30": (1, "in epoch 1, "),
}


@pytest.mark.parametrize("flags", BAD)
def test_what_is_bad_for_all_is_said_once_and_ends_all(images, tmp_path, flags):
    argv = [*FLAGS, "--source_path", images, "--save_path", tmp_path / "runs", "--n_epochs", 2, *flags.split()]
    ends, (status, words) = run_ranks(2, argv, tmp_path), BAD[flags]
    text = "".join(printed for _, printed in ends)
    assert [end for end, _ in ends] == [status] * 2 and text.count("error: ") == 1 and words in text, text
    assert "Traceback" not in text and (tmp_path / "runs").exists() == (status == 1)
