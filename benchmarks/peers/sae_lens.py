"""Trains autoencoders with SAELens' `SAETrainer`, on stored activations or on its own stream.

It leaves decoder norms free instead of fixing them at 1, and weights activations by them in L1
terms and in the choice of the k largest; it clips gradients. Its learning rate is constant here,
its default. Logging and checkpoints are off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.peers.sae_protocol import Clock, Task, Weights, read_batches, serve

SPARSITY = {"standard": "l1_coefficient", "gated": "l1_coefficient", "topk": "k", "batchtopk": "k"}
"""What each architecture calls λ, or the number of active features."""


def create(task: Task, weights: Weights) -> TrainingSAE:
    """Return an autoencoder of the task's architecture with these weights."""
    kind, config = get_sae_training_class(task.architecture)
    d_in, d_sae = weights["W_enc"].shape
    sae = kind(
        config(
            d_in=d_in,
            d_sae=d_sae,
            device=task.device,
            apply_b_dec_to_input=True,
            normalize_activations="none",
            **{SPARSITY[task.architecture]: task.sparsity},
        )
    )
    sae.load_state_dict({**sae.state_dict(), **weights})  # BatchTopK has a threshold besides
    return sae


def language_model_activations(task: Task) -> Iterator[Tensor]:
    """Return the stream of its ActivationsStore over the task's model, a GPT-2 with one layer."""
    from datasets import Dataset
    from sae_lens.training.activations_store import ActivationsStore
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import GPT2LMHeadModel

    settings = json.loads((Path(task.model) / "config.json").read_text())
    config = HookedTransformerConfig(
        n_layers=settings["n_layer"],
        d_model=settings["n_embd"],
        n_heads=settings["n_head"],
        d_head=settings["n_embd"] // settings["n_head"],
        d_mlp=settings["n_inner"],
        n_ctx=settings["n_positions"],
        d_vocab=settings["vocab_size"],
        act_fn=settings["activation_function"],
        normalization_type="LN",
        eps=settings["layer_norm_epsilon"],
        device=task.device,
    )
    original = GPT2LMHeadModel.from_pretrained(task.model, dtype=torch.float32)
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(original, config), strict=False)
    tokens = np.load(task.tokens)
    d_in = {"mlp.hook_post": config.d_mlp}.get(task.hook.split(".", 2)[2], config.d_model)
    return ActivationsStore(
        model=model,
        dataset=Dataset.from_dict({"input_ids": tokens.astype(np.int64)}),
        streaming=False,
        hook_name=task.hook,
        hook_head_index=None,
        context_size=tokens.shape[1],
        d_in=d_in,
        n_batches_in_buffer=20,  # this and the next are the defaults of its runner
        store_batch_size_prompts=32,
        total_training_tokens=task.total * task.batch,
        train_batch_size_tokens=task.batch,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device(task.device),
        dtype="float32",
        autocast_lm=task.autocast,
        seqpos_slice=(1, None),
    )


def train(task: Task, weights: Weights) -> tuple[Weights, Clock]:
    """Train on the stored batches, or on the language model's activations."""
    batches = language_model_activations(task) if task.model else read_batches(task.batches)
    clock = Clock(batches, task.device)
    config = SAETrainerConfig(
        total_training_samples=task.total * task.batch,
        train_batch_size_samples=task.batch,
        lr=task.lr,
        lr_end=task.lr / 10,  # asked for, and without effect at a constant rate
        device=task.device,
        autocast=task.autocast,
    )
    sae = SAETrainer(config, create(task, weights), clock).fit()
    return {name: getattr(sae, name) for name in weights}, clock


if __name__ == "__main__":
    serve("sae-lens", train)
