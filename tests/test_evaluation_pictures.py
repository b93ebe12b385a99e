"""The pictures of saved embeddings: what they show is what the metrics measure, and bad input is one line."""

import ast
import functools
import glob
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import evaluation
from evaluation import __main__ as command
from evaluation import collapse, pictures

SUFFIXES = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-"}


def data(n=40, d=6, classes=8, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (generator.normal(size=(n, d)) + generator.normal(size=(classes, d))[labels]).astype(np.float32), labels


@pytest.fixture
def saved(tmp_path):
    """A file of embeddings with an image each, whose grey is 5 times its number."""

    def write(name="e.npz", image="{}.png", folder="images", **changed):
        embeddings, labels = data()
        (tmp_path / folder).mkdir(exist_ok=True)
        paths = [str(tmp_path / folder / image.format(i)) for i in range(len(labels))]
        for i, path in enumerate(paths):
            Image.new("RGB", (30 + i, 50), (5 * i,) * 3).save(path)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / name, **{**dict(embeddings=embeddings, labels=labels, paths=paths), **changed})
        return str(tmp_path / name)

    return write


@pytest.fixture
def small_panel(monkeypatch):
    """Panels of two queries and three neighbours: drawing 72 images takes seconds."""
    monkeypatch.setattr(pictures, "nearest_images", functools.partial(pictures.nearest_images, n=2, k=3))


def refused(capsys, *arguments):
    """The one line that the command answers with."""
    assert command.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err[len("error: ") :]


@pytest.mark.parametrize("apart", [False, True])
def test_right_and_wrong_are_those_of_the_metrics(apart):
    embeddings, labels = data(90)
    arrays = dict(embeddings=embeddings[20:], labels=labels[20:])
    own = labels[:20] if apart else arrays["labels"]
    if apart:
        arrays.update(query_embeddings=embeddings[:20], query_labels=own)
    rows, nearest, right = pictures.nearest_images(**arrays, n=999, k=4)
    assert rows.tolist() == list(range(len(own))) and nearest.shape == right.shape == (len(own), 4)
    recalls = evaluation.compute(**arrays, names=["e_recall@1", "e_recall@4"])
    assert [right[:, 0].mean(), right.any(1).mean()] == pytest.approx(list(recalls.values()))
    assert 0 < recalls["e_recall@1"] < 1
    assert ((arrays["labels"][nearest] == own[:, None]) == right).all()
    assert apart or not (nearest == rows[:, None]).any()
    some = pictures.nearest_images(**arrays, n=5, k=4, seed=1)
    assert (some[1] == nearest[some[0]]).all() and len(set(some[0])) == 5
    assert (some[0] != pictures.nearest_images(**arrays, n=5, seed=2)[0]).any()


