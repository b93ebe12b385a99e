"""Every benchmark runs in its smallest size and prints its table; the peers that it is held against are right."""

import re

import pytest
import torch

import evaluation
from benchmarks import criteria, gpu, training
from benchmarks import evaluation as evaluations
from benchmarks import input as inputs

GLYPHS = "--dataset glyphs --arch conv4_normalize --kernels 0 --bs 8 --embed_dim 8 --loss multisimilarity".split()


def table(text):
    """[[cell, ...], ...] of the Markdown table in a text, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(
    "module, rows, ratio",
    [(criteria, 13, 4), (evaluations, 7, 2), (inputs, 6, 4), (training, 4, 4)],
    ids=["criteria", "evaluation", "input", "training"],
)
def test_it_prints_its_table(module, rows, ratio, capsys):
    if module is evaluations:
        pytest.importorskip("faiss")  # AccuracyCalculator needs it
    assert module.main(["--small", "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    found = table(text)
    assert len(found) == rows and "SMALL SIZES, no measurement" in text.splitlines()[0]
    of_ours = found[1:] if module is evaluations else found  # its first row is what the others are held against
    assert all(re.fullmatch(r"\d+(\.\d\d)?", cells[ratio]) for cells in of_ours)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("tuned", [False, True])
def test_our_loop_and_the_plain_one_learn_the_same(tuned, tmp_path):
    """Without augmentation, which draws otherwise in the plain loop, they differ by rounding alone."""
    run = training.build(str(tmp_path), *GLYPHS)
    run.loader.dataset.augmented = False
    network = training.network_of(run, tuned)
    began = weights(run.model)
    assert torch.equal(began, weights(network[0]))
    training.ours(run, 3)
    training.plain(run, tuned, network)(3)
    assert run.step == 3
    mine, theirs = weights(run.model), weights(network[0])
    # Adam moves a weight by its rate however small the gradient, so that rounding shows in some
    assert (mine - theirs).norm() < 0.1 * (mine - began).norm()
    assert (mine - began).abs().max() > 1e-5  # the rate


def test_the_loop_over_the_queries_has_our_numbers():
    embeddings, labels = evaluations.data(300, 60)
    looped = evaluations.loop(embeddings, labels, torch.arange(300))
    assert evaluation.compute(embeddings, labels, evaluations.OURS) == pytest.approx(looped, abs=1e-6)


def test_the_rows_of_the_gpu_in_a_small_size_and_one_that_fails(capsys, monkeypatch):
    def row_fails(bench):
        raise RuntimeError("CUDA error: no such thing\nmore | of it")

    monkeypatch.setattr(gpu.Bench, "row_fails", row_fails, raising=False)
    assert gpu.main(["--small"]) == 1
    text = capsys.readouterr().out
    *rows, last = table(text)
    assert last == ["row_fails", "RuntimeError('CUDA error: no such thing\\nmore / of it')", "", "", "FAILED"]
    assert len(rows) == 17 and all(cells[-1] in ("yes", "-") for cells in rows), text
