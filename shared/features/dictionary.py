"""A trained autoencoder as a dictionary of the features of a language model's activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shared.activations.sites import Site, read, replaced_logits, width
from shared.corpus.tokenizer import END_OF_TEXT
from shared.errors import UserError
from shared.files import read_json
from shared.hub.releases import load_release
from shared.language_models.load import LanguageModel, load
from shared.saes.architecture import Exported
from shared.saes.loading import TENSORS, WEIGHTS, AnyWeights, load_sae
from shared.saes.preprocessing import Normalised, normalised
from shared.saes.weights import CONFIG

if TYPE_CHECKING:
    from sae_lens import SAE

BUNDLED = Path(__file__).parents[1] / "saes" / "bundled"
DEFAULT = "mini_gpt2_resid_2"
"""The autoencoder that comes with the repository."""
MODELS = {"gpt2-small": "gpt2"}
"""What SAELens calls a model, and what the hub does."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A language model, and an autoencoder of its activations at a site.

    The reconstruction of an activation x from features f is affine in f. What a feature adds to x,
    per unit of its activation, is its decoder row, for an autoencoder that normalises its inputs
    times the deviation of x over d_in.
    """

    name: str
    model: LanguageModel
    site: Site
    sae: AnyWeights | Normalised
    centred: bool = False
    """Whether the autoencoder is of activations less their mean over d_in, as those of models
    whose weights TransformerLens has centred."""

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.directions)

    @property
    def directions(self) -> Float[Tensor, "d_sae d_in"]:
        """The decoder rows."""
        sae = self.sae.sae if isinstance(self.sae, Normalised) else self.sae
        return sae.W_dec

    def _inputs(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Return the feature activations."""
        return self.sae.encode(self._inputs(x))

    def decode(
        self, f: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_in"]:
        """Return what features stand for where the activation is x.

        Of x only what the autoencoder does not see is used: its mean or its deviation over d_in.
        """
        inputs = self._inputs(x)
        if isinstance(self.sae, Normalised):
            statistics = normalised(inputs)[1]
            x_hat = self.sae.sae.decode(f) * statistics.deviation + statistics.mean
        else:
            x_hat = self.sae.decode(f)
        return x_hat + (x - inputs)

    def change(
        self, amounts: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_in"]:
        """Return what is added to x when features rise by these amounts; zero for zeros."""
        added = amounts @ self.directions
        if isinstance(self.sae, Normalised):
            added = added * normalised(self._inputs(x))[1].deviation
        return added

    def tokens(self, text: str) -> Int64[Tensor, "1 length"]:
        """Return the tokens of a text, END_OF_TEXT before them.

        Raises UserError where there are none, or more than the model reads.
        """
        ids = self.model.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise UserError("the text is empty: give at least one token")
        if len(ids) >= self.model.n_ctx:
            raise UserError(
                f"the text has {len(ids)} tokens, and {self.model.name} reads up to "
                f"{self.model.n_ctx - 1}: shorten it"
            )
        first = self.model.tokenizer.token_to_id(END_OF_TEXT)
        return torch.tensor([[first, *ids]], device=self.model.device)

    def shown(self, tokens: Int64[Tensor, " length"]) -> list[str]:
        """Return each token as text, as the tokenizer decodes it alone."""
        return [
            self.model.tokenizer.decode([token], skip_special_tokens=False)
            for token in tokens.tolist()
        ]

    def token(self, text: str) -> int:
        """Return the id of a text that is one token. Raises UserError saying what it is instead."""
        ids = self.model.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            parts = [self.model.tokenizer.decode([token]) for token in ids]
            raise UserError(f"{text!r} is no single token, it is {parts}: choose one of them")
        return int(ids[0])

    def feature(self, number: int) -> int:
        """Return a feature's number. Raises UserError where there is no such feature."""
        if not 0 <= number < self.d_sae:
            raise UserError(f"no feature {number}: {self.name} has 0 to {self.d_sae - 1}")
        return number

    def activations(
        self, tokens: Int64[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length d_in"]:
        """Return the activations at the site, position 0 included."""
        return read(self.model, tokens, [self.site])[self.site].float()

    def logits_with(
        self, tokens: Int64[Tensor, "batch length"], x: Float[Tensor, "batch length d_in"]
    ) -> Float[Tensor, "batch length vocab"]:
        """Return the logits when the activation at the site is x."""
        return replaced_logits(self.model, tokens, self.site, lambda before: x.to(before.dtype))


def bundled_names() -> list[str]:
    """Return the names of the autoencoders that the repository brings along."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def open_dictionary(
    sae: str = DEFAULT, model: str | None = None, hook: str | None = None, device: str = "cpu"
) -> Dictionary:
    """Open an autoencoder and the language model that it belongs to.

    Args:
        sae: a bundled name, a folder in the format of SAELens, or RELEASE:ID of SAELens' list, such
            as "gpt2-small-res-jb:blocks.8.hook_resid_pre".
        model: the language model, if not the one that the autoencoder names: see
            `shared.language_models.load.load`.
        hook: the site, written as by TransformerLens or as "blocks.2.resid_post", if not the one
            that the autoencoder names.
        device: where both shall be.

    Raises:
        UserError: there is no such autoencoder, it names no model or site, or does not fit them.
    """
    folder = BUNDLED / sae if sae in bundled_names() else Path(sae)
    if folder.is_dir():
        weights = load_sae(folder, device)
        about = _metadata(read_json(folder / CONFIG))
    elif ":" in sae:
        release, _, identifier = sae.partition(":")
        loaded = load_release(release, identifier, device)
        weights, about = of_sae_lens(loaded), dict(vars(loaded.cfg.metadata))
    else:
        raise UserError(
            f"no autoencoder {sae!r}: choose a bundled one ({', '.join(bundled_names())}), give a "
            f"folder in the format of SAELens, or RELEASE:ID of its list"
        )
    name, at = model or about.get("model_name"), hook or about.get("hook_name")
    if not name or not at:
        raise UserError(f"{sae} does not say its {'hook' if name else 'model'}: give it")
    language_model = load(MODELS.get(name, name), device)
    site = Site.parse(at) if _is_site(at) else Site.from_hook_name(at)
    kwargs = about.get("model_from_pretrained_kwargs") or {}
    found = Dictionary(
        sae, language_model, site, weights, centred=bool(kwargs.get("center_writing_weights"))
    )
    d_in = found.directions.shape[1]
    if d_in != width(language_model, site):
        raise UserError(
            f"{sae} has a d_in of {d_in}, and {site} of {language_model.name} has "
            f"{width(language_model, site)}: give the model and the hook that it was trained on"
        )
    return found


def _is_site(text: str) -> bool:
    return "hook" not in text


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("metadata") or {})


def of_sae_lens(sae: SAE[Any]) -> AnyWeights | Normalised:
    """Return an autoencoder of SAELens as one of ours, which computes the same.

    Raises UserError for an architecture or a normalisation that is not known here.
    """
    config = {"apply_b_dec_to_input": True, **sae.cfg.to_dict()}
    kind, scaling = config.get("architecture"), config.get("normalize_activations", "none")
    if kind not in WEIGHTS or scaling not in ("none", "layer_norm"):
        raise UserError(
            f"an autoencoder of architecture {kind!r} with normalize_activations {scaling!r} is "
            f"not read here: choose one of {', '.join(TENSORS)} with none or layer_norm"
        )
    tensors = {name: tensor.detach().float() for name, tensor in sae.state_dict().items()}
    exported = Exported({**config, "normalize_activations": "none"}, tensors)
    weights = WEIGHTS[kind](exported)
    return Normalised(weights) if scaling == "layer_norm" else weights
