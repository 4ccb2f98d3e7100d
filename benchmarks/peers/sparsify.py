"""Trains autoencoders with eai-sparsify's `Trainer`, whatever its model: it has TopK only.

Its trainer reads a language model through hooks. Here that model hands out the stored batches. Its
Adam is asked for, the same optimiser as everyone's; its loss is the fraction of variance
unexplained, so that only times compare.
"""

from __future__ import annotations

import os
import tempfile
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.peers.sae_protocol import Clock, Task, Weights, read_batches, serve

if not torch.cuda.is_available():
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernel takes tensors on a GPU only

from sparsify import SparseCoderConfig, TrainConfig, Trainer


class Source(torch.nn.Module):
    """What the trainer takes for a language model: `site` outputs the next batch."""

    def __init__(self, clock: Clock, d_in: int, device: str):
        super().__init__()
        self.site = torch.nn.Identity()
        self.clock, self.d_in = clock, d_in
        self.device = torch.device(device)

    @property
    def base_model(self) -> Source:
        """The module in which sites are looked up."""
        return self

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """What the trainer feeds once to learn the width of a site."""
        return {"input_ids": torch.zeros(1, 1, dtype=torch.int64, device=self.device)}

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Pass the next batch, or for dummy inputs zeros, through the site."""
        if input_ids.numel() == 1:
            return SimpleNamespace(logits=self.site(torch.zeros(1, 1, self.d_in)))
        x = next(self.clock).to(self.device)
        return SimpleNamespace(logits=self.site(x.view(*input_ids.shape, self.d_in)))


def train(task: Task, weights: Weights) -> tuple[Weights, Clock]:
    """Train a TopK autoencoder on the stored batches."""
    if task.architecture != "topk":
        raise ValueError(f"eai-sparsify trains topk, and no {task.architecture}")
    d_in, d_sae = weights["W_enc"].shape
    clock = Clock(read_batches(task.batches), task.device)
    context = {"input_ids": torch.ones(task.batch, dtype=torch.int64)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            TrainConfig(
                SparseCoderConfig(num_latents=d_sae, k=task.active),
                batch_size=1,  # in contexts
                optimizer="adam",
                lr=task.lr,
                lr_warmup_steps=0,
                hookpoints=["site"],
                log_to_wandb=False,
                save_dir=folder,
            ),
            [context] * task.total,
            Source(clock, d_in, task.device),
        )
        (sae,) = trainer.saes.values()
        with torch.no_grad():
            sae.encoder.weight.copy_(weights["W_enc"].T)
            if "b_enc" in weights:  # a gated autoencoder has none
                sae.encoder.bias.copy_(weights["b_enc"])
            sae.W_dec.copy_(weights["W_dec"])
        trainer.fit()
    trained = {
        "W_enc": sae.encoder.weight.T,
        "b_enc": sae.encoder.bias,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    return trained, clock


if __name__ == "__main__":
    serve("eai-sparsify", train)
