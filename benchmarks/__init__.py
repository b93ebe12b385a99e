"""What the benchmarks share: their command line, turns by the clock, tables in Markdown, and a peak of memory."""

import argparse
import ctypes
import re
import time
from pathlib import Path

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser(about, repeats=None):
    """--small, and --repeats where it is given a default."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--small", action="store_true", help="tiny sizes: whether it runs, not how fast")
    if repeats:
        made.add_argument("--repeats", type=int, default=repeats, help=f"timed turns of each, {repeats} if not given")
    return made


def heading(what, small):
    """A line on the machine and what is measured there."""
    machine = f"CPU, {torch.get_num_threads()} threads" if DEVICE.type == "cpu" else torch.cuda.get_device_name()
    return f"{machine}; torch {torch.__version__}; {what}{'; SMALL SIZES, no measurement' if small else ''}"


def row(*cells):
    """A line of a table; a float has two decimals, from 100 on none."""
    words = (f"{c:.{0 if abs(c) >= 100 else 2}f}" if isinstance(c, float) else str(c) for c in cells)
    return f"| {' | '.join(words)} |"


def head(*names):
    """The first two lines of a table; a name that ends in : is over numbers."""
    rule = "|".join("---:" if name.endswith(":") else "---" for name in names)
    return f"{row(*(name.rstrip(':') for name in names))}\n|{rule}|"


def now():
    """The clock's seconds, once the GPU has done all that it was given."""
    torch.cuda.synchronize() if DEVICE.type == "cuda" else None
    return time.perf_counter()


def seconds(work, *arguments):
    """(how long it took, what it gave), the GPU's part included."""
    start, result = now(), work(*arguments)
    return now() - start, result


def turns(works, repeats, uncounted=1):
    """{name: seconds of each turn} of {name: function}: one after the other, so that a slow moment hits all of them."""
    times = {name: [] for name in works}
    for turn in range(-uncounted, repeats):
        for name, work in works.items():
            took, _ = seconds(work)
            if turn >= 0:
                times[name].append(took)
    return times


def peak(work):
    """MiB that work() takes at its peak beyond what is there before: on a GPU torch's, else the process's (Linux)."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not there
    process = Path("/proc/self")
    (process / "clear_refs").write_text("5")  # the peak starts anew from here
    before = process.joinpath("status").read_text()
    work()
    after = process.joinpath("status").read_text()
    return (int(re.search(r"VmHWM:\s*(\d+)", after)[1]) - int(re.search(r"VmRSS:\s*(\d+)", before)[1])) / 1024
