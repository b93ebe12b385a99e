"""Folders of runs with known numbers, written by what training itself writes them with, and reports of them."""

import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

import criteria
import parameters
from tables.report import main
from utilities import folders, records

RECIPE = (
    "--dataset glyphs --arch conv4_normalize --embed_dim 64 --bs 96 --lr 1e-3 --samples_per_class 4 "
    "--loss_oproxy_lrmulti 3"
).split()
DATA = dict(n_classes=609, n_images=9675, input_size=32)


def write(place, loss, seed, recalls, *flags, epochs=None, columns=None, changed=None, **facts):
    """A run of `loss` with test/e_recall@1 = `recalls`, one an epoch from 0 on; its folder.

    epochs : --n_epochs, by default what was trained; columns : {name: values} beside recalls;
    changed : flags of config.json to replace after the fact, None to take one out; facts : of config.json
    """
    epochs = len(recalls) - 1 if epochs is None else epochs
    opt = parameters.parse([*RECIPE, "--loss", loss, "--seed", str(seed), "--n_epochs", str(epochs), *map(str, flags)])
    idle = parameters.without_effect(opt, criteria.acting_flags(opt))
    run = SimpleNamespace(opt=opt, idle=idle, partial=None, skipped=[], facts=DATA)
    config = {**records.describe(run, "CPU"), **facts}
    for name, value in (changed or {}).items():
        config["flags"].pop(name, None), config["without_effect"].pop(name, None)
        config["flags"] |= {} if value is None else {name: value}
    folder = folders.claim(str(place), config["flags"]["dataset"], f"{loss}_s{seed}")
    records.write_json(os.path.join(folder, "config.json"), config)
    rows = [{"epoch": epoch, "test/e_recall@1": value} for epoch, value in enumerate(recalls)]
    for epoch, row in enumerate(rows):
        row.update({name: values[epoch] for name, values in (columns or {}).items()}, seconds=9.0)
    if rows:
        records.write_rows(folder, rows)
    return folder


def write_spaces(folder, rank, seed=0, dims=64, classes=30, images=12, **names):
    """embeddings_test.npz (with `names`) whose rows fill `rank` directions, checkpoint.pt with such proxies: both."""
    generator = np.random.default_rng(seed)
    scale = np.where(np.arange(dims) < rank, 1.0, 0.02)
    proxies, labels = generator.normal(size=(classes, dims)) * scale, np.repeat(np.arange(classes), images)
    embeddings = proxies[labels] + 0.35 * generator.normal(size=(len(labels), dims)) * scale
    np.savez(os.path.join(folder, "embeddings_test.npz"), embeddings=embeddings, labels=labels, **names)
    torch.save({"criterion": {"base.proxies": torch.from_numpy(proxies)}}, os.path.join(folder, "checkpoint.pt"))
    return embeddings, proxies


def report(place, *more, runs=None):
    """What a report of the runs in a folder wrote: md and tex as texts, csv (by label) and runs as DataFrames."""
    out = place / "out" / "t"
    assert main([*(runs or [place]), "--out", out, *more]) == 0
    texts = {name: (place / "out" / f"t.{name}").read_text() for name in ("md", "tex")}
    csv = pd.read_csv(f"{out}.csv", dtype={"seeds": str}).set_index("loss")
    return SimpleNamespace(**texts, csv=csv, runs=pd.read_csv(f"{out}_runs.csv", dtype=str))
