"""The table: python -m benchmarks.gpu [--quick] [--only WORD ...]"""

import argparse
import gc
import os
import sys
import tempfile
import time
from types import SimpleNamespace

import torch

import benchmarks.gpu
import parameters
from benchmarks import input as inputs
from benchmarks.gpu import parts, runs, speed
from benchmarks.gpu.rows import Skipped, rows_of
from evaluation import search
from utilities import device as devices
from utilities import folders

ROWS = [*rows_of(runs), *rows_of(parts), *rows_of(speed)]
LIMIT = 480  # seconds after which no row begins


def make_bench(device, quick, folder):
    """What the rows share. small: sizes for a CPU or --quick."""
    gpu = device.type == "cuda"
    small = quick or not gpu
    made = []

    def images():
        if not made:
            made.append(os.path.join(folder, "images"))
            inputs.make(made[0], "CUB's, 500 x 375", 16 if small else 360)
        return made[0]

    return SimpleNamespace(
        device=device, gpu=gpu, small=small, folder=os.path.join(folder, "runs"), images=images, data={}
    )


def attempt(function, bench):
    """(result, "ok", "skipped" or "FAILED"); an error is one line."""
    try:
        return function(bench), "ok"
    except Skipped as reason:
        return str(reason), "skipped"
    except (Exception, SystemExit) as problem:  # whatever never ran here
        lines = str(problem).strip().splitlines() or [""]
        return f"{type(problem).__name__}: {lines[0]}"[:300], "FAILED"
    finally:
        folders.release()
        gc.collect()
        torch._dynamo.reset()
        if bench.gpu:
            torch.cuda.empty_cache()


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=benchmarks.gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes on a GPU too: whether it runs, not how fast")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only the rows with one of these words in their name")
    args = parser.parse_args(argv)
    rows = [(name, function) for name, function in ROWS if not args.only or any(word in name for word in args.only)]
    if not rows:
        parser.error(
            f"--only {' '.join(args.only)}: no row has that in its name; rows: {'; '.join(name for name, _ in ROWS)}"
        )
    start, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        device, name = devices.choose_device(parameters.parse([]))
        bench = make_bench(device, args.quick, folder)
        machine = f"{name}; torch {torch.__version__}, {os.cpu_count()} cores"
        faiss, small = "with" if search.have_faiss() else "without", "; small sizes" if bench.small else ""
        print(f"{machine}, {faiss} faiss{small}\n")
        print("| what | result | seconds | |\n|---|---|---:|---|", flush=True)
        for what, function in rows:
            began = time.monotonic()
            late = began - start > LIMIT
            result, word = (f"not begun, {LIMIT} s are over", "skipped") if late else attempt(function, bench)
            failed += word == "FAILED"
            print(f"| {what} | {result.replace('|', '/')} | {time.monotonic() - began:.1f} | {word} |", flush=True)
    print(f"\n{len(rows)} rows in {time.monotonic() - start:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
