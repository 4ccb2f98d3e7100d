"""What experiments on trained autoencoders read: the weights, and activations of held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt16
from torch import Tensor

from shared.activations.sites import Site, read
from shared.corpus.shards import corpus_folder, load_contexts
from shared.errors import UserError
from shared.experiment import Arrays, Run
from shared.language_models.load import LanguageModel
from shared.saes.loading import AnyWeights, load_sae
from shared.saes.preprocessing import Normalised

FOLDERS = ("autoencoders", "site_autoencoders")
BATCH = 16  # contexts in a forward pass


class HeldOut(NamedTuple):
    """Some contexts of a split, and an activation at all their positions but the first."""

    tokens: UInt16[np.ndarray, "contexts length"]
    x: Float[Tensor, "contexts length-1 d"]

    @property
    def vectors(self) -> Float[Tensor, "vectors d"]:
        """The activations one after another."""
        return self.x.flatten(0, 1)


def site_of(text: str) -> Site:
    """Return the site that `scores` calls "mlp_post.0". Raises UserError for another text."""
    kind, _, layer = text.partition(".")
    return Site.parse(f"blocks.{layer}.{kind}")


def load_plain(folder: Path, device: str) -> AnyWeights:
    """Read an autoencoder of activations as they are. Raises UserError for another, or for none."""
    found = load_sae(folder, device)
    if isinstance(found, Normalised):
        raise UserError(f"{folder} is of normalised inputs, and none of this paper is: train again")
    return found


def load_autoencoder(run: Run, name: str) -> AnyWeights:
    """Read a trained autoencoder of the run. Raises UserError where there is none."""
    folders = [run.folder / part / name for part in FOLDERS]
    found = next((folder for folder in folders if folder.is_dir()), folders[0])
    return load_plain(found, run.device)


def held_out(run: Run, model: LanguageModel, site: Site, split: str, contexts: int) -> HeldOut:
    """Read the activations at a site of the first `contexts` contexts of a split.

    Raises UserError where the split is missing or the model does not have the site.
    """
    tokens, found = held_out_sites(run, model, [site], split, contexts)
    return HeldOut(tokens, found[site])


def held_out_sites(
    run: Run, model: LanguageModel, sites: Sequence[Site], split: str, contexts: int
) -> tuple[UInt16[np.ndarray, "contexts length"], dict[Site, Float[Tensor, "contexts length-1 _"]]]:
    """Return the tokens and, from one pass, the activations at several sites. As `held_out`."""
    shard = corpus_folder(run.folder.name) / f"{split}.safetensors"
    tokens = load_contexts(shard).tokens[:contexts]
    ids = torch.from_numpy(tokens.astype(np.int64)).to(model.device)
    parts = [read(model, some, sites) for some in torch.split(ids, BATCH)]
    return tokens, {
        site: torch.cat([part[site][:, 1:].float() for part in parts]) for site in sites
    }


def rows_of(scores: Arrays, method: str, model: str, site: str) -> np.ndarray:
    """Return the places in `scores` of the autoencoders of a method at a site."""
    same = (scores["method"] == method) & (scores["model"] == model) & (scores["site"] == site)
    return np.flatnonzero(same)
