"""The queue with a main.py and a report that take no time: python -m tests.fake_queue WORDS OF antico_runs.sh.

The fake main.py keeps a run's folder as the true one does and trains nothing. It notes each epoch in
<save_path>/epochs.txt. FAKE_SECONDS is what an epoch takes, FAKE_FAIL the loss whose run fails, FAKE_DIVERGE the one
whose run diverges.
"""

import contextlib
import json
import os
import signal
import sys
import time

import parameters
from utilities import folders
from utilities.files import write_whole

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FAKE = [sys.executable, "-c", f"import sys; sys.path.insert(0, {HERE!r}); from tests import fake_queue as f; f.{{}}()"]


def train():
    opt = parameters.parse(sys.argv[1:])
    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda n, _: stopped.append(n))
    folder, rows = opt.resume, []
    if folder:
        folders.lock(folder)
        with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, "checkpoint.pt")) as file:
            rows = json.load(file)
    else:
        folder = folders.claim(opt.save_path, opt.dataset, folders.run_name(opt.savename, opt.group, opt.seed))
    idle = parameters.without_effect(opt)
    flags = {name: value for name, value in vars(opt).items() if name not in ("wandb_key", "resume", "list", "given")}
    config = {"flags": {name: value for name, value in flags.items() if name not in idle}, "seed": opt.seed}
    config["without_effect"] = {name: value for name, value in flags.items() if name in idle}
    folders.write_config(folder, {**config, "commit": os.environ.get("FAKE_COMMIT"), "history": []})
    if rows:  # metrics.csv may be behind the checkpoint
        write(folder, opt, rows)
    for epoch in range(len(rows), opt.n_epochs + 1):
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
        if os.environ.get("FAKE_FAIL") == opt.loss and epoch == 1:
            sys.exit("epoch 0\nerror: the loss is not finite, in step 3 of epoch 1\nbye")
        if os.environ.get("FAKE_DIVERGE") == opt.loss and epoch == 1:
            folders.note_divergence(folder, "the loss is not finite, in step 7 of epoch 1")
            sys.exit("error: the loss is not finite, in step 7 of epoch 1. Last good checkpoint: epoch 0")
        with open(os.path.join(opt.save_path, "epochs.txt"), "a", encoding="utf-8") as file:
            place = (os.environ.get(name, "-") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"))
            file.write(f"{os.path.basename(folder)} {epoch} {' '.join(place)}\n")
        rows.append(epoch)
        write(folder, opt, rows)
        if stopped:
            sys.exit(128 + stopped[0])


def write(folder, opt, rows):
    """checkpoint.pt and metrics.csv of these epochs."""
    names = ["epoch", *(f"test/{metric}" for metric in opt.evaluation_metrics), "seconds"]
    lines = [",".join(names)] + [",".join([str(epoch)] + ["0.5"] * (len(names) - 1)) for epoch in rows]
    for name, text in (("checkpoint.pt", json.dumps(rows)), ("metrics.csv", "\n".join(lines) + "\n")):
        write_whole(os.path.join(folder, name), lambda file, text=text: file.write(text))


def report():
    """X.md with the runs that the report was given, a line each, and what failed."""
    words = sys.argv[1:]
    at = words.index("--out")
    failed = words[words.index("--failed") + 1 :] if "--failed" in words else []
    with open(f"{words[at + 1]}.md", "w", encoding="utf-8") as file:
        file.write("".join(f"{os.path.basename(run)}\n" for run in words[:at]))
        file.write("".join(f"Failed: {line}\n" for line in failed))


if __name__ == "__main__":
    from utilities.runs import __main__ as program
    from utilities.runs import plan

    plan.PROGRAM = [*FAKE[:2], FAKE[2].format("train")]
    true_command = program.report_command
    program.report_command = lambda *given: [*FAKE[:2], FAKE[2].format("report"), *true_command(*given)[3:]]
    sys.exit(program.main(sys.argv[1:]))
