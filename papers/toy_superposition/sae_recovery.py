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
from scipy.special import betainc, stdtrit
from torch import Tensor

from papers.toy_superposition.geometry import cosines, norms
from papers.toy_superposition.inputs import SparseUniform
from papers.toy_superposition.models import Architecture, create
from papers.toy_superposition.training import AdamW, Recipe, best, generator, score, train
from shared.errors import Diverged
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import PALETTE, subplots
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

    def __init__(
        self, architecture: str, m: int, width: int, k: int, count: int, seed: int, device: str
    ):
        with torch.random.fork_rng(devices=[]):  # SAELens draws from the global generator
            torch.manual_seed(seed)
            members = [Step(autoencoder(architecture, m, width, k)) for _ in range(count)]
        self.parameters = {
            name: torch.stack([member.get_parameter(name).detach() for member in members])
            .to(device)
            .requires_grad_()
            for name, _ in members[0].named_parameters()
        }
        self._step = members[0].to(device)

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def _map(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        def call(parameters: dict[str, Tensor], *own: Tensor) -> tuple[Tensor, ...]:
            return torch.func.functional_call(self._step, parameters, own)

        with warnings.catch_warnings():
            # TopK scatters its activations; mapping that runs one by one, slower but the same.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.vmap(call)(self.parameters, *arguments)

    def losses(
        self, h: Float[Tensor, "count batch m"], l1: Float[Tensor, " count"]
    ) -> Float[Tensor, " count"]:
        """Return SAELens' training loss of each; TopK has no use for the coefficient `l1`."""
        return self._map(h, l1)[0]

    @torch.no_grad()
    def apply(
        self, h: Float[Tensor, "count batch m"]
    ) -> tuple[Float[Tensor, "count batch width"], Float[Tensor, "count batch m"]]:
        """Return latents and reconstructions."""
        _, latents, output = self._map(h, torch.zeros(len(h), device=h.device))
        return latents, output


class Step(torch.nn.Module):
    """SAELens' training step as a forward pass, which is what can be called functionally."""

    def __init__(self, sae: TrainingSAE):
        super().__init__()
        self.sae = sae

    def forward(
        self, h: Float[Tensor, "batch m"], l1: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch width"], Float[Tensor, "batch m"]]:
        """Return the loss, the latents and the reconstruction."""
        from sae_lens.saes.sae import TrainStepInput

        step = TrainStepInput(
            sae_in=h,
            coefficients={"l1": l1},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
        output = self.sae.training_forward_pass(step)
        return output.loss, output.feature_acts, output.sae_out


def autoencoder(architecture: str, m: int, width: int, k: int) -> TrainingSAE:
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
                optimizer.step([torch.einsum("c...,c->c...", g, factor) for g in gradients])
            advance(1)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise Diverged(f"{label}: weights are not finite after {recipe.steps} steps")


def measure(
    autoencoders: Autoencoders, data: Data, samples: int, source: torch.Generator
) -> tuple[Float[Tensor, "count width"], Float[Tensor, " count"], Float[Tensor, " count"]]:
    """Return, on fresh inputs, how often latents fire, how many do, and unexplained variance."""
    h = data.draw(samples, source)
    h = h.repeat_interleave(len(autoencoders) // len(h), dim=0)
    latents, output = autoencoders.apply(h)
    fires = (latents > 0).float().mean(1)
    residual = (output - h).square().sum((1, 2))
    total = (h - h.mean(1, keepdim=True)).square().sum((1, 2))
    return fires, fires.sum(1), residual / total


def recover(
    architecture: str,
    width: int,
    W: Float[Tensor, "densities seeds m n"],
    config: Parameters,
    run: Run,
) -> Arrays:
    """Train autoencoders of one architecture and width on every toy model.

    The L1 coefficient of a toy model is the one of `l1_coefficients` whose mean number of active
    latents on the validation inputs is closest, in ratio, to the mean number of active features;
    TopK's k is that number. Latents are scored on test inputs.
    """
    densities, seeds, m, n = W.shape
    expected = torch.tensor(DENSITIES) * n
    candidates = torch.tensor(config.l1_coefficients if architecture != "topk" else (0.0,))
    chosen: dict[str, list[Array]] = {}
    # k is part of a TopK autoencoder's shape: one density at a time.
    together = 1 if architecture == "topk" else densities
    for first in range(0, densities, together):
        part = slice(first, first + together)
        label = f"{architecture} of width {width}"
        density = torch.tensor(DENSITIES)[part].repeat_interleave(seeds).to(run.device)
        stream = 10 + ARCHITECTURES.index(architecture) + 10 * width + 1000 * first
        source = generator(run.seed, stream, run.device)
        data = normalised(W[part].flatten(0, 1), density, source)
        l1 = candidates.repeat(together * seeds).to(run.device)
        k, seed = round(float(expected[first])), stream + run.seed * 10**6
        autoencoders = Autoencoders(architecture, m, width, k, len(l1), seed, run.device)
        fit(autoencoders, data, l1, config.sae, config.sae_batch, source, label)

        _, active, _ = measure(autoencoders, data, config.samples, source)
        validation = active.view(together, seeds, -1)
        ratio = validation.clamp(min=1e-6) / expected[part, None, None].to(run.device)
        choice = ratio.log().abs().argmin(-1)
        fires, active, unexplained = measure(autoencoders, data, config.samples, source)
        index = (torch.arange(together * seeds) * len(candidates)).to(run.device) + choice.flatten()
        found = {
            "decoder": autoencoders.parameters["sae.W_dec"].detach(),
            "fires": fires,
            "active": active,
            "unexplained": unexplained,
            "l1": l1,
        }
        for name, values in found.items():
            kept = values[index].view(together, seeds, *values.shape[1:])
            chosen.setdefault(name, []).append(kept.cpu().numpy())
        chosen.setdefault("validation_active", []).append(validation.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in chosen.items()}


def run(config: Parameters, run: Run) -> Arrays:
    """Train the toy models, keep the best `seeds` of `restarts`, and the autoencoders on them."""
    inputs = SparseUniform(torch.tensor(DENSITIES), N, config.toy_batch)
    source = generator(run.seed, 0, run.device)
    start = create(Architecture(), len(DENSITIES) * config.restarts, N, M, source)
    toys = train(start, inputs, config.toy, run.seed, "toy models")
    winners = best(score(toys, inputs, 50, run.seed, stream=2), len(DENSITIES), config.seeds)
    W = toys.W[winners].view(len(DENSITIES), config.seeds, M, N)
    square = torch.randn(len(DENSITIES), config.seeds, N, N, generator=source, device=run.device)
    orthonormal = torch.linalg.qr(square).Q
    arrays = {"W": W.cpu().numpy(), "orthonormal": orthonormal.cpu().numpy()}
    for architecture in ARCHITECTURES:
        runs = {f"{architecture}_{width}": (width, W) for width in WIDTHS}
        runs[f"{architecture}_orthonormal"] = (N, orthonormal)
        for name, (width, features) in runs.items():
            found = recover(architecture, width, features, config, run)
            arrays |= {f"{name}_{key}": value for key, value in found.items()}
    return arrays


def random_cosine(count: int, m: int) -> tuple[float, float]:
    """What `count` random unit vectors in m dimensions do for one direction, in closed form.

    Their cosines c are independent with (1 + c)/2 ~ Beta((m-1)/2, (m-1)/2). Returns the mean of
    the largest, and the probability that it exceeds RECOVERED.
    """
    c = np.linspace(-1, 1, 20_001)
    below = betainc((m - 1) / 2, (m - 1) / 2, (1 + c) / 2) ** count
    mean = 1 - np.trapezoid(below, c)
    return float(mean), float(1 - np.interp(RECOVERED, c, below))


def measures(
    decoder: Float[Array, "*sets width m"],
    fires: Float[Array, "*sets width"],
    W: Float[Array, "*sets m n"],
) -> dict[str, Float[Array, "*sets"]]:
    """Compare latents with the true directions; a latent that never fires finds nothing."""
    unit = decoder / np.linalg.norm(decoder, axis=-1, keepdims=True).clip(1e-12)
    cosine = unit.astype(np.float64) @ (W / norms(W)[..., None, :].clip(1e-12))
    cosine = np.where(fires[..., None] > 0, cosine, -1.0)
    latents = (cosine > RECOVERED).sum(-2)
    return {
        "mean_max_cosine": cosine.max(-2).mean(-1),
        "recovered": (latents > 0).mean(-1),
        "split": (latents > 1).mean(-1),
        "dead": (fires == 0).mean(-1),
        "active": fires.sum(-1),
    }


MEASURES = ("mean_max_cosine", "recovered", "split", "dead", "active")
SPARSITIES = tuple(f"p{100 * density:.0f}" for density in DENSITIES)
RATIOS = ("half", "equal", "double", "quadruple")


def interval(values: Float[Array, "*sets seeds"]) -> Float[Array, "*sets 3"]:
    """Return the mean over seeds and its 95% confidence interval (Student t)."""
    seeds = values.shape[-1]
    mean = values.mean(-1)
    error = values.std(-1, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.zeros_like(mean)
    half = stdtrit(max(seeds - 1, 1), 0.975) * error
    return np.stack([mean, mean - half, mean + half], axis=-1)


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Measure recovery per architecture, density and width, as lists over seeds."""

    def measured(name: str, W: Array) -> dict[str, Array]:
        return measures(arrays[f"{name}_decoder"], arrays[f"{name}_fires"], W)

    W = arrays["W"]
    tables: dict[str, dict[str, Array]] = {}  # [density, width, seed]
    control: dict[str, dict[str, Array]] = {}  # [density, seed]
    for architecture in ARCHITECTURES:
        runs = [measured(f"{architecture}_{width}", W) for width in WIDTHS]
        tables[architecture] = {key: np.stack([r[key] for r in runs], axis=1) for key in MEASURES}
        control[architecture] = measured(f"{architecture}_orthonormal", arrays["orthonormal"])
    chance = np.array([random_cosine(width, M) for width in WIDTHS])
    seeds = W.shape[1]
    narrow = max(table["recovered"][:, 0].max() for table in tables.values()) * N / WIDTHS[0]
    apart = cosines(W) - 2 * np.eye(N)
    metrics: dict[str, Any] = {
        architecture: {
            key: {
                sparsity: dict(zip(RATIOS, table[key][i], strict=True))
                for i, sparsity in enumerate(SPARSITIES)
            }
            for key in MEASURES
        }
        | {"mean_max_cosine_overall": table["mean_max_cosine"].mean((0, 1))}
        for architecture, table in tables.items()
    }
    metrics["random"] = {
        "mean_max_cosine": {
            ratio: [value] * seeds for ratio, value in zip(RATIOS, chance[:, 0], strict=True)
        },
        "mean_max_cosine_overall": [chance[:, 0].mean()] * seeds,
    }
    metrics["orthonormal"] = {
        architecture: {
            key: dict(zip(SPARSITIES, values[key], strict=True))
            for key in ("mean_max_cosine", "recovered")
        }
        | {"recovered_overall": values["recovered"].mean()}
        for architecture, values in control.items()
    }
    metrics["toy"] = {
        "represented": (norms(W) > PRESENT).sum(-1).min(),
        "largest_cosine": apart.max(),
        "found_per_latent_when_narrow": narrow,
    }

    def plotted(keys: tuple[str, str]) -> dict[str, Any]:
        return {
            "density": DENSITIES,
            "ratio": np.array(WIDTHS) / N,
            "rows": keys,
            "values": {
                architecture: {key: interval(table[key]).clip(0, 1) for key in keys}
                for architecture, table in tables.items()
            },
        }

    recovery = plotted(("mean_max_cosine", "recovered"))
    recovery["random"] = {"mean_max_cosine": chance[:, 0], "recovered": chance[:, 1]}
    recovery["control"] = {
        architecture: {key: values[key].mean(-1) for key in recovery["rows"]}
        for architecture, values in control.items()
    }
    return Evaluation(
        metrics=metrics,
        figures={"sae_recovery": recovery, "sae_latents": plotted(("dead", "split"))},
    )


LABELS = {
    "mean_max_cosine": "mean max cosine\nto true features",
    "recovered": f"share recovered\n(cosine > {RECOVERED})",
    "dead": "share of latents\nthat never fire",
    "split": "share of features with\nmore than one latent",
}
NAMES = {"standard": "standard (L1)", "gated": "gated", "topk": "TopK"}
MARKERS = {"standard": "o", "gated": "s", "topk": "^"}


def draw(data: Mapping[str, Any]) -> Canvas:
    """One column per density, one row per measure: measure against width, with seed intervals."""
    rows, ratio = data["rows"], np.array(data["ratio"])
    figure, axes = subplots(len(rows), len(data["density"]), 3.6, sharex=True, sharey="row")
    for i, key in enumerate(rows):
        for j, density in enumerate(data["density"]):
            axis = axes[i, j]
            if "random" in data:
                axis.plot(ratio, data["random"][key], "--", color="0.5", label="random directions")
                axis.plot([], [], "o", color="0.5", mfc="white", label="orthonormal features")
            for k, architecture in enumerate(ARCHITECTURES):
                mean, low, high = np.array(data["values"][architecture][key][j]).T
                x = ratio * 2 ** (0.09 * (k - 1))  # side by side, so that intervals stay legible
                style = {"color": PALETTE[k], "marker": MARKERS[architecture]}
                errors = [mean - low, high - mean]
                axis.errorbar(x, mean, errors, label=NAMES[architecture], capsize=2, **style)
                if "control" in data:
                    value = data["control"][architecture][key][j]
                    axis.plot(x[1], value, mfc="white", ls="none", ms=5, **style)
            if i == 0:
                axis.set_title(f"p = {density:g} ({density * N:g} active)")
            axis.set_ylim(top=1.04)
            axis.set_xscale("log", base=2)
            axis.set_xticks(ratio, [f"{value:g}" for value in ratio])
        axes[i, 0].set_ylabel(LABELS[key])
    figure.supxlabel("width of the autoencoder / number of true features", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, columnspacing=1.2)
    return figure


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="sae_recovery",
            title="Autoencoders find the true features once they are wide enough",
            caption="Agreement of SAELens autoencoders' decoder directions with the known feature "
            "directions of toy models (20 features in 8 dimensions), against width, at three "
            "densities; means and 95% intervals over seeds. Sparsity matched to the mean number "
            "of active features. Dashed: as many random directions, in closed form. Open: the "
            "same features along orthonormal directions.",
            original="none: an addition to the paper",
            draw=draw,
        ),
        Figure(
            name="sae_latents",
            title="What the surplus latents do",
            caption="Share of latents that fire on no test input, and share of true features that "
            "more than one latent represents (cosine above 0.9); means and 95% intervals over "
            "seeds.",
            original="none: an addition to the paper",
            draw=draw,
        ),
    ),
)
