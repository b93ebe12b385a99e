"""The benchmarks of training run, and a step leaves nothing behind."""

import csv
import json
import re

import miniatures
import pytest
import torch

import main
from benchmarks import cost, training
from benchmarks.gpu import __main__ as gpu
from utilities import device


@pytest.fixture
def built(tmp_path):
    return training.build(
        str(tmp_path),
        "--dataset",
        "glyphs",
        "--arch",
        "conv4_normalize",
        "--kernels",
        "0",
        "--bs",
        "8",
        "--embed_dim",
        "8",
        "--loss",
        "multisimilarity",
        "--evaluation_metrics",
        "e_recall@1",
    )


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("tuned", [False, True])
def test_our_loop_and_the_plain_one_learn_the_same(built, tuned):
    """Without augmentation, which draws otherwise in the plain loop, they differ by rounding alone."""
    built.loader.dataset.augmented = False
    network = training.network_of(built, tuned)
    began, copy = weights(built.model), weights(network[0])
    assert torch.equal(began, copy)
    training.ours(built, 3)()
    training.plain(built, 3, network, tuned)()
    assert built.progress.step == 3
    mine, theirs = weights(built.model), weights(network[0])
    # Adam moves a weight by its rate however small the gradient, so that rounding shows in some
    assert (mine - theirs).norm() < 0.1 * (mine - began).norm()
    assert (mine - began).abs().max() > 1e-5  # the rate


def test_a_step_of_ours_keeps_nothing_for_a_gpu_that_is_not_in_use(built):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    epoch = training.ours(built, 3)
    epoch()
    before = len(torch.cuda._queued_calls)
    epoch()
    assert len(torch.cuda._queued_calls) == before


def test_seed_seeds_what_torch_draws():
    device.seed(2**63 - 1, torch.device("cpu"))
    drawn = torch.rand(4)
    torch.manual_seed(2**63 - 1)
    assert torch.equal(drawn, torch.rand(4))


def test_training_in_miniature(capsys):
    assert training.main(["--quick"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row[2].strip() for row in rows] == ["plain", "plain, tuned"] * 2
    for row in rows:
        assert all(re.fullmatch(r"\d+\.\d+", row[i].strip()) and float(row[i]) > 0 for i in (1, 3, 4, 5))


def test_what_never_ran_on_a_gpu_runs_here_in_a_small_size(capsys, monkeypatch):
    # torchrun takes a process of its own: tests/test_torchrun.py
    monkeypatch.setattr(gpu, "ROWS", [(name, function) for name, function in gpu.ROWS if "torchrun" not in name])
    status = gpu.main(["--quick"])
    text = capsys.readouterr().out
    rows = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| ")
    }
    assert status == 0, text
    names = {name for name, _ in gpu.ROWS}
    assert names == set(rows) - {"what"}
    skipped = {name for name in names if rows[name] == "skipped"}
    assert all(rows[name] == "ok" for name in names - skipped)
    if not torch.cuda.is_available():
        assert {"--amp fp16 with its scaler", "out of memory is one line that names --bs"} <= skipped and len(
            skipped
        ) <= 6


