"""Signals in the seconds before a run, in workers and in destructors; runs that get one are in test_resume.py."""

import os
import signal
import subprocess
import sys
import time

import pytest
from runs import HERE, SMALL, image_folder, outcome, same, start

import main
from utilities import interrupts

LONG = 300  # seconds: the machine may be busy


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_during_the_imports_is_one_line(tmp_path, number):
    run = start(["--dataset", "glyphs", "--arch", "conv4", "--save_path", tmp_path])
    end = time.monotonic() + LONG
    while time.monotonic() < end:  # until the handler is there
        with open(f"/proc/{run.pid}/status", encoding="utf-8") as file:
            caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
        if caught >> (signal.SIGUSR1 - 1) & 1:
            break
        time.sleep(0.005)
    run.send_signal(number)
    out, err = run.communicate(timeout=LONG)
    assert run.returncode == 128 + number and not out and err == f"stopped by {number.name}; no run was under way\n"
    assert not list(tmp_path.iterdir())


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_a_signal_is_raised_at_once_or_after_what_must_be_finished(capfd):
    with interrupts.Interrupts() as signals:
        with pytest.raises(interrupts.Interrupted) as stop:
            send(signal.SIGUSR1)
        assert stop.value.number == signal.SIGUSR1 == signals.signal
        send()  # while the run is being saved: a line and no more
        assert capfd.readouterr().err == "stopping; the run is being saved\n"
    with interrupts.Interrupts() as signals:
        with signals.deferred():
            with signals.deferred():
                send()
            send()
        assert signals.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) != signals.handle  # given back


def test_a_forked_worker_leaves_signals_to_the_main_process():
    with interrupts.Interrupts():
        child = os.fork()
        if child == 0:
            try:
                send(signal.SIGINT)
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_signal_in_a_destructor_is_no_traceback(capfd, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # pytest has its own

    class Worker:
        def __del__(self):
            send()

    with interrupts.Interrupts() as signals:
        Worker()
        assert signals.signal == signal.SIGTERM
    assert "Interrupted" not in capfd.readouterr().err


def test_a_wrong_flag_is_answered_before_torch_is_imported():
    code = (
        "import sys, runpy; sys.argv = ['main.py', '--lr', 'fast']\n"
        "try: runpy.run_path('main.py', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, timeout=LONG)
    assert done.stdout == "2 False\n" and "--lr: 'fast'" in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(flags of a run, its outcome)."""
    place = tmp_path_factory.mktemp("undisturbed")
    argv = [*SMALL, *image_folder(place / "images"), *"--kernels 0 --n_epochs 1 --checkpoint_minutes 0".split()]
    assert main.main([*argv, "--save_path", str(place)]) == 0
    return argv, outcome(place / "folder" / "Sample_Run_s0")


# moment: (what is under way when the signal arrives, at its how-manieth call; where the run then stops)
MOMENTS = {
    "build": (main.criteria, "select", 1, "before training began"),
    "step": (main, "embed", 2, "after step 2 of epoch 1"),
    "evaluation": (main.evaluation, "evaluate", 2, "after step 3 of epoch 1"),
    "save": (main.state, "save", 3, "after step 1 of epoch 1"),  # after best.pt and the checkpoint of epoch 0
}


@pytest.mark.filterwarnings("error:Detected call of")  # an epoch resumed at its end has no step of the optimizer
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_each_part_of_a_run(undisturbed, tmp_path, monkeypatch, capsys, moment):
    """In the test's own process, where the moment is certain."""
    argv, expected = undisturbed
    argv = [*argv, "--save_path", str(tmp_path)]
    owner, name, at, where = MOMENTS[moment]
    real, calls = getattr(owner, name), []

    def act(*args, **more):
        calls.append(name)
        if len(calls) == at:
            send()
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, act)
        assert main.main(argv) == 143
    text = capsys.readouterr().err
    assert text.startswith(f"stopped by SIGTERM {where}") and text.count("\n") == 1
    assert main.main([*argv, "--resume"]) == 0
    assert same(expected, outcome(tmp_path / "folder" / "Sample_Run_s0"))
