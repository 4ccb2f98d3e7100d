"""Trains toy models with occhio's ModelGrid: models stacked, the loss mapped over them.

Models of one density share their inputs, as with us (its `cache_samples`, on by default). Its
AdamW is given no weight decay. It is not compiled, which is its default.
"""

from __future__ import annotations

from typing import Any

import torch
from occhio.autoencoder import TiedLinearRelu
from occhio.distributions.sparse import SparseUniform
from occhio.model_grid import Axis, ModelGrid
from occhio.toy_model import ToyModel

from benchmarks.peers.protocol import Session, Task, answer


def prepare(task: Task) -> Session:
    """Build models that start from the task's weights."""
    instances, m, n = task.W.shape

    def create(params: dict[str, Any]) -> ToyModel:
        index = int(params["model"])
        generator = torch.Generator(task.device).manual_seed(0)
        autoencoder = TiedLinearRelu(n, m, generator=generator)
        with torch.no_grad():
            autoencoder.W.copy_(task.W[index])
        inputs = SparseUniform(
            n,
            float(task.density[index]),
            generator=torch.Generator(task.device).manual_seed(1),
        )
        return ToyModel(inputs, autoencoder, importances=task.importance)

    grid = ModelGrid(create, [Axis("model", torch.arange(instances))])

    def train(steps: int) -> None:
        grid.fit(steps, batch_size=task.batch, learning_rate=task.lr, weight_decay=0.0)

    def weights() -> tuple[torch.Tensor, torch.Tensor]:
        trained = [model.ae for model in grid.models.ravel()]
        return torch.stack([ae.W for ae in trained]), torch.stack([ae.b for ae in trained])

    return Session(train, weights)


if __name__ == "__main__":
    answer("occhio", prepare)
