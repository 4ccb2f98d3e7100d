"""Do sparse autoencoders find the features of a toy model?

No section of the paper: our addition. The model x' = ReLU(WᵀWx + b) holds n = 20 features of equal
importance in m = 8 dimensions, so that the true directions W_i are known. Standard, gated and TopK
autoencoders of SAELens are trained on its hidden activations h = Wx, at three densities and four
widths, and on a control without superposition: the same features along orthonormal directions.

Every autoencoder is SAELens' own module with its own loss (`training_forward_pass`). Autoencoders
of one shape are trained together: their parameters are stacked and the loss is mapped over them,
with the settings of SAELens' trainer (Adam, gradient norm clipped to 1, activations scaled to a
mean norm of sqrt(m)). Its dead-latent loss for TopK starts after 1,000 steps of silence, longer
than we train, and is therefore left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betainc
from torch import Tensor

from papers.toy_superposition.geometry import cosines, norms
from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.training import AdamW, Recipe, best, generator, score, train
from shared.errors import Diverged
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import FULL_WIDTH, PALETTE, panel_labels, subplots
from shared.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from sae_lens import TrainingSAE

Array = np.ndarray

N, M = 20, 8
DENSITIES = (0.2, 0.1, 0.05)
WIDTHS = (N // 2, N, 2 * N, 4 * N)
ARCHITECTURES = ("standard", "gated", "topk")
RECOVERED = 0.9  # cosine above which a latent counts as having found a feature
PRESENT = 0.5  # ‖W_i‖ above which the toy model represents a feature
CLIP = 1.0  # gradient norm, SAELens' trainer
DEAD_WINDOW = 1000  # steps of silence before SAELens' trainer calls a latent dead


class Parameters(Config):
    """What a profile sets."""

    toy: Recipe
    toy_batch: int
    restarts: int
    seeds: int
    sae: Recipe
    sae_batch: int
    l1_coefficients: tuple[float, ...]
    samples: int


class Data(NamedTuple):
    """Hidden activations h = scale · W x of toy models with inputs of their own densities."""

    W: Float[Tensor, "models m n"]
    density: Float[Tensor, " models"]
    scale: Float[Tensor, " models"]

    def draw(self, count: int, source: torch.Generator) -> Float[Tensor, "models count m"]:
        """Draw from the model's plain input distribution, empty inputs included."""
        models, _, n = self.W.shape
        noise = torch.rand(models, n, count, generator=source, device=source.device)
        x = (1 - noise / self.density[:, None, None]).relu_()
        return (self.scale[:, None, None] * (self.W @ x)).mT


def normalised(
    W: Float[Tensor, "models m n"], density: Float[Tensor, " models"], source: torch.Generator
) -> Data:
    """Scale activations to a mean norm of sqrt(m), as SAELens' trainer does."""
    raw = Data(W, density, torch.ones_like(density))
    mean_norm = raw.draw(2**14, source).norm(dim=-1).mean(1)
    return raw._replace(scale=W.shape[1] ** 0.5 / mean_norm)


class Autoencoders:
    """Autoencoders of one class and shape, their parameters stacked along a first dimension."""

    def __init__(self, architecture: str, m: int, width: int, k: int, count: int, seed: int):
        self._module = _Wrapped(_autoencoder(architecture, m, width, k))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            members = [_Wrapped(_autoencoder(architecture, m, width, k)) for _ in range(count)]
        self.parameters, _ = torch.func.stack_module_state(members)  # type: ignore[arg-type]

    def to(self, device: str) -> Autoencoders:
        """Move to a device."""
        self._module.to(device)
        self.parameters = {
            name: tensor.detach().to(device).requires_grad_()
            for name, tensor in self.parameters.items()
        }
        return self

    def _map(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        def call(parameters: dict[str, Tensor], *own: Tensor) -> tuple[Tensor, ...]:
            return torch.func.functional_call(self._module, parameters, own)

        with warnings.catch_warnings():
            # TopK scatters its activations; mapping that runs one by one, slower but the same.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.vmap(call)(self.parameters, *arguments)

    def losses(
        self, h: Float[Tensor, "count batch m"], l1: Float[Tensor, " count"]
    ) -> Float[Tensor, " count"]:
        """Return SAELens' training loss of each; `l1` is the sparsity coefficient, if it has one."""
        return self._map(h, l1)[0]

    @torch.no_grad()
    def apply(
        self, h: Float[Tensor, "count batch m"]
    ) -> tuple[Float[Tensor, "count batch width"], Float[Tensor, "count batch m"]]:
        """Return latents and reconstructions."""
        _, latents, output = self._map(h, torch.zeros(len(h), device=h.device))
        return latents, output


class _Wrapped(torch.nn.Module):
    """SAELens' training step as a forward pass, which is what can be called functionally."""

    def __init__(self, sae: TrainingSAE):
        super().__init__()
        self.sae = sae

    def forward(self, h: Tensor, l1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from sae_lens.saes.sae import TrainStepInput

        step = TrainStepInput(
            sae_in=h,
            coefficients={"l1": l1},  # type: ignore[dict-item]
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
        output = self.sae.training_forward_pass(step)
        return output.loss, output.feature_acts, output.sae_out


def _autoencoder(architecture: str, m: int, width: int, k: int) -> TrainingSAE:
    """Return a new autoencoder of SAELens, on the CPU."""
    import sae_lens  # seconds, and only this experiment needs it

    if architecture == "standard":
        return sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(m, width))
    if architecture == "gated":
        return sae_lens.GatedTrainingSAE(sae_lens.GatedTrainingSAEConfig(m, width))
    return sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(m, width, k=k))


def fit(
    autoencoders: Autoencoders,
    data: Data,
    l1: Float[Tensor, " count"],
    recipe: Recipe,
    batch: int,
    source: torch.Generator,
    label: str,
) -> None:
    """Train in place: equal shares of the autoencoders belong to each model of `data`, in order.

    The same as SAELens' trainer for each of them, fed the same activations.

    Raises:
        Diverged: a weight is not finite.
        ValueError: training is so long that SAELens' trainer would look at dead latents.
    """
    if recipe.steps > DEAD_WINDOW:
        raise ValueError(f"at most {DEAD_WINDOW} steps, got {recipe.steps}")
    tensors = list(autoencoders.parameters.values())
    share = len(l1) // len(data.W)
    optimizer = AdamW(tensors, recipe)
    with progress(label, recipe.steps) as advance:
        for _ in range(recipe.steps):
            h = data.draw(batch, source).repeat_interleave(share, dim=0)
            gradients = torch.autograd.grad(autoencoders.losses(h, l1).sum(), tensors)
            squared = sum(gradient.flatten(1).square().sum(1) for gradient in gradients)
            factor = (CLIP / (torch.as_tensor(squared).sqrt() + 1e-6)).clamp(max=1)
            with torch.no_grad():
                optimizer.step([(gradient.mT * factor).mT for gradient in gradients])
            advance(1)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise Diverged(f"{label}: weights are not finite after {recipe.steps} steps")
