"""The input against torchvision's v1 pipeline on PIL images; augmentation on the device, seeded workers."""

import math
import os

import numpy as np
import pytest
import torch
from miniatures import noise, splits_of
from PIL import Image
from torchvision import transforms as v1

import datasampler
import main
from datasets import transforms
from datasets.loading import decode


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images like photographs: <root>/{train,test}/<class>/*, JPEGs of several sizes, a PNG, a grey, a turned one."""
    root = tmp_path_factory.mktemp("photos")
    for c in range(4):
        for i, size in enumerate([(160, 120), (120, 200), (97, 131), (400, 301)]):
            noise(root / ("train" if c < 2 else "test") / f"class {c}" / f"{i}.jpg", size, seed=10 * c + i, quality=92)
    noise(root / "train" / "class 0" / "8.png", (140, 100), 50)
    Image.open(root / "train" / "class 0" / "0.jpg").convert("L").save(root / "train" / "class 1" / "9.jpg")
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 6
    Image.open(root / "train" / "class 0" / "1.jpg").save(root / "train" / "class 1" / "turned.jpg", exif=exif)
    return root


def by_v1(path, steps, seed):
    """uint8 (3, H, W) of an image by torchvision's v1 transforms, from the same random numbers as ours."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    torch.manual_seed(seed)
    return v1.functional.pil_to_tensor(v1.Compose(steps)(image))


def limit(path):
    return 5 if path.endswith("3.jpg") else 0.6


V1 = {
    "base": lambda: [v1.RandomResizedCrop(64), v1.RandomHorizontalFlip()],
    "red": lambda: [v1.Resize(73), v1.RandomCrop(64), v1.RandomHorizontalFlip()],
}


@pytest.mark.parametrize("name", list(V1))
def test_training_images_are_those_of_the_v1_pipeline(name, photos):
    """The same crop, the same flip: mean difference below 0.6 levels; other crops differ by 35 and more.

    Below 5 where a large JPEG may have been decoded reduced: sharper, or without the smooth upsampling of its colours.
    """
    fetch = splits_of(photos, "--augmentation", name).train.fetch
    for seed in range(6):
        for i, path in enumerate(fetch.paths[:11]):
            torch.manual_seed(seed)
            ours = fetch.one(i, fetch.training).float()
            assert (ours - by_v1(path, V1[name](), seed).float()).abs().mean() < limit(path), path


def test_evaluation_images_are_those_of_the_v1_pipeline(photos):
    for split in (splits_of(photos).test, splits_of(photos).train.unaugmented()):
        for i, path in enumerate(split.paths):
            assert (
                split[i][0].float() - by_v1(path, [v1.Resize(73), v1.CenterCrop(64)], 0).float()
            ).abs().mean() < limit(path), path


@pytest.mark.parametrize(
    "name, v1_steps",
    [
        (
            "big",
            lambda: [
                v1.RandomResizedCrop(64, scale=(0.4, 1)),
                v1.ColorJitter(0.2, 0.2, 0.2, 0.2),
                v1.RandomGrayscale(0.2),
                v1.RandomHorizontalFlip(),
            ],
        ),
        (
            "adv",
            lambda: [
                v1.RandomResizedCrop(64),
                v1.ColorJitter(0.2, 0.2, 0.2, 0.2),
                v1.RandomGrayscale(0.2),
                v1.RandomHorizontalFlip(),
            ],
        ),
    ],
)
def test_coloured_augmentations_have_the_v1_pipelines_statistics(name, v1_steps, photos):
    fetch = splits_of(photos, "--augmentation", name).train.fetch
    torch.manual_seed(0)
    ours = torch.stack([fetch.one(0, fetch.training) for _ in range(120)]).float()
    theirs = torch.stack([by_v1(fetch.paths[0], v1_steps(), seed) for seed in range(120)]).float()
    grey = [float(((x[:, 0] - x[:, 2]).abs().mean((1, 2)) < 0.5).float().mean()) for x in (ours, theirs)]
    assert grey[0] == pytest.approx(grey[1], abs=0.12) and grey[1] == pytest.approx(0.2, abs=0.1)
    assert torch.allclose(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), atol=8)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), abs=4)


def test_a_jpeg_is_decoded_reduced_where_the_crop_allows(tmp_path):
    noise(tmp_path / "x.jpg", (640, 480))

    def size(target, box=(0, 0, 480, 640), margin=1):
        return decode.read(tmp_path / "x.jpg", lambda h, w: (box, target), margin)[0].shape[:2]

    assert size((200, 200)) == (240, 320) and size((120, 120)) == (120, 160) and size((60, 60)) == (60, 80)
    assert size((241, 200)) == (480, 640) and size((200, 200), margin=2) == (480, 640)
    assert size((64, 64), box=(100, 50, 120, 400)) == (480, 640)  # the part counts, not the image
    assert size((64, 64), box=(100, 50, 130, 400)) == (240, 320)


def test_jpegs_by_torchvision_are_pillows(photos, monkeypatch):
    paths = [path for path in splits_of(photos).train.paths if path.endswith("jpg")]
    fast = [decode.read(path)[0] for path in paths]
    monkeypatch.setattr(decode, "decode_jpeg", None)
    for path, pixels in zip(paths, fast):
        assert np.abs(decode.read(path)[0].astype(int) - pixels).max() <= 1


@pytest.mark.parametrize(
    "options_",
    [
        dict(progressive=True),
        dict(comment=b"c" * 300),
        dict(icc_profile=b"p" * 70000),
        dict(restart_marker_blocks=2),
        dict(mode="CMYK"),
        dict(mode="L"),
    ],
)
def test_jpegs_of_every_kind_are_read_at_their_size(options_, tmp_path):
    """Whole, and reduced: the size that is planned with is the file's own."""
    image = Image.new("RGB", (370, 210), (200, 200, 200)).convert(options_.pop("mode", "RGB"))
    image.save(tmp_path / "x.jpg", **options_)
    assert decode.read(tmp_path / "x.jpg")[1] == ((210, 370), None, None)
    pixels, (full, box, target) = decode.read(tmp_path / "x.jpg", lambda h, w: ((0, 0, h, w), (h // 4, w // 4)))
    assert full == (210, 370) and box == (0, 0, 210, 370) and target == (52, 92) and pixels.shape == (53, 93, 3)
    assert np.abs(pixels.astype(int) - 200).max() <= 3


def batches(split, workers, epoch, start=0, seed=0):
    sampler = datasampler.RandomBatches(split.labels, 3, seed=seed)
    sampler.set_epoch(epoch, start)
    draws = datasampler.Draws(sampler)
    return [images for images, _ in torch.utils.data.DataLoader(split, batch_sampler=draws, num_workers=workers)]


def test_augmentation_depends_on_seed_epoch_and_place_but_not_on_workers(photos):
    """The same with 0, 1 and 2 workers and when an epoch is entered in its middle; others by another epoch or seed."""
    split = splits_of(photos).train
    first = batches(split, 0, 1)
    same = lambda a, b: len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))  # noqa: E731
    assert all(same(first, batches(split, workers, 1)) for workers in (1, 2)) and same(
        first[2:], batches(split, 1, 1, start=2)
    )
    assert not same(first, batches(split, 0, 2)) and not same(first, batches(split, 0, 1, seed=1))
    one, two = split.fetch([0, 0], [1, 2])
    assert not torch.equal(one, two)  # an image twice in a batch is cropped twice
    state = torch.get_rng_state()
    split.fetch([0, 1], [1, 2])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(split[0, 5][0], split[0, 5][0]) and not torch.equal(split[0, 5][0], split[0, 6][0])
    assert not torch.equal(split[0][0], split[0][0])  # without a seed a new one


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_gives_the_same_images(photos, workers, tmp_path):
    plain, cached = splits_of(photos), splits_of(photos, "--cache", tmp_path, "--kernels", workers)
    assert len(os.listdir(tmp_path)) == 2
    for split, other in ((plain.train, cached.train), (plain.test, cached.test)):
        for i in range(len(split)):
            small = min(decode.read(split.paths[i])[0].shape[:2]) <= 112  # 1.75 · 64: kept as it is
            assert (split[i, 4][0].float() - other[i, 4][0].float()).abs().mean() < (1.0 if small else 3.0), (
                split.paths[i]
            )


def test_crops_on_the_device_have_torchvisions_distribution():
    """Area, ratio and place of boxes against 4,000 of RandomResizedCrop.get_params; a wide, a square, a tall image."""
    torch.manual_seed(0)
    for width, height in ((500, 375), (300, 300), (100, 400)):
        top, left, h, w = transforms.OnDevice("base", 224).boxes(
            torch.full((4000,), width / height), torch.rand(4000, 22)
        )
        ours = np.stack([top * height, left * width, h * height, w * width])
        image = Image.new("RGB", (width, height))
        theirs = np.array([v1.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]).T
        assert (ours[2] <= height + 1e-3).all() and (ours[3] <= width + 1e-3).all() and (ours[:2] >= 0).all()
        assert (ours[0] + ours[2] <= height + 1e-3).all() and (ours[1] + ours[3] <= width + 1e-3).all()
        for a, b in zip([*ours, ours[2] * ours[3]], [*theirs, theirs[2] * theirs[3]]):
            assert np.allclose(
                np.quantile(a, [0.1, 0.5, 0.9]), np.quantile(b, [0.1, 0.5, 0.9]), atol=0.04 * (b.max() - b.min()) + 1.5
            )


def test_the_device_crops_what_its_boxes_say():
    """Crops and flips of smooth squares against torchvision's crop and resize of the same box."""
    torch.manual_seed(1)
    squares = (
        torch.nn.functional.interpolate(torch.rand(6, 3, 5, 5), size=96, mode="bicubic")
        .clamp(0, 1)
        .mul(255)
        .to(torch.uint8)
    )
    device = transforms.OnDevice("base", 64)
    boxes = device.boxes(torch.ones(6), torch.rand(6, 22))
    device.boxes = lambda *_: boxes
    flipped = set()
    for out, square, *box in zip(device(squares, torch.ones(6), torch.arange(6)), squares, *boxes):
        top, left, height, width = (round(float(v) * 96) for v in box)
        wanted = v1.functional.resized_crop(square, top, left, height, width, [64, 64], antialias=True).float()
        differences = [float((out.float() - w).abs().mean()) for w in (wanted, wanted.flip(2))]
        assert min(differences) < 3 < max(differences)
        flipped.add(differences[0] > differences[1])
    assert flipped == {True, False}  # each image on its own


@pytest.mark.parametrize("name", ["base", "big", "adv", "red"])
def test_gpu_augment(name, photos):
    split = splits_of(photos, "--gpu_augment", "--augmentation", name).train
    (square, aspect, seed), label = split[0, 9]
    assert (
        square.shape == (3, 96, 96)
        and square.dtype == torch.uint8
        and float(aspect) == pytest.approx(160 / 120)
        and label == 0
        and seed == 9
    )
    (squares, aspects, seeds), labels = next(iter(torch.utils.data.DataLoader(split, batch_size=5)))
    first = split.on_device(squares, aspects, seeds)
    assert first.shape == (5, 3, 64, 64) and first.dtype == torch.uint8
    assert torch.equal(
        first[2:], split.on_device(squares[2:], aspects[2:], seeds[2:])
    )  # an image by its own seed alone
    assert not torch.equal(first, split.on_device(squares, aspects, seeds + 1))
    same = split.on_device(squares[:1].expand(4, -1, -1, -1), aspects[:1].expand(4), torch.arange(4))
    assert len({image.numpy().tobytes() for image in same}) > 1
    plain = split.unaugmented()
    assert plain.on_device is None and plain[0][0].shape == (3, 64, 64)
    if name == "red":  # keeps scale and shape: a crop of 64 / 73 of the shorter side, so no pixel is stretched
        _, _, height, width = split.on_device.boxes(torch.tensor([0.5, 1.0, 2.0]), torch.rand(3, 22))
        assert torch.allclose(height, width * torch.tensor([0.5, 1.0, 2.0])) and math.isclose(
            float(height[1]), 64 / 73, rel_tol=1e-6
        )


@pytest.mark.parametrize("more", [["--gpu_augment"], ["--cache"], ["--gpu_augment", "--cache"]])
def test_runs_with_them(photos, more, tmp_path):
    more = [word for flag in more for word in ([flag, str(tmp_path / "cache")] if flag == "--cache" else [flag])]
    flags = [
        "--dataset",
        "folder",
        "--source_path",
        str(photos),
        "--arch",
        "conv4_normalize",
        "--n_epochs",
        "1",
        "--bs",
        "8",
        "--kernels",
        "2",
        "--save_path",
        str(tmp_path),
    ]
    assert main.main([*flags, "--loss", "multisimilarity", *more]) == 0


@pytest.mark.parametrize("flag", ["--gpu_augment", "--cache"])
def test_glyphs_takes_neither(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--dataset", "glyphs", flag, *(["x"] if flag == "--cache" else [])])
    assert (
        stop.value.code == 2 and f"--dataset glyphs {flag}: is for data sets of image files" in capsys.readouterr().err
    )
