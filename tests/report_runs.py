"""Folders of runs with known numbers, written by what training itself writes them with."""

import csv
import json
import os

import numpy as np

import parameters
from utilities import folders, trackers
from utilities.report.__main__ import main

RECIPE = ["--dataset", "glyphs", "--arch", "conv4_normalize", "--embed_dim", "64", "--bs", "96", "--lr", "1e-3",
          "--samples_per_class", "4", "--loss_oproxy_lrmulti", "3"]  # fmt: skip
FACTS = dict(dataset="glyphs", n_classes=609, n_images=9675, input_size=32)


def write(place, loss, seed, recalls, *flags, epochs=None, columns=None, changed=None, **facts):
    """A run of `loss` with test/e_recall@1 = `recalls`, one an epoch from 0 on; its folder.

    epochs : what --n_epochs asked for, by default what was trained; columns : {name: values} beside recalls;
    changed : flags of config.json to replace after the fact, None to take one out; facts : of config.json
    """
    epochs = len(recalls) - 1 if epochs is None else epochs
    opt = parameters.parse([*RECIPE, "--loss", loss, "--seed", str(seed), "--n_epochs", str(epochs), *map(str, flags)])
    facts = dict(partial="", skipped_broken=[], device="CPU", processes=1, data=FACTS) | facts
    config = trackers.describe(opt, parameters.without_effect(opt), **facts)
    config |= {name: value for name, value in facts.items() if name in config}
    for name, value in (changed or {}).items():
        config["flags"].pop(name, None), config["without_effect"].pop(name, None)
        if value is not None:
            config["flags"][name] = value
    folder = folders.claim(str(place), config["data"]["dataset"], f"{opt.group}_{loss}_s{seed}")
    folders.write_config(folder, config)
    rows = [{"epoch": epoch, "test/e_recall@1": value} for epoch, value in enumerate(recalls)]
    for epoch, row in enumerate(rows):
        row.update({name: values[epoch] for name, values in (columns or {}).items()}, seconds=10.0 * epoch)
    if rows:
        trackers.write_rows(folder, rows, opt.storage_metrics[0])
    return folder


def edit(folder, **changes):
    """Change config.json of a run."""
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config.update(changes)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)


def write_spaces(folder, rank, seed=0, dims=64, classes=30, images=12):
    """embeddings_test.npz whose rows fill `rank` directions, and checkpoint.pt with such proxies."""
    import torch

    from utilities import state

    generator = np.random.default_rng(seed)
    scale = np.where(np.arange(dims) < rank, 1.0, 0.02) * np.exp(-np.arange(dims) / (2 * dims))
    means = generator.normal(size=(classes, dims)) * scale
    labels = np.repeat(np.arange(classes), images)
    rows = means[labels] + 0.35 * generator.normal(size=(len(labels), dims)) * scale
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(os.path.join(folder, "embeddings_test.npz"), embeddings=rows.astype(np.float32), labels=labels)
    proxies = torch.from_numpy(means.astype(np.float32))
    state.save(os.path.join(folder, "checkpoint.pt"), {"criterion": {"base.proxies": proxies}, "epoch": 1})
    return rows, labels, means


def lines_of(place, *more, status=0):
    """{label: line of X.csv} of the runs under a folder."""
    assert main([str(place), "--out", str(place / "out" / "t"), *more]) == status
    with open(place / "out" / "t.csv", encoding="utf-8", newline="") as file:
        return {line["loss"]: line for line in csv.DictReader(file)}


def text_of(place, suffix=".md"):
    return (place / "out" / f"t{suffix}").read_text(encoding="utf-8")
