"""The device of a process, and its precision."""

import os
import warnings

import torch

from utilities import distributed


def choose_device(opt):
    """(device, its name): the GPU of --gpu, under torchrun the process's own, or the CPU where there is no GPU."""
    torch.backends.cudnn.deterministic = True  # the same seed gives the same numbers on one machine
    if not torch.cuda.is_available():
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
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # advice of the compiler
    return torch.compile(model) if opt.compile == "on" or (opt.compile == "auto" and device.type == "cuda") else model


def advice_on_memory(problem):
    """What to do, where an error says that memory ran out on the GPU, on the CPU or in a data process; else ""."""
    words = ("out of memory", "allocate memory", "DataLoader worker (pid")
    if isinstance(problem, MemoryError) or any(each in str(problem) for each in words):
        return "memory ran out; lower --bs or --kernels, or embed in parts with --grad_cache N; "
    return ""
