"""Gated autoencoders and baselines at every site of a deeper model.

Section 4.1, figures 12 and 13: MLP outputs, attention and residual stream of several layers (there
of Pythia-2.8B and Gemma-7B; attention before its output matrix, here after it). All sites of some
layers are read in one forward pass, and all autoencoders on them trained with it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from pydantic import Field

from papers.gated_sae.methods import Training, endings, joined, plan, train_and_save
from shared.activations.sites import Kind, Site, read, width
from shared.activations.stream import ActivationStream
from shared.corpus.shards import Contexts, corpus_folder, load_contexts, shard_record
from shared.experiment import Arrays, Experiment, Run
from shared.language_models.load import LanguageModel, load
from shared.parallel import side_by_side, workers

SCALED_BY = 16
"""Contexts, of the training text, whose activations set the scale of λ at a site."""


class Parameters(Training):
    """What a profile sets."""

    model: str
    layers: tuple[int, ...] = Field(min_length=1)
    kinds: tuple[Kind, ...] = Field(min_length=1)


def scales(model: LanguageModel, contexts: Contexts, sites: tuple[Site, ...]) -> dict[Site, float]:
    """Return the root mean square of the activations at each site."""
    tokens = torch.from_numpy(contexts.tokens[:SCALED_BY].astype(np.int64)).to(model.device)
    found = read(model, tokens, sites)
    return {site: float(found[site][:, 1:].float().square().mean().sqrt()) for site in sites}


def train_layers(layers: tuple[int, ...], config: Parameters, run: Run) -> Arrays:
    """Train and save the autoencoders of some layers."""
    model = load(config.model, run.device)
    shard = corpus_folder(run.folder.name) / "train.safetensors"
    contexts = load_contexts(shard)
    sites = tuple(Site(kind, layer) for layer in layers for kind in config.kinds)
    stream = ActivationStream(model, contexts, sites, config.batch, run.seed)
    scale = scales(model, contexts, sites)
    return train_and_save(
        [
            one
            for site in sites
            for method in config.methods
            for one in plan(method, config, site, width(model, site), run.seed, scale[site])
        ],
        lambda start: (
            {str(site): vectors for site, vectors in batch.items()}
            for batch in stream.batches(start, config.steps)
        ),
        config.steps,
        run,
        "site_autoencoders",
        config.model,
        {"corpus": shard_record(shard)["sha256"], "batch": config.batch, "seed": run.seed},
        f"sites_of_{'_'.join(map(str, layers))}",
    )


def run(config: Parameters, run: Run) -> Arrays:
    """Train all autoencoders, groups of layers side by side; return a table of them."""
    each = sum(len(one.penalties) for one in config.methods.values())
    count = workers(run.device, config.steps * len(config.layers) * len(config.kinds) * each)
    groups = [config.layers[at::count] for at in range(min(count, len(config.layers)))]
    tables = side_by_side(
        {group: partial(train_layers, group, config, run) for group in groups}, count
    )
    return joined(tables.values())


EXPERIMENT = Experiment(config=Parameters, train=run, evaluate=endings, figures=())
