"""Signals at each part of a run and to all of its processes; workers that die or lose their run; closed pipes."""

import os
import signal
import time
from pathlib import Path

import pytest
from runs import SMALL, image_folder, launch, once, outcome, run, same, wait

import main
from utilities import records
from utilities.signals import Signals


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(flags of a run, its outcome)."""
    place = tmp_path_factory.mktemp("undisturbed")
    argv = [*SMALL, *image_folder(place / "images"), *"--kernels 0 --n_epochs 1".split()]
    assert main.main([*argv, "--save_path", str(place)]) == 0
    return argv, outcome(place / "folder" / "Sample_Run_s0")


# moment: (what is under way when the signal arrives, at its how-manieth call; where the run then stops)
MOMENTS = {
    "build": (main.criteria, "select", 1, "before training began"),
    "step": (main, "embed", 2, "epoch 0, step 2 of the next"),
    "evaluation": (main.evaluation, "evaluate", 2, "epoch 0, step 3 of the next"),
    "save": (os, "fsync", 2, "epoch 0"),  # after config.json
    "record": (records, "write_rows", 1, "epoch 0"),
}


@pytest.mark.filterwarnings("error:Detected call of")  # an epoch resumed at its end has no step of the optimizer
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_at_each_part_of_a_run_loses_nothing(undisturbed, tmp_path, monkeypatch, capsys, moment, number):
    """In the test's own process, where the moment is certain."""
    argv, expected = undisturbed
    argv = [*argv, "--save_path", str(tmp_path)]
    owner, name, at, where = MOMENTS[moment]
    real, calls = getattr(owner, name), []

    def act(*args, **more):
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, act)
        assert main.main(argv) == 128 + number
    text = capsys.readouterr().err
    assert f"stopped by {number.name}" in text and where in text and text.count("\n") == 1
    assert main.main([*argv, "--resume"]) == 0
    assert same(expected, outcome(tmp_path / "folder" / "Sample_Run_s0"))


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.number == 0
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_of_its_processes_and_another_lose_nothing(undisturbed, tmp_path, number):
    """As a terminal's Ctrl-C comes, with torchrun's or Slurm's SIGTERM after it."""
    argv, expected = undisturbed
    argv = [*argv, "--kernels", 2, "--save_path", tmp_path]

    def send(process):
        os.killpg(process, number)
        os.killpg(process, signal.SIGTERM)

    status, text = run([*argv, "--n_epochs", 100], tmp_path / "log", once("epoch   0", send))
    assert status == 128 + number and "Traceback" not in text, text
    assert f"stopped by {number.name}" in text.splitlines()[-1] and f"--resume {tmp_path}" in text.splitlines()[-1]
    assert run([*argv, "--resume", "--n_epochs", 1], tmp_path / "log")[0] == 0
    assert same(expected, outcome(tmp_path / "folder" / "Sample_Run_s0"))


def workers(process):
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc to find the workers")
def test_no_worker_outlives_a_run_that_is_killed(undisturbed, tmp_path):
    found = []

    def kill(process):
        found.extend(workers(process))
        os.kill(process, signal.SIGKILL)

    argv = [*undisturbed[0], "--kernels", 2, "--n_epochs", 100, "--save_path", tmp_path]
    assert run(argv, tmp_path / "log", once("epoch   1", kill))[0] == -signal.SIGKILL
    end = time.monotonic() + 10
    while any(map(alive, found)) and time.monotonic() < end:
        time.sleep(0.01)
    assert len(found) == min(2, os.cpu_count()) and not any(map(alive, found))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc to find the workers")
def test_a_killed_worker_is_one_line(undisturbed, tmp_path):
    argv = [*undisturbed[0], "--kernels", 2, "--n_epochs", 100, "--save_path", tmp_path]
    kill = once("epoch   1", lambda process: os.kill(workers(process)[0], signal.SIGKILL))
    status, text = run(argv, tmp_path / "log", kill)
    assert status == 1 and text.splitlines()[-1].startswith("error: ") and "Traceback" not in text, text
    assert "Last checkpoint: epoch " in text


@pytest.mark.parametrize("flags", ["--help", "--list", "--n_epochs 1"])
def test_a_closed_pipe_is_one_line_at_most(undisturbed, tmp_path, flags):
    status = wait(launch([*undisturbed[0], *flags.split(), "--save_path", tmp_path], tmp_path / "log", unread=True))
    text = (tmp_path / "log").read_text()
    lines = 0 if flags == "--help" else 1  # argparse says nothing
    assert status == 141 * lines and text.count("\n") == text.count("was closed") == lines, text
