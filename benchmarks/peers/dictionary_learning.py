"""Trains autoencoders with dictionary-learning's `trainSAE` and its trainer of each architecture.

Its StandardTrainer follows Towards Monosemanticity, unit-norm decoder included. Warm-ups are off.
It uses no mixed precision on a CPU, whatever it is asked.
"""

from __future__ import annotations

from typing import Any

import torch
from dictionary_learning import AutoEncoder
from dictionary_learning.trainers import StandardTrainer
from dictionary_learning.training import trainSAE

from benchmarks.peers.sae_protocol import Clock, Task, Weights, read_batches, serve


def standard(task: Task, weights: Weights, made: list[Any]) -> dict[str, Any]:
    """Return the trainer's configuration; the autoencoder that it makes is added to `made`."""

    def create(d_in: int, d_sae: int) -> AutoEncoder:
        sae = AutoEncoder(d_in, d_sae)
        # Contiguous, as after `from_pretrained`: its own initialisation leaves a transposed view.
        sae.encoder.weight = torch.nn.Parameter(weights["W_enc"].T.contiguous())
        sae.decoder.weight = torch.nn.Parameter(weights["W_dec"].T.contiguous())
        with torch.no_grad():
            sae.encoder.bias.copy_(weights["b_enc"])
            sae.bias.copy_(weights["b_dec"])
        made.append(sae)
        return sae

    d_in, d_sae = weights["W_enc"].shape
    return {
        "trainer": StandardTrainer,
        "steps": task.total,
        "activation_dim": d_in,
        "dict_size": d_sae,
        "layer": 0,
        "lm_name": "",
        "dict_class": create,
        "lr": task.lr,
        "l1_penalty": task.sparsity,
        "warmup_steps": 0,
        "sparsity_warmup_steps": None,
        "device": task.device,
    }


TRAINERS = {"standard": standard}


def train(task: Task, weights: Weights) -> tuple[Weights, Clock]:
    """Train on the stored batches."""
    made: list[Any] = []
    clock = Clock(read_batches(task.batches), task.device)
    trainSAE(
        data=clock,
        trainer_configs=[TRAINERS[task.architecture](task, weights, made)],
        steps=task.total,
        device=task.device,
        autocast_dtype=torch.bfloat16 if task.autocast else torch.float32,
    )
    sae = made[0]
    trained = {
        "W_enc": sae.encoder.weight.T,
        "b_enc": sae.encoder.bias,
        "W_dec": sae.decoder.weight.T,
        "b_dec": sae.bias,
    }
    return trained, clock


if __name__ == "__main__":
    serve("dictionary-learning", train)
