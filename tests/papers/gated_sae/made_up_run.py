"""A tiny run: a random one-layer model, text that it likes, autoencoders and their scores."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from papers.gated_sae import held_out
from shared.corpus.shards import Contexts, save_contexts
from shared.experiment import Run
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.saes.gated import GatedConfig
from shared.saes.standard import StandardConfig
from shared.saes.weights import save_sae

D_MLP, LENGTH, VOCABULARY = 16, 24, 30
CONTEXTS = 16
SPLITS = ("select", "score")
MODEL, SITE = "one_layer_a", "mlp_post.0"
PENALTIES, SEEDS = 3, 3


def make_model():
    """A random model whose neurons matter to what it predicts."""
    shape = {"layers": 1, "d_model": 8, "d_mlp": D_MLP, "heads": 2, "activation": "relu"}
    config = ModelConfig(**shape, tied=False, steps=1, seed=0)
    network = create(config, VOCABULARY, LENGTH).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(8 if weight.dim() > 1 else 1)
    return LanguageModel("made up", network, Tokenizer(WordLevel({"a": 0}, unk_token="a")))


def text(model, split):
    """Text that the model goes on with, so that ablating its neurons costs something."""
    tokens = np.random.default_rng(SPLITS.index(split)).integers(1, VOCABULARY, (CONTEXTS, 4))
    tokens[:, 0] = 0
    tokens = torch.from_numpy(tokens)
    while tokens.shape[1] < LENGTH:
        following = model.logits(tokens)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
    none = np.zeros(tokens.shape)
    return Contexts(tokens.numpy().astype(np.uint16), none.astype(np.uint8), none.astype(np.int32))


def gated(seed, bias, d_sae=24):
    sae = GatedConfig(d_in=D_MLP, d_sae=d_sae, l1=0.0, seed=seed).create()
    generator = torch.Generator().manual_seed(seed)
    sae.b_gate.copy_(bias * torch.rand(d_sae, generator=generator))
    sae.r_mag.copy_(0.3 * torch.randn(d_sae, generator=generator))
    sae.b_mag.copy_(0.1 * torch.randn(d_sae, generator=generator))
    return sae.export()


def baseline(seed, bias, d_sae=36):
    sae = StandardConfig(d_in=D_MLP, d_sae=d_sae, l1=0.0, seed=seed).create()
    sae.b_enc.copy_(bias * torch.rand(d_sae, generator=torch.Generator().manual_seed(seed)))
    return sae.export()


def make(root, patch, model):
    """Write everything and return the run; `load` of a module is for the caller to patch."""
    folder = root / "gated_sae" / "smoke"
    for split in SPLITS:
        save_contexts(root / "corpus" / f"{split}.safetensors", text(model, split), {})
    patch.setattr(held_out, "corpus_folder", lambda profile: root / "corpus")
    rows = []
    for method, create_one in (("baseline", baseline), ("gated", gated)):
        for seed in range(SEEDS):
            for number in range(PENALTIES):
                name = f"{method}_{number}_s{seed}"
                exported = create_one(10 * seed + number, -0.1 * number)
                save_sae(folder / "autoencoders" / name, exported, {})
                rows.append((name, method, MODEL, SITE, number, seed, 12.0 - 3 * number))
    columns = ("name", "method", "model", "site", "penalty", "seed", "l0")
    scores = {
        key: np.array(values) for key, values in zip(columns, zip(*rows, strict=True), strict=True)
    }
    return Run(0, "cpu", inputs={"scores": scores}, folder=folder)
