"""Five ways to say which tokens of a text a logit is due to, what they cost, and which are right.

The score s of a target token is its logit after the text, less that of another token or the mean of
all. The worth v(S) of a set S of the text's tokens is the mean of s when all others are removed: in
their place stands what other texts have at the same position (their tokens, or their activations at
the site). No method sees all of v; each gives every token a value:

    probe     w·(x − mean x): what a linear probe (ridge regression, fitted to the model's scores on
              activations x of other text) reads off the activation at the token's position
    lime      the token's weight in a linear model of v around the whole text (Ribeiro et al. 2016)
    shap      its Shapley value in v, estimated by regression (KernelSHAP, Lundberg and Lee 2017)
    patching  s less the mean of s with another text's activation at this position (noising)
    features  the sum of the integrated gradients of the features active at this position: see
              `shared.features.attribute`
    recency   the token's position, a control: it knows only that later tokens matter more

A method is judged on other texts than it has used itself. Tokens go from the highest value to the
lowest. Deletion removes them one by one from the whole text, insertion puts them back one by one
into nothing (Petsiuk et al. 2018, RISE). With A the area under a curve, over shares of the tokens
from 0 to 1,

    faithfulness = (A(insertion) − A(deletion)) / (v(all) − v(none))

A random order has 0 in expectation, since what is left of a random deletion is a random insertion.
The cost is counted as the model runs: sequences forward, those of the probe's training included,
and sequences backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from shared.activations.sites import replaced_logits
from shared.corpus.shards import Contexts
from shared.errors import UserError
from shared.features.attribute import integrated, spearman
from shared.features.dictionary import Dictionary
from shared.features.kinds import plain_prompts
from shared.features.parts import TOKENS, Parts, Run, Target, contributions
from shared.language_models.load import LanguageModel
from shared.metrics.ratings import Interval, mean_interval
from shared.progress import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("probe", "lime", "shap", "patching", "features", "recency")
Removed = Literal["tokens", "activations"]
REMOVED: tuple[Removed, ...] = get_args(Removed)

PROBE_BATCH = 4
"""Contexts whose logits, over the whole vocabulary, are held at once."""
RIDGE = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Penalties of the probe, of which leave-one-out validation chooses."""
LIME_WIDTH = 0.25
"""Of LIME's kernel, in cosine distance: that of its authors' code for text."""

Worth = Callable[[Float[Tensor, "cases tokens"]], Float[Tensor, " cases"]]
"""From which tokens are kept (1, else 0) to v."""


@dataclass(frozen=True)
class Settings:
    """How methods are run and judged.

    removed: what a removed token loses, itself or its activation at the site.
    samples: sets of tokens that LIME and KernelSHAP look at, each.
    others: texts that stand in for what is removed.
    judges: the same where methods are judged.
    steps: points of the quadrature of the integrated gradients.
    learned, checked: contexts that the probe is fitted to, and held-out ones that it is checked on.
    seed: of the samples.
    """

    removed: Removed = "tokens"
    samples: int = 128
    others: int = 4
    judges: int = 8
    steps: int = 10
    learned: int = 16
    checked: int = 4
    seed: int = 0

    @property
    def contexts(self) -> int:
        """Return how many contexts a comparison needs, but for those that check the probe."""
        return self.learned + self.others + self.judges


def known(removed: str) -> Removed:
    """Return what a removed token loses, by name. Raises UserError listing what there is."""
    for each in REMOVED:
        if removed == each:
            return each
    raise UserError(f"{removed!r} cannot be removed: choose one of {', '.join(REMOVED)}")


@dataclass
class Passes:
    """Sequences that a model has run, forward and backward."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Comparison:
    """What the METHODS say about one text.

    tokens: as text, without END_OF_TEXT.
    target: the token whose score is explained.
    score: v of all tokens, the model's own.
    nothing: v of none, as judged.
    values: of every token by every method, in logits (but recency).
    strongest: the feature worth most at each token, or -1 where none is active.
    deletion, insertion: v as ever more tokens, from none to all, are removed or put back.
    forward, backward: sequences that each method ran through the model.
    probe_r2: share of the variance of scores on held-out text that the probe explains.
    """

    tokens: tuple[str, ...]
    target: str
    score: float
    nothing: float
    values: Float[np.ndarray, "methods tokens"]
    strongest: Int[np.ndarray, " tokens"]
    deletion: Float[np.ndarray, "methods counts"]
    insertion: Float[np.ndarray, "methods counts"]
    forward: Int[np.ndarray, " methods"]
    backward: Int[np.ndarray, " methods"]
    probe_r2: float

    @property
    def faithfulness(self) -> Float[np.ndarray, " methods"]:
        """Return (A(insertion) − A(deletion)) / (score − nothing); 0 is chance."""
        count = len(self.tokens)
        area = np.trapezoid(self.insertion - self.deletion, dx=1 / count, axis=1)
        found: np.ndarray = area / (self.score - self.nothing)
        return found

    @property
    def agreement(self) -> Float[np.ndarray, "methods methods"]:
        """Return Spearman's rank correlation between METHODS over tokens; NaN for constant ones."""
        return spearman(self.values)


