"""Embeddings of a split: in order, with workers, after an error."""

import pytest
import torch
from evaluation_tools import options

import evaluation


class Points(torch.utils.data.Dataset):
    def __init__(self, n):
        self.images, self.labels = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8), torch.arange(n) // 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


def test_evaluate_embeds_in_order_and_restores_the_mode():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.seen = torch.nn.Linear(48, 8), []

        def forward(self, images):
            self.seen.append(self.training)
            return self.linear(images.flatten(1).float())

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


def test_embed_with_workers_and_after_an_error(monkeypatch):
    model, split = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(48)), Points(30)
    split.images = split.images.float()
    alone = evaluation.embed(model, split, 7)[0]
    monkeypatch.setattr("evaluation.embedding.SMALL", 0)
    assert torch.equal(alone, evaluation.embed(model, split, 7, workers=1, device="cpu")[0])
    split.images = split.images[:, :2]
    with pytest.raises(RuntimeError):
        evaluation.embed(model, split, 7)
    assert model.training
    with pytest.raises(ValueError, match="no image"):
        evaluation.embed(model, Points(0), 7)
