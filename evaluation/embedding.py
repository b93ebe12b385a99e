"""From a split to its embeddings."""

import os

import torch

from utilities import distributed
from utilities.signals import shield_worker

SMALL = 20_000_000  # pixels: a split below is embedded faster without starting worker processes


@torch.inference_mode()
def embed(model, split, batch_size=256, workers=0):
    """Embeddings (n, d) float32, where the model is, and labels (n,) of all images of a split, in order.

    The model runs in eval mode and float32, whatever the training's precision; its mode is restored. Of several
    processes each embeds every world-th image, and all get all. Raises ValueError if the split is empty.
    """
    if len(split) == 0:
        raise ValueError("evaluation: the split has no image")
    n, mine = len(split), range(distributed.rank(), len(split), distributed.world())
    if distributed.world() > 1:
        split = torch.utils.data.Subset(split, mine or [0])  # a process without images learns the dimension from one
    device, training, parts = next(model.parameters()).device, model.training, []
    small = len(split) * split[0][0].shape[-1] ** 2 < SMALL
    loader = torch.utils.data.DataLoader(
        split, batch_size, num_workers=0 if small else min(workers, os.cpu_count() or 1),
        pin_memory=device.type == "cuda", worker_init_fn=shield_worker,
        generator=torch.Generator(),  # its own, or the training's random numbers would move
    )  # fmt: skip
    model.eval()
    try:
        for images, labels in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            parts.append((model(images).float(), labels))
    finally:
        model.train(training)
    return tuple(distributed.gather_rows(torch.cat(column)[: len(mine)], n) for column in zip(*parts))
