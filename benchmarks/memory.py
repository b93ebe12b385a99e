"""Peak memory of a function, in a process whose memory nothing else has filled."""

import multiprocessing

import torch


def in_a_process_of_its_own(prepare, device):
    """MiB that prepare(device)() takes at its peak beyond what prepare(device) left.

    None where it cannot be read (CPU: Linux only). `prepare` is a function of a module: a fresh process imports it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(theirs, prepare, device))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        process.join()


def measure(connection, prepare, device):
    run = prepare(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        connection.send((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew from here
    before = resident("VmRSS")
    run()
    connection.send(resident("VmHWM") - before)


def resident(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(what))
