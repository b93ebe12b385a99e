"""The pictures of saved embeddings: what they show is what the metrics measure, and bad input is one line."""

import functools
import json

import numpy as np
import pytest
import torch
from evaluation_tools import clustered
from PIL import Image

import evaluation
from evaluation import __main__ as command
from evaluation import pictures

SUFFIXES = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-"}
data = functools.partial(clustered, n=40, d=6)


@pytest.fixture
def saved(tmp_path):
    """A file of embeddings with an image each, whose grey is 5 times its number."""

    def write(name="e.npz", **changed):
        embeddings, labels = data()
        (tmp_path / "images").mkdir(exist_ok=True)
        paths = [str(tmp_path / "images" / f"{i}.png") for i in range(len(labels))]
        for i, path in enumerate(paths):
            Image.new("RGB", (30 + i, 50), (5 * i,) * 3).save(path)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / name, **{**dict(embeddings=embeddings, labels=labels, paths=paths), **changed})
        return str(tmp_path / name)

    return write


@pytest.fixture
def panel(monkeypatch):
    """What a panel was drawn of; of two queries and three neighbours, since drawing 72 images takes seconds."""
    shown, real = {}, pictures.panel
    monkeypatch.setattr(pictures, "nearest_images", functools.partial(pictures.nearest_images, n=2, k=3))
    monkeypatch.setattr(pictures, "panel", lambda *args: shown.update(args=args) or real(*args))
    return shown


def refused(capsys, *arguments):
    """The one line that the command answers with."""
    assert command.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def grey(images):
    middle = command.SIDE // 2
    return images[..., middle, middle, 0]


@pytest.mark.parametrize("apart", [False, True])
def test_right_and_wrong_are_those_of_the_metrics(apart):
    embeddings, labels = data(n=90)
    arrays = dict(embeddings=embeddings[20:], labels=labels[20:])
    own = labels[:20] if apart else arrays["labels"]
    arrays |= dict(query_embeddings=embeddings[:20], query_labels=own) if apart else {}
    rows, nearest, right = pictures.nearest_images(arrays, n=999, k=4)
    assert rows.tolist() == list(range(len(own))) and nearest.shape == right.shape == (len(own), 4)
    recalls = evaluation.compute(**arrays, names=["e_recall@1", "e_recall@4"])
    assert [right[:, 0].mean(), right.any(1).mean()] == pytest.approx(list(recalls.values()))
    assert 0 < recalls["e_recall@1"] < 1 and ((arrays["labels"][nearest] == own[:, None]) == right).all()
    assert apart or not (nearest == rows[:, None]).any()
    some = pictures.nearest_images(arrays, n=5, k=4, seed=1)
    assert (some[1] == nearest[some[0]]).all() and len(set(some[0])) == 5
    assert (some[0] != pictures.nearest_images(arrays, n=5, seed=2)[0]).any()