def test_a_failing_row_is_one_line_and_the_others_run(capsys, monkeypatch):
    def fails(bench):
        raise RuntimeError("CUDA error: no such thing\nmore of it")

    monkeypatch.setattr(gpu, "ROWS", [("first", fails), ("second", lambda bench: "4 of 4")])
    assert gpu.main(["--quick"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("| first | RuntimeError: CUDA error: no such thing |") and line.endswith("| FAILED |")
        for line in lines
    )
    assert any(line.startswith("| second | 4 of 4 |") and line.endswith("| ok |") for line in lines)
    assert lines[-1].endswith("1 failed")


@pytest.mark.parametrize(
    "broken, word", [("prefetch", "prefetch"), ("nearest_neighbours", "search by torch"), ("kmeans", "k-means without")]
)
def test_rows_notice_what_is_wrong(broken, word, capsys, monkeypatch):
    """A row that could not fail would be worth nothing."""
    if broken == "prefetch":
        right = device.prefetch
        monkeypatch.setattr(
            device, "prefetch", lambda *a: ((images.flip(1) // 2, labels) for images, labels in right(*a))
        )
    elif broken == "nearest_neighbours":
        right = gpu.search.nearest_neighbours
        monkeypatch.setattr(gpu.search, "nearest_neighbours", lambda q, g, k, **how: right(q, g, k + 1, **how)[:, 1:])
    else:
        right = gpu.parts.clustering.kmeans
        monkeypatch.setattr(gpu.parts.clustering, "kmeans", lambda *a, **how: right(*a, **how)[::-1])
    assert gpu.main(["--quick", "--only", word]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_network_is_compiled_once_after_the_warm_up(tmp_path, monkeypatch):
    """Neither the evaluation nor an epoch's end compiles it again: batches have one size."""
    from torch._dynamo.testing import CompileCounter

    counter, compile_as_it_is = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_as_it_is(model, backend=counter))
    seen = []
    step = main.training_step
    monkeypatch.setattr(main, "training_step", lambda *a: (step(*a), seen.append(counter.frame_count))[0])
    miniatures.class_folders(tmp_path / "images", ["a", "b", "c", "d"], n=5)
    flags = [
        *"--dataset folder --source_path".split(),
        tmp_path / "images",
        *(
            "--arch conv4_normalize --embed_dim 8 --bs 4 --kernels 0 --loss antico_pair --evaluation_metrics "
            "e_recall@1 --n_epochs 3 --warmup 1 --compile on --save_path"
        ).split(),
        tmp_path / "runs",
    ]
    assert main.main([str(flag) for flag in flags]) == 0
    assert len(seen) == 6 and seen[:2] == [0, 0] and seen[2:] == [seen[2]] * 4 and seen[2] > 0


def test_cost_is_measured_and_its_table_says_of_what(tmp_path, capsys):
    recipe = "--dataset glyphs --arch conv4_normalize --kernels 0 --bs 8 --embed_dim 8 --input_size 16".split()
    ours = cost.measure([*recipe, "--loss", "antico_batch_proxy"], turns=1, steps=2)
    assert ours["ms"] > 0 and ours["seconds"] == pytest.approx(2 * ours["ms"] / 1000)
    assert ours["flags"]["loss"] == "antico_batch_proxy" and ours["device"] and 0 <= ours["waited"] < 1
    base = {**ours, "flags": {**ours["flags"], "loss": "proxyanchor"}, "waited": 0.5}
    for name, record in (("a_s0", {**ours, "waited": 0.0}), ("b_s0", base)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    out, paths = str(tmp_path / "cost"), sorted(map(str, tmp_path.glob("*.json")))
    assert cost.main(["--table", out, *paths, "--failed", "c_s0: memory ran out"]) == 0
    text, tex = (tmp_path / "cost.md").read_text(), (tmp_path / "cost.tex").read_text()
    assert capsys.readouterr().out.startswith(text)
    with open(f"{out}.csv", newline="") as file:
        base, ours = csv.DictReader(file)
    assert (base["loss"], ours["loss"]) == ("ProxyAnchor", "AntiCo batch_proxy over ProxyAnchor")
    assert (ours["dimensions"], ours["batch"], ours["pixels"]) == ("8", "8", "16")
    assert float(ours["ms a step"]) == pytest.approx(record["ms"], abs=0.1)
    assert "glyphs, conv4_normalize, dimensions 8, batch 8, pixels 16" in text and "| ProxyAnchor " in text
    assert "1 of 2 rows waited more than 5%" in text and "**Failed:**\n\n- c_s0: memory ran out\n" in text
    assert tex.count(r"\toprule") == 1 and tex.endswith("% failed: c_s0: memory ran out\n")
    (tmp_path / "a_s0.json").write_text("{}")
    assert cost.main(["--table", out, *paths]) == 2
    assert f"error: {paths[0]}: damaged (KeyError)" in capsys.readouterr().err
