"""A main.py that takes no time: it keeps a run's folder as the true one does, and trains nothing.

It notes each epoch in <save_path>/epochs.txt. FAKE_SECONDS is what an epoch takes, FAKE_FAIL the loss whose run fails
in epoch 1, FAKE_DIVERGE the one whose run diverges there.
"""

import argparse
import json
import os
import signal
import sys
import time

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("save_path", "dataset", "group", "seed", "resume", "loss", "lr"):
    parser.add_argument(f"--{name}")
parser.add_argument("--n_epochs", type=int)
parser.add_argument("--evaluation_metrics", nargs="+")
opt, _ = parser.parse_known_args()
stopped = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: stopped.append(number))

folder = opt.resume or f"{opt.save_path}/{opt.dataset}/{opt.group}_s{opt.seed}"
rows = []
if os.path.exists(f"{folder}/metrics.csv"):
    with open(f"{folder}/metrics.csv") as file:
        rows = file.read().splitlines()[1:]
if not opt.resume:
    os.makedirs(folder)
    with open(f"{folder}/config.json", "w") as file:
        json.dump({"flags": {"loss": opt.loss}}, file)
for epoch in range(len(rows), opt.n_epochs + 1):
    time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
    if epoch == 1 and os.environ.get("FAKE_FAIL") == opt.loss:
        sys.exit("epoch 0\nerror: no space left, in step 3 of epoch 1\nbye")
    if epoch == 1 and os.environ.get("FAKE_DIVERGE") == opt.loss:
        with open(f"{folder}/diverged.json", "w") as file:
            json.dump({"reason": "the loss is not finite"}, file)
        sys.exit("error: the loss is not finite")
    with open(f"{opt.save_path}/epochs.txt", "a") as file:
        place = [os.environ.get(name, "-") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
        print(os.path.basename(folder), epoch, os.getpid(), *place, file=file)
    rows.append(",".join([str(epoch), *["0.5"] * len(opt.evaluation_metrics)]))
    with open(f"{folder}/metrics.new", "w") as file:
        print(",".join(["epoch", *(f"test/{metric}" for metric in opt.evaluation_metrics)]), *rows, sep="\n", file=file)
    os.replace(f"{folder}/metrics.new", f"{folder}/metrics.csv")
    if stopped:
        sys.exit(128 + stopped[0])
