"""Whole runs of main.py on a few classes of glyphs."""

import csv
import json

import numpy as np
import pytest
import torch
from runs import fewer_glyphs, image_folder, start

import datasets
import main
from utilities import state
from utilities.report import __main__ as report

BASE = (
    "--dataset glyphs --input_size 16 --arch conv4_normalize --embed_dim 16 --bs 32 --samples_per_class 4 --kernels 0 "
    "--lr 1e-3 --data_sampler class_balanced --loss_oproxy_lrmulti 10 --n_epochs 2 --tau 1 "
    "--no_train_metrics --evaluation_metrics e_recall@1 nmi mAP@R coding_rate@share"
).split()


@pytest.fixture(scope="module")
def registry():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "DATASETS", dict(datasets.DATASETS))
        fewer_glyphs()
        yield datasets.DATASETS


@pytest.fixture
def small(registry, monkeypatch):
    """--dataset glyphs has 20 + 20 classes."""
    monkeypatch.setattr(datasets, "DATASETS", registry)


def run(tmp_path, *more, status=0):
    assert main.main([*BASE, "--save_path", str(tmp_path), *map(str, more)]) == status
    return tmp_path / "glyphs" / "Sample_Run_s0"


def rows(folder):
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]


def test_a_run_learns_and_leaves_its_records(tmp_path, small):
    folder = run(
        tmp_path,
        "--loss",
        "antico_batch_proxy",
        "--n_epochs",
        6,
        "--tau",
        5,
        "--store_improvements",
        "--storage_metrics",
        "e_recall@1",
        "nmi",
    )
    table = rows(folder)
    assert [int(r["epoch"]) for r in table] == list(range(7))
    assert float(table[-1]["test/e_recall@1"]) > float(table[0]["test/e_recall@1"]) + 0.05
    assert float(table[-1]["loss"]) < float(table[1]["loss"])
    assert float(table[5]["lr"]) == 1e-3 and float(table[6]["lr"]) == pytest.approx(3e-4)  # --tau 5 --gamma 0.3
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["antico_form"] == "normalized" and config["seed"] == 0
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    best, last = state.load(folder / "best.pt"), state.load(folder / "checkpoint.pt")
    recalls = [float(r["test/e_recall@1"]) for r in table]
    assert best["epoch"] == int(np.argmax(recalls)) and best["best"]["e_recall@1"] == max(recalls)
    assert last["epoch"] == 6
    assert (folder / "best_nmi.pt").exists() and (folder / f"improved_epoch{best['epoch']:04d}.pt").exists()
    assert last["criterion"]["base.proxies"].shape == (20, 16)


@pytest.mark.parametrize(
    "loss",
    [
        *(f"{name}" for name in main.criteria.CRITERIA if name != "antico_batch_proxy"),
        "antico_pair --antico_base none",
        "pml.SupConLoss",
        "antico_all_proxy --antico_base pml.NormalizedSoftmaxLoss",
    ],
)
def test_every_loss_trains(tmp_path, small, loss):
    for prefix, package in (("nir", "FrEIA"), ("pml.", "pytorch_metric_learning")):
        if loss.split()[-1].startswith(prefix):
            pytest.importorskip(package)
    gentle = ["--loss_nir_lrmulti", 1, "--loss_nir_proxy_lrmulti", 50]  # its defaults are made for --lr 1e-5
    table = rows(run(tmp_path, *f"--loss {loss}".split(), "--n_epochs", 1, *gentle))
    assert np.isfinite(float(table[1]["loss"])) and float(table[1]["test/e_recall@1"]) > 0.2


def test_a_seed_gives_the_same_numbers_twice_and_another_seed_others(tmp_path, small):
    first = numbers(run(tmp_path / "a", "--loss", "antico_pair"))
    assert first == numbers(run(tmp_path / "b", "--loss", "antico_pair"))
    assert main.main([*BASE, "--save_path", str(tmp_path), "--loss", "antico_pair", "--seed", "1"]) == 0
    assert first != numbers(tmp_path / "glyphs" / "Sample_Run_s1")


def test_resume_goes_on_as_if_never_stopped(tmp_path, small):
    whole = numbers(run(tmp_path / "a", "--loss", "antico_batch_proxy", "--n_epochs", 3))
    run(tmp_path / "b", "--loss", "antico_batch_proxy", "--n_epochs", 1)
    resumed = run(tmp_path / "b", "--loss", "antico_batch_proxy", "--n_epochs", 3, "--resume")
    assert [{k: float(v) for k, v in r.items() if v} for r in numbers(resumed)] == [
        {k: float(v) for k, v in r.items() if v} for r in whole
    ]


def test_a_second_run_does_not_overwrite_the_first(tmp_path, small):
    folder = run(tmp_path, "--loss", "proxyanchor", "--n_epochs", 0)
    before = (folder / "metrics.csv").read_bytes()
    run(tmp_path, "--loss", "multisimilarity", "--n_epochs", 1)
    assert (folder / "metrics.csv").read_bytes() == before and (
        tmp_path / "glyphs" / "Sample_Run_s0-2" / "metrics.csv"
    ).exists()


