import pytest

from shared.corpus.tokenizer import train_tokenizer
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create

LENGTH = 12


@pytest.fixture
def model():
    """Two layers, seven neurons more than four times the width, untrained."""
    config = ModelConfig(
        layers=2, d_model=8, d_mlp=39, heads=2, activation="gelu_new", tied=True, steps=1, seed=0
    )
    network = create(config, 300, LENGTH).eval().requires_grad_(False)
    return LanguageModel("tiny", network, train_tokenizer(["some text"], 300))
