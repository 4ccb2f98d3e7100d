"""What an autoencoder does on text that it was not trained on, held against what is usual.

Every measure but those of stability is defined once in `shared.metrics`.

    L0              mean number of active features of a vector
    FVU             E‖x − x̂‖² / E‖x − x̄‖², the fraction of variance unexplained
    γ               E‖x̂‖² / E[x·x̂]; below 1 is shrinkage (Rajamanoharan et al. 2024)
    recovered       (L_abl − L_SAE) / (L_abl − L), L the language model's loss, L_SAE that with x̂
                    in place of x, L_abl that with zeros, or with the mean of x
    dead            share of features that were active on none of the vectors
    dense           share of features that were active on more than a tenth of them

How alike two codes f and f' of the same tokens are is the weighted Jaccard index Σ min(f, f') /
Σ max(f, f'): 1 where they are equal, 0 where no feature is active in both. It is taken of

    repeated        the same texts twice, in one batch and one by one
    counterfactual  the same texts after two different ones, END_OF_TEXT and as many positions
                    between: what an earlier document says should make no difference
    by_chance       different texts, at the same positions

and to see what is due to the language model, `moved` is E‖x − x'‖² / E‖x − x̄‖² of the activations
of the counterfactual texts.

Two seeds agree by their MMCS (Sharkey et al. 2022): the mean, over the features that are alive, of
the largest cosine of their decoder row with any row of the other autoencoder. By chance it is that
with the other's rows after every column has been permuted, as in our Towards Monosemanticity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt16
from torch import Tensor

from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.features.dictionary import Dictionary
from shared.metrics.downstream import Downstream, Effect
from shared.metrics.reconstruction import Fidelity, Reconstruction
from shared.metrics.sparsity import Firings, Sparsity
from shared.progress import progress

DENSE = 0.1
"""Density over which a feature is dense: our choice."""
TOGETHER = 2048
"""Tokens in a forward pass, about."""


class Size(NamedTuple):
    """How many tokens of a text, about, are measured. The defaults take seconds."""

    counted: int = 20_000
    """For L0, FVU and densities."""
    predicted: int = 2_500
    """For losses, which take four passes of the language model."""
    compared: int = 2_500
    """For stability."""


SIZE = Size()


@dataclass(frozen=True)
class Evaluation:
    """See the module. What has not been measured, or is not defined, is NaN.

    vectors: on how many L0, FVU, γ and densities were measured, positions 0 left out.
    kl: KL(p ‖ q) in nats per predicted token, q the prediction with x̂ in place of x.
    """

    vectors: int
    d_sae: int
    l0: float
    fvu: float
    gamma: float
    recovered_zero: float
    recovered_mean: float
    kl: float
    dead: float
    dense: float
    repeated: float
    counterfactual: float
    by_chance: float
    moved: float
    mmcs: float = math.nan
    mmcs_by_chance: float = math.nan


def evaluate(
    dictionary: Dictionary,
    text: Contexts,
    against: Dictionary | None = None,
    size: Size = SIZE,
) -> Evaluation:
    """Measure an autoencoder; arguments and errors are those of `measure`."""
    return measure(dictionary, text, against, size)[0]


def measure(
    dictionary: Dictionary,
    text: Contexts,
    against: Dictionary | None = None,
    size: Size = SIZE,
) -> tuple[Evaluation, Firings]:
    """Measure an autoencoder, and return also how often each of its features was active.

    Args:
        dictionary: the autoencoder and its language model.
        text: contexts of that model, which the autoencoder was not trained on.
        against: another autoencoder of the same place, such as one of another seed, for MMCS.
        size: how much of the text, taken from all over it.

    Raises:
        UserError: the model cannot read the contexts, there are less than three of them, or the
            other autoencoder has another width of inputs.
    """
    _check(dictionary, text, against)
    counted = _chosen(text, size.counted)
    firings, fidelity, mean = _counts(dictionary, counted)
    effect = _effect(dictionary, _chosen(text, size.predicted), mean)
    repeated, counterfactual, by_chance, moved = stability(dictionary, _chosen(text, size.compared))
    matched = (
        match(dictionary.directions[torch.from_numpy(firings.counts > 0)], against.directions)
        if against
        else Match(math.nan, math.nan)
    )
    evaluation = Evaluation(
        vectors=firings.vectors,
        d_sae=dictionary.d_sae,
        l0=firings.l0,
        fvu=fidelity.fvu,
        gamma=fidelity.gamma,
        recovered_zero=float(effect.recovered_zero[0]),
        recovered_mean=float(effect.recovered_mean[0]),
        kl=float(effect.kl[0]),
        dead=firings.dead,
        dense=float((firings.density > DENSE).mean()),
        repeated=repeated,
        counterfactual=counterfactual,
        by_chance=by_chance,
        moved=moved,
        mmcs=matched.mmcs,
        mmcs_by_chance=matched.by_chance,
    )
    return evaluation, firings


def _check(dictionary: Dictionary, text: Contexts, against: Dictionary | None) -> None:
    model = dictionary.model
    count, length = text.tokens.shape
    if length > model.n_ctx or int(text.tokens.max(initial=0)) >= model.d_vocab:
        raise UserError(
            f"{model.name} reads up to {model.n_ctx} tokens out of {model.d_vocab}, and the text "
            f"has contexts of {length} and token {int(text.tokens.max())}: give other text"
        )
    if count < 3 or length < 8:
        raise UserError(f"{count} contexts of {length} tokens are too few: give at least 3 of 8")
    if against and against.directions.shape[1] != dictionary.directions.shape[1]:
        raise UserError(
            f"{against.name} has a d_in of {against.directions.shape[1]}, and {dictionary.name} of "
            f"{dictionary.directions.shape[1]}: compare autoencoders of one place"
        )


def _chosen(text: Contexts, tokens: int) -> UInt16[np.ndarray, "some length"]:
    """Return contexts from all over a text with about so many tokens, at least three."""
    wanted = min(len(text), max(3, tokens // text.tokens.shape[1]))
    return text.tokens[np.linspace(0, len(text) - 1, wanted).round().astype(int)]


def _batches(
    tokens: UInt16[np.ndarray, "contexts length"], device: str
) -> list[Int64[Tensor, "_ length"]]:
    whole = torch.from_numpy(tokens.astype(np.int64)).to(device)
    return list(torch.split(whole, max(1, TOGETHER // whole.shape[1])))


@torch.inference_mode()
def _counts(
    dictionary: Dictionary, tokens: UInt16[np.ndarray, "contexts length"]
) -> tuple[Firings, Fidelity, Float[Tensor, " d_in"]]:
    """Return how often features are active, how well x is reconstructed, and the mean of x."""
    sparsity, reconstruction = Sparsity(dictionary.d_sae), Reconstruction()
    total = torch.zeros((), device=dictionary.model.device)
    with progress("features", len(tokens)) as advance:
        for batch in _batches(tokens, dictionary.model.device):
            x = dictionary.activations(batch)[:, 1:].flatten(0, 1)
            f = dictionary.encode(x)
            sparsity.update(f)
            reconstruction.update(x, dictionary.decode(f, x))
            total = total + x.sum(0)
            advance(len(batch))
    firings = sparsity.result()
    return firings, reconstruction.result(), total / firings.vectors


def _effect(
    dictionary: Dictionary,
    tokens: UInt16[np.ndarray, "contexts length"],
    mean: Float[Tensor, " d_in"],
) -> Effect:
    """Return what the language model loses by the reconstruction."""
    downstream = Downstream(dictionary.model, dictionary.site, mean)
    with progress("losses", len(tokens)) as advance:
        for batch in _batches(tokens, dictionary.model.device):
            x = dictionary.activations(batch)[:, 1:]
            downstream.update(batch, [dictionary.decode(dictionary.encode(x), x)])
            advance(len(batch))
    return downstream.result()


def alike(f: Float[Tensor, "*batch d_sae"], other: Float[Tensor, "*batch d_sae"]) -> float:
    """Return the weighted Jaccard index of two codes, over all their entries; NaN of zeros."""
    union = torch.maximum(f, other).sum(dtype=torch.float64)
    return float(torch.minimum(f, other).sum(dtype=torch.float64) / union) if union else math.nan


class Stability(NamedTuple):
    """See the module."""

    repeated: float
    counterfactual: float
    by_chance: float
    moved: float


@torch.inference_mode()
def stability(dictionary: Dictionary, tokens: UInt16[np.ndarray, "contexts length"]) -> Stability:
    """Return how much features change with what should make no difference.

    Half of every context is read after the first half of the next one, and after that of the one
    after it. There must be at least three contexts.
    """
    whole = torch.from_numpy(tokens.astype(np.int64)).to(dictionary.model.device)
    before = (whole.shape[1] - 2) // 2
    first, own = whole[:, :1], whole[:, 1 : whole.shape[1] - before - 1]

    def after(shift: int) -> Float[Tensor, "contexts own d_in"]:
        earlier = whole[:, 1 : 1 + before].roll(-shift, 0)
        texts = torch.cat([first, earlier, first, own], 1)
        return dictionary.activations(texts)[:, -own.shape[1] :]

    together = dictionary.encode(dictionary.activations(whole)[:, 1:])
    alone = torch.cat(
        [dictionary.encode(dictionary.activations(one[None])[:, 1:]) for one in whole]
    )
    x, other = after(1), after(2)
    f = dictionary.encode(x)
    change = Reconstruction()
    change.update(x.flatten(0, 1), other.flatten(0, 1))
    return Stability(
        repeated=alike(together, alone),
        counterfactual=alike(f, dictionary.encode(other)),
        by_chance=alike(f, f.roll(1, 0)),
        moved=change.result().fvu,
    )


class Match(NamedTuple):
    """See the module."""

    mmcs: float
    by_chance: float


def match(
    directions: Float[Tensor, "alive d_in"], others: Float[Tensor, "d_sae d_in"], seed: int = 0
) -> Match:
    """Return the mean of the largest cosines of directions with others, and that by chance.

    NaN where there are no directions.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(others.shape, generator=generator).argsort(0).to(others.device)
    return Match(_mmcs(directions, others), _mmcs(directions, others.gather(0, order)))


