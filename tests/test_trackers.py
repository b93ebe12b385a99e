"""What a run writes and prints: means, TensorBoard, Weights & Biases without its key, a line an epoch, a collapse."""

import importlib.machinery
import json
import sys
import types

import pytest
import torch
from runs import SMALL, image_folder

import main
from utilities import console, state, trackers

KEY = "0123456789abcdefSECRET"


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    return [
        *SMALL,
        *image_folder(tmp_path_factory.mktemp("images")),
        *"--kernels 0 --n_epochs 2 --checkpoint_minutes 10".split(),
    ]


@pytest.fixture
def wandb(monkeypatch):
    """A module of that name that keeps what it is given; .fail makes it raise."""
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.rows, fake.given, fake.argv, fake.ended, fake.fail = [], None, None, False, None

    class Run:
        def log(self, row, step):
            if fake.fail == "log":
                raise OSError(f"no network for {KEY}\nsecond line")
            fake.rows.append((step, dict(row)))

        def finish(self):
            fake.ended = True

    def init(**given):
        fake.given, fake.argv, fake.key = given, list(sys.argv), main.os.environ.get("WANDB_API_KEY")
        if fake.fail == "init":
            raise RuntimeError(f"{KEY} is refused")
        return Run()

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "none")  # set back after the test
    return fake


def run(argv, monkeypatch, *more):
    argv = [*argv, *map(str, more)]
    monkeypatch.setattr(sys, "argv", ["main.py", *argv])
    return main.main(argv)


@pytest.mark.parametrize("flag", [["--wandb_key", KEY], [f"--wandb_key={KEY}"]])
def test_the_key_is_written_nowhere(argv, tmp_path, monkeypatch, capsys, wandb, flag):
    assert run(argv, monkeypatch, "--save_path", tmp_path, "--log_online", *flag, "--project", "p", "--group", "g") == 0
    assert wandb.key == KEY and wandb.ended and wandb.given["project"] == "p" and wandb.given["name"] == "g_s0"
    assert [step for step, _ in wandb.rows] == [0, 1, 2] and wandb.rows[1][1].keys() >= {"loss", "test/e_recall@1"}
    printed = capsys.readouterr()
    assert "SECRET" not in printed.out + printed.err + repr(wandb.given) + repr(wandb.argv) + repr(sys.argv)
    assert "--log_online" in wandb.argv
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path
    assert "(not written)" in " ".join(
        json.loads((tmp_path / "folder" / "g_s0" / "config.json").read_text())["command"]
    )


@pytest.mark.parametrize("fail, key", [("init", KEY), ("log", KEY), ("log", "")])
def test_a_tracker_that_fails_is_one_line_and_the_run_goes_on(argv, tmp_path, monkeypatch, capsys, wandb, fail, key):
    wandb.fail = fail
    assert run(argv, monkeypatch, "--save_path", tmp_path, "--log_online", "--wandb_key", key) == 0
    text = capsys.readouterr().err
    reason = "is refused" if fail == "init" else "no network for"
    assert text.startswith("note: --log_online: ") and reason in text and text.count("\n") == 1 and len(text) < 200
    assert not key or "SECRET" not in text
    assert len((tmp_path / "folder" / "Sample_Run_s0" / "metrics.csv").read_text().splitlines()) == 4


def test_tensorboard_gets_each_epochs_row(argv, tmp_path, monkeypatch, capsys):
    fake, written = types.ModuleType("torch.utils.tensorboard"), []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, epoch):
            written.append((name, float(value), epoch))

        def flush(self):
            pass

        def close(self):
            written.append(self.folder)

    fake.SummaryWriter = SummaryWriter
    beside = types.ModuleType("tensorboard")
    beside.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setitem(sys.modules, "tensorboard", beside)
    assert run(argv, monkeypatch, "--save_path", tmp_path, "--tensorboard") == 0 and not capsys.readouterr().err
    folder = tmp_path / "folder" / "Sample_Run_s0"
    rows = state.load(folder / "checkpoint.pt")["rows"]
    expected = [(name, value, row["epoch"]) for row in rows for name, value in row.items() if name != "epoch"]
    assert written == [*expected, str(folder / "tensorboard")]


