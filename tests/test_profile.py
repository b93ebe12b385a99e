"""--profile N and --tf32."""

import json
import re

import miniatures
import pytest
import torch

import main
from utilities import device, folders, state


@pytest.fixture
def run(tmp_path):
    """A function (flags) → exit status of a run on two classes of ten small JPEGs, five batches, and its folder."""
    miniatures.class_folders(tmp_path / "images", ["a", "b", "c", "d"], n=10)
    flags = [
        *"--dataset folder --source_path".split(),
        tmp_path / "images",
        *(
            "--arch conv4_normalize --embed_dim 8 --bs 4 --kernels 0 --loss antico_pair --evaluation_metrics "
            "e_recall@1 --save_path"
        ).split(),
        tmp_path / "runs",
    ]

    def start(*more):
        return main.main([str(word) for word in (*flags, *more)])

    start.folder = tmp_path / "runs" / "folder" / "Sample_Run_s0"
    return start


def test_a_profile_names_each_phase_and_writes_a_trace_and_ends_the_run(run, capsys):
    steps = 3
    assert run("--n_epochs", 3, "--profile", steps) == 0
    out = capsys.readouterr()
    (line,) = [line for line in out.out.splitlines() if line.startswith("profile of 3 steps, ")]
    shares = {name: float(share) for name, share in re.findall(r"(\w+) ([\d.]+)%", line)}
    assert list(shares) == ["input", "forward", "loss", "backward", "optimizer"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.3) and all(share > 0 for share in shares.values())
    assert line.endswith(f"trace: {run.folder / 'profile.json'}") and out.err == ""
    events = json.loads((run.folder / "profile.json").read_text())["traceEvents"]
    found = {name: sum(e["name"] == name and e.get("cat") == "user_annotation" for e in events) for name in shares}
    # of the N steps and none of those before; the end of the first epoch asks for input once more
    assert found == {"input": steps + 1, "forward": steps, "loss": steps, "backward": steps, "optimizer": steps}
    assert "aten::convolution" in {event["name"] for event in events}
    assert not list(run.folder.glob(".writing-*"))
    # the run stands where it stood, and goes on without another profile
    assert state.load(run.folder / "checkpoint.pt")["epoch"] == 1  # the last whole one
    (run.folder / "profile.json").unlink()
    assert run("--resume", run.folder, "--n_epochs", 2) == 0
    assert state.load(run.folder / "checkpoint.pt")["epoch"] == 2 and not (run.folder / "profile.json").exists()
    assert folders.read_config(run.folder)["flags"]["profile"] is None


def test_a_profile_of_more_steps_than_the_run_has_is_one_line(run, capsys):
    assert run("--n_epochs", 1, "--profile", 40) == 2
    text = capsys.readouterr().err
    assert text == (
        "error: --profile 40: takes 45 steps (5 of them to warm up), this run has 5 to go; lower it or raise "
        "--n_epochs\n"
    )
    assert not run.folder.exists()


def settings():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_tf32_is_on_for_the_network_and_off_for_the_loss(run, monkeypatch):
    opt = main.parameters.parse([])
    device.choose_device(opt)
    assert settings() == ("highest", False)
    seen = {"net": set(), "loss": set(), "backward": set()}
    forward, loss = main.architectures.EmbeddingNet.forward, main.criteria.base.Criterion.forward

    class Spy(torch.autograd.Function):  # what the network's backward sees
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen["backward"].add(settings())
            return gradient

    def spied(self, images):
        if self.training:
            seen["net"].add(settings())
        return Spy.apply(forward(self, images)) if self.training else forward(self, images)

    monkeypatch.setattr(main.architectures.EmbeddingNet, "forward", spied)
    monkeypatch.setattr(main.criteria.base.Criterion, "forward", lambda *a: seen["loss"].add(settings()) or loss(*a))
    assert run("--n_epochs", 1, "--tf32") == 0
    assert seen == {"net": {("high", True)}, "loss": {("highest", False)}, "backward": {("high", True)}}
    assert settings() == ("highest", False)
