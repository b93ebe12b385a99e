"""Files written whole or not at all, and checkpoints of tensors and plain containers."""

import os
import tempfile

import torch


def write_whole(path, write, mode="w"):
    """Call write(file) on a temporary file beside `path`, flush it to disk, and only then give it that name.

    A crash or a full disk leaves the former file as it was.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
    try:
        # csv needs its line ends untouched
        with os.fdopen(handle, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save(path, state):
    """Write `state` (tensors, numbers, strings, lists, dicts) so that `load` reads it without unpickling code."""
    write_whole(path, lambda file: torch.save(state, file), "wb")


def load(path):
    """Read a checkpoint onto the CPU; ValueError, one line, if it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise ValueError(f"{path}: not a checkpoint of this program ({str(problem).splitlines()[0]})") from problem
