"""Files that are written whole or not at all."""

import contextlib
import glob
import os
import time

UNFINISHED = ".writing-"
DAY = 24 * 3600  # seconds


def write_whole(path, write, mode="w"):
    """Call write(file) on a temporary file beside `path`, flush it to disk, and only then give it that name.

    A crash or a full disk leaves the former file as it was. Raises OSError that names `path`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f"{UNFINISHED}{os.getpid()}-{name}")
    try:
        os.makedirs(folder, exist_ok=True)
        # csv needs its line ends untouched
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror or str(problem), str(path)) from problem
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def remove_unfinished(folder, age=0):
    """Delete what a killed process left of files that it was writing, untouched for `age` seconds."""
    for path in glob.glob(os.path.join(glob.escape(folder), f"{UNFINISHED}*")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.path.getmtime(path) >= age:
                os.unlink(path)
