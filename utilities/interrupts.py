"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (Slurm's warning): the step is finished, the run saved, and then it ends."""

import contextlib
import os
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """A signal that arrived where the run can stop at once; no Exception, so that nothing on the way catches it."""


def end_at_once():
    """Until `Interrupts` is there, a signal ends the process with one line: imports take seconds."""

    def leave(number, _):
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun tells all its processes
            os.write(2, f"stopped by {signal.Signals(number).name} before anything began\n".encode())
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, leave)


def ignore(*_):
    """For worker processes: Ctrl-C reaches them as well, and the main process still needs their batch."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Interrupts:
    """Signals raise `Interrupted`, but inside `deferred()` only set `.signal`. Used as a context manager."""

    def __init__(self):
        self.signal, self.waits = None, False

    def __enter__(self):
        self.former = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def handle(self, number, _):
        again, self.signal = self.signal is not None, number
        if again and os.environ.get("LOCAL_RANK", "0") == "0":
            print("stopping; the run is being saved", file=sys.stderr)
        elif not again and not self.waits:
            raise Interrupted

    @contextlib.contextmanager
    def deferred(self):
        """What is inside is finished first."""
        former, self.waits = self.waits, True
        try:
            yield
        finally:
            self.waits = former
