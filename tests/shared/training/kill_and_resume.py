"""Kill a training run at random moments until it has been killed often enough; compare its weights.

Run by test_checkpoint.py in a process of its own, which imports torch once and forks the runs.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from shared.saes.standard import StandardConfig
from shared.training.checkpoint import Checkpoint
from shared.training.engine import Job, train
from shared.training.resampling import Resampling

STEPS = 40
JOBS = [
    Job(
        name=name,
        sae=StandardConfig(d_in=12, d_sae=d_sae, l1=0.1, seed=seed),
        lr=1e-2,
        dead_window=0.05,
        resampling=Resampling(at=(0.2, 0.5), inputs=200),
    )
    for seed, (name, d_sae) in enumerate({"narrow": 16, "wide": 48}.items())
]


def batches(start):
    for number in range(start, STEPS):
        yield torch.rand(64, 12, generator=torch.Generator().manual_seed(number))


def run(folder):
    """Train, and write the weights once all is done."""
    checkpoint = Checkpoint(path=folder / "run.safetensors", every_steps=1)
    trained = train(JOBS, batches, STEPS, record_every=7, checkpoint=checkpoint)
    tensors = {f"{n}.{k}": t for n, r in trained.items() for k, t in r.sae.parameters.items()}
    history = {
        f"{n}.{k}": torch.from_numpy(v) for n, r in trained.items() for k, v in r.history.items()
    }
    save_file(tensors | history, folder / "weights.safetensors")


def forked(folder):
    """Start `run` in a child; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        run(folder)
        os._exit(0)
    finally:
        os._exit(1)


def main(folder, kills):
    torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
    whole = folder / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert os.waitpid(forked(whole), 0)[1] == 0
    took = time.monotonic() - began
    chance = random.Random(0)
    killed, attempt = 0, 0
    while killed < kills:
        attempt += 1
        interrupted = folder / f"interrupted{attempt}"
        interrupted.mkdir()
        while True:
            child = forked(interrupted)
            if killed < kills:
                time.sleep(chance.uniform(0, took / 2))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if not os.WIFSIGNALED(status):
                assert status == 0
                break
            killed += 1
        one, other = (f / "weights.safetensors" for f in (whole, interrupted))
        assert one.read_bytes() == other.read_bytes()
    print(f"{killed} kills, same bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
