"""What the tests of the criteria share."""

import json

import numpy as np
import pytest
import torch
from conftest import reference
from torch.nn.functional import normalize

import criteria
import parameters

GOLDEN = {}  # {case: {name: array, "config": dict}} of what the published code computes, in float64
for path in ("antico_reference.npz", "antico_imbalanced.npz"):  # the latter: classes of different sizes in a batch
    with reference(path) as file:
        for key in file.files:
            case, name = key.split("/")
            GOLDEN.setdefault(case, {})[name] = json.loads(str(file[key])) if name == "config" else file[key]


def parse(words):
    """The flags of a loss: its name, and what is given beside it."""
    return parameters.parse(["--loss", *words.split()])


def build(words, n_classes=10):
    """The criterion of a command line, in float32."""
    if "nir" in words.split():
        pytest.importorskip("FrEIA")
    return criteria.select(parse(words), n_classes)


def select(words, n_classes=10):
    return build(words, n_classes).double()


def close(ours, theirs, tolerance=1e-6):
    ours = ours.detach().numpy() if torch.is_tensor(ours) else np.asarray(ours)
    return np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def imbalanced(n=40, d=16, seed=0):
    """Unit embeddings about centres of their classes, of which three have a single image, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.randint(6, (n - 3,), generator=generator), torch.tensor([7, 8, 9])])
    centres = torch.randn(10, d, generator=generator, dtype=torch.float64)
    embeddings = centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return normalize(embeddings, dim=1).requires_grad_(), labels
