"""What is known of an autoencoder's features beforehand: how often each fires, and its label.

Both are files beside the weights: sparsity.safetensors as SAELens writes it, with log10 of the
share of tokens on which each feature is active, and labels.json, {"12": "Arabic script", …}.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.errors import UserError
from shared.features.dictionary import BUNDLED, Dictionary, bundled_names
from shared.files import atomic, read_json, write_json
from shared.hub.files import HubError, fetch

DENSITY, LABELS = "sparsity.safetensors", "labels.json"
LEAST = 1e-10
"""Added to densities before the logarithm, by SAELens."""


def save_density(folder: Path, density: Float[Tensor, " d_sae"]) -> None:
    """Write the share of tokens on which each feature is active beside an autoencoder."""
    with atomic(folder / DENSITY) as temporary:
        save_file({"sparsity": (density.float().cpu() + LEAST).log10()}, temporary)


def save_labels(folder: Path, labels: dict[int, str]) -> None:
    """Write labels of some features beside an autoencoder."""
    write_json(folder / LABELS, {str(feature): labels[feature] for feature in sorted(labels)})


def density(dictionary: Dictionary) -> Float[Tensor, " d_sae"] | None:
    """Return the share of tokens on which each feature is active, None where it is not known.

    Raises UserError where the file does not fit the autoencoder.
    """
    folder, (release, _, identifier) = _folder(dictionary), dictionary.name.partition(":")
    path = (
        _released(release, identifier) if identifier and not folder.is_dir() else folder / DENSITY
    )
    if path is None or not path.exists():
        return None
    try:
        found = load_file(path, device=dictionary.model.device)["sparsity"].float()
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): make or fetch it again") from None
    if found.shape != (dictionary.d_sae,):
        raise UserError(f"{path} is not of the {dictionary.d_sae} features of {dictionary.name}")
    return (10**found - LEAST).clamp(0)


def labels(dictionary: Dictionary) -> dict[int, str]:
    """Return the labels that features have, by feature; most may have none.

    Raises UserError where the file is damaged.
    """
    path = _folder(dictionary) / LABELS
    if not path.exists():
        return {}
    try:
        return {int(feature): str(label) for feature, label in read_json(path).items()}
    except (ValueError, AttributeError) as error:  # no JSON, no object, or its keys are no numbers
        raise UserError(f"{path} is damaged ({error}): write it again") from None


def _folder(dictionary: Dictionary) -> Path:
    """Return where the weights are, if they are in a folder."""
    name = dictionary.name
    return BUNDLED / name if name in bundled_names() else Path(name)


def _released(release: str, identifier: str) -> Path | None:
    """Return the densities of a released autoencoder, from the cache or downloaded."""
    from sae_lens.loading.pretrained_sae_loaders import get_repo_id_and_folder_name

    repository, folder = get_repo_id_and_folder_name(release, identifier)
    try:
        return fetch(repository, f"{folder}/{DENSITY}") / folder / DENSITY
    except HubError:
        return None
