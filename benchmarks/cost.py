"""What a training step costs, in time and memory, with some flags of main.py. bash antico_runs.sh cost makes a table.

python -m benchmarks.cost FILE.json FLAGS...             measure, and write the file
python -m benchmarks.cost --table X FILE.json ...        X.md, X.csv and X.tex of such files

A step is the whole one: images, network, loss, optimizer; nothing else may use the machine meanwhile. Milliseconds are
of the fastest of 5 turns of 10 steps, after one that does not count. Memory is the peak: on a GPU what torch allocates,
on a CPU (Linux) what the process grows by, the data set that is held in memory included. How long the process waited
for a CPU that others used is in the table: a time from a busy machine is too long.
"""

import json
import sys
import tempfile
import time

from utilities import interrupts
from utilities.command_line import one_line_errors
from utilities.files import write_whole
from utilities.folders import all_flags, read_config

TURNS, STEPS = 5, 10
BUSY = 5  # percent of the time without a CPU, from which a time is said to be too long
WAITED = "waited, %"
SETTING = ("data set", "network", "dimensions", "batch", "pixels", "device")  # columns
NOT_TRAINING = ("kernels", "grad_cache", "cache")  # flags that change no number of a run, but what a step costs


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


def waited():
    """Seconds that this thread was ready and had no CPU, NaN where the system does not say (Linux does)."""
    try:
        with open("/proc/self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return float("nan")


def measure(flags, turns=TURNS, steps=STEPS):
    """{"ms", "mib", "waited", "device", ...} of a training step with these flags of main.py."""
    import torch

    from benchmarks import training

    cuda = torch.cuda.is_available()
    before = peak(True, cuda) or 0
    with tempfile.TemporaryDirectory() as folder:
        run = training.build(folder, *flags, "--warmup", 0)  # in warm-up the network would not learn
        start, idle = time.monotonic(), waited()
        times = training.in_turns({"ours": training.ours(run, steps)}, turns, run.device)["ours"]
        share = (waited() - idle) / (time.monotonic() - start)
        config = read_config(run.checkpoints.folder)
    ms, mib = 1e3 * min(times) / steps, peak(False, cuda) - before
    kept = {name: config[name] for name in ("flags", "without_effect", "data", "device", "commit", "machine")}
    return {"ms": ms, "mib": mib, "waited": share, "seconds": sum(times), **kept}


# --- the table ---


def load(path):
    """A file of `measure`. ValueError, one line, where it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        float(record["ms"]), float(record["mib"]), record["flags"]["loss"], record["device"], record["machine"]
        return record
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path}: damaged ({type(problem).__name__}); move it away and measure it anew") from problem


def labelled(records):
    """[(Row, record), ...] in the order of the report, a loss called as in its tables."""
    from utilities.report import collect
    from utilities.report import rows as names

    groups = {}
    for record in records:
        every = all_flags(record)
        flags = collect.acting_flags(record, every) | {name: every.get(name) for name in NOT_TRAINING}
        row = names.Row(flags, [record], [], names.head_of(flags))
        groups.setdefault((every["dataset"], flags["arch"]), []).append(row)
    for group in groups.values():
        for row in names.in_order(group):
            row.label = names.label_of(row, group, without=("embed_dim", "bs"))
            yield row, row.runs[0]


def lines_of(records):
    """[{column: text}, ...] of the table."""
    lines = []
    for row, record in labelled(records):
        flags, waited_for, size = all_flags(record), record.get("waited"), (record.get("data") or {}).get("input_size")
        line = {"data set": flags["dataset"], "network": flags["arch"], "loss": row.label}
        line |= {"dimensions": flags["embed_dim"], "batch": flags["bs"], "pixels": size or "-"}
        line |= {"ms a step": f"{record['ms']:.1f}", "peak MiB": f"{record['mib']:.0f}"}
        line[WAITED] = "-" if waited_for is None else f"{100 * waited_for:.0f}"
        line["device"] = f"{record['device']}, {record['machine']}"
        lines.append({name: str(value) for name, value in line.items()})
    return lines


def caption(lines, alike):
    """What the numbers are; `alike`: the columns with one value in all lines, which is said here."""
    same = [f"{name} {lines[0][name]}" if lines[0][name].isdigit() else lines[0][name] for name in alike]
    parts = [", ".join(same)] if same else []
    parts.append(f"A step is the whole one; the fastest of {TURNS} turns of {STEPS} steps. Peak: what memory grows by")
    parts.append("Waited: share of the time in which the process was ready and other programs had the CPU")
    busy = sum(line[WAITED].isdigit() and int(line[WAITED]) > BUSY for line in lines)
    if busy:
        parts.append(
            f"{busy} of {len(lines)} rows waited more than {BUSY}%, their steps are too long: move their files away "
            "and measure them anew on a quiet machine"
        )
    return ". ".join(parts) + "."


def table(out, paths, failed=()):
    """Write X.md, X.csv and X.tex of measured files, with lines on what failed, and print the first."""
    from utilities.report import formats

    lines = lines_of([load(path) for path in paths])
    alike = [name for name in SETTING if len({line[name] for line in lines}) == 1]
    note, head = caption(lines, alike), [name for name in lines[0] if name not in alike]
    body, words = [[line[name] for name in head] for line in lines], head.index("loss") + 1
    tex = [r"% needs \usepackage{booktabs}; written by python -m benchmarks.cost", formats.FIT_OR_NOT]
    tex += [r"\begin{table}", r"\centering\small", rf"\caption{{{formats.tex(note)}}}"]
    tex += formats.tabular(head, [[(cell, False) for cell in line] for line in body], words)
    tex += [r"\end{table}", *(formats.comment(f"failed: {line}") for line in failed)]
    below = "\n**Failed:**\n\n" + "".join(f"- {line}\n" for line in failed) if failed else ""
    texts = {
        "md": f"{formats.pipes(head, body, words)}\n\n{note}\n{below}",
        "csv": formats.csv_text(list(lines[0]), lines),
        "tex": "\n".join(tex) + "\n",
    }
    for suffix, text in texts.items():
        write_whole(f"{out}.{suffix}", lambda file, text=text: file.write(text))
    print(f"{texts['md']}\nwritten: {', '.join(f'{out}.{suffix}' for suffix in texts)}")


@one_line_errors
def main(words):
    if len(words) > 2 and words[0] == "--table":
        end = words.index("--failed") if "--failed" in words else len(words)
        table(words[1], words[2:end], words[end + 1 :])
    elif len(words) > 1 and words[0].endswith(".json"):
        interrupts.end_at_once()
        record = measure(words[1:])
        write_whole(words[0], lambda file: json.dump(record, file, indent=2))
        print(f"{record['ms']:.1f} ms a step, {record['mib']:.0f} MiB; written: {words[0]}")
    else:
        print(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
