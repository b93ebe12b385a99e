"""Stanford Online Products: 22,634 products, split by its own lists. Source: Oh Song et al., CVPR 2016."""

import os

from datasets.layout import find_layout, read_list

ABOUT = "Stanford Online Products, 22,634 products (Oh Song et al., CVPR 2016)"
COUNTS = {"train": (11318, 59551), "test": (11316, 60502)}
LIST, INFO = "Ebay_train.txt", os.path.join("Info_Files", "Ebay_train.txt")
LAYOUTS = [("Stanford_Online_Products", LIST), ("online_products", INFO), ("", LIST), ("", INFO)]
TREE = """\
  DIR/Stanford_Online_Products/Ebay_train.txt, Ebay_test.txt, bicycle_final/*.JPG ...   as the archive unpacks, or
  DIR/online_products/Info_Files/Ebay_{train,test}.txt, images/bicycle_final/*.JPG ...  as published"""
GET = """Stanford_Online_Products.zip, ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip \
(page: https://cvgl.stanford.edu/projects/lifted_struct/)"""
UNPACK = {"Stanford_Online_Products": "Stanford_Online_Products"}


def rows(source_path):
    """{split: [(class, class name, path), ...]} of one of the layouts in source_path, or of source_path itself."""
    folder, marker = find_layout(source_path, "online_products", LAYOUTS, TREE, GET)
    lists, images = (folder, folder) if marker == LIST else (os.path.join(folder, p) for p in ("Info_Files", "images"))
    return {split: listed(os.path.join(lists, f"Ebay_{split}.txt"), images) for split in ("train", "test")}


def listed(path, images):
    """[(class, class name, path), ...] of a list with the columns image_id class_id super_class_id path."""
    return [
        (int(c), f"{name.split('/')[0].removesuffix('_final')} {c}", os.path.join(images, name))
        for _, c, _, name in read_list(path, r"\S+ \d+ \S+ \S+")
    ]
