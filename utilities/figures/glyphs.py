"""Draw a sheet of the glyphs data set: python -m datasets.sheet FILE.png"""

import argparse
import os

import torch
from PIL import Image, ImageDraw, ImageFont

from datasets import glyphs
from datasets.glyphs import SIZE, font_folder


def sheet(path, rows=7, columns=12):
    """Letters (rows) in faces (columns) of the training and the test half."""
    splits, margin, gap = glyphs.splits(SIZE), 34, 40
    step = SIZE - 8
    canvas = Image.new("RGB", (2 * columns * step + gap + 20, rows * step + margin + 10), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.truetype(os.path.join(font_folder(), "DejaVuSans.ttf"), 17)
    for half, (title, split) in enumerate(
        (("training classes", splits.train.unaugmented()), ("test classes", splits.test))
    ):
        left = 10 + half * (columns * step + gap)
        n = len(split.class_names)
        draw.text((left + 4, 8), f"{title}: {n} letters, {len(split)} images", fill="#444444", font=font)
        for r in range(rows):
            members = torch.nonzero(split.labels == round((r + 0.5) * n / rows)).flatten()
            for c, i in enumerate(members[torch.linspace(0, len(members) - 1, columns).round().long()].tolist()):
                image = Image.fromarray(split[i][0].permute(1, 2, 0).numpy()).crop((4, 4, SIZE - 4, SIZE - 4))
                canvas.paste(image, (left + c * step, margin + r * step))
    canvas.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m datasets.sheet", description=__doc__.splitlines()[0])
    parser.add_argument("path", metavar="FILE.png")
    sheet(parser.parse_args().path)
