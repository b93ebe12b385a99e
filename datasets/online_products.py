"""Stanford Online Products: 22,634 products, split by its own lists. Source: Oh Song et al., CVPR 2016."""

import os

from datasets.files import file_splits, find_layout


def splits(source_path, input_size, augmentation):
    """Splits from Stanford_Online_Products/ (as the archive unpacks) or online_products/{Info_Files,images}/ (as published)."""
    layout, folder = find_layout(source_path, "online_products",
                                 [("archive", "Stanford_Online_Products", "Ebay_train.txt"), ("published", "online_products", os.path.join("Info_Files", "Ebay_train.txt"))],
                                 "unpack Stanford_Online_Products.zip there")
    lists, images = (folder, folder) if layout == "archive" else (os.path.join(folder, "Info_Files"), os.path.join(folder, "images"))
    return file_splits(rows_of(os.path.join(lists, "Ebay_train.txt"), images), rows_of(os.path.join(lists, "Ebay_test.txt"), images), input_size, augmentation)


def rows_of(path, images):
    """[(class number, class name, image path), ...] of a list with the columns image_id class_id super_class_id path."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--dataset online_products: {path} is missing")
    with open(path, encoding="utf-8") as file:
        lines = [line.split() for line in file][1:]
    if not lines or any(len(line) != 4 or not line[1].isdigit() for line in lines):
        raise ValueError(f"{path}: each line below the header must be 'image_id class_id super_class_id path'")
    return [(int(c), f"{name.split('/')[0].removesuffix('_final')} {c}", os.path.join(images, name)) for _, c, _, name in lines]
