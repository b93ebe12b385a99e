"""Recorded runs, metrics and images of the published program against ours."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import trajectories
from miniatures import splits_of

import evaluation

FOLDER = Path(__file__).parent / "reference" / "trajectories"
RUNS = [path for path in sorted(FOLDER.glob("*.npz")) if "losses" in np.load(path)]
WRONG = {
    "labels": "",  # which the harness does not read: the run as it is
    "losses": "losses",
    "end/features.bn1.running_var": "weights",
    "learning_rates": "rates",
    "test_recall": "recalls",
    "init/last_linear.bias": "losses",
    "flags": "losses, rates",
}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_our_run_is_the_recorded_one(path, capsys):
    assert trajectories.main([path]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", WRONG)
def test_the_harness_tells_what_is_wrong(name, tmp_path, capsys):
    """In the first epoch of a run, of which `name` is changed by a thousandth; --lr in its flags."""
    recorded = dict(np.load(FOLDER / "antico_batch.npz"))
    recorded = {key: value for key, value in recorded.items() if not key.startswith("end/") or "running" in key}
    recorded |= {key: recorded[key][:10] for key in ("losses", "batches", "learning_rates")}
    recorded |= {"flags": f"{recorded['flags']} --n_epochs 1", "test_recall": recorded["test_recall"][:1]}
    recorded[name] = recorded[name] + " --lr 1.001e-5" if name == "flags" else recorded[name] * 1.001
    np.savez(tmp_path / "run.npz", **{key: value for key, value in recorded.items() if "step50" not in key})
    (tmp_path / "images.npz").symlink_to(FOLDER / "images.npz")
    assert trajectories.main([tmp_path / "run.npz"]) == (1 if WRONG[name] else 0)
    assert capsys.readouterr().out.strip().partition("; TOO FAR: ")[2] == WRONG[name]


@pytest.mark.parametrize("case", ["spread", "duplicates", "single", "ties"])
def test_metrics_are_the_recorded_ones(case):
    if case == "ties" and not find_spec("faiss"):
        pytest.skip("equally near images come in faiss's order")
    with np.load(FOLDER / "evaluation.npz") as file:
        recorded = {name.split("/")[1]: file[name] for name in file if name.startswith(case)}
    data = recorded.pop("embeddings"), recorded.pop("labels")
    names = [name for name in recorded if name not in ("nmi", "f1") or find_spec("faiss")]  # of faiss's k-means
    ours = evaluation.compute(*data, names, seed=1234)
    assert ours == pytest.approx({name: float(recorded[name]) for name in names}, abs=1e-6)


def test_images_are_the_recorded_ones(tmp_path):
    with np.load(FOLDER / "transforms.npz") as file:
        for split in ("train", "test"):
            for number in "01":
                path = tmp_path / split / "a" / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file[f"jpeg{number}"].tobytes())
        splits = splits_of(tmp_path, size=224)
        for name in [name for name in file if name.startswith(("train/", "test/"))]:
            split, number, seed = name.split("/")
            image, _ = getattr(splits, split)[(int(number), int(seed)) if split == "train" else int(number)]
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - file[name]).max() <= 1, name
