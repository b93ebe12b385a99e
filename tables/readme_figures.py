"""Draw the README's pictures, how a batch becomes a loss and letters of glyphs: python -m tables.readme_figures"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torchvision.utils import make_grid

from datasets import glyphs

HERE = Path(__file__).parent / "figures"
DATA, BASE, TERM = "#e8eef7", "#f3ead9", "#dcefe0"
WIDTH, HEIGHT = 2.5, 0.9
BOXES = {  # centre, text, colour, where its arrows go
    "batch": (1, 3, "class-balanced\nbatch of images", DATA, ["network"]),
    "network": (4, 3, "backbone,\npooling, linear", DATA, ["embeddings"]),
    "embeddings": (7, 3, "embeddings Z\non the sphere", DATA, ["base", "pair"]),
    "proxies": (7, 1, "proxies P\none a class", DATA, ["base", "batch_proxy", "all_proxy"]),
    "base": (10.5, 4.2, "base loss: pulls\na class together", BASE, ["total"]),
    "pair": (10.5, 2.9, "pair: rate R of the\nbatch's embeddings", TERM, ["total"]),
    "batch_proxy": (10.5, 1.6, "batch_proxy: R of\nits classes' proxies", TERM, ["total"]),
    "all_proxy": (10.5, 0.3, "all_proxy: R\nof all proxies", TERM, ["total"]),
    "total": (14, 2.3, "loss = base loss\n+ w (1 − R / R_max)", "white", []),
}
ROWS, COLUMNS = 7, 12  # of each half of the letters


def draw_flow():
    """The base loss, and the three variants of the term, which is small where the space is filled."""
    figure = Figure(figsize=(11, 3.8))
    axis = figure.subplots()
    axis.set(xlim=(-0.5, 15.5), ylim=(-0.4, 4.9))
    axis.axis("off")
    for x, y, text, color, targets in BOXES.values():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        axis.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0.05", facecolor=color))
        axis.text(x, y, text, ha="center", va="center", fontsize=9)
        for target in targets:
            end = BOXES[target][0] - WIDTH / 2, BOXES[target][1]
            axis.annotate("", end, (x + WIDTH / 2, y), arrowprops=dict(arrowstyle="-|>", color="#333333"))
    return figure


def draw_glyphs():
    """Letters (rows) in faces (columns) of both splits."""
    splits = glyphs.splits(glyphs.SIZE)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    halves = {"training": splits.train.unaugmented(), "test": splits.test}
    for axis, (name, split) in zip(figure.subplots(1, 2), halves.items()):
        images = []
        for label in torch.linspace(0, len(split.class_names) - 1, ROWS + 2)[1:-1].round():
            members = torch.nonzero(split.labels == label).flatten()
            chosen = members[torch.linspace(0, len(members) - 1, COLUMNS).round().long()]
            images += [split[i][0] for i in chosen.tolist()]
        axis.imshow(make_grid(images, nrow=COLUMNS, padding=0).permute(1, 2, 0))
        axis.set_title(f"{name} classes: {len(split.class_names)} letters, {len(split)} images", fontsize=10)
        axis.axis("off")
    return figure


if __name__ == "__main__":
    for name, figure in {"flow": draw_flow(), "glyphs": draw_glyphs()}.items():
        figure.savefig(HERE / f"{name}.png", dpi=130, bbox_inches="tight")
