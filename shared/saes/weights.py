"""Trained autoencoders on disk, in the format of SAELens.

A folder with `cfg.json` and `sae_weights.safetensors`, which `sae_lens.SAE.load_from_disk` reads
without this package. Reading it here takes no import of SAELens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.errors import UserError
from shared.files import atomic, read_json, write_json
from shared.saes.architecture import Exported

CONFIG, TENSORS = "cfg.json", "sae_weights.safetensors"
FORMAT = "6.0.0"
"""The version of SAELens whose format this is; without one, it would take the file for older."""
STANDARD = ("W_enc", "b_enc", "W_dec", "b_dec")
"""The tensors of a standard autoencoder."""


class Weights(NamedTuple):
    """f = ReLU((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec, in float32.

    Without `apply_b_dec_to_input`, f = ReLU(x W_enc + b_enc).
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    apply_b_dec_to_input: bool

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the feature activations."""
        centred = x - self.b_dec if self.apply_b_dec_to_input else x
        return torch.relu(centred @ self.W_enc + self.b_enc)

    def decode(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction."""
        return f @ self.W_dec + self.b_dec


def weights_of(exported: Exported) -> Weights:
    """Return what is exported as a standard autoencoder."""
    tensors = exported.tensors
    return Weights(
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        apply_b_dec_to_input=bool(exported.config["apply_b_dec_to_input"]),
    )


def save_sae(folder: Path, exported: Exported, metadata: Mapping[str, Any]) -> None:
    """Write an autoencoder; `metadata` (JSON) says how it was trained and on what.

    Args:
        folder: made where missing; what it held of an earlier autoencoder is replaced.
        exported: from `Architecture.export`.
        metadata: SAELens knows `model_name` and `hook_name`, and keeps anything else.
    """
    with atomic(folder / TENSORS) as temporary:
        save_file(dict(exported.tensors), temporary)
    stored = {"sae_lens_version": FORMAT, **metadata}
    write_json(folder / CONFIG, {**exported.config, "metadata": stored})


def read_sae(
    folder: Path,
    architectures: Mapping[str, tuple[str, ...]],
    device: str = "cpu",
    normalizations: tuple[str, ...] = ("none",),
) -> Exported:
    """Read an autoencoder that this package or SAELens has written, in float32.

    Args:
        folder: with both files.
        architectures: those that may stand there, and the names of the tensors of each.
        device: where the tensors shall be.
        normalizations: what may be done to its inputs first, in the words of SAELens.

    Raises:
        UserError: the folder holds none, or a damaged one, or one of another kind.
    """
    try:
        config = read_json(folder / CONFIG)
        tensors = load_file(folder / TENSORS, device=device)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or folder / TENSORS} is missing: train the autoencoder, or give the "
            f"folder of one in the format of SAELens"
        ) from error
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder} is damaged ({error}): train or fetch it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder} is damaged ({CONFIG} is no object): train or fetch it again")
    expected = {"architecture": tuple(architectures), "normalize_activations": normalizations}
    for key, values in expected.items():
        if config.get(key) not in values:
            raise UserError(
                f"{folder / CONFIG} has {key} {config.get(key)}: only {', '.join(values)} "
                f"{'is' if len(values) == 1 else 'are'} read here"
            )
    names = architectures[config["architecture"]]
    for name in names:
        shape = tuple(config.get(dimension) for dimension in _dimensions(name))
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{folder / TENSORS} lacks a {name} of shape {shape}, which {CONFIG} promises: "
                f"train or fetch it again"
            )
    return Exported(
        {"apply_b_dec_to_input": True} | config, {name: tensors[name].float() for name in names}
    )


def _dimensions(name: str) -> tuple[str, ...]:
    """Return the shape that a tensor of this name has in every architecture."""
    if name.startswith("W_"):
        return ("d_sae", "d_in") if name == "W_dec" else ("d_in", "d_sae")
    return ("d_in",) if name == "b_dec" else ("d_sae",)


def load_weights(folder: Path, device: str = "cpu") -> Weights:
    """Read a standard autoencoder that this package or SAELens has written.

    Raises:
        UserError: the folder holds none, or a damaged one, or one of another kind.
    """
    return weights_of(read_sae(folder, {"standard": STANDARD}, device))
