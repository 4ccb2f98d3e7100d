"""Trains toy models with tms-kit: all models in one tensor, its own generator, loss and optimiser.

Its `optimize` is Adam without weight decay. Every model draws inputs of its own.
"""

from __future__ import annotations

import tms_kit.utils.device as devices
import torch
from tms_kit.data import IIDFeatureGenerator
from tms_kit.loss import ImportanceWeightedLoss
from tms_kit.model import Model
from tms_kit.optimize import optimize
from tms_kit.tms import TMS

from benchmarks.peers.protocol import Session, Task, answer


def prepare(task: Task) -> Session:
    """Build models that start from the task's weights."""
    devices.set_device(task.device)
    instances, m, n = task.W.shape
    tms = TMS()
    tms.model = Model(n, instances, m, device=task.device)
    with torch.no_grad():
        tms.model.W.copy_(task.W)
    density = task.density[:, None].expand(instances, n)
    tms.data_gen = IIDFeatureGenerator(n, instances, density)
    tms.loss_calc = ImportanceWeightedLoss(n, task.importance)

    def train(steps: int) -> None:
        optimize(tms, batch_size=task.batch, steps=steps, lr=task.lr, disable_tqdm=True)

    return Session(train, lambda: (tms.model.W, tms.model.b_final))


if __name__ == "__main__":
    answer("tms-kit", prepare)