class Summary(NamedTuple):
    """The mean over texts, by method."""

    faithfulness: Interval
    """With its interval of 90%, by bootstrap over texts."""
    forward: Float[np.ndarray, " methods"]
    backward: Float[np.ndarray, " methods"]
    agreement: Float[np.ndarray, "methods methods"]


def summary(found: Sequence[Comparison]) -> Summary:
    """Return the means of some comparisons."""
    return Summary(
        mean_interval(np.stack([one.faithfulness for one in found], axis=-1), seed=0),
        np.mean([one.forward for one in found], axis=0),
        np.mean([one.backward for one in found], axis=0),
        np.nanmean([one.agreement for one in found], axis=0),
    )


@contextmanager
def counted(model: LanguageModel) -> Iterator[Passes]:
    """Count the sequences that a model runs inside the block."""
    passes = Passes()

    def count(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        passes.forward += len(args[0])
        passes.backward += len(args[0]) * torch.is_grad_enabled()

    handle = model.network.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


@torch.no_grad()
def tokens_kept(
    dictionary: Dictionary,
    tokens: Int64[Tensor, "1 length"],
    others: Int64[Tensor, "n length"],
    target: Target,
    kept: Float[Tensor, "cases tokens"],
) -> Float[Tensor, " cases"]:
    """Return the mean score with the tokens of other texts where none is kept.

    Position 0 is END_OF_TEXT in all of them.
    """
    keep = torch.cat([torch.ones_like(kept[:, :1]), kept], dim=1)[:, None].bool()
    rows = torch.where(keep, tokens, others).flatten(0, 1)
    network = dictionary.model.network
    scores = [
        target.score(network(part, use_cache=False, logits_to_keep=1).logits[:, -1].float())
        for part in torch.split(rows, max(1, TOKENS // rows.shape[1]))
    ]
    return torch.cat(scores).view(len(kept), len(others)).mean(1)


@torch.no_grad()
def activations_kept(
    runs: Sequence[Run], kept: Float[Tensor, "cases tokens"]
) -> Float[Tensor, " cases"]:
    """Return the mean score with the activations of other texts where none is kept.

    Args:
        runs: see `towards_others`.
        kept: 1 for positions, from 1 on, that keep theirs.
    """
    scores = [torch.cat([run(part) for part in torch.split(1 - kept, run.rows)]) for run in runs]
    return torch.stack(scores).mean(0)


def towards_others(
    dictionary: Dictionary,
    tokens: Int64[Tensor, "1 length"],
    others: Int64[Tensor, "n length"],
    target: Target,
) -> list[Run]:
    """Return a run for each other text; its parts turn a position's activation into the other's."""
    x = dictionary.activations(tokens)[0]
    at = torch.arange(1, len(x), device=x.device)
    return [
        Run(dictionary, tokens, target, x, Parts(at, (other - x)[1:]))
        for other in dictionary.activations(others)
    ]


def worth(
    dictionary: Dictionary,
    tokens: Int64[Tensor, "1 length"],
    others: Int64[Tensor, "n length"],
    target: Target,
    removed: Removed,
) -> Worth:
    """Return v of a text, removed being replaced by what the other texts have."""
    if removed == "tokens":
        return partial(tokens_kept, dictionary, tokens, others, target)
    return partial(activations_kept, towards_others(dictionary, tokens, others, target))


def lime(
    v: Worth, count: int, samples: int, seed: int, rows: int = 64, device: str = "cpu"
) -> Float[Tensor, " {count}"]:
    """Return the weights of a linear model of v near the whole text.

    Ridge regression with penalty 1; a set at cosine distance d from the whole text weighs
    exp(−d² / 2·LIME_WIDTH²), as in LIME's code for text. Sets are drawn by captum: every token is
    kept with probability one half.
    """
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime
    from captum.attr._core.lime import get_exp_kernel_similarity_function

    explainer = Lime(
        v,
        interpretable_model=SkLearnRidge(alpha=1.0),
        similarity_func=get_exp_kernel_similarity_function("cosine", LIME_WIDTH),
    )
    return _sampled(explainer, count, samples, seed, rows, device)


def kernel_shap(
    v: Worth, count: int, samples: int, seed: int, rows: int = 64, device: str = "cpu"
) -> Float[Tensor, " {count}"]:
    """Return estimated Shapley values of v; they sum to v(all) − v(none)."""
    from captum.attr import KernelShap

    return _sampled(KernelShap(v), count, samples, seed, rows, device)


def _sampled(explainer: Any, count: int, samples: int, seed: int, rows: int, device: str) -> Tensor:
    ones = torch.ones(1, count, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found: Tensor = explainer.attribute(
            ones, baselines=0, n_samples=samples, perturbations_per_eval=rows
        )
    return found[0].float()


def patching(runs: Sequence[Run], count: int) -> Float[Tensor, " {count}"]:
    """Return what the score loses with another text's activation at one position, on average."""
    device = runs[0].x.device
    scores = activations_kept(
        runs, torch.cat([torch.ones(1, count), 1 - torch.eye(count)]).to(device)
    )
    return scores[0] - scores[1:]


class Probe(NamedTuple):
    """What a linear probe reads at each token."""

    values: Float[np.ndarray, " tokens"]
    r2: float


@torch.no_grad()
def _read(
    dictionary: Dictionary, tokens: Int64[Tensor, "batch length"], target: Target
) -> tuple[Float[np.ndarray, "positions d_in"], Float[np.ndarray, " positions"]]:
    """Return the activations at all positions from 1 on, and the scores of what follows them."""
    xs, scores = [], []

    def see(value: Tensor) -> Tensor:
        xs.append(value[:, 1:].flatten(0, 1).float().cpu())
        return value

    for part in torch.split(tokens, PROBE_BATCH):
        logits = replaced_logits(dictionary.model, part, dictionary.site, see)
        scores.append(target.score(logits[:, 1:]).flatten().float().cpu())
    return torch.cat(xs).numpy(), torch.cat(scores).numpy()


def probe(
    dictionary: Dictionary,
    tokens: Int64[Tensor, "1 length"],
    target: Target,
    learned: Int64[Tensor, "contexts size"],
    held_out: Int64[Tensor, "others size"],
) -> Probe:
    """Fit a linear probe of the target's score to activations of other text, and read it."""
    from sklearn.linear_model import RidgeCV

    x, scores = _read(dictionary, learned, target)
    fitted = RidgeCV(RIDGE).fit(x, scores)
    own = dictionary.activations(tokens)[0, 1:].cpu().numpy()
    return Probe(
        (own - x.mean(0)) @ fitted.coef_,
        float(fitted.score(*_read(dictionary, held_out, target))),
    )


class ByFeatures(NamedTuple):
    """What features are worth at each token, and which is worth most."""

    values: Float[Tensor, " tokens"]
    strongest: Int64[Tensor, " tokens"]


def by_features(
    dictionary: Dictionary, tokens: Int64[Tensor, "1 length"], target: Target, steps: int
) -> ByFeatures:
    """Return the sum of the integrated gradients of all features at each token.

    Raises UserError where no feature is active.
    """
    x = dictionary.activations(tokens)[0]
    f = dictionary.encode(x)
    f[0] = 0  # END_OF_TEXT, which autoencoders are not trained on
    positions, features = f.nonzero(as_tuple=True)
    if not len(positions):
        raise UserError(f"no feature of {dictionary.name} is active on this text: take another")
    vectors = contributions(dictionary, x[positions], features, f[positions, features])
    left = x.index_add(0, positions, -vectors)
    run = Run(dictionary, tokens, target, left, Parts(positions, vectors))
    device = dictionary.model.device
    values = integrated(run, len(positions), steps, min(steps, run.rows), device)
    table = torch.zeros_like(f).index_put((positions, features), values)[1:]
    strongest = table.abs().argmax(1)
    strongest[(f[1:] > 0).sum(1) == 0] = -1
    return ByFeatures(table.sum(1), strongest)


def curves(
    v: Worth, values: Float[np.ndarray, " tokens"], device: str = "cpu"
) -> tuple[Float[np.ndarray, " counts"], Float[np.ndarray, " counts"]]:
    """Return v under deletion and under insertion of 0, 1, … all tokens, highest value first."""
    count = len(values)
    rank = np.empty(count, dtype=int)
    rank[np.argsort(-values, kind="stable")] = np.arange(count)
    first = torch.from_numpy(rank < np.arange(count + 1)[:, None]).float().to(device)
    found = v(torch.cat([1 - first, first])).cpu().double().numpy()
    return found[: count + 1], found[count + 1 :]


def compare(
    dictionary: Dictionary,
    tokens: Int64[Tensor, "1 length"],
    contexts: Contexts,
    held_out: Contexts,
    target: Target | None = None,
    settings: Settings | None = None,
) -> Comparison:
    """Explain by every method which tokens of a text a score is due to, and judge them.

    Args:
        dictionary: whose features, model and site.
        tokens: the text, END_OF_TEXT first; see `Dictionary.tokens`.
        contexts: text that the probe learns from, and the other texts.
        held_out: text that the probe is checked on.
        target: by default the token that the model finds most likely after the text.
        settings: how methods are run and judged.

    Raises:
        UserError: the text has a single token, or more than a context, or no feature is active on
            it, the contexts are too few or not in the model's tokens, or removing all tokens does
            not change the score.
    """
    settings = settings or Settings()
    model, device = dictionary.model, dictionary.model.device
    count = tokens.shape[1] - 1
    size, needed = contexts.tokens.shape[1], settings.contexts
    if count < 2:
        raise UserError("the text is a single token, and there is nothing to compare: give more")
    if count >= size:
        raise UserError(f"the text has {count} tokens, and contexts have {size - 1}: shorten it")
    if len(contexts) < needed:
        raise UserError(f"{len(contexts)} contexts to learn from, not {needed}: give more text")
    if max(contexts.tokens.max(), held_out.tokens.max()) >= model.d_vocab:
        raise UserError(f"the text is not in tokens of {model.name}: choose its model")

    def ids(part: Contexts) -> Int64[Tensor, "rows length"]:
        return torch.from_numpy(part.tokens.astype(np.int64)).to(device)

    learned, others, judges = torch.split(
        ids(contexts.select(slice(needed))),
        [settings.learned, settings.others, settings.judges],
    )
    others, judges = others[:, : count + 1], judges[:, : count + 1]
    if target is None:
        target = Target(int(model.logits(tokens)[0, -1].argmax()))

    judge = worth(dictionary, tokens, judges, target, settings.removed)
    ends = judge(torch.stack([torch.ones(count), torch.zeros(count)]).to(device))
    score, nothing = ends.tolist()
    if score == nothing:
        raise UserError("removing all tokens leaves the score as it is: choose another target")

    sampling = (count, settings.samples, settings.seed, max(1, TOKENS // others.numel()), device)
    with counted(model) as probe_passes:
        probed = probe(
            dictionary, tokens, target, learned, ids(held_out.select(slice(settings.checked)))
        )
    with counted(model) as lime_passes:
        v = worth(dictionary, tokens, others, target, settings.removed)
        limes = lime(v, *sampling)
    with counted(model) as shap_passes:
        v = worth(dictionary, tokens, others, target, settings.removed)
        shaps = kernel_shap(v, *sampling)
    with counted(model) as patching_passes:
        patched = patching(towards_others(dictionary, tokens, others, target), count)
    with counted(model) as features_passes:
        featured = by_features(dictionary, tokens, target, settings.steps)

    rows = [limes, shaps, patched, featured.values, torch.arange(1.0, count + 1)]
    values = np.stack([probed.values, *(row.cpu().numpy() for row in rows)])
    passes = [probe_passes, lime_passes, shap_passes, patching_passes, features_passes, Passes()]
    deletion, insertion = zip(*(curves(judge, row, device) for row in values), strict=True)
    return Comparison(
        tuple(dictionary.shown(tokens[0, 1:])),
        dictionary.shown(torch.tensor([target.token]))[0],
        score,
        nothing,
        values,
        featured.strongest.cpu().numpy(),
        np.stack(deletion),
        np.stack(insertion),
        np.array([each.forward for each in passes]),
        np.array([each.backward for each in passes]),
        probed.r2,
    )


def study(
    dictionary: Dictionary,
    contexts: Contexts,
    held_out: Contexts,
    excerpts: int = 20,
    length: int = 12,
    settings: Settings | None = None,
) -> list[Comparison]:
    """Compare the methods on beginnings of held-out contexts of plain text and code.

    The target is what the model finds most likely after each.

    Args:
        dictionary: whose features, model and site.
        contexts: as for `compare`.
        held_out: where the excerpts are from.
        excerpts: how many.
        length: tokens of each, without END_OF_TEXT.
        settings: see `compare`.

    Raises:
        UserError: there are not as many excerpts, or as `compare`.
    """
    settings = settings or Settings()
    drawn = plain_prompts(held_out, length, excerpts, settings.seed).to(dictionary.model.device)
    found = []
    with progress("comparing", excerpts) as advance:
        for tokens in torch.split(drawn, 1):
            found.append(compare(dictionary, tokens, contexts, held_out, None, settings))
            advance()
    return found


def draw(found: Sequence[Comparison]) -> Figure:
    """Return what the methods say, how far they agree, their curves, and what they cost.

    Of several comparisons, which have as many tokens each, their means; the first panel then holds
    the faithfulness on each text.
    """
    from shared.figures.style import DIVERGING, PALETTE, subplots, use_style

    mean = summary(found)
    colours = dict(zip(METHODS, PALETTE, strict=False))
    with use_style():
        figure, axes = subplots(2, 2, height=5.0)
        values, agreement, course, cost = axes.ravel()
        if len(found) == 1:
            _draw_values(values, found[0])
        else:
            _draw_texts(values, found, colours)
        image = agreement.imshow(mean.agreement, cmap=DIVERGING, vmin=-1, vmax=1)
        agreement.set_xticks(range(len(METHODS)), METHODS, rotation=90)
        agreement.set_yticks(range(len(METHODS)), METHODS)
        agreement.set_title("agreement")
        agreement.grid(visible=False)
        figure.colorbar(image, ax=agreement, label="rank correlation")
        _draw_curves(course, found, colours)
        _draw_cost(cost, mean, colours)
    return figure


def _draw_values(panel: Axes, found: Comparison) -> None:
    from shared.figures.style import DIVERGING

    largest = np.abs(found.values).max(1, keepdims=True)
    panel.imshow(
        (found.values / np.where(largest, largest, 1)).T,
        cmap=DIVERGING,
        vmin=-1,
        vmax=1,
        aspect="auto",
    )
    panel.set_xticks(range(len(METHODS)), METHODS, rotation=90)
    labels = [repr(token) for token in found.tokens]
    panel.set_yticks(range(len(labels)), labels, parse_math=False)
    panel.set_title(f"values for {found.target!r}", parse_math=False)
    panel.grid(visible=False)


def _draw_texts(panel: Axes, found: Sequence[Comparison], colours: dict[str, str]) -> None:
    table = np.stack([one.faithfulness for one in found])
    jitter = np.linspace(-0.2, 0.2, len(found))
    for row, colour in enumerate(colours.values()):
        panel.plot(row + jitter, table[:, row], "o", color=colour, markersize=2, alpha=0.7)
    panel.axhline(0, color="0.35", linewidth=0.8, linestyle=":")
    panel.set_xticks(range(len(METHODS)), METHODS, rotation=90)
    panel.set(title="every text", ylabel="faithfulness")


def _draw_curves(panel: Axes, found: Sequence[Comparison], colours: dict[str, str]) -> None:
    share = np.linspace(0, 1, found[0].deletion.shape[1])
    for row, (method, colour) in enumerate(colours.items()):
        for name, style in (("insertion", "-"), ("deletion", "--")):
            curve = [
                (getattr(one, name)[row] - one.nothing) / (one.score - one.nothing) for one in found
            ]
            label = method if name == "insertion" else None
            panel.plot(share, np.mean(curve, axis=0), style, color=colour, label=label)
    panel.legend()
    panel.set(
        title="insertion (solid), deletion (dashed)",
        xlabel="share of the tokens",
        ylabel="score, 0: none, 1: all",
    )


def _draw_cost(panel: Axes, mean: Summary, colours: dict[str, str]) -> None:
    total, faithfulness = mean.forward + mean.backward, mean.faithfulness
    for row, colour in enumerate(colours.values()):
        middle = faithfulness.mean[row]
        if not total[row]:
            panel.axhline(middle, color=colour, linestyle="--")
            continue
        limits = [[middle - faithfulness.low[row]], [faithfulness.high[row] - middle]]
        panel.errorbar(total[row], middle, limits, fmt="o", color=colour, capsize=2)
    panel.axhline(0, color="0.35", linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.margins(x=0.25)
    panel.set(title="faithfulness and cost (dashed: none)", xlabel="passes", ylabel="faithfulness")
