"""The device of a process, its precision, and the way of the batches to it."""

import contextlib
import itertools
import os
import warnings

import torch

from utilities import distributed


def choose_device(opt):
    """(device, its name): the GPU of --gpu, under torchrun the process's own, or the CPU where there is no GPU."""
    torch.backends.cudnn.deterministic = True  # the same seed gives the same numbers on one machine
    torch.backends.cudnn.allow_tf32 = False  # see `tf32`
    if not torch.cuda.is_available():
        if opt.tf32:
            distributed.print_once("note: --tf32 is for a GPU, and there is none")
        return torch.device("cpu"), "CPU"
    index, count = opt.gpu[0], torch.cuda.device_count()
    if distributed.under_torchrun():
        index, processes = distributed.local_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if processes > count:  # all processes of the machine stop at this
            raise ValueError(f"torchrun --nproc_per_node={processes}: this machine has {count} GPUs, one a process")
    elif index >= count:
        raise ValueError(f"--gpu {index}: this machine has {count} GPUs, numbered from 0")
    torch.cuda.set_device(index)
    return torch.device("cuda", index), torch.cuda.get_device_name(index)


def autocast_dtype(opt, device):
    """The dtype of mixed precision, None for float32."""
    wanted = "fp16" if opt.use_float16 else opt.amp
    if device.type == "cpu":
        if opt.amp == "fp16":
            raise ValueError("--amp fp16: needs a GPU; on a CPU give --amp bf16 or none")
        if opt.use_float16:
            distributed.print_once("note: --use_float16 needs a GPU; this run is in float32")
        return torch.bfloat16 if wanted == "bf16" else None
    if wanted == "auto":
        wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[wanted]


def compiled(opt, model, device):
    """The model for training, compiled at its first call where --compile asks for it; evaluation has other sizes."""
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # advice of the compiler; that is --tf32
    return torch.compile(model) if opt.compile == "on" or (opt.compile == "auto" and device.type == "cuda") else model


@contextlib.contextmanager
def tf32(on):
    """Within it float32 products on a GPU may round to TF32: for the network, never for loss or search."""
    if not on:
        yield
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def seed(number, device):
    """Seed what is drawn on the CPU and on the device. (torch.manual_seed, where CUDA is not in use, notes each call
    with its stack for later: half a millisecond and kilobytes that stay, at every step.)"""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


def prefetch(loader, device, augment=None):
    """The loader's (images, labels) on the device; on a GPU the next batch is copied while the last one is trained on.

    augment : what makes images of the loader's (squares, aspect ratios, seeds), for --gpu_augment
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(images, labels):
        with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            pixels, *settings = images if augment else (images,)  # what is drawn stays on the CPU
            pixels, labels = (tensor.to(device, non_blocking=True) for tensor in (pixels, labels))
            return pixels, settings, labels, stream.record_event() if stream else None

    def wait_for(pixels, settings, labels, copied):
        if copied:
            torch.cuda.current_stream().wait_event(copied)
            for tensor in (pixels, labels):
                tensor.record_stream(torch.cuda.current_stream())
        images = augment(pixels, *settings) if augment else pixels
        return images.contiguous(memory_format=torch.channels_last), labels

    previous = None
    for batch in itertools.chain(loader, [None]):
        coming = copy(*batch) if batch else None
        if previous:
            yield wait_for(*previous)
        previous = coming
