"""A deterministic stand-in for the language model that explains and predicts activations.

The paper has Claude explain a unit from 49 examples and predict, from the explanation, its
activation on 60 others. Here a decision tree is fitted on the 49 and predicts the 60. It sees what
the rater sees, nine tokens and no more, and knows of a token its identity where it is a telling
one, and its traits (letters, digits, script, …). What it measures is how far a unit can be told
from n-grams and simple classes, so its scores are called n-gram explainability. They say nothing
about what a rater who knows language could explain beyond that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from papers.towards_monosemanticity.examples import LEVELS
from shared.experiment import Config

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeRegressor

TRAITS: dict[str, re.Pattern[bytes]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "begins with a space": rb"^ ",
        "white space only": rb"^\s+\Z",
        "line break": rb"\n",
        "lower-case word": rb"^ ?[a-z]+\Z",
        "capitalised word": rb"^ ?[A-Z][a-z]+\Z",
        "capitals": rb"^ ?[A-Z]+\Z",
        "mixed case": rb"[a-z][A-Z]",
        "digits": rb"^ ?[0-9]+\Z",
        "letters and digits": rb"[A-Za-z][0-9]|[0-9][A-Za-z]",
        "hexadecimal": rb"^[0-9a-f]+\Z",
        "base64": rb"^[A-Za-z0-9+/=]+\Z",
        "DNA": rb"^[ACGT]+\Z",
        "underscore": rb"_",
        "opening bracket": rb"[(\[{<]",
        "closing bracket": rb"[)\]}>]",
        "quotation mark": rb"[\"'`]",
        "stop": rb"[.!?]\Z",
        "comma or colon": rb"[,;:]",
        "operator": rb"[=+*/|&^%~-]",
        "no letter or digit": rb"^[ -/:-@\[-`{-~\s]+\Z",
        "one character": rb"^ ?.\Z",
        "six letters or more": rb"[A-Za-z]{6}",
        "continuation bytes": rb"^[\x80-\xbf]+\Z",
        "Greek": rb"[\xce\xcf]",
        "Cyrillic": rb"[\xd0\xd1]",
        "Armenian": rb"[\xd4\xd5\xd6]",
        "Hebrew": rb"\xd7",
        "Arabic": rb"[\xd8-\xdb]",
        "Bengali": rb"\xe0[\xa6\xa7]",
        "Thai": rb"\xe0[\xb8\xb9]",
        "Japanese syllables": rb"\xe3[\x81-\x83]",
        "Han characters": rb"[\xe4-\xe9]",
        "end of text": rb"^\Z",
    }.items()
}
"""What the simulator can see of a token's bytes. A lead byte alone tells most scripts."""

_NOTHING = -1  # stands for a token that is not shown


class Settings(Config):
    """How large the tree may grow."""

    depth: int = Field(default=6, ge=1)
    smallest_leaf: int = Field(default=3, ge=1)
    """Tokens, of the 441 that the tree is fitted on."""
    telling: int = Field(default=12, ge=0)
    """Tokens that are known by their identity at each place."""


def token_traits(tokens: list[bytes]) -> Bool[np.ndarray, "vocabulary traits"]:
    """Return which traits each token of the vocabulary has."""
    return np.array([[bool(trait.search(token)) for trait in TRAITS.values()] for token in tokens])


@dataclass(frozen=True)
class Simulator:
    """A fitted tree, and the tokens that it knows by their identity at three places.

    own: at the token itself; previous: just before; earlier: anywhere before, within the window.
    """

    own: np.ndarray
    previous: np.ndarray
    earlier: np.ndarray
    tree: DecisionTreeRegressor

    def predict(
        self,
        tokens: Int[np.ndarray, "examples width"],
        traits: Bool[np.ndarray, "vocabulary traits"],
    ) -> Int[np.ndarray, "examples width"]:
        """Predict the activation, 0 to 9, at every token of every window."""
        seen = describe(tokens, traits, self.own, self.previous, self.earlier)
        levels = np.clip(np.rint(self.tree.predict(seen)), 0, LEVELS - 1)
        return levels.astype(np.int64).reshape(tokens.shape)


def _before(tokens: Int[np.ndarray, "examples width"]) -> Int[np.ndarray, "examples width"]:
    """Return the token before each token, _NOTHING at the start of a window."""
    first = np.full((len(tokens), 1), _NOTHING, dtype=tokens.dtype)
    return np.concatenate([first, tokens[:, :-1]], axis=1)


def _present_earlier(
    tokens: Int[np.ndarray, "examples width"], candidates: Int[np.ndarray, " candidates"]
) -> Bool[np.ndarray, "examples width candidates"]:
    """Whether each candidate stands anywhere before each token of the window."""
    here = _before(tokens)[:, :, None] == candidates
    return np.logical_or.accumulate(here, axis=1)


def describe(
    tokens: Int[np.ndarray, "examples width"],
    traits: Bool[np.ndarray, "vocabulary traits"],
    own: Int[np.ndarray, " own"],
    previous: Int[np.ndarray, " previous"],
    earlier: Int[np.ndarray, " earlier"],
) -> Float[np.ndarray, "tokens columns"]:
    """Return what the tree sees of every token of every window.

    Its traits, those of the token before, the share of the window's other tokens that have each
    trait, and which of the telling tokens stand at it, just before it and anywhere before it.
    """
    has = traits[tokens].astype(np.float32)
    before = np.concatenate([np.zeros_like(has[:, :1]), has[:, :-1]], axis=1)
    others = (has.sum(1, keepdims=True) - has) / max(tokens.shape[1] - 1, 1)
    columns = [
        has,
        before,
        others,
        tokens[:, :, None] == own,
        _before(tokens)[:, :, None] == previous,
        _present_earlier(tokens, earlier),
    ]
    joined = np.concatenate([column.astype(np.float32) for column in columns], axis=2)
    return joined.reshape(tokens.size, -1)


def telling(
    seen: Bool[np.ndarray, "tokens candidates"], levels: Float[np.ndarray, " tokens"], count: int
) -> Int[np.ndarray, " found"]:
    """Return the candidates whose presence moves the level most, in units of chance."""
    frequency = seen.sum(0)
    surplus = np.abs((levels - levels.mean()) @ seen)
    score = surplus / np.sqrt(np.maximum(frequency, 1))
    return np.argsort(-score, kind="stable")[:count]


def fit(
    tokens: Int[np.ndarray, "examples width"],
    levels: Int[np.ndarray, "examples width"],
    traits: Bool[np.ndarray, "vocabulary traits"],
    settings: Settings,
) -> Simulator:
    """Fit a simulator on windows of tokens and the activations, 0 to 9, at each of their tokens.

    The same windows give the same tree.
    """
    from sklearn.tree import DecisionTreeRegressor  # a second, and only training needs it

    target = levels.ravel().astype(np.float64)
    candidates = np.unique(tokens)

    def choose(seen: np.ndarray) -> np.ndarray:
        return candidates[telling(seen.reshape(tokens.size, -1), target, settings.telling)]

    own = choose(tokens[:, :, None] == candidates)
    previous = choose(_before(tokens)[:, :, None] == candidates)
    earlier = choose(_present_earlier(tokens, candidates))
    tree = DecisionTreeRegressor(
        max_depth=settings.depth, min_samples_leaf=settings.smallest_leaf, random_state=0
    )
    tree.fit(describe(tokens, traits, own, previous, earlier), target)
    return Simulator(own, previous, earlier, tree)
