"""Draw the README's pictures: python -m tables.readme_figures FILE.png shows how a batch becomes a loss; with --glyphs,
letters of that data set."""

import argparse
import os

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image, ImageDraw, ImageFont

from datasets import glyphs

INK, DATA, BASE, TERM = "#333333", "#e8eef7", "#f3ead9", "#dcefe0"
FORMULA = "term = exp(−γ₂ R),  −γ₂ R  or  1 − R / R_max;   R = ½ logdet(I + s ZᵀZ)"
ROWS, COLUMNS = 7, 12  # of each half of the letters
MARGIN, GAP, EDGE = 34, 40, 4  # pixels


def box(axis, x, y, width, text, color, height=1.0, size=9.5):
    style = "round,pad=0.04,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor=INK, linewidth=1))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(axis, start, end, color=INK):
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.2))


def circle(axis, x, y, angles, title):
    """Embeddings of three classes on the unit circle, at these angles in degrees."""
    at = lambda radians: (x + 0.8 * np.cos(radians), y + 0.8 * np.sin(radians))  # noqa: E731
    axis.plot(*at(np.linspace(0, 2 * np.pi, 100)), color="#bbbbbb", linewidth=1)
    generator = np.random.default_rng(0)
    for i, angle in enumerate(angles):
        around = np.radians(angle + generator.normal(0, 5, 6))
        axis.plot(*at(around), "o", color=f"C{i}", markersize=4.5, alpha=0.8)
        axis.plot(*at(np.radians(angle)), "*", color=f"C{i}", markersize=12, markeredgecolor="white")
    axis.text(x, y - 1.08, title, ha="center", va="top", fontsize=9, color=INK)


def draw_flow(path):
    figure = Figure(figsize=(12, 5.2))
    axis = figure.subplots()
    axis.set(xlim=(0, 14), ylim=(0, 6.1), aspect="equal")
    axis.axis("off")
    box(axis, 0.1, 3.3, 1.7, "class-balanced\nbatch of images", DATA)
    box(axis, 2.4, 3.3, 1.6, "backbone,\npooling, linear", DATA)
    box(axis, 4.6, 3.3, 1.9, "embeddings Z\non the sphere", DATA)
    box(axis, 4.6, 1.3, 1.9, "proxies P\none a class", DATA)
    box(axis, 7.3, 4.75, 2.9, "base loss: pulls a class together\n(multisimilarity, proxyanchor, ...)", BASE, size=8)
    box(axis, 7.3, 3.15, 2.9, "pair: rate of the\nbatch's embeddings", TERM, 0.85)
    box(axis, 7.3, 1.95, 2.9, "batch_proxy: rate of the\nproxies of the batch's classes", TERM, 0.85, 9)
    box(axis, 7.3, 0.75, 2.9, "all_proxy: rate of\nall proxies", TERM, 0.85)
    axis.text(5.3, 0.3, FORMULA, ha="center", va="center", fontsize=8.5, color=INK)
    for start, end in (
        ((1.85, 3.8), (2.35, 3.8)),  # images → backbone
        ((4.05, 3.8), (4.55, 3.8)),  # backbone → embeddings
        ((6.55, 4.1), (7.25, 5.0)),  # embeddings → base loss
        ((6.55, 3.7), (7.25, 3.57)),  # embeddings → pair
        ((6.55, 2.25), (7.25, 4.8)),  # proxies → base loss
        ((6.55, 2.0), (7.25, 2.35)),  # proxies → batch_proxy
        ((6.55, 1.6), (7.25, 1.2)),  # proxies → all_proxy
        ((10.3, 5.2), (11.3, 5.0)),
    ):
        arrow(axis, start, end)
    axis.text(5.65, 2.75, "proxy losses", fontsize=8, color="#777777")
    circle(axis, 12.3, 4.75, (70, 95, 120), "base alone: little holds classes\napart, the space collapses")
    circle(axis, 12.3, 1.9, (90, 210, 330), "with the term: R is high\nwhen the space is filled")
    for y in (3.55, 2.4, 1.2):
        arrow(axis, (10.3, y), (11.3, 2.05 + (y - 2.4) * 0.25), color="#3c8d53")
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")


def draw_letters(path):
    """Letters (rows) in faces (columns) of both splits, each half under a line that counts them."""
    splits, step = glyphs.splits(glyphs.SIZE), glyphs.SIZE - 2 * EDGE
    font = ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 17)
    canvas = Image.new("RGB", (2 * COLUMNS * step + GAP + 20, ROWS * step + MARGIN + 10), "white")
    for title, split, left in (
        ("training classes", splits.train.unaugmented(), 10),
        ("test classes", splits.test, 10 + COLUMNS * step + GAP),
    ):
        letters = len(split.class_names)
        words = f"{title}: {letters} letters, {len(split)} images"
        ImageDraw.Draw(canvas).text((left + 4, 8), words, fill="#444444", font=font)
        for row in range(ROWS):
            members = torch.nonzero(split.labels == round((row + 0.5) * letters / ROWS)).flatten()
            for column, i in enumerate(members[torch.linspace(0, len(members) - 1, COLUMNS).round().long()].tolist()):
                image = Image.fromarray(split[i][0][:, EDGE:-EDGE, EDGE:-EDGE].permute(1, 2, 0).numpy())
                canvas.paste(image, (left + column * step, MARGIN + row * step))
    canvas.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", metavar="FILE.png")
    parser.add_argument("--glyphs", action="store_true")
    given = parser.parse_args()
    (draw_letters if given.glyphs else draw_flow)(given.path)
