"""Whole runs of main.py on a few classes of glyphs."""

import json

import numpy as np
import pytest
import torch
from runs import fewer_glyphs, image_folder, rows, start

import main
from utilities.run import load

BASE = (
    "--dataset glyphs --input_size 16 --arch conv4_normalize --embed_dim 16 --bs 32 --samples_per_class 4 --kernels 0 "
    "--lr 1e-3 --data_sampler class_balanced --loss_oproxy_lrmulti 10 --n_epochs 2 --tau 1 "
    "--no_train_metrics --evaluation_metrics e_recall@1 nmi mAP@R coding_rate@share"
).split()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    fewer_glyphs(monkeypatch.setattr)


def run(folder, *more, status=0):
    assert main.main([*BASE, "--save_path", str(folder), *map(str, more)]) == status
    return folder / "glyphs" / "Sample_Run_s0"


def test_a_run_learns_and_leaves_its_records(tmp_path):
    more = "--n_epochs 6 --tau 5 --store_improvements --storage_metrics e_recall@1 nmi".split()
    folder = run(tmp_path, "--loss", "antico_batch_proxy", *more)
    table = rows(folder)
    recalls, losses = ([float(row[name] or "nan") for row in table] for name in ("test/e_recall@1", "loss"))
    assert [int(row["epoch"]) for row in table] == list(range(7))
    assert recalls[-1] > recalls[0] + 0.05 and losses[-1] < losses[1]
    assert float(table[5]["lr"]) == 1e-3 and float(table[6]["lr"]) == pytest.approx(3e-4)  # --tau 5 --gamma 0.3
    best, last = load(folder / "best.pt"), load(folder / "checkpoint.pt")
    assert best["epoch"] == 1 + np.argmax(recalls[1:]) and last["epoch"] == 6 and "optimizer" not in best
    assert load(folder / "best_nmi.pt")["epoch"] == 1 + np.argmax([float(row["test/nmi"]) for row in table[1:]])
    improved = [n for n in range(1, 7) if recalls[n] > max(recalls[1:n], default=-1)]
    assert sorted(folder.glob("improved_*")) == [folder / f"improved_epoch{n:04d}.pt" for n in improved]
    assert last["criterion"]["base.proxies"].shape == (20, 16)
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["antico_form"] == "guard" and config["without_effect"]["antico_gam2"] == 1
    assert config["seed"] == 0 and config["versions"]["torch"] == torch.__version__.split("+")[0]


OTHERS = "antico_pair --antico_base none", "antico_all_proxy --antico_base pml.NormalizedSoftmaxLoss"


@pytest.mark.parametrize("loss", [*main.criteria.CRITERIA, *OTHERS])
def test_every_loss_trains(tmp_path, loss):
    for name, package in (("nir", "FrEIA"), ("pml.", "pytorch_metric_learning")):
        if name in loss:
            pytest.importorskip(package)
    gentle = ["--loss_nir_lrmulti", 1, "--loss_nir_proxy_lrmulti", 50]  # its defaults are made for --lr 1e-5
    table = rows(run(tmp_path, *f"--loss {loss}".split(), "--n_epochs", 1, *gentle))
    assert np.isfinite(float(table[1]["loss"])) and float(table[1]["test/e_recall@1"]) > 0.2


def test_a_seed_gives_the_same_numbers_twice_and_another_seed_others(tmp_path):
    short = ["--loss", "antico_pair", "--n_epochs", 1]
    first = rows(run(tmp_path / "a", *short))
    assert first == rows(run(tmp_path / "b", *short))
    run(tmp_path, *short, "--seed", 1)
    assert first != rows(tmp_path / "glyphs" / "Sample_Run_s1")


def test_validation_split_chooses_the_checkpoint_and_epoch_0_is_no_candidate(tmp_path, monkeypatch, capsys):
    fall = iter([0.9, 0.5, 0.7])
    monkeypatch.setattr(main, "evaluate", lambda run: ({"val/e_recall@1": next(fall)}, ""))
    more = "--loss multisimilarity --use_tv_split --tv_split_perc 0.6 --no_test_metrics --n_epochs 2".split()
    folder = run(tmp_path, *more, "--evaluation_metrics", "e_recall@1")
    assert load(folder / "best.pt")["epoch"] == 2 and "best-val: epoch 2" in capsys.readouterr().out
    assert not any(name.startswith("test/") for name in rows(folder)[0])


def test_loss_terms_are_the_epochs_means(tmp_path, monkeypatch):
    select, steps = main.criteria.select, []

    def watched(opt, n_classes):
        criterion = select(opt, n_classes)
        keep = lambda module, inputs, loss: steps.append({"loss": float(loss), **module.terms})  # noqa: E731
        criterion.register_forward_hook(keep)
        return criterion

    monkeypatch.setattr(main.criteria, "select", watched)
    table = rows(run(tmp_path, "--loss", "antico_pair"))
    for row, own in zip(table[1:], (steps[: len(steps) // 2], steps[len(steps) // 2 :])):
        assert len(own) > 2 and set(own[0]) > {"loss", "base"}
        for name in own[0]:
            mean = sum(float(terms[name]) for terms in own) / len(own)
            assert float(row[name if name == "loss" else f"loss/{name}"]) == pytest.approx(mean, rel=1e-5, abs=1e-6)


BAD = {
    "--loss proxyancor": "did you mean proxyanchor?",
    "--arch conv5": "did you mean conv4?",
    "--evaluation_metrics e_recall@1 rank": "--evaluation_metrics rank: unknown",
    "--bs 4000 --samples_per_class 2": "--bs 40 at the most",
    "--amp fp16": "needs a GPU",
    "--arch resnet18 --weights nowhere.pth": "nowhere.pth",
    "--save_path /dev/null/runs": "/dev/null",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, flags):
    if "--amp" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run(tmp_path, "--loss", "proxyanchor", *flags.split(), status=2)
    text = capsys.readouterr().err
    assert text.startswith("error: ") and BAD[flags] in text and text.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing begun


def test_command_line_prints_no_warning(tmp_path):
    argv = [*BASE, *image_folder(tmp_path / "images"), *"--loss antico --antico_type pair --embed_dim 512".split()]
    argv += ["--bs", "96", "--data_sampler", "random", "--n_epochs", "1", "--save_path", str(tmp_path)]
    out, err = (process := start(argv)).communicate(timeout=300)
    assert process.returncode == 0 and not err and "warn" not in out.lower(), err
    assert out.count("has no gradient left") == 1  # the published form of pair, said once


def test_list_names_everything_with_its_source(capsys):
    assert main.main(["--list"]) == 0
    text = capsys.readouterr().out
    packages = (main.criteria.CRITERIA, main.criteria.MINERS, main.architectures.BACKBONES, main.datasets.DATASETS)
    for name in ["pml.<ClassName>", "none", "mAP@R", *(name for registry in packages for name in registry)]:
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert len(line.split()) > 3
