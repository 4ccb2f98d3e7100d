"""Trains autoencoders with dictionary-learning's `trainSAE` and its trainer of each architecture.

Its StandardTrainer follows Towards Monosemanticity, unit-norm decoder included; its GatedSAETrainer
has no momentum (β1 = 0); those of TopK and BatchTopK clip gradients. Warm-ups are off. It uses no
mixed precision on a CPU, whatever it is asked.
"""

from __future__ import annotations

from typing import Any

import torch
from dictionary_learning import AutoEncoder
from dictionary_learning.dictionary import GatedAutoEncoder
from dictionary_learning.trainers import (
    BatchTopKSAE,
    BatchTopKTrainer,
    GatedSAETrainer,
    StandardTrainer,
    TopKTrainer,
)
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.training import trainSAE
from torch import Tensor

from benchmarks.peers.sae_protocol import Clock, Task, Weights, read_batches, serve


class StartedTopK(TopKTrainer):
    """Its TopK trainer, which sets b_dec in step 0, without that step."""

    def update(self, step: int, x: Tensor) -> Any:
        """Do a step."""
        return super().update(step + 1, x)


class StartedBatchTopK(BatchTopKTrainer):
    """The same of BatchTopK."""

    def update(self, step: int, x: Tensor) -> Any:
        """Do a step."""
        return super().update(step + 1, x)


WITH_L1 = {"sparsity_warmup_steps": None}
KINDS = {
    "standard": (StandardTrainer, AutoEncoder, "l1_penalty", WITH_L1),
    "gated": (GatedSAETrainer, GatedAutoEncoder, "l1_penalty", WITH_L1),
    "topk": (StartedTopK, AutoEncoderTopK, "k", {}),
    "batchtopk": (StartedBatchTopK, BatchTopKSAE, "k", {}),
}
"""Of each architecture: trainer, autoencoder, what sets its sparsity, and further settings."""
OUR_NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
    "r_mag": "r_mag",
    "decoder.weight": "W_dec",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "b_dec": "b_dec",
}
"""By its names, over all of its autoencoders; both of its matrices are transposes of ours."""


def turned(tensor: Tensor) -> Tensor:
    """Return a matrix as the other side keeps it."""
    return tensor.T if tensor.ndim == 2 else tensor


def trainer(task: Task, weights: Weights, made: list[Any]) -> dict[str, Any]:
    """Return the trainer's configuration; the autoencoder that it makes is added to `made`."""
    kind, autoencoder, sparsity, further = KINDS[task.architecture]

    def create(*shape: int) -> Any:
        sae = autoencoder(*shape)
        for name, parameter in sae.named_parameters():
            # Contiguous, as after `from_pretrained`: its own initialisation leaves views.
            parameter.data = turned(weights[OUR_NAMES[name]]).contiguous()
        made.append(sae)
        return sae

    d_in, d_sae = weights["W_enc"].shape
    return {
        "trainer": kind,
        "steps": task.total,
        "activation_dim": d_in,
        "dict_size": d_sae,
        "layer": 0,
        "lm_name": "",
        "dict_class": create,
        "lr": task.lr,
        sparsity: task.sparsity,
        "warmup_steps": 0,
        "device": task.device,
        **further,
    }


def train(task: Task, weights: Weights) -> tuple[Weights, Clock]:
    """Train on the stored batches."""
    made: list[Any] = []
    clock = Clock(read_batches(task.batches), task.device)
    trainSAE(
        data=clock,
        trainer_configs=[trainer(task, weights, made)],
        steps=task.total,
        device=task.device,
        autocast_dtype=torch.bfloat16 if task.autocast else torch.float32,
    )
    trained = {OUR_NAMES[name]: turned(t) for name, t in made[0].named_parameters()}
    return trained, clock


if __name__ == "__main__":
    serve("dictionary-learning", train)
