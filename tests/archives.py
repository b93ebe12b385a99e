"""The benchmarks' archives, made of miniatures, and `datasets.prepare` on them."""

import os
import shutil
import tarfile
import zipfile

from miniatures import LAYOUTS

from datasets import prepare


def tar_of(folder, path, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(folder / name, arcname=name)
    return path


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for found in sorted(folder.rglob("*")):
            file.write(found, found.relative_to(folder).as_posix())
    return path


def run(name, target, *more):
    return prepare.main([name, "--source_path", str(target), *map(str, more)])


def archives_of(name, root):
    """The data set's downloads, with the names and the layout that they have."""
    LAYOUTS[name, "archive"](root / "made")
    made, out = root / "made", root / "downloads"
    out.mkdir()
    if name == "cub200":
        (made / "attributes.txt").write_text("1 x\n")  # lies beside the folder in the archive
        return [tar_of(made, out / "CUB_200_2011.tgz")]
    if name == "online_products":
        return [zip_of(made, out / "Stanford_Online_Products.zip")]
    if name == "cars196":
        shutil.move(made / "cars_annos.mat", out / "cars_annos.mat")
        return [tar_of(made, out / "car_ims.tgz"), out / "cars_annos.mat"]
    shutil.move(made / "Eval" / "list_eval_partition.txt", out / "list_eval_partition.txt")
    return [zip_of(made, out / "img.zip"), out / "list_eval_partition.txt"]