def test_real_tensorboard_files_hold_the_rows(argv, tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run(argv, monkeypatch, "--save_path", tmp_path, "--tensorboard", "--n_epochs", 1) == 0
    folder = tmp_path / "folder" / "Sample_Run_s0"
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    rows = state.load(folder / "checkpoint.pt")["rows"]
    assert [e.value for e in events.Scalars("test/e_recall@1")] == pytest.approx(
        [row["test/e_recall@1"] for row in rows]
    )


@pytest.mark.parametrize("flag, package", [("--tensorboard", "tensorboard"), ("--log_online", "wandb")])
def test_a_missing_library_is_one_line_before_the_run(argv, tmp_path, monkeypatch, capsys, flag, package):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert run(argv, monkeypatch, "--save_path", tmp_path, flag) == 2
    assert (
        capsys.readouterr().err == f"error: {flag}: needs the package {package}: pip install {package}\n"
        and not list(tmp_path.iterdir())
    )


def test_loss_terms_are_the_epochs_means(argv, tmp_path, monkeypatch):
    real, steps = main.training_step, []

    def step(run, images, labels, epoch):
        terms = real(run, images, labels, epoch)
        steps.append((epoch, {name: float(torch.as_tensor(value)) for name, value in terms.items()}))
        return terms

    monkeypatch.setattr(main, "training_step", step)
    assert run(argv, monkeypatch, "--save_path", tmp_path) == 0
    rows = state.load(tmp_path / "folder" / "Sample_Run_s0" / "checkpoint.pt")["rows"]
    for row in rows[1:]:
        own = [terms for epoch, terms in steps if epoch == row["epoch"]]
        assert len(own) == 3 and {"loss", "loss/base"} <= set(own[0])
        for name in own[0]:
            assert row[name] == pytest.approx(sum(terms[name] for terms in own) / len(own), rel=1e-6)
        assert row["loss"] != pytest.approx(own[-1]["loss"], rel=1e-4)


def test_a_line_an_epoch_with_the_time_left_also_without_an_evaluation(argv, tmp_path, monkeypatch, capsys):
    assert run(argv, monkeypatch, "--save_path", tmp_path, "--n_epochs", 3, "--eval_every", 2) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [0, 1, 2, 3]
    assert all(" s left" in line for line in lines[1:3]) and "left" not in lines[3]
    assert "loss " in lines[1] and "e_recall@1" not in lines[1] and "e_recall@1" in lines[2] and "untrained" in lines[0]


def collapsed(model, how):
    """Its embeddings become one point, or points on one line, or spread out."""

    def forward(images):
        n = len(images)
        point = torch.nn.functional.normalize(torch.arange(1.0, 17.0), dim=0).expand(n, 16)
        spread = torch.randn(n, 16, generator=torch.Generator().manual_seed(0))
        return {"point": point, "near": point + 1e-4 * spread, "spread": spread}[how].clone()

    return forward


@pytest.mark.parametrize("how, said", [("point", True), ("near", True), ("spread", False)])
def test_a_collapse_is_said_when_it_is_one(argv, tmp_path, monkeypatch, capsys, how, said):
    real = main.evaluation.evaluate

    def evaluate(model, split, opt):
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", collapsed(model, how))
            return real(model, split, opt)

    monkeypatch.setattr(main.evaluation, "evaluate", evaluate)
    assert run(argv, monkeypatch, "--save_path", tmp_path, "--n_epochs", 1) == 0
    text = capsys.readouterr().out
    assert text.count("the embeddings have collapsed: effective rank 1.0 of 16") == said  # not of the untrained network


@pytest.mark.parametrize(
    "rank, share, dimensions, said",
    [
        (6.3, 0.9, 128, True),
        (6.5, 0.9, 128, False),
        (60, 0.09, 128, True),
        (60, 0.11, 128, False),
        (1.0, 0.3, 16, True),
        (1.2, 0.3, 16, False),
        (1.0, 0.9, 2, False),
    ],
)
def test_collapse_line(rank, share, dimensions, said):
    metrics = dict(zip(console.COLLAPSE, (rank, share)))
    assert bool(console.collapse_line(metrics, range(1000), dimensions)) == said
    assert bool(console.collapse_line(metrics, range(dimensions), 1000)) == said  # few images span no more


def test_seconds_left_are_those_of_the_last_five_epochs():
    rows = [{"epoch": 0, "seconds": 100.0}]  # an evaluation, which tells nothing of training
    assert console.seconds_left(rows, 10) is None
    rows += [{"epoch": epoch, "seconds": 100.0 + 2 * epoch} for epoch in range(1, 4)]
    assert console.seconds_left(rows, 10) == 2 * 7
    rows += [{"epoch": epoch, "seconds": 200.0 + 10 * epoch} for epoch in range(4, 10)]  # on another machine
    assert console.seconds_left(rows, 10) == 10
    rows.append({"epoch": 10, "seconds": 300.0})
    assert console.seconds_left(rows, 10) == 0
