"""Known errors as one line and an exit status: 2 for bad input, 1 for a run that could not go on. The rest are bugs."""

import contextlib
import shlex
import signal
import sys
import time

import torch

from utilities import command_line, distributed, folders
from utilities.distributed import STANDARD_OUTPUT
from utilities.interrupts import Interrupted


class Stop(Exception):
    """The end of the program: a line for people and the exit status."""

    def __init__(self, line, status):
        super().__init__(line)
        self.line, self.status = line, status


@contextlib.contextmanager
def bad_input(signals):
    """While a run is built: what the packages refuse is the user's to mend."""
    try:
        yield
    except Interrupted as problem:
        raise Stop(f"stopped by {problem.name} before training began", problem.status) from None
    except BrokenPipeError as problem:
        raise of_the_machine(problem, "Nothing was trained") from problem
    except (ValueError, OSError) as problem:
        raise Stop(f"error: {line_of(problem)}", 2) from problem
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as problem:
        raise of_the_machine(problem, "Nothing was trained") or problem


@contextlib.contextmanager
def while_running(run, errors):
    """While a run trains. errors : {exception class of the packages: (exit status, where in the run it was)}.

    Status 1 is for those that the run's own numbers raise: it has diverged.
    """
    folder = run.checkpoints.folder
    try:
        try:
            yield
        except Interrupted:
            run.checkpoints.save(run.progress)  # what goes wrong here is caught below
            raise stopped(run) from None
    except Stop:
        raise
    except Exception as problem:
        run.signals.waits = True  # one that arrives now changes nothing
        if distributed.world() > 1:
            time.sleep(0.5 if is_of_another_process(problem) else 0)  # torchrun ends the processes one after the other
            if run.signals.signal is not None:  # the others have ended already
                raise Stop("", 128 + run.signals.signal) from problem
        after = f"Last good checkpoint: {run.checkpoints.newest}; go on from it with --resume {shlex.quote(folder)}"
        if not run.checkpoints.newest:
            after = f"There is no checkpoint yet; begin again with --resume {shlex.quote(folder)}"
        for kind, (status, where) in errors.items():
            if isinstance(problem, kind):
                line = line_of(problem) + place(run, where)
                advice = note_divergence(folder, line) if status == 1 else ""
                raise Stop(f"error: {line}. {advice}{after}", status) from problem
        raise of_the_machine(problem, after) or problem


def note_divergence(folder, line):
    """Leave word in the run's folder, for the tables and their queue; what the user can do."""
    with contextlib.suppress(OSError):  # a full disk changes nothing about what is said
        folders.note_divergence(folder, line)
    return "Start anew with a lower --lr, a longer --warmup or another weight. "


def place(run, where):
    """`where` with the run's epoch, its step, and the loss terms of the last step that had some."""
    terms = ", ".join(f"{name} {value:g}" for name, value in run.criterion.logs.items()) if "{terms}" in where else ""
    terms = f" (last loss terms: {terms})" if terms else ""
    return where.format(step=run.progress.step + 1, epoch=run.progress.epoch + 1, terms=terms)


def stopped(run):
    """The Stop of a run that a signal ended and that is saved."""
    epoch, step = run.progress.epoch + 1, run.progress.step
    stop = Interrupted(run.signals.signal or signal.SIGTERM)  # another process got the signal
    where = f"after step {step} of epoch {epoch}" if step else f"before epoch {epoch}"
    start = "torchrun ..." if distributed.world() > 1 else "python"  # with as many processes as there are then
    line = f"stopped by {stop.name} {where}; all is saved. Go on with: {start} main.py --resume "
    return Stop(line + shlex.quote(run.checkpoints.folder) if distributed.rank() == 0 else "", stop.status)


def of_the_machine(problem, after):
    """The Stop for what goes wrong on machines, None for what must be a bug."""
    text = str(problem)
    out_of_memory = isinstance(problem, (torch.OutOfMemoryError, MemoryError))
    if out_of_memory or "allocate memory" in text or "out of memory" in text:
        advice = "lower --bs, embed it in parts with --grad_cache CHUNK, or give --amp bf16"
        return Stop(f"error: memory ran out; {advice}. {after}", 1)
    if isinstance(problem, BrokenPipeError):
        command_line.silence()
        return Stop(f"error: nobody reads the output any more (a closed pipe). {after}", 128 + signal.SIGPIPE)
    worker_gone = "DataLoader worker" in text and ("killed by" in text or "exited" in text)
    if worker_gone or isinstance(problem, (ConnectionError, EOFError)):  # raised by torch, or met in a fetch
        advice = "as the system does when memory runs out; lower --kernels or --bs"
        return Stop(f"error: a data loading process was killed, {advice}. {after}", 1)
    if isinstance(problem, OSError):
        return Stop(f"error: {line_of(problem)}; what was written before is whole. {after}", 1)
    if is_of_another_process(problem):
        return Stop("error: another process ended; its own message says why", 1)
    return None


def is_of_another_process(problem):
    """Whether this is what the end of another process looks like."""
    words = ("Connection", "NCCL", "gloo", "peer")
    return distributed.world() > 1 and isinstance(problem, RuntimeError) and any(word in str(problem) for word in words)


def line_of(problem):
    if isinstance(problem, OSError) and problem.filename == STANDARD_OUTPUT:
        command_line.silence()
    advice = getattr(problem, "advice", "")  # a broken image has some
    return command_line.line_of(problem) + (f"; {advice}" if advice else "")


def report(stop):
    """Print the line of a Stop, once where several processes have the same; the exit status."""
    if isinstance(stop, Interrupted):  # outside of building and training, which know more
        stop = Stop(f"stopped by {stop.name}; nothing was lost", stop.status)
    which = f"process {distributed.rank()}: " if distributed.rank() > 0 and stop.status == 1 else ""
    if stop.line and distributed.first_to_report(stop.line):
        with contextlib.suppress(OSError):
            print(which + stop.line, file=sys.stderr, flush=True)
    return stop.status