def _mmcs(rows: Float[Tensor, "rows d"], others: Float[Tensor, "others d"]) -> float:
    unit, units = (torch.nn.functional.normalize(each, dim=1) for each in (rows, others))
    best = [(some @ units.T).amax(1) for some in torch.split(unit, TOGETHER)]
    return float(torch.cat(best).mean())


class Usual(NamedTuple):
    """Where a measure usually lies, what that rests on, and what to change where it does not.

    Nobody publishes such limits: all of them are ours. `source` says which published numbers they
    are drawn around, or that there are none, and what could not be verified.
    """

    low: float
    high: float
    source: str
    too_low: str = ""
    """Nothing where a measure cannot be lower."""
    too_high: str = ""


PUBLISHED = "ten published TopK autoencoders of GPT-2 small (metrics.json of *-oai on the hub)"
SPARSER = "raise the penalty (l1, l0), or lower k"
DENSER = "lower the penalty (l1, l0), or raise k"
MORE = f"train longer (steps), raise d_sae, or {DENSER}"
SHORT = "better than the model itself: measure more text"
REVIVE = (
    "TopK: raise aux or k_aux, lower dead_after; else give a resampling; raise lr_warmup, lower lr"
)
USUAL = {
    "l0": Usual(5.0, 200.0, f"ours; 32 in {PUBLISHED}", DENSER, SPARSER),
    "fvu": Usual(
        0.0,
        0.3,
        f"ours; 0.03 (residual stream) to 0.28 (MLP output) in {PUBLISHED}",
        too_high=MORE,
    ),
    "gamma": Usual(
        0.95,
        1.05,
        "ours; 0.985 to 1.012 of gated, 0.93 of L1 autoencoders (Rajamanoharan et al. 2024, "
        "tables 5 to 8)",
        "shrinkage by an L1 penalty: lower l1, or take gated, jumprelu, or topk",
        "the autoencoder is not trained to its end: more steps, a lower lr, or ema",
    ),
    "recovered_zero": Usual(
        0.79,
        1.0,
        f"ours; 0.79 (MLP output) to 1.00 (residual stream) in {PUBLISHED}",
        MORE,
        SHORT,
    ),
    "recovered_mean": Usual(0.7, 1.0, "ours, without a number to compare with", MORE, SHORT),
    "dead": Usual(
        0.0,
        0.1,
        "ours; 0.07 of 16M latents with TopK's auxiliary loss (Gao et al. 2024, section 2.4)",
        too_high=f"first measure more text, since rare features look dead; then {REVIVE}",
    ),
    "dense": Usual(
        0.0,
        0.05,
        "ours, without a number to compare with; some are the model's own (Sun et al. 2025)",
        too_high=SPARSER,
    ),
    "repeated": Usual(
        0.999,
        1.0,
        "ours; only rounding differs",
        "features are near their threshold: lower k, or raise threshold (jumprelu); or the device "
        "multiplies in less than float32",
    ),
    "counterfactual": Usual(
        0.5,
        1.0,
        "ours, without a number to compare with; a large `moved` is the language model's doing",
        "features split too finely: lower d_sae, take an earlier layer, or train longer",
    ),
    "mmcs": Usual(
        0.7,
        1.0,
        "ours; that Paulo and Belrose 2025 call latents above 0.7 the same is recalled, not "
        "verified",
        "lower d_sae, or take standard: both depend less on the seed (Paulo and Belrose 2025)",
    ),
}
"""Where the measures of an `Evaluation` usually lie, by field."""
ROUNDING = 1e-6
"""What a measure may be beyond its limits."""


@dataclass(frozen=True)
class Judgement:
    """A measure beside what is usual; `hint` says what to change where it is not within."""

    measure: str
    value: float
    low: float
    high: float
    within: bool
    source: str
    hint: str


def judged(evaluation: Evaluation) -> list[Judgement]:
    """Hold an evaluation against USUAL, limits included; what is NaN is left out."""
    values = {measure: getattr(evaluation, measure) for measure in USUAL}
    return [
        _judged(measure, value, USUAL[measure])
        for measure, value in values.items()
        if not math.isnan(value)
    ]


def _judged(measure: str, value: float, usual: Usual) -> Judgement:
    low, high = value < usual.low - ROUNDING, value > usual.high + ROUNDING
    hint = usual.too_low if low else usual.too_high if high else ""
    within = not (low or high)
    return Judgement(measure, value, usual.low, usual.high, within, usual.source, hint)
