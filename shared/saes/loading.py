"""Reading a trained autoencoder of any architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shared.errors import UserError
from shared.saes.architecture import Exported
from shared.saes.gated import GatedWeights
from shared.saes.jumprelu import JumpReLUWeights
from shared.saes.preprocessing import Normalised
from shared.saes.topk import TopKWeights
from shared.saes.weights import CONFIG, STANDARD, Weights, read_sae, weights_of

AnyWeights = Weights | GatedWeights | JumpReLUWeights | TopKWeights

TENSORS = {
    "standard": STANDARD,
    "gated": ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"),
    "gated_untied": ("W_enc", "b_gate", "W_mag", "b_mag", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
}
"""The tensors of each architecture, as cfg.json names it."""

WEIGHTS: dict[str, Callable[[Exported], AnyWeights]] = {
    "standard": weights_of,
    "gated": GatedWeights.from_export,
    "gated_untied": GatedWeights.from_export,
    "jumprelu": JumpReLUWeights.from_export,
    "topk": TopKWeights.from_export,
}


def load_sae(folder: Path, device: str = "cpu") -> AnyWeights | Normalised:
    """Read an autoencoder that this package or SAELens has written.

    It is `Normalised` where cfg.json says that it takes its inputs so ("layer_norm").

    Raises:
        UserError: the folder holds none, or a damaged one, or one of an architecture or of inputs
            that are not read here.
    """
    exported = read_sae(folder, TENSORS, device, normalizations=("none", "layer_norm"))
    try:
        weights = WEIGHTS[exported.config["architecture"]](exported)
    except KeyError as error:  # the tensors are there: it is a number that the architecture has
        raise UserError(f"{folder / CONFIG} lacks {error}: train or fetch it again") from error
    plain = exported.config["normalize_activations"] == "none"
    return weights if plain else Normalised(weights)
