"""CUB-200-2011: 200 bird species, the first 100 for training. Source: Wah et al., Caltech CNS-TR-2011-001."""

import os

from datasets.files import class_folders, find_layout, halves


def splits(source_path, input_size, augmentation):
    """Splits from <source_path>/CUB_200_2011 (as the archive unpacks) or <source_path>/cub200 (as published)."""
    _, folder = find_layout(source_path, "cub200", [("archive", "CUB_200_2011", "images"), ("published", "cub200", "images")],
                            "unpack CUB_200_2011.tgz (CUB-200-2011 of Caltech, not CUB-200 of 2010) there, so that images/001.Black_footed_Albatross/*.jpg is in it")
    classes = class_folders(os.path.join(folder, "images"))
    return halves(classes, len(classes) // 2, input_size, augmentation)
