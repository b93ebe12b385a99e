"""What a training step costs, in time and memory, with some flags of main.py. bash antico_runs.sh cost makes a table.

python -m benchmarks.cost FILE.json FLAGS...             measure, and write the file
python -m benchmarks.cost --table X FILE.json ...        X.md and X.csv of such files

A step is the whole one: images, network, loss, optimizer; nothing else may use the machine meanwhile. Milliseconds are
of the fastest of 5 turns of 10 steps, after one that does not count. Memory is the peak: on a GPU what torch allocates,
on a CPU (Linux) what the process grows by, the data set that is held in memory included.
"""

import csv
import io
import json
import os
import sys
import tempfile

from utilities import interrupts
from utilities.files import write_whole

TURNS, STEPS = 5, 10


def peak(start, cuda):
    """Start to measure the peak (True), or the MiB at the peak since; NaN where they cannot be read."""
    import torch

    from benchmarks.memory import resident

    if cuda:
        return torch.cuda.reset_peak_memory_stats() if start else torch.cuda.max_memory_allocated() / 2**20
    try:
        if not start:
            return resident("VmHWM")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew from here
        return resident("VmRSS")
    except OSError:
        return float("nan")


def measure(flags, turns=TURNS, steps=STEPS):
    """{"ms", "mib", "device"} of a training step with these flags of main.py."""
    import torch

    from benchmarks import training

    cuda = torch.cuda.is_available()
    before = peak(True, cuda) or 0
    with tempfile.TemporaryDirectory() as folder:
        run = training.build(folder, *flags, "--warmup", 0)  # in warm-up the network would not learn
        times = training.in_turns({"ours": training.ours(run, steps)}, turns, run.device)["ours"]
        with open(os.path.join(run.checkpoints.folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    ms, mib = 1e3 * min(times) / steps, peak(False, cuda) - before
    kept = {name: config[name] for name in ("flags", "without_effect", "commit", "machine")}
    return {"ms": ms, "mib": mib, "device": config["device"], "seconds": sum(times), **kept}


def table(out, paths):
    """Write X.md and X.csv of measured files, and print the first."""
    rows = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        flags, name = record["flags"], os.path.basename(path).rpartition("_s")[0]
        device = f"{record['device']}, {record['machine']}"
        rows.append([flags["dataset"], flags["arch"], name, f"{record['ms']:.1f}", f"{record['mib']:.0f}", device])
    head = ["data set", "network", "loss", "ms a step", "peak MiB", "device"]
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---", "---", "---", "---:", "---:", "---"], *rows]]
    text = "\n".join([*lines, "", "Fastest of 5 turns of 10 steps; see benchmarks/cost.py for what a peak is.", ""])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([head, *rows])
    write_whole(f"{out}.md", lambda file: file.write(text))
    write_whole(f"{out}.csv", lambda file: file.write(buffer.getvalue()))
    print(f"{text}\nwritten: {out}.md, {out}.csv")


def main(words):
    if len(words) > 2 and words[0] == "--table":
        table(words[1], words[2:])
    elif len(words) > 1 and words[0].endswith(".json"):
        interrupts.end_at_once()
        try:
            record = measure(words[1:])
        except (ValueError, OSError) as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 2
        write_whole(words[0], lambda file: json.dump(record, file, indent=2))
        print(f"{record['ms']:.1f} ms a step, {record['mib']:.0f} MiB; written: {words[0]}")
    else:
        print(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
