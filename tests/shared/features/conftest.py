"""A language model and an autoencoder that are small enough to check by hand."""

import pytest
import torch

from shared.activations.sites import Site, width
from shared.corpus.tokenizer import train_tokenizer
from shared.features.dictionary import Dictionary
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.saes.preprocessing import Normalised
from shared.saes.weights import Weights

D_SAE = 20


@pytest.fixture
def tiny():
    """Return a maker of dictionaries of an untrained model of two layers, its weights scaled up.

    About half of the features are active at a position.
    """

    def make(site="blocks.0.resid_post", normalised=False):
        config = ModelConfig(
            layers=2,
            d_model=8,
            d_mlp=12,
            heads=2,
            activation="gelu_new",
            tied=True,
            steps=1,
            seed=0,
        )
        network = create(config, 300, 12).eval().requires_grad_(False)
        for weight in network.parameters():
            if weight.dim() == 2:
                weight.mul_(15)
        model = LanguageModel("tiny", network, train_tokenizer(["some text"], 300))
        at = Site.parse(site)
        d_in = width(model, at)
        generator = torch.Generator().manual_seed(1)

        def random(*shape):
            return torch.randn(*shape, generator=generator)

        weights = Weights(
            random(d_in, D_SAE), random(D_SAE), random(D_SAE, d_in), random(d_in), True
        )
        return Dictionary("tiny sae", model, at, Normalised(weights) if normalised else weights)

    return make
