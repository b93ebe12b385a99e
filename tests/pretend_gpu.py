"""A GPU that is not there: tensors that say they are on cuda:0 and keep their values on the CPU.

Unlike torch's FakeTensorMode it has values, so that code which looks at them runs too.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten


class There(torch.Tensor):
    """A tensor on the GPU that is not there, with the CPU tensor that stands for it."""

    @staticmethod
    def __new__(cls, here):
        layout = dict(strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype)
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, device=torch.device("cuda", 0), **layout)

    def __init__(self, here):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("used outside of PretendGpu")


class PretendGpu(TorchDispatchMode):
    def __enter__(self):
        self.start, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None  # there is nothing to start
        torch._C._ensureCUDADeviceGuardSet()
        return super().__enter__()

    def __exit__(self, *error):
        torch.cuda._lazy_init = self.start
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in tensors if isinstance(x, There)]
        copies = function in (aten._to_copy.default, aten.copy_.default)
        # numbers (tensors of no dimension) of the CPU go with all
        if there and not copies and any(x.dim() > 0 for x in tensors if not isinstance(x, There)):
            raise RuntimeError(f"{function}: at least two devices, cuda and cpu")
        wanted = kwargs.get("device")
        to_gpu = torch.device(wanted).type == "cuda" if wanted is not None else bool(there)
        if function is aten.copy_.default:
            to_gpu = isinstance(args[0], There)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
            kwargs.pop("pin_memory", None)
        result = function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        known = {id(x.here): x for x in there}  # what works in place gives its own argument back
        return tree_map(lambda x: known.get(id(x), There(x)) if to_gpu and isinstance(x, torch.Tensor) else x, result)


def unwrap(x):
    return x.here if isinstance(x, There) else x


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for a GPU, for which `meta` stands: for what is copied there, unless as
    non_blocking (reading raises anyway, as there are no values); and for two devices in one operation."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        result = function(*args, **kwargs)
        if function in (aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default):
            told = kwargs.get("non_blocking") or args[2:3] == (True,)
            made = function is aten.lift_fresh.default and result.is_meta
            if made or not told and len({x.device for x in (*tensors, result)}) > 1:
                raise RuntimeError(f"{function}: copies from the host, and waits")
        elif len({x.device for x in tensors if x.dim() > 0}) > 1:
            raise RuntimeError(f"{function}: two devices")
        return result