def test_warmup_trains_only_the_head_and_the_proxies(tmp_path, small):
    states = []
    for n_epochs in (0, 1, 2):
        folder = run(tmp_path / str(n_epochs), "--loss", "proxyanchor", "--n_epochs", n_epochs, "--warmup", 1)
        states.append(state.load(folder / "checkpoint.pt"))

    def same(i, part, key):
        return torch.equal(states[i][part][key], states[i + 1][part][key])

    assert same(0, "model", "features.0.weight") and not same(1, "model", "features.0.weight")
    assert not same(0, "model", "last_linear.weight") and not same(0, "criterion", "proxies")


def test_validation_split_chooses_the_checkpoint(tmp_path, small):
    folder = run(tmp_path, "--loss", "multisimilarity", "--use_tv_split", "--tv_split_perc", 0.6, "--no_test_metrics")
    table = rows(folder)
    assert "val/e_recall@1" in table[0] and not any(k.startswith("test/") for k in table[0])
    assert state.load(folder / "best.pt")["best"]["e_recall@1"] == max(float(r["val/e_recall@1"]) for r in table)


def test_train_metrics_are_of_plain_images(tmp_path, small):
    opt = [a for a in BASE if a != "--no_train_metrics"]
    assert main.main([*opt, "--save_path", str(tmp_path), "--loss", "margin", "--n_epochs", "0"]) == 0
    assert 0 < float(rows(tmp_path / "glyphs" / "Sample_Run_s0")[0]["train/e_recall@1"]) <= 1


def test_bf16_and_compile_on_the_cpu(tmp_path, small):
    table = rows(run(tmp_path, "--loss", "antico_pair", "--n_epochs", 1, "--amp", "bf16", "--compile", "on"))
    assert float(table[1]["test/e_recall@1"]) > 0.2


def test_diverging_loss_stops_with_a_line_and_keeps_what_was(tmp_path, small, capsys):
    run(tmp_path, "--loss", "margin", "--lr", 1e30, "--optim", "sgd", status=1)
    text = capsys.readouterr().err
    assert "have NaN or infinity in them, in step 2 of epoch 1 (last loss terms: " in text and "Traceback" not in text
    assert "beta " in text.split("terms: ")[1].split("). Last good checkpoint: epoch 0; ")[0]
    assert state.load(tmp_path / "glyphs" / "Sample_Run_s0" / "checkpoint.pt")["epoch"] == 0


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--loss", "proxyancor"], "--loss proxyancor: unknown (did you mean proxyanchor?)"),
        (["--arch", "conv5"], "--arch conv5: unknown (did you mean conv4?)"),
        (["--evaluation_metrics", "e_recall@1", "rank"], "--evaluation_metrics rank: unknown"),
        (["--bs", "4000", "--samples_per_class", "2"], "--bs 40 at the most"),
        (["--amp", "fp16"], "--amp fp16: needs a GPU"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, small, capsys, argv, words):
    if words.startswith("--amp") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main.main([*BASE, "--loss", "proxyanchor", "--save_path", str(tmp_path), *argv]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and words in text and text.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing begun


def test_command_line_prints_no_warning(tmp_path):
    argv = [*BASE, *image_folder(tmp_path / "images"), *"--loss antico --antico_type pair --embed_dim 512".split()]
    argv += ["--bs", "96", "--data_sampler", "random", "--n_epochs", "1", "--save_path", str(tmp_path)]
    out, err = (process := start(argv)).communicate(timeout=300)
    assert process.returncode == 0 and "warn" not in (err + out).lower(), err
    assert out.count("has no gradient left") == 1  # the published form of pair, said once
    assert not err


def test_report(tmp_path, small, capsys):
    for loss, group, seed in (("proxyanchor", "pa", 0), ("proxyanchor", "pa", 1), ("antico_pair", "pair", 0)):
        run(tmp_path, "--loss", loss, "--group", group, "--seed", seed, "--n_epochs", 1)
    out = tmp_path / "table"
    assert report.main([tmp_path / "glyphs", "--out", out, "--count_collapsed", "--html"]) == 0
    text = (tmp_path / "table.md").read_text()
    assert text.splitlines()[0].split("|")[1].strip() == "loss" and "0, 1" in text
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        table = {row["loss"]: row for row in csv.DictReader(file)}
    assert set(table) == {"ProxyAnchor", "AntiCo pair over MultiSimilarity"}
    values = [100 * float(rows(tmp_path / "glyphs" / f"pa_s{s}")[-1]["test/e_recall@1"]) for s in (0, 1)]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text
    assert float(table["ProxyAnchor"]["Recall@1"]) == pytest.approx(np.mean(values))
    assert "Recall@2" not in table["ProxyAnchor"]  # not among the metrics of these runs
    for name in ("table.png", "table_rate.pdf", "table_proxies.png", "table.html"):
        assert (tmp_path / name).stat().st_size > 5_000
    assert report.main([tmp_path / "empty", "--out", out]) == 2 and "no such folder" in capsys.readouterr().err


def test_list_names_everything_with_its_source(capsys):
    assert main.main(["--list"]) == 0
    text = capsys.readouterr().out
    packages = (main.criteria.CRITERIA, main.criteria.MINERS, main.architectures.BACKBONES, main.datasets.DATASETS)
    for name in [
        "pml.<ClassName>",
        "none",
        "mAP@R",
        "e_recall@K",
        *(name for registry in packages for name in registry),
    ]:
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert len(line.split()) > 3
