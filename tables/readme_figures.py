"""Draw the picture of glyphs for the READMEs: python -m tables.readme_figures"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from datasets import glyphs

ROWS, COLUMNS = 7, 12  # of each half of the letters


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
    draw_glyphs().savefig(Path(__file__).parent / "figures" / "glyphs.png", dpi=130, bbox_inches="tight")
