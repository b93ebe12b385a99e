"""CUB-200-2011: 200 bird species, the first 100 for training. Source: Wah et al., Caltech CNS-TR-2011-001."""

import os
import re

from datasets.layout import class_folders, find_layout, say_left_out

ABOUT = "CUB-200-2011, 200 species of birds (Wah et al., 2011)"
COUNTS = {"train": (100, 5864), "test": (100, 5924)}  # classes, images
LAYOUTS = [("CUB_200_2011", "images"), ("cub200", "images"), ("", "images")]  # (folder, what is in it)
TREE = """\
  DIR/CUB_200_2011/images/001.Black_footed_Albatross/*.jpg ... 200.Common_Yellowthroat/   as the archive unpacks, or
  DIR/cub200/images/001.Black_footed_Albatross/*.jpg ...                                  as published"""
GET = """CUB_200_2011.tgz of CUB-200-2011 (not CUB-200 of 2010), \
https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"""
UNPACK = {"CUB_200_2011": "CUB_200_2011"}  # {file or folder of the archive: its place in --source_path}


def rows(source_path):
    """{split: [(class, class name, path), ...]} of CUB_200_2011/ or cub200/ in source_path, or of source_path."""
    folder, _ = find_layout(source_path, "cub200", LAYOUTS, TREE, GET)
    images, splits, others = os.path.join(folder, "images"), {"train": [], "test": []}, []
    for name, paths in class_folders(images):
        number = int(name[:3]) if re.match(r"\d{3}\.", name) else None
        part = others if number is None else splits["train" if number <= 100 else "test"]
        part += [(number, name, path) for path in paths]
    say_left_out(images, [path for *_, path in others])
    return splits