def test_a_panel_marks_each_neighbour():
    right = np.array([[True, False, True], [False, False, True]])
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 5, 5, 3), np.uint8)
    figure = pictures.panel(images[:2], images[2:].reshape(2, 3, 5, 5, 3), right, ["a", "b"], "x" * 200)
    assert max(map(len, figure.get_suptitle().split("\n"))) <= 90  # the figure is no wider
    axes = np.array(figure.axes).reshape(2, 4)
    for i in range(2):
        assert axes[i, 0].get_images()[0].get_array()[0, 0, 0] == i and not axes[i, 0].texts
        for j in range(3):
            axis = axes[i, j + 1]
            assert axis.get_images()[0].get_array()[0, 0, 0] == 2 + 3 * i + j
            assert axis.texts[0].get_text() == ("✓" if right[i, j] else "✗")
            assert axis.spines["left"].get_linestyle() == ("-" if right[i, j] else (0, (2, 1)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_command_shows_each_rows_own_image(saved, tmp_path, capsys, monkeypatch, suffix):
    path, shown = saved(), {}
    real = pictures.panel
    monkeypatch.setattr(pictures, "panel", lambda *args: shown.update(args=args) or real(*args))
    out = tmp_path / "new folder" / f"panel.{suffix}"
    assert command.main([path, "--panel", str(out), "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"written: {out}\n" and out.read_bytes().startswith(SUFFIXES[suffix])
    queries, neighbours, right, names, title = shown["args"]
    embeddings, labels = data()
    rows, nearest, expected = pictures.nearest_images(embeddings, labels, seed=3)
    middle = command.SIDE // 2
    assert (queries[:, middle, middle, 0] == 5 * rows).all() and (right == expected).all()
    assert (neighbours[:, :, middle, middle, 0] == 5 * nearest).all()
    assert names == [f"class {labels[i]}" for i in rows] and "8 of 40" in title and "seed 3" in title


def test_queries_have_their_own_images(saved, tmp_path, monkeypatch):
    embeddings, labels = data(12, seed=0)
    paths = []
    for i in range(12):
        paths.append(str(tmp_path / f"q{i}.png"))
        Image.new("RGB", (20, 20), (5 * i + 1,) * 3).save(paths[-1])
    path = saved(query_embeddings=embeddings, query_labels=labels, query_paths=paths)
    shown = {}
    real = pictures.panel
    monkeypatch.setattr(pictures, "panel", lambda *args: shown.update(args=args) or real(*args))
    assert command.main([path, "--panel", str(tmp_path / "p.png")]) == 0
    queries, neighbours, *_ = shown["args"]
    assert set((queries[:, 80, 80, 0] % 5).tolist()) == {1} and set((neighbours[:, :, 80, 80, 0] % 5).flat) == {0}


class Files(torch.utils.data.Dataset):
    """Images of one grey, in files whose paths are relative, as --source_path may be."""

    def __init__(self, greys):
        self.greys, self.labels, self.paths = greys, torch.tensor(greys) // 100, [f"{grey}.png" for grey in greys]
        for grey, path in zip(greys, self.paths):
            Image.new("RGB", (20, 20), (grey,) * 3).save(path)

    def __len__(self):
        return len(self.greys)

    def __getitem__(self, i):
        return torch.full((3, 4, 4), self.greys[i], dtype=torch.uint8), int(self.labels[i])


def test_what_save_embeddings_writes_is_shown_from_anywhere(tmp_path, monkeypatch):
    """A query and a gallery split: the nearest image is the one whose grey is nearest."""
    monkeypatch.chdir(tmp_path)
    split = SimpleNamespace(query=Files([12, 101, 240]), gallery=Files([0, 10, 90, 120, 250]))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    torch.nn.init.constant_(model[1].weight, 0.1)
    model.forward = lambda images: model[1](model[0](images.float()))
    evaluation.save_embeddings(model, split, str(tmp_path / "embeddings_test.npz"), SimpleNamespace(bs=8, kernels=0))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    shown, real = {}, pictures.panel
    monkeypatch.setattr(pictures, "panel", lambda *args: shown.update(args=args) or real(*args))
    assert command.main(["../embeddings_test.npz", "--panel", "p.pdf"]) == 0
    queries, neighbours, right, *_ = shown["args"]
    assert queries[:, 80, 80, 0].tolist() == [12, 101, 240]
    assert neighbours[:, 0, 80, 80, 0].tolist() == [10, 90, 250] and right[:, 0].tolist() == [True, False, True]


def test_images_of_glyphs_are_rendered():
    from datasets import glyphs

    splits = glyphs.splits(command.SIDE)
    for split in (splits.test, splits.train.unaugmented()):
        images = command.images_of([split.paths[i] for i in (0, 77, 500)])
        assert images.shape == (3, command.SIDE, command.SIDE, 3)
        assert all(
            (torch.from_numpy(image).permute(2, 0, 1) == split[i][0]).all() for image, i in zip(images, (0, 77, 500))
        )
    with pytest.raises(ValueError, match="Nothing.ttf:U.0041: not among the glyphs"):
        command.images_of(["Nothing.ttf:U+0041"])


def test_images_that_have_moved(saved, tmp_path, capsys, small_panel):
    path, out = saved(), tmp_path / "p.png"
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    line = refused(capsys, path, "--panel", out)
    assert "this image is missing; --images DIR" in line and str(tmp_path / "images") in line and not out.exists()
    assert "missing in --images" in refused(capsys, path, "--panel", out, "--images", tmp_path)
    assert command.main([path, "--panel", str(out), "--images", str(tmp_path / "elsewhere")]) == 0
    (tmp_path / "more").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "more" / "images")  # with its own folder
    assert command.main([path, "--panel", str(out), "--images", str(tmp_path / "more")]) == 0
    for file in (tmp_path / "more" / "images").iterdir():
        file.write_bytes(b"\x89PNG but broken")
    capsys.readouterr()
    assert "cannot be decoded as an image" in refused(capsys, path, "--panel", out, "--images", tmp_path / "more")


def test_spectrum_against_numpy():
    (one, _), (two, _) = data(), data(d=3, seed=1)
    values = {"one": collapse.singular_values(one).numpy(), "two": collapse.singular_values(two).numpy()}
    figure = pictures.spectrum(values)
    for line, embeddings in zip(figure.axes[0].lines, (one, two)):
        expected = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
        assert line.get_ydata() == pytest.approx(expected / expected.sum(), rel=1e-6)
        label = f"effective rank {collapse.effective_rank(embeddings):.1f} of {embeddings.shape[1]}"
        assert line.get_label().endswith(label)
    assert figure.axes[0].get_yscale() == "log"
    assert len({line.get_linestyle() for line in figure.axes[0].lines}) == 2


def test_files_are_named_by_their_runs(saved, tmp_path, capsys, monkeypatch):
    runs = [saved(f"{run}/embeddings_test.npz") for run in ("first", "second")]
    plain, names = saved("plain.npz"), []
    real = pictures.spectrum
    monkeypatch.setattr(pictures, "spectrum", lambda values: names.append(list(values)) or real(values))
    for files in ([*runs, plain], [runs[0], saved("first/embeddings_val.npz")]):
        assert command.main([*files, "--spectrum", str(tmp_path / "s.png")]) == 0
    assert names[0] == ["first", "second", "plain"] and names[1] == [
        runs[0],
        str(tmp_path / "first/embeddings_val.npz"),
    ]
    capsys.readouterr()
    assert command.main([*runs, "--metrics", "e_recall@1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert list(values) == runs and values[runs[0]] == evaluation.compute(*data(), ["e_recall@1"])
    assert command.main([*runs, "--metrics", "e_recall@1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{runs[0]}:", "e_recall@1", f"{runs[1]}:", "e_recall@1",
    ]  # fmt: skip


def test_tsne_keeps_clusters_and_says_what_is_coloured(monkeypatch):
    monkeypatch.setattr(pictures, "POINTS", 150)
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 20
    embeddings = 10 * np.eye(20)[labels] + 0.1 * generator.normal(size=(400, 20))
    flat = pictures.flat_points(1e25 * embeddings, labels, seed=1)
    points, kept, shown = flat[:3]
    assert points.shape == (150, 2) and len(shown) == 10 == len(set(shown.tolist()))
    distances = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(150)
    assert (kept[distances.argmin(1)] == kept).mean() > 0.95
    figure = pictures.tsne({"run": flat})
    title = " ".join(figure.axes[0].get_title().split())
    assert title == "run: t-SNE of 150 of 400 images, 10 of 20 classes in colour"
    coloured = figure.axes[0].lines[1:]
    assert sum(len(line.get_xdata()) for line in coloured) == np.isin(kept, shown).sum()
    assert len({(line.get_color(), line.get_marker()) for line in coloured}) == 10


@pytest.mark.parametrize("picture", ["panel", "spectrum", "tsne"])
def test_unusual_embeddings_are_a_picture_or_one_line(saved, tmp_path, capsys, picture, small_panel):
    embeddings, labels = data()
    broken = embeddings.copy()
    broken[3] = np.nan
    for name, changed, refusal in (
        ("one dimension", dict(embeddings=embeddings[:, :1]), {}),
        ("identical rows", dict(embeddings=np.ones_like(embeddings)), {"tsne": "not all alike"}),
        ("all zero", dict(embeddings=0 * embeddings), {"tsne": "not all alike", "spectrum": "all embeddings are zero"}),
        ("huge", dict(embeddings=embeddings.astype(np.float64) * 1e200), {}),
        ("single images", dict(labels=np.arange(40)), {}),
        ("not finite", dict(embeddings=broken), dict.fromkeys(["panel", "spectrum", "tsne"], "1 of 40 embeddings")),
        ("short", dict(embeddings=embeddings[:7]), dict.fromkeys(["panel", "spectrum", "tsne"], "expects embeddings")),
    ):
        path, out = saved(**changed), tmp_path / f"{name}.png"
        if picture in refusal:
            assert refusal[picture] in refused(capsys, path, f"--{picture}", out) and not out.exists()
        else:
            assert command.main([path, f"--{picture}", str(out)]) == 0 and out.read_bytes().startswith(SUFFIXES["png"])
        capsys.readouterr()
    few = dict(embeddings=embeddings[:1], labels=labels[:1], paths=["x.png"])
    assert "1 image(s)" in refused(capsys, saved(**few), f"--{picture}", tmp_path / "one.png")


def test_bad_input_is_one_line_that_names_it(saved, tmp_path, capsys):
    path, out = saved(), tmp_path / "p.png"
    with open(path, "rb") as file:
        content = file.read()
    (tmp_path / "damaged.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([tmp_path / "damaged.npz", "--panel", out], "damaged.npz: cannot be read as npz"),
        ([path, "--panel", "p.jpg"], "--panel p.jpg: must end in .png or .pdf"),
        ([path, saved("f.npz"), "--panel", out], "shows one FILE, 2 are given"),
        ([saved("g.npz", paths=[]), "--panel", out], "g.npz: --panel needs `paths`"),
        ([saved("h.npz", paths=["a", "b"]), "--panel", out], "h.npz: --panel needs `paths`"),
        ([path, "--tsne", out, "--seed", "-1"], "--seed -1: must be from 0"),
        ([path, "--spectrum", tmp_path / "file" / "s.png"], "s.png: File exists"),
    ):
        assert message in refused(capsys, *arguments) and not out.exists()


def test_the_package_knows_only_the_coding_rate_and_utilities():
    """Its command may ask datasets for images, and only when it shows some."""
    for path in glob.glob(os.path.join(os.path.dirname(evaluation.__file__), "*.py")):
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        at_once = tree.body if path.endswith("__main__.py") else list(ast.walk(tree))
        names = [node.module for node in at_once if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in at_once if isinstance(node, ast.Import) for alias in node.names]
        for package in ("datasets", "architectures", "datasampler", "main", "parameters"):
            assert not [name for name in names if name.split(".")[0] == package]
