"""The device of a process, and its precision."""

import os
import warnings

import torch
from torch import nn

from utilities import distributed

PAYS = 2e10  # pixels of all training images: compiling takes a minute and saves some 10 ms a batch of 90 x 224²
SHARED = "shared memory (/dev/shm) is full; lower --kernels, or start the container with a larger --shm-size; "
MEMORY = "memory ran out; lower --bs or --kernels, or embed in parts with --grad_cache N; "
ADVICE = {
    "shared memory": SHARED, "Bus error": SHARED, "out of memory": MEMORY, "allocate memory": MEMORY,
    "CUBLAS_STATUS_ALLOC_FAILED": MEMORY, "unable to find an engine": MEMORY, "by signal: Killed": MEMORY,
    "exited unexpectedly": MEMORY,
}  # fmt: skip


def choose_device(opt):
    """(device, its name): the GPU of --gpu, under torchrun the process's own, or the CPU where there is no GPU."""
    torch.backends.cudnn.deterministic = True  # the same seed gives the same numbers on one machine
    if not torch.cuda.is_available():
        return torch.device("cpu"), "CPU"
    index, count, asked, least = opt.gpu[0], torch.cuda.device_count(), f"--gpu {opt.gpu[0]}", opt.gpu[0] + 1
    if distributed.under_torchrun():
        index, least = distributed.local_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        asked = f"torchrun --nproc_per_node={least}"
    if least > count:  # an error on all processes of the machine
        raise ValueError(f"{asked}: this machine has {count} GPUs, numbered from 0, and a process takes one")
    torch.cuda.set_device(index)
    return torch.device("cuda", index), torch.cuda.get_device_name(index)


def number_of_workers(opt):
    """Data loading processes: --kernels or, without it, this process's share of the cores; 16 feed the fastest card."""
    if "kernels" in opt.given or opt.resume:
        return opt.kernels
    return min(max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1), 16)


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


def whether_to_compile(run):
    """Whether training is compiled; under --compile auto on a GPU where that pays and works, else it says why not."""
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # advice of the compiler
    if run.opt.compile == "graphs" and (run.device.type == "cpu" or run.opt.grad_cache or distributed.world() > 1):
        raise ValueError("--compile graphs: for one process on a GPU, without --grad_cache; give --compile on")
    if run.opt.compile != "auto" or run.device.type == "cpu":
        return run.opt.compile in ("on", "graphs")
    reason, pixels = None, run.opt.n_epochs * run.sampler.n_batches * run.opt.bs * run.model.input_size**2
    if pixels < PAYS:
        reason = "this run is too short for compiling to pay"
    elif any(isinstance(module, nn.SyncBatchNorm) for module in run.model.modules()):
        reason = "SyncBatchNorm breaks the graph at each layer; _frozen has none"
    else:
        try:
            torch.compile(lambda x: x + 1)(torch.ones(8, device=run.device))
        except Exception as problem:  # no C compiler, no Python.h, a card that is too old
            reason = f"the compiler does not work here ({' '.join(str(problem).split())[:200]})"
    if reason:
        distributed.print_once(f"note: --compile auto: not compiled: {reason}")
    return reason is None


def advice_on_memory(problem):
    """What to do, where an error says that memory ran out on the GPU, on the CPU or in a data process; else ""."""
    found = [advice for words, advice in ADVICE.items() if words in str(problem)]
    return found[0] if found else MEMORY if isinstance(problem, MemoryError) else ""
