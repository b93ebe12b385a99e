"""Draw letters of the glyphs data set for the README: python -m utilities.figures.glyphs FILE.png"""

import argparse
import os

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont

ROWS, COLUMNS = 7, 12  # of each half
MARGIN, GAP, EDGE = 34, 40, 4  # pixels


def draw_half(canvas, split, title, left, font):
    """Letters (rows) in faces (columns) of one split, under a line that counts them."""
    letters = len(split.class_names)
    line = f"{title}: {letters} letters, {len(split)} images"
    ImageDraw.Draw(canvas).text((left + 4, 8), line, fill="#444444", font=font)
    for row in range(ROWS):
        members = torch.nonzero(split.labels == round((row + 0.5) * letters / ROWS)).flatten()
        for column, i in enumerate(members[torch.linspace(0, len(members) - 1, COLUMNS).round().long()].tolist()):
            image = Image.fromarray(split[i][0].permute(1, 2, 0).numpy())
            image = image.crop((EDGE, EDGE, image.width - EDGE, image.height - EDGE))
            canvas.paste(image, (left + column * image.width, MARGIN + row * image.height))


def draw(path, splits, size):
    """splits : of images of size × size pixels"""
    step = size - 2 * EDGE
    font = ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 17)
    canvas = Image.new("RGB", (2 * COLUMNS * step + GAP + 20, ROWS * step + MARGIN + 10), "white")
    draw_half(canvas, splits.train.unaugmented(), "training classes", 10, font)
    draw_half(canvas, splits.test, "test classes", 10 + COLUMNS * step + GAP, font)
    canvas.save(path)


if __name__ == "__main__":
    from datasets import glyphs  # the package utilities imports no other of ours; a script may

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", metavar="FILE.png")
    draw(parser.parse_args().path, glyphs.splits(glyphs.SIZE), glyphs.SIZE)
