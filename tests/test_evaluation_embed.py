"""From a split to embeddings, metrics and an npz: in order, with workers, after an error, query against gallery."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_tools import options

import evaluation


class Points(torch.utils.data.Dataset):
    def __init__(self, n, classes=None):
        self.images, self.labels = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8), torch.arange(n) // 2
        self.paths = [f"{number}.png" for number in range(n)]
        self.class_names = classes or [f"class {number}" for number in range(n // 2)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


class Flat(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.seen = torch.nn.Linear(48, 8), []

    def forward(self, images):
        self.seen.append(self.training)
        return self.linear(images.flatten(1).float())


def test_evaluate_embeds_in_order_and_restores_the_mode():
    model, split = Flat(), Points(601)
    opt = options("e_recall@1", "nmi")
    before = torch.get_rng_state()
    model.train()
    metrics = evaluation.evaluate(model, split, opt)
    assert model.training and set(model.seen) == {False} and torch.equal(before, torch.get_rng_state())
    embeddings, labels = evaluation.embed(model, split, 100)
    assert torch.equal(labels, split.labels) and not embeddings.requires_grad
    assert torch.allclose(embeddings, model.linear(split.images.flatten(1).float()), atol=1e-4)
    assert metrics == evaluation.compute(embeddings, labels, ["e_recall@1", "nmi"])


@pytest.mark.parametrize("memory, reads", [(30 * 3 * 4 * 4 + 1, 1), (30 * 3 * 4 * 4, 3)])
def test_images_are_read_once_where_there_is_memory_for_them(monkeypatch, memory, reads):
    model, split, read = Flat(), Points(30), []
    monkeypatch.setattr(evaluation, "memory_for_crops", lambda: memory)
    monkeypatch.setattr(Points, "__getitem__", lambda self, i: read.append(i) or (self.images[i], int(self.labels[i])))
    found = [evaluation.embed(model, split, 7) for _ in range(3)]
    assert sorted(read) == sorted([*range(30), 0] * reads)  # the first also for its size
    assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(found[0], pair))


def test_embed_with_workers_and_after_an_error(monkeypatch):
    model, split = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(48)), Points(30)
    split.images = split.images.float()
    alone = evaluation.embed(model, split, 7)[0]
    monkeypatch.setattr(evaluation, "SMALL", 0)
    assert torch.equal(alone, evaluation.embed(model, copy.copy(split), 7, workers=1)[0])
    broken = copy.copy(split)
    broken.images = split.images[:, :2]
    for _ in range(2):
        with pytest.raises(RuntimeError):
            evaluation.embed(model, broken, 7)
    assert model.training


def test_saved_embeddings_say_what_they_are_of(tmp_path):
    model, split = Flat().eval(), Points(10)
    crossed = SimpleNamespace(query=Points(4, split.class_names), gallery=split)
    evaluation.save_all_embeddings(model, {"val": split, "test": crossed}, options(), str(tmp_path), 100)
    with np.load(tmp_path / "embeddings_val.npz", allow_pickle=False) as file:
        assert (file["dataset"], file["split"], file["first_label"]) == ("points", "val", 100)
        assert file["labels"].tolist() == [100 + i // 2 for i in range(10)]
        assert file["class_names"][file["labels"] - file["first_label"]][7] == "class 3"
        assert file["paths"][7] == "7.png"
        assert np.allclose(file["embeddings"], model(split.images).detach(), atol=1e-4)
    with np.load(tmp_path / "embeddings_test.npz", allow_pickle=False) as file:  # its classes go on after val's
        assert file["split"] == "test" and file["query_labels"].tolist() == [105, 105, 106, 106]
        assert len(file["query_paths"]) == len(file["query_embeddings"]) == 4 and len(file["labels"]) == 10
        assert file["class_names"].tolist() == split.class_names
