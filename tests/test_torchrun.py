"""torchrun ... main.py: one process's numbers, everything said once, and how it ends when something goes wrong."""

import csv
import os
import signal
import subprocess
import sys

import miniatures
import pytest
import torch
from runs import HERE

import main
from utilities import state

FLAGS = (
    "--dataset folder --arch conv4_normalize --embed_dim 8 --bs 12 --kernels 0 --optim sgd --lr 1e-4 --data_sampler "
    "class_balanced --loss antico_pair --antico_base margin --no_train_metrics --evaluation_metrics "
    "e_recall@1 mAP@R"
).split()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """6 classes of 8 images to train, 4 steps an epoch; 25 to test, which neither 2 nor 3 divides."""
    root = tmp_path_factory.mktemp("images")
    for part, classes, n in (("train", 6, 8), ("test", 5, 5)):
        for c in range(classes):
            for i in range(n):
                miniatures.noise(
                    root / part / f"{part}{c}" / f"{i}.png",
                    seed=1000 * (part == "test") + 50 * c + i // 2,
                    size=(40, 36),
                )
    return root


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """20 steps of one process."""
    path = tmp_path_factory.mktemp("one")
    assert main.main([*FLAGS, "--source_path", str(images), "--save_path", str(path), "--n_epochs", "5"]) == 0
    return path / "folder" / "Sample_Run_s0"


def torchrun(world, *argv):
    command = [*"-m torch.distributed.run --standalone".split(), f"--nproc_per_node={world}", "main.py", *argv]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def rows(folder):
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(file)]


def assert_close(folder, whole):
    for row, expected in zip(rows(folder), rows(whole)):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_two_processes_then_one_give_the_numbers_of_one(images, whole, tmp_path):
    begun = torchrun(2, *FLAGS, "--source_path", images, "--save_path", tmp_path, "--n_epochs", 3)
    out, err = begun.communicate(timeout=300)
    assert begun.returncode == 0, err
    assert "CPU x 2 processes" in out and out.count("training images") == 1
    assert [line.split("/")[0].split()[-1] for line in out.splitlines() if line.startswith("epoch ")] == list("0123")
    assert out.count("last: epoch 3") == 1 and "warn" not in err.lower()
    folder = tmp_path / "folder" / "Sample_Run_s0"
    assert os.listdir(folder.parent) == [folder.name]
    # the same process goes on alone
    assert main.main(["--resume", str(folder), "--n_epochs", "5"]) == 0
    assert len(rows(folder)) == 6
    assert_close(folder, whole)
    ours, theirs = (state.load(path / "checkpoint.pt") for path in (folder, whole))
    for part in ("model", "criterion"):
        for name, value in theirs[part].items():
            assert torch.allclose(ours[part][name].double(), value.double(), rtol=1e-5, atol=1e-5), name


def test_sigterm_to_torchrun_saves_and_the_run_can_go_on(images, whole, tmp_path, capsys):
    begun = torchrun(2, *FLAGS, "--source_path", images, "--save_path", tmp_path, "--n_epochs", 2000)
    lines = iter(begun.stdout.readline, "")
    assert any(line.startswith("epoch   0/") for line in lines)
    begun.send_signal(signal.SIGTERM)
    _, err = begun.communicate(timeout=120)
    assert begun.returncode != 0 and err.count("stopped by SIGTERM") == 1, err
    assert "all is saved" in err and "main.py --resume" in err
    folder = tmp_path / "folder" / "Sample_Run_s0"
    saved = state.load(folder / "checkpoint.pt")
    capsys.readouterr()
    assert main.main(["--resume", str(folder), "--n_epochs", str(max(saved["epoch"], 0) + 1)]) == 0
    assert f"going on after epoch {saved['epoch']}, step {saved['step']} of the next" in capsys.readouterr().out
    assert [row["epoch"] for row in rows(folder)] == list(range(max(saved["epoch"], 0) + 2))
    assert_close(folder, whole)


def test_a_process_that_fails_ends_all_with_its_message(server, images, tmp_path):
    """One of the images is damaged; the one process that gets it says so, the other does not wait for it for ever."""
    for path in images.rglob("*.png"):
        target = tmp_path / "images" / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    broken = tmp_path / "images" / "train" / "train3" / "5.png"
    broken.unlink()
    broken.write_bytes(b"no image")
    argv = [*FLAGS, "--source_path", tmp_path / "images", "--save_path", tmp_path / "runs", "--n_epochs", 2]
    ends = server.ranks(2, argv, tmp_path)
    text = "".join(printed for _, printed in ends)
    assert text.count("5.png: cannot be decoded") == 1 and "Traceback" not in text
    assert text.count("another process ended; its own message says why") == 1
    assert sorted(status for status, _ in ends) == [1, 2]


def test_bad_input_is_one_line_of_all_processes(server, images, tmp_path):
    argv = [*FLAGS, "--source_path", images, "--save_path", tmp_path / "runs", "--bs", 13, "--samples_per_class", 1]
    ends = server.ranks(2, argv, tmp_path)
    assert "".join(text for _, text in ends) == "error: --bs 13: cannot be shared by 2 processes; 12 or 14 can\n"
    assert [status for status, _ in ends] == [2, 2] and not (tmp_path / "runs").exists()
