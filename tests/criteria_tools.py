"""What the tests of the criteria share."""

import numpy as np
import torch
from torch.nn.functional import normalize

import criteria
import parameters


def close(ours, theirs, tolerance=1e-6):
    ours = ours.detach().numpy() if torch.is_tensor(ours) else np.asarray(ours)
    return np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def select(n_classes, *argv):
    return criteria.select(parameters.parse([str(a) for a in argv]), n_classes).double()


def imbalanced(n=40, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.randint(6, (n - 3,), generator=generator), torch.tensor([7, 8, 9])]
    )  # three single images
    centres = torch.randn(10, d, generator=generator, dtype=torch.float64)
    embeddings = centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return normalize(embeddings, dim=1).requires_grad_(), labels
