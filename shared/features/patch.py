"""Moving features of one prompt into the run of another, and what that does to a target's logit.

Two prompts of the same length, clean and corrupted, differ in some tokens. From the first of those
on, the activations at the site differ; at every position,

    x_clean − x_corrupted = Σ over features of (c_clean − c_corrupted) + rest,

c = z_i·d_i being what a feature contributes (d_i the decoder row, for an autoencoder that
normalises its inputs times the deviation of the activation), and the rest what no feature stands
for: the difference of the reconstruction errors, and of the mean of normalised inputs. Each of
these differences is a part that can be patched alone. With s the score of the target, its logit at
the last position less that of another token, or less the mean of all logits, patching recovers

    denoising   (s(corrupted, with the parts of clean) − s(corrupted)) / (s(clean) − s(corrupted))
    noising     (s(clean) − s(clean, with the parts of corrupted)) / (s(clean) − s(corrupted))

The first is 1 where the parts suffice for the clean score, the second is 1 where the clean score
needs them (Heimersheim and Nanda 2024, "How to use and interpret activation patching"). All
features and the rest of a position are its full activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from shared.errors import UserError
from shared.features.dictionary import Dictionary
from shared.features.parts import Parts, Run, Target, contributions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Recovered(NamedTuple):
    """What patching recovers of s(clean) − s(corrupted), both ways; 1 is all of it."""

    denoising: Float[np.ndarray, " cases"]
    noising: Float[np.ndarray, " cases"]


@dataclass(frozen=True)
class Patching:
    """What patching recovers, by feature and by position.

    clean, corrupted: the scores of the target.
    clean_tokens, corrupted_tokens: as text, END_OF_TEXT first.
    at: the positions from the first token on in which the prompts differ.
    positions, features: of the pairs: a feature at a position, active there in either prompt.
    pairs: for every pair alone.
    all_features, rest, full: for every position of `at`: all its features together, what no feature
        stands for, and the full activation.
    everywhere: the same three, in this order, at all positions of `at` at once.
    """

    clean: float
    corrupted: float
    clean_tokens: tuple[str, ...]
    corrupted_tokens: tuple[str, ...]
    at: Int[np.ndarray, " positions"]
    positions: Int[np.ndarray, " pairs"]
    features: Int[np.ndarray, " pairs"]
    pairs: Recovered
    all_features: Recovered
    rest: Recovered
    full: Recovered
    everywhere: Recovered

    def label(self, position: int) -> str:
        """Return the token at a position in quotes, that of both prompts where they differ."""
        both = self.clean_tokens[position], self.corrupted_tokens[position]
        return " / ".join(map(repr, dict.fromkeys(both)))

    def order(self) -> Int[np.ndarray, " pairs"]:
        """Return the pairs by the larger of their effects, the largest first."""
        return np.argsort(-np.abs(self.pairs).max(0), kind="stable")

    def strongest(self, count: int) -> Int[np.ndarray, " some"]:
        """Return the features of the first pairs of `order`."""
        return np.array(list(dict.fromkeys(self.features[self.order()])), dtype=int)[:count]

    def heat(
        self, features: Sequence[int] | np.ndarray, noising: bool
    ) -> Float[np.ndarray, "features positions"]:
        """Return what features recover at the positions `at`; zero where one is inactive."""
        table = np.zeros((len(features), len(self.at)))
        effect = self.pairs.noising if noising else self.pairs.denoising
        for row, feature in enumerate(features):
            own = self.features == feature
            table[row, np.searchsorted(self.at, self.positions[own])] = effect[own]
        return table


def _prompts(
    dictionary: Dictionary, clean: str, corrupted: str
) -> tuple[Int64[Tensor, "1 length"], Int64[Tensor, "1 length"], int]:
    """Return the tokens of two prompts, and the first position at which they differ."""
    one, other = dictionary.tokens(clean), dictionary.tokens(corrupted)
    if one.shape != other.shape:
        shown = [" | ".join(dictionary.shown(tokens[0, 1:])) for tokens in (one, other)]
        raise UserError(
            f"the clean prompt has {one.shape[1] - 1} tokens ({shown[0]!r}) and the corrupted "
            f"{other.shape[1] - 1} ({shown[1]!r}): change one until they have as many"
        )
    differs = (one != other)[0].nonzero()
    if not len(differs):
        raise UserError("the clean and the corrupted prompt are the same: change a token")
    return one, other, int(differs[0])


def patch(dictionary: Dictionary, clean: str, corrupted: str, target: Target) -> Patching:
    """Patch every feature at every position between two prompts, alone and together.

    Args:
        dictionary: whose features.
        clean: a prompt after which the target comes.
        corrupted: one of as many tokens after which it does not.
        target: the token, and what it is measured against.

    Raises:
        UserError: a prompt is empty or too long, they differ in length or not at all, no feature is
            active where they differ, or both give the target the same score.
    """
    tokens, other_tokens, start = _prompts(dictionary, clean, corrupted)
    x, other = (dictionary.activations(each)[0] for each in (tokens, other_tokens))
    f, other_f = dictionary.encode(x), dictionary.encode(other)
    at = torch.arange(start, len(x), device=x.device)
    positions, features = ((f + other_f)[start:] > 0).nonzero(as_tuple=True)
    if not len(features):
        raise UserError(f"no feature of {dictionary.name} is active where the prompts differ")
    positions = positions + start
    vectors = _contributed(dictionary, x, f, positions, features) - _contributed(
        dictionary, other, other_f, positions, features
    )
    rest = (x - other).index_add(0, positions, -vectors)[start:]
    parts = Parts(torch.cat([positions, at]), torch.cat([vectors, rest]))
    opposite = Parts(parts.positions, -parts.vectors)
    runs = (
        Run(dictionary, other_tokens, target, other, parts),
        Run(dictionary, tokens, target, x, opposite),
    )
    cases = _cases(parts.positions, at, len(features))
    (before, *denoised), (after, *noised) = (
        run.each(cases, label).cpu().double().numpy()
        for run, label in zip(runs, ("denoising", "noising"), strict=True)
    )
    if before == after:
        raise UserError("both prompts give the target the same logit: there is nothing to recover")
    ends = np.cumsum([len(features), *3 * [len(at)]])
    found = [
        Recovered(*both)
        for both in zip(
            np.split((np.array(denoised) - before) / (after - before), ends),
            np.split((after - np.array(noised)) / (after - before), ends),
            strict=True,
        )
    ]
    return Patching(
        float(after),
        float(before),
        tuple(dictionary.shown(tokens[0])),
        tuple(dictionary.shown(other_tokens[0])),
        at.cpu().numpy(),
        positions.cpu().numpy(),
        features.cpu().numpy(),
        *found,
    )


def _contributed(
    dictionary: Dictionary,
    x: Float[Tensor, "length d_in"],
    f: Float[Tensor, "length d_sae"],
    positions: Int64[Tensor, " pairs"],
    features: Int64[Tensor, " pairs"],
) -> Float[Tensor, "pairs d_in"]:
    return contributions(dictionary, x[positions], features, f[positions, features])


def _cases(
    positions: Int64[Tensor, " parts"], at: Int64[Tensor, " changed"], pairs: int
) -> Bool[Tensor, "cases parts"]:
    """Return which parts are patched together; the last parts are the rests of positions `at`.

    Nothing; each pair; then all features, the rest and both, at each position and at all of them.
    """
    count = len(positions)
    is_feature = torch.arange(count, device=at.device) < pairs
    here = positions == at[:, None]
    every = torch.ones_like(is_feature)
    return torch.cat(
        [
            ~every[None],
            torch.eye(count, dtype=torch.bool, device=at.device)[:pairs],
            here & is_feature,
            here & ~is_feature,
            here,
            torch.stack([is_feature, ~is_feature, every]),
        ]
    )


def full_by_transformer_lens(
    dictionary: Dictionary, clean: str, corrupted: str, target: Target
) -> Float[np.ndarray, " positions"]:
    """Return what TransformerLens' own activation patching recovers, denoising full activations.

    Agrees with `patch(…).full.denoising`, position by position. Takes seconds to import.

    Raises:
        UserError: the prompts do not fit together.
    """
    import pandas as pd
    from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter

    bridge: Any = dictionary.model.bridge  # theirs are typed for the older HookedTransformer
    site = dictionary.site
    tokens, other_tokens, start = _prompts(dictionary, clean, corrupted)
    at = range(start, tokens.shape[1])
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens)
        after, before = (
            float(target.score(each[0, -1])) for each in (logits, bridge(other_tokens))
        )
        scores = generic_activation_patch(
            bridge,
            other_tokens,
            cache,
            lambda patched: target.score(patched[0, -1]),
            layer_pos_patch_setter,
            site.kind,
            index_df=pd.DataFrame({"layer": site.layer, "position": at}),
        )
    return (scores.cpu().double().numpy() - before) / (after - before)


def draw(patching: Patching, count: int = 10) -> Figure:
    """Return heat maps of what the strongest features recover at each position, both ways.

    Below them, on a scale of their own from −1 to 1, stand all features of a position together, the
    rest, and the full activation.
    """
    from shared.figures.style import DIVERGING, subplots, use_style

    features = patching.strongest(count)
    rows = [[str(feature) for feature in features], ["all features", "rest", "full"]]
    tables = [
        [patching.heat(features, noising) for noising in (False, True)],
        [
            np.stack([patching.all_features[way], patching.rest[way], patching.full[way]])
            for way in (0, 1)
        ],
    ]
    limits = ((float(np.abs(tables[0]).max()), "neither"), (1.0, "both"))
    labels = [patching.label(position) for position in patching.at.tolist()]
    with use_style():
        figure, axes = subplots(
            2,
            2,
            height=2.4 + 0.16 * len(features),
            sharex=True,
            sharey="row",
            height_ratios=[len(features), 4],
        )
        for panels, names, pair, (limit, extend) in zip(axes, rows, tables, limits, strict=True):
            for panel, table in zip(panels, pair, strict=True):
                image = panel.imshow(table, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
                panel.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
                panel.set_yticks(range(len(names)), names)
                panel.grid(visible=False)
            figure.colorbar(image, ax=panels, label="recovered", extend=extend, aspect=8)
        axes[0, 0].set(title="denoising", ylabel="feature")
        axes[0, 1].set_title("noising")
    return figure
