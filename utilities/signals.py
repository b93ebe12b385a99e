"""SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal), SIGUSR1 (Slurm's warning): finish the step, save, end."""

import contextlib
import ctypes
import os
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """A signal that ends the run; no Exception, so that no `except Exception` catches it."""

    def __init__(self, number):
        super().__init__(number)
        self.name, self.status = signal.Signals(number).name, 128 + number  # as shells have it


class Signals:
    """Signals raise `Stopped` at once, but within `waiting()` only set `.number`. Used as a context manager."""

    number, waits = 0, False

    def __enter__(self):
        caught = SIGNALS if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else SIGNALS[:-1]  # nohup ignores it
        self.former = {number: signal.signal(number, self.handle) for number in caught}
        return self

    def __exit__(self, *_):
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def handle(self, number, _):
        again, self.number = self.number, self.number or number
        if not again and not self.waits:  # a second one changes nothing: torchrun sends its own after a Ctrl-C
            raise Stopped(number)

    @contextlib.contextmanager
    def waiting(self, waits=True):
        """Within it a signal is only noted; waiting(False) inside of it stops at once again."""
        former, self.waits = self.waits, waits
        try:
            if self.number and not waits:
                raise Stopped(self.number)
            yield
        finally:
            self.waits = former


def when_parent_ends(number):
    """The system sends this process a signal when the one that started it is gone; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def shield_worker(_):
    """For data loading processes: a run's signals are not for them, and they end with its main process."""
    os.setsid()  # out of the terminal's group of processes
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how the main process ends them
    when_parent_ends(signal.SIGKILL)  # elsewhere torch notices within 5 seconds
