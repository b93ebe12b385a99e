import os
import signal

import numpy as np
import pytest
import torch

REFERENCE = os.path.join(os.path.dirname(__file__), "reference")
torch.set_num_threads(1)  # networks this small gain nothing by a second thread, and wait for it on a busy machine
# shells' background jobs ignore it, and the tests' processes would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


def reference(name):
    return np.load(os.path.join(REFERENCE, name), allow_pickle=False)


@pytest.fixture(scope="session")
def metrics_case():
    with reference("metrics_reference.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture
def counts(monkeypatch):
    """The miniatures' counts as if they were the published ones."""
    from datasets import cars196, cub200, inshop, online_products

    for module in (cub200, cars196, online_products):
        monkeypatch.setattr(module, "COUNTS", {"train": (2, 6), "test": (2, 6)})
    monkeypatch.setattr(inshop, "COUNTS", {"train": (2, 6), "query": (2, 2), "gallery": (2, 4)})
