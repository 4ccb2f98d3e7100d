"""SAELens' own gated autoencoder, trained by our engine, and the way from it to ours.

Its GatedTrainingSAE computes the loss and autograd the gradients; what its SAETrainer does beside
that (clipping, autocast) is done here. The README lists what of this differs from the paper, and
`variants` takes the differences back one after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from shared.errors import UserError
from shared.saes.architecture import Architecture, Exported, Measured, SaeConfig
from shared.saes.geometric_median import geometric_median
from shared.training.engine import Job


class SaeLensGatedConfig(SaeConfig):
    """SAELens' gated autoencoder; the defaults are those of SAELens 6.54.12.

    Its loss is d_in times

        mean over inputs of [ (1/d_in) ‖x − x̂‖² + l1 Σ_j ReLU(π_gate)_j ‖W_dec,j‖
                              + (1/d_in) ‖x − x̂(ReLU(π_gate))‖² ]

    with no gradient stopped: where W_dec has unit rows, the unfrozen ablation of `Gated` at the
    same `l1`.
    """

    l1: float = Field(ge=0, allow_inf_nan=False)
    """λ."""
    init_norm: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Length of the decoder rows at the start, and of the encoder columns, which equal them."""
    unit_norm: bool = False
    """Whether to hold the decoder rows at unit length, as the paper does: gradients lose their
    component along them, and `init_norm` is the encoder's alone."""
    median_start: bool = False
    """Whether b_dec starts at the geometric median of the first batch, as ours, and not at zero."""
    clip: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The largest norm of the gradient of its loss; None for no limit."""

    def create(self, device: str = "cpu", matmul: torch.dtype = torch.float32) -> SaeLensGated:
        """Return an untrained autoencoder."""
        return SaeLensGated(self, device, matmul)


class SaeLensGated(Architecture):
    """A GatedTrainingSAE in training.

    The gradients are those that SAELens gives to Adam: of its loss, and clipped. What is reported
    (`Measured`, `losses`) is its loss over d_in, in the units of our other architectures.
    """

    per_feature = ("W_dec", "b_gate", "b_mag", "r_mag")

    def __init__(self, config: SaeLensGatedConfig, device: str, matmul: torch.dtype):
        from sae_lens import GatedTrainingSAE, GatedTrainingSAEConfig  # takes seconds

        self.config = config
        self.matmul = matmul
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.sae: Any = GatedTrainingSAE(
                GatedTrainingSAEConfig(
                    d_in=config.d_in, d_sae=config.d_sae, decoder_init_norm=config.init_norm
                )
            ).to(device)
        self.parameters = {name: tensor.data for name, tensor in self.sae.named_parameters()}
        self.constrain()

    def start(self, first: Float[Tensor, "batch d_in"]) -> None:
        """Set b_dec where `median_start` says so; in SAELens all biases start at zero."""
        if self.config.median_start:
            self.parameters["b_dec"].copy_(geometric_median(first))

    def _forward(self, x: Float[Tensor, "batch d_in"], penalty: float) -> Any:
        from sae_lens.saes.sae import TrainStepInput

        l1 = self.config.l1 * penalty * self.config.d_in
        with torch.autocast(x.device.type, torch.bfloat16, self.matmul == torch.bfloat16):
            return self.sae.training_forward_pass(
                TrainStepInput(
                    sae_in=x,
                    coefficients={"l1": l1},
                    dead_neuron_mask=None,
                    n_training_steps=0,
                    is_logging_step=False,
                )
            )

    def gradients(
        self, x: Float[Tensor, "batch d_in"], penalty: float = 1.0
    ) -> tuple[dict[str, Tensor], Measured]:
        """Return autograd's gradients of SAELens' loss, clipped, and its losses over d_in."""
        self.sae.zero_grad()
        out = self._forward(x, penalty)
        out.loss.backward()
        if self.config.unit_norm:
            rows, W_dec = self.parameters["W_dec"], self.sae.W_dec.grad
            W_dec.addcmul_(rows, torch.linalg.vecdot(W_dec, rows)[:, None], value=-1)
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.config.clip)
        active = out.feature_acts.detach() != 0
        scalars = {
            "loss": out.loss.detach() / self.config.d_in,
            "mse": out.losses["mse_loss"].detach() / self.config.d_in,
            "auxiliary": out.losses["auxiliary_reconstruction_loss"].detach() / self.config.d_in,
            "l0": active.sum() / len(x),
        }
        gradients = {name: tensor.grad for name, tensor in self.sae.named_parameters()}
        return gradients, Measured(scalars, fired=active.any(0))

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale the rows of W_dec to unit length if the configuration says so; SAELens does not."""
        if self.config.unit_norm:
            W_dec = self.parameters["W_dec"]
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))

    @torch.no_grad()
    def losses(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """Return the loss of every input."""
        return torch.vmap(lambda one: self._forward(one[None], 1.0).loss)(x) / self.config.d_in

    def resample(
        self,
        features: Int[Tensor, " dead"],
        inputs: Float[Tensor, "dead d_in"],
        alive: Int[Tensor, " alive"],
    ) -> None:
        """Raise UserError: SAELens does not resample."""
        raise UserError("SAELens does not resample: give the job of SaeLensGated resampling=None")

    def export(self) -> Exported:
        """Return the architecture "gated" of SAELens."""
        config = self.sae.cfg.get_inference_sae_cfg_dict() | {"device": "cpu"}
        del config["metadata"]
        tensors = {name: tensor.cpu().clone() for name, tensor in self.parameters.items()}
        return Exported(config, tensors)


def variants(ours: Job) -> dict[str, Job]:
    """Return SAELens as it ships and what lies between it and `ours`, by name, in order.

    Each differs from the one before in one thing, which its name says, unless `ours` has it as
    SAELens; the last trains as `ours` does without resampling.

    Args:
        ours: the job of a `Gated` autoencoder with `frozen_aux=False`.
    """
    sae = SaeLensGatedConfig(**ours.sae.model_dump(include={"d_in", "d_sae", "seed", "l1"}))
    shipped = ours.model_copy(
        update={
            "sae": sae,
            "betas": (0.9, 0.999),
            "lr_warmup": 0.0,
            "penalty_warmup": 0.0,
            "ema": None,
            "resampling": None,
        }
    )
    jobs = {"sae_lens_gated": shipped}
    for change, value in {
        "unit_norm": True,
        "init_norm": 1.0,
        "median_start": True,
        "clip": None,
        "betas": ours.betas,
        "lr_warmup": ours.lr_warmup,
        "penalty_warmup": ours.penalty_warmup,
        "ema": ours.ema,
    }.items():
        if change in SaeLensGatedConfig.model_fields:
            sae = sae.model_copy(update={change: value})
            changed = shipped.model_copy(update={"sae": sae})
        else:
            changed = shipped.model_copy(update={change: value})
        if changed != shipped:
            jobs[f"sae_lens_{change}"] = shipped = changed
    return {name: job.model_copy(update={"name": name}) for name, job in jobs.items()}
