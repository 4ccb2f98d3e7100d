"""A tiny run: a random model, text, untrained autoencoders of several methods, their scores."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from papers.topk_scaling import contexts
from shared.activations.sites import Site, read
from shared.corpus.shards import Contexts, save_contexts
from shared.experiment import Run
from shared.language_models.load import LanguageModel
from shared.language_models.train import ModelConfig, create
from shared.saes.gated import GatedConfig
from shared.saes.preprocessing import for_activations, normalised
from shared.saes.standard import StandardConfig
from shared.saes.topk import TopKConfig
from shared.saes.weights import save_sae

D_IN, D_SAE, LENGTH, VOCABULARY, CONTEXTS = 16, 48, 64, 30, 6
SITE = "blocks.0.resid_post"
KS = (2, 4, 8)


def make_model():
    """A random model of one layer."""
    shape = {"layers": 1, "d_model": D_IN, "d_mlp": 32, "heads": 2, "activation": "relu"}
    config = ModelConfig(**shape, tied=False, steps=1, seed=0)
    network = create(config, VOCABULARY, LENGTH).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(4 if weight.dim() > 1 else 1)
    return LanguageModel("made up", network, Tokenizer(WordLevel({"a": 0}, unk_token="a")))


def text(seed):
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, (CONTEXTS, LENGTH))
    tokens[:, 0] = 0
    none = np.zeros(tokens.shape)
    return Contexts(tokens.astype(np.uint16), none.astype(np.uint8), none.astype(np.int32))


def vectors(model, split):
    """Normalised activations of a split."""
    tokens = torch.from_numpy(text(split == "score").tokens.astype(np.int64))
    site = Site.parse(SITE)
    return normalised(read(model, tokens, [site])[site][:, 1:].float().flatten(0, 1))[0]


def make_one(method, k, seed, first):
    """An untrained autoencoder that is sparser with a smaller k."""
    common = {"d_in": D_IN, "d_sae": D_SAE, "seed": seed}
    if method == "topk":
        sae = TopKConfig(**common, k=k).create()
    elif method == "gated":
        sae = GatedConfig(**common, l1=0.0).create()
        sae.b_gate.fill_(-12 / k)
    else:
        sae = StandardConfig(**common, l1=0.0).create()
        sae.b_enc.fill_(-4 / k)
    sae.start(first)
    return sae.export()


def make(root, patch, model, seeds=3, methods=("topk", "relu", "gated")):
    """Write everything and return the run; `load` of a module is for the caller to patch."""
    folder = root / "topk_scaling" / "smoke"
    for number, split in enumerate(("select", "score")):
        save_contexts(root / "corpus" / f"{split}.safetensors", text(number), {})
    patch.setattr(contexts, "corpus_folder", lambda profile: root / "corpus")
    first = vectors(model, "select")
    rows = []
    for method in methods:
        for seed in range(seeds):
            for k in KS:
                name = f"fronts_{method}_k{k}_s{seed}"
                exported = for_activations(make_one(method, k, seed, first))
                save_sae(folder / "autoencoders" / name, exported, {})
                rows.append((name, "fronts", method, SITE, float(k), seed))
    columns = ("name", "group", "method", "site", "penalty", "seed")
    scores = {
        key: np.array(values) for key, values in zip(columns, zip(*rows, strict=True), strict=True)
    }
    return Run(0, "cpu", inputs={"scores": scores}, folder=folder)
