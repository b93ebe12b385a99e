"""What a run tells: TensorBoard, Weights & Biases without its key, a collapse."""

import importlib.machinery
import os
import sys
from unittest import mock

import pytest
import torch
from runs import SMALL, image_folder

import main
from utilities.run import load

KEY = "0123456789abcdefSECRET"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function of more flags: the exit status of a run of two epochs."""
    images = image_folder(tmp_path / "images")

    def run(*more):
        argv = [*SMALL, *images, *"--kernels 0 --n_epochs 2 --save_path".split(), str(tmp_path), *map(str, more)]
        monkeypatch.setattr(sys, "argv", ["main.py", *argv])
        return main.main(argv)

    return run


def library(monkeypatch, name):
    """A package of that name, in place of the real one, that takes every call."""
    fake = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, name, fake)
    return fake


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "none")  # set back after the test
    return library(monkeypatch, "wandb")


@pytest.mark.parametrize("flag", [["--wandb_key", KEY], [f"--wandb_key={KEY}"]])
def test_the_key_is_in_no_file_of_the_run(run, tmp_path, capsys, wandb, flag):
    assert run("--log_online", *flag, "--project", "p", "--group", "g") == 0
    given, there = wandb.init.call_args.kwargs, wandb.init.return_value
    assert os.environ["WANDB_API_KEY"] == KEY and given["project"] == "p" and given["name"] == "g_s0"
    assert [call.kwargs["step"] for call in there.log.call_args_list] == [0, 1, 2] and there.finish.called
    assert there.log.call_args.args[0].keys() >= {"loss", "test/e_recall@1"}
    printed = capsys.readouterr()
    assert "SECRET" not in printed.out + printed.err + repr(given)
    for path in (tmp_path / "folder").rglob("*.*"):
        assert b"SECRET" not in path.read_bytes(), path


@pytest.mark.parametrize("fail", ["init", "log"])
def test_a_tracker_that_fails_is_one_line_and_the_run_goes_on(run, tmp_path, capsys, wandb, fail):
    failing = wandb.init if fail == "init" else wandb.init.return_value.log
    failing.side_effect = RuntimeError("no network")
    assert run("--log_online") == 0
    text = capsys.readouterr().err
    assert text.startswith("note: --log_online: ") and "no network" in text and text.count("\n") == 1
    assert load(tmp_path / "folder" / "Sample_Run_s0" / "checkpoint.pt")["epoch"] == 2


def test_tensorboard_gets_each_epochs_row(run, tmp_path, monkeypatch):
    library(monkeypatch, "tensorboard")
    writer = library(monkeypatch, "torch.utils.tensorboard").SummaryWriter
    assert run("--tensorboard") == 0
    folder = tmp_path / "folder" / "Sample_Run_s0"
    rows = load(folder / "checkpoint.pt")["rows"]
    expected = {(name, value, row["epoch"]) for row in rows for name, value in row.items() if name != "epoch"}
    assert {call.args for call in writer.return_value.add_scalar.call_args_list} == expected
    writer.assert_called_once_with(str(folder / "tensorboard"), purge_step=0)
    assert writer.return_value.close.called


@pytest.mark.parametrize("from_the_start", [False, True])
def test_a_collapse_is_said_where_it_came_by_training(run, monkeypatch, capsys, from_the_start):
    real, calls = main.evaluation.evaluate, []

    def evaluate(model, *args, **more):
        calls.append(model)
        with monkeypatch.context() as patch:
            if len(calls) > 1 or from_the_start:
                patch.setattr(model, "forward", lambda images: torch.arange(16.0).repeat(len(images), 1))
            return real(model, *args, **more)

    monkeypatch.setattr(main.evaluation, "evaluate", evaluate)
    assert run("--n_epochs", 1) == 0
    assert capsys.readouterr().out.count("collapsed") != from_the_start
