"""Files that are written whole or not at all."""

import contextlib
import glob
import os
import tempfile
import time

UNFINISHED = ".writing-"
DAY = 24 * 3600  # seconds


def write_whole(path, write, mode="w"):
    """Call write(file) on a temporary file beside `path`, flush it to disk, and only then give it that name.

    `file.name` is its path, with the ending of `path`. A crash or a full disk leaves the former file as it was.
    Raises OSError that names `path`.
    """
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=UNFINISHED, suffix=os.path.splitext(path)[1])
        os.close(handle)
        # csv needs its line ends untouched
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": ""})) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException as problem:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(problem, OSError):
            raise OSError(problem.errno, problem.strerror or str(problem), str(path)) from problem
        raise


def remove_unfinished(folder, age=0):
    """Delete what a killed process left of files that it was writing, untouched for `age` seconds."""
    for path in glob.glob(os.path.join(glob.escape(folder), f"{UNFINISHED}*")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.path.getmtime(path) >= age:
                os.unlink(path)
