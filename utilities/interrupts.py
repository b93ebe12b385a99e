"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (Slurm's warning): the step is finished, the run saved, and then it ends."""

import contextlib
import os
import signal
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """A signal that arrived where the run can stop at once; no Exception, so that nothing on the way catches it."""

    def __init__(self, number=signal.SIGTERM):
        super().__init__(number)
        self.number, self.name, self.status = number, signal.Signals(number).name, 128 + number  # as shells have it


def first_of_machine():
    return os.environ.get("LOCAL_RANK", "0") == "0"  # torchrun tells all its processes


def end_at_once():
    """Until `Interrupts` is there, a signal ends the process with one line: imports take seconds."""

    def leave(number, _):
        if first_of_machine():
            os.write(2, f"stopped by {signal.Signals(number).name}; no run was under way\n".encode())
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, leave)


def ignore(*_):
    """For worker processes: Ctrl-C reaches them as well, and the main process still needs their batch.

    It is also the one that tells what went wrong: a worker whose main process is gone would print a traceback.
    """
    sys.excepthook = lambda *_: None
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # SIGTERM of a whole process group is to be ignored, that of its end is not
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_with_main_process, daemon=True).start()


def end_with_main_process():
    """End this worker when its main process sends SIGTERM, as multiprocessing does at the end of a program."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Interrupts:
    """Signals raise `Interrupted`, but inside `deferred()` only set `.signal`. Used as a context manager."""

    def __init__(self):
        self.signal, self.waits, self.process = None, False, os.getpid()

    def __enter__(self):
        self.former = {number: signal.signal(number, self.handle) for number in SIGNALS}
        self.former_hook, sys.unraisablehook = sys.unraisablehook, self.unraisable
        return self

    def __exit__(self, *_):
        for number, handler in self.former.items():
            signal.signal(number, handler)
        sys.unraisablehook = self.former_hook

    def unraisable(self, problem):
        """What cannot be raised, in a __del__, is printed; but `Interrupted`, which has set `.signal` by then."""
        if problem.exc_type is not Interrupted:
            self.former_hook(problem)

    def handle(self, number, _):
        if os.getpid() != self.process:  # a data worker: Ctrl-C reaches it as well, the main process will end it
            return
        again, self.signal = self.signal is not None, number
        if again and first_of_machine():
            os.write(2, b"stopping; the run is being saved\n")  # print may be at work already
        elif not again and not self.waits:
            raise Interrupted(number)

    def stop(self):
        """Raise `Interrupted`: this process was told to stop, or another one of the same run, which then tells all."""
        if self.signal is None:
            self.signal = signal.SIGTERM  # this process's own may still be on its way
        raise Interrupted(self.signal)

    @contextlib.contextmanager
    def deferred(self, waits=True):
        """Within it a signal only sets `.signal`, at which the run looks where it can stop."""
        former, self.waits = self.waits, waits
        try:
            yield
        finally:
            self.waits = former

    @contextlib.contextmanager
    def at_once(self):
        """Within it, though `deferred` is around it, a signal stops what is under way."""
        with self.deferred(False):
            if self.signal is not None:
                self.stop()
            yield
