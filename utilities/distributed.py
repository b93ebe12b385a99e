"""Several processes on one run: `torchrun --nproc_per_node=N main.py ...`. With one process all of this does nothing.

Each process embeds its share of the batch; embeddings and labels are gathered, so that loss, mining and coding rate
see the whole batch, on every process alike. The factor: DistributedDataParallel averages the processes' gradients of
the network, and each process knows only the gradient that goes through its own rows; so `gather` gives those rows
`world()` times their gradient, and the average is the sum, the gradient of the whole batch.
"""

import contextlib
import datetime
import logging
import os
import signal
import warnings

import torch
import torch.distributed as dist
from torch import nn

from utilities.signals import when_parent_ends

LONG = datetime.timedelta(hours=12)  # the others wait while one measures; torchrun notices a dead one


def rank():
    """The number of this process; before the group exists, from torchrun's environment."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if under_torchrun() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def under_torchrun():
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank():
    return int(os.environ.get("LOCAL_RANK", 0)) if under_torchrun() else 0


@contextlib.contextmanager
def processes(device):
    """The process group of torchrun's environment, if there is one: nccl for a GPU, gloo for CPUs."""
    if not under_torchrun() or dist.is_initialized():
        yield
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a torchrun that is killed leaves nobody training
        when_parent_ends(signal.SIGTERM)
    backend = "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONG, device_id=device if device.type == "cuda" else None)
    if rank() > 0:
        logging.getLogger("antico").setLevel(logging.ERROR)  # the packages' notes are the same on all
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


def print_once(*words, **how):
    """print, on the first process alone."""
    if rank() == 0:
        print(*words, flush=True, **how)


@contextlib.contextmanager
def first_process_first():
    """Of the processes of one machine the first goes ahead, so that what it makes (a cache) is there for the others."""
    if world() > 1 and local_rank() > 0:
        dist.barrier()
    try:
        yield
    finally:  # after an error too: the others then find the same one
        if world() > 1 and local_rank() == 0:
            dist.barrier()


def on_first(work):
    """What `work` gives (anything that can be pickled) or raises on the first process, for which the others wait."""
    if world() == 1:
        return work()
    box = [None, None]
    if rank() == 0:
        try:
            box[0] = work()
        except Exception as problem:  # of whatever kind: it is raised on all
            box[1] = problem
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def first_to_report(line):
    """Whether this process is the first of all to ask for this line: an error that all have is printed once."""
    if world() == 1:
        return local_rank() == 0  # what goes wrong before the process group is there does so on the whole machine
    try:
        return dist.distributed_c10d._get_default_store().add(f"reported: {line}", 1) == 1
    except RuntimeError:  # the store has ended with the process that kept it
        return True


def lost_another(problem):
    """Whether an error is what the end of another process looks like."""
    return world() > 1 and any(word in str(problem) for word in ("Connection", "NCCL", "gloo", "peer"))


def any_process(flag):
    """Whether `flag` is set on any process; waits for all of them."""
    if world() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def stack(x):
    """(n, ...) of each process, the same n on all → (world, n, ...), without a gradient."""
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


def gather(x):
    """(n, ...) of each process → (world · n, ...) on all, by rank; differentiable, with the factor above."""
    if world() == 1:
        return x
    parts = list(stack(x.detach()))
    if x.requires_grad:
        parts[rank()] = own = x.view_as(x)
        own.register_hook(lambda gradient: gradient * world())
    return torch.cat(parts)


def gather_rows(x, n):
    """Rows 0..n-1 of a whole, of which process r has r, r + world, r + 2 world, ...; without a gradient."""
    if world() == 1:
        return x
    padded = torch.cat([x, x.new_zeros(-(-n // world()) - len(x), *x.shape[1:])])
    return stack(padded).transpose(0, 1).flatten(0, 1)[:n]


def average_gradients(parameters):
    """For parameters whose whole gradient every process has: rounding must not let them drift apart."""
    if world() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world()


def replicate(model, device, compiled=False):
    """The network as it trains: in DistributedDataParallel, where there are several processes, and then compiled, as
    --compile says, so that gradients are sent while the backward still runs. BatchNorm's buffers are equal on all."""
    if world() > 1:
        device_ids = [device.index] if device.type == "cuda" else None
        # a network of timm that gives its maps does not use what follows them
        how = dict(find_unused_parameters=getattr(model.features, "maps", False), gradient_as_bucket_view=True)
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # torch 2.11 has no other name
        model = nn.parallel.DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False, **how)
    mode = "reduce-overhead" if compiled == "graphs" else None  # each shape is compiled by itself, CUDA graphs or not
    return torch.compile(model, dynamic=False, mode=mode) if compiled else model


def gradients_stay_here(net, here):
    """Within it DistributedDataParallel only adds up gradients on this process."""
    return net.no_sync() if here and world() > 1 else contextlib.nullcontext()