@pytest.mark.parametrize("suffix, n_queries", [("png", 0), ("pdf", 15)])
def test_the_command_shows_each_rows_own_image(saved, tmp_path, capsys, panel, suffix, n_queries):
    out, (embeddings, labels) = tmp_path / "new folder" / f"panel.{suffix}", data()
    paths, first, changed = [str(tmp_path / "images" / f"{i}.png") for i in range(40)], slice(n_queries), {}
    if n_queries:
        of_queries = dict(query_embeddings=embeddings[first], query_labels=labels[first] + 7, query_paths=paths[first])
        embeddings, labels, paths = embeddings[n_queries:], labels[n_queries:] + 7, paths[n_queries:]
        names = [f"name {label}" for label in range(105)]
        changed = dict(
            embeddings=embeddings, labels=labels, paths=paths, class_names=names, first_label=7, **of_queries
        )
    path = saved(**changed)
    assert command.main([path, "--panel", str(out), "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"written: {out}\n" and out.read_bytes().startswith(SUFFIXES[suffix])
    images, right, names, title = panel["args"]
    rows, nearest, expected = pictures.nearest_images(pictures.load(path), seed=3)
    assert (grey(images) == 5 * np.column_stack([rows, nearest + n_queries])).all() and (right == expected).all()
    words = "name" if n_queries else "class"
    assert names == [f"{words} {label}" for label in data()[1][rows]]
    assert f"2 of {n_queries or 40}" in title and "seed 3" in title


def test_images_of_glyphs_are_rendered():
    from datasets import glyphs

    splits = glyphs.splits(command.SIDE)
    for split in (splits.test, splits.train.unaugmented()):
        images = command.images_of([split.paths[i] for i in (0, 77, 500)])
        for image, i in zip(images, (0, 77, 500)):
            assert (torch.from_numpy(image).permute(2, 0, 1) == split[i][0]).all()
    with pytest.raises(ValueError, match="Nothing.ttf:U.0041: "):
        command.images_of(["Nothing.ttf:U+0041"])


def test_spectrum_against_numpy():
    spaces = {"one": data(), "two": data(d=3, seed=1)}
    axis = command.spectrum(spaces).axes[0]
    for line, (name, (embeddings, _)) in zip(axis.lines, spaces.items()):
        expected = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
        share = expected / expected.sum()
        assert line.get_ydata() == pytest.approx(share, rel=1e-6)
        rank = np.exp(-(share * np.log(share)).sum())
        assert line.get_label() == f"{name}: effective rank {rank:.1f} of {embeddings.shape[1]}"
    assert axis.get_yscale() == "log" and len({line.get_linestyle() for line in axis.lines}) == 2


def test_tsne_keeps_clusters_and_says_what_is_coloured():
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 20
    embeddings = 1e25 * (10 * np.eye(20)[labels] + 0.1 * generator.normal(size=(400, 20)))
    points, kept, shown = pictures.flat_points(embeddings, labels, seed=1, most=150)
    distances = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(150)
    assert (kept[distances.argmin(1)] == kept).mean() > 0.95
    figure = pictures.tsne({"run": (embeddings, labels)}, 1, 150)
    assert figure.get_suptitle() == "t-SNE of 150 of 400 images, 10 of 20 classes in colour"
    coloured = figure.axes[0].lines[1:]
    assert sum(len(line.get_xdata()) for line in coloured) == np.isin(kept, shown).sum()
    assert len({(line.get_color(), line.get_marker()) for line in coloured}) == 10 == len(shown)


def test_metrics_of_several_files(saved, capsys):
    runs = [saved(f"{run}/embeddings_test.npz") for run in ("first", "second")]
    assert command.main([*runs, "--metrics", "e_recall@1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values) == runs and values[runs[0]] == evaluation.compute(*data(), ["e_recall@1"])


def test_bad_input_is_one_line_that_names_it(saved, tmp_path, capsys):
    path, out = saved(), tmp_path / "p.png"
    (tmp_path / "file").write_text("")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes((tmp_path / "e.npz").read_bytes()[:2000])
    for arguments, message in (
        ([damaged, "--panel", out], "damaged.npz: not an npz"),
        ([tmp_path / "none.npz"], "none.npz: No such file"),
        ([saved("a.npz", embeddings=np.array([["x"] * 6] * 40))], "a.npz: not an npz"),
        ([saved("b.npz", labels=np.zeros(40))], "b.npz: not an npz"),
        ([saved("c.npz", query_labels=np.zeros(4, int))], "query_embeddings and query_labels go together"),
        ([path, "--metrics", "e_recall"], "--metrics e_recall: unknown"),
        ([path, "--spectrum", tmp_path / "p.xyz"], "Format 'xyz' is not supported"),
        ([saved("g.npz", paths=["a", "b"]), "--panel", out], "g.npz: --panel needs `paths`"),
        ([saved("l.npz", class_names=["a", "b"]), "--panel", out], "l.npz: --panel needs `class_names`"),
        ([saved("h.npz", paths=["a"] * 40), "--panel", out], "a: cannot be decoded as an image (No such file"),
        ([path, "--spectrum", tmp_path / "file" / "s.png"], "s.png: File exists"),
        ([saved("m.npz", embeddings=np.ones((40, 6))), "--tsne", out], "not all alike"),
        ([saved("n.npz", embeddings=np.full((40, 6), np.nan)), "--spectrum", out], "40 of 40 embeddings"),
    ):
        assert message in refused(capsys, *arguments) and not out.exists()
