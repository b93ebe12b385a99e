"""In-Shop Clothes Retrieval of DeepFashion: 7,982 items; queries meet a gallery. Source: Liu et al., CVPR 2016."""

import os

from datasets.layout import find_layout, read_list

ABOUT = "DeepFashion In-Shop, 7,982 clothes, query against gallery (Liu et al., CVPR 2016)"
COUNTS = {"train": (3997, 25882), "query": (3985, 14218), "gallery": (3985, 12612)}
LIST = os.path.join("Eval", "list_eval_partition.txt")
LAYOUTS = [(folder, LIST) for folder in ("inshop", "In-shop Clothes Retrieval Benchmark", "")]
TREE = """\
  DIR/Eval/list_eval_partition.txt and DIR/img/WOMEN/Dresses/id_00000002/*.jpg ... (or DIR/Img/img/...),
  or the same in DIR/inshop/ or DIR/In-shop Clothes Retrieval Benchmark/"""
GET = """Img/img.zip (not img_highres) and Eval/list_eval_partition.txt of the In-shop Clothes Retrieval Benchmark, \
https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"""
UNPACK = {"img": "inshop/img", "list_eval_partition.txt": "inshop/Eval/list_eval_partition.txt"}


def rows(source_path):
    """{split: [(class, class name, path), ...]} for train, query and gallery."""
    folder, _ = find_layout(source_path, "inshop", LAYOUTS, TREE, GET)
    images = os.path.join(folder, "Img") if os.path.isdir(os.path.join(folder, "Img", "img")) else folder
    splits = {"train": [], "query": [], "gallery": []}
    for name, item, split in read_list(os.path.join(folder, LIST), r"\S+ \S+ (train|query|gallery)"):
        splits[split].append((item, item, os.path.join(images, name)))
    return splits
