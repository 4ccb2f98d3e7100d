"""H: features jump between energy levels, and learning is a sequence of geometric transformations.

Section "Superposition and Learning Dynamics". The paper gives no recipe, and shows one run of each.

H1, discrete "energy level" jumps: the set-up of uniform superposition at a density where features
end as digons (the notebook's n = 200, m = 20, p = 20^(-8/19) = 0.283), Adam at a constant rate.
Long after most features have settled at 0 or 1/2, single ones jump, and the loss drops.

H2, learning as geometric transformations: n = 6, m = 3, two sets of three features, each set on
with probability p or off as a whole, the values independent. Adam at 1e-3 from small weights.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.signal import find_peaks

from papers.toy_superposition.geometry import cosines, dimensionality
from papers.toy_superposition.inputs import Inputs, SparseUniform, Supports
from papers.toy_superposition.models import Architecture, ToyModels, create
from papers.toy_superposition.training import Recipe, generator, train
from shared.experiment import Arrays, Config, Evaluation, Experiment, Figure, Run
from shared.figures.style import PALETTE, panel_labels, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Array = np.ndarray

N, M = 200, 20
DENSITY = 20 ** (-8 / 19)

HALF = 5  # observations on each side over which a change is measured
JUMP = 0.25  # change of D_i within a window: half the distance between the levels 0 and 1/2
PARTNER = 0.1  # opposite change of another feature that makes a jump a swap
SETTLED = 0.02  # share of features that may still be on their way
LEVEL = 0.05  # distance from 0 or 1/2 that still counts as being there
OUTLIER = 6.0  # robust standard deviations
SHIFTS = 2000

SETS, SIZE, SPACE = 2, 3, 3
SET_DENSITY = 0.05
SMALL = 0.02  # standard deviation of the first weights: the start is near the origin
TOGETHER = 0.9  # cosine above which two features of a set still share a direction
OPEN = 0.1  # |cosine| below which features of a set have become orthogonal
ANTIPODAL = -0.95
PRISM, ANTIPRISM = 0.75, 0.95  # alignments below and above: see `alignment`


class Dynamics(Config):
    """How one phenomenon is trained and watched."""

    recipe: Recipe
    runs: int
    batch: int
    """Columns of a training batch; for enumerated supports, columns per support."""
    observe_every: int
    evaluation: int
    """The same for the one batch on which every trace of the loss is measured."""


class Parameters(Config):
    """What a profile sets."""

    energy_levels: Dynamics
    transformations: Dynamics


def correlated_sets(columns: int) -> Supports:
    """Two sets of three features, each on or off as a whole: the four supports of H2."""
    sets = torch.tensor(list(itertools.product([False, True], repeat=SETS)))
    probability = torch.where(sets, SET_DENSITY, 1 - SET_DENSITY).prod(1)
    return Supports(sets.repeat_interleave(SIZE, dim=1), probability[None], columns)


def uniform(batch: int) -> SparseUniform:
    """The inputs of H1: independent features of one density."""
    return SparseUniform(torch.tensor([DENSITY]), N, batch)


def _watch(
    start: ToyModels, inputs: Inputs, fixed: Inputs, config: Dynamics, run: Run, label: str
) -> tuple[list[int], list[Array], list[Array]]:
    """Train; return the steps, weights and losses observed, all losses on one batch of `fixed`."""
    held_out = fixed.sample(generator(run.seed, 2, run.device))
    steps: list[int] = []
    weights: list[Array] = []
    losses: list[Array] = []

    def observe(step: int, models: ToyModels) -> None:
        steps.append(step)
        weights.append(models.W.cpu().numpy().copy())
        losses.append(models.losses(held_out).cpu().numpy())

    train(start, inputs, config.recipe, run.seed, label, observe, config.observe_every)
    return steps, weights, losses


def run(config: Parameters, run: Run) -> Arrays:
    """Train all runs of both phenomena, recording what the paper plots against the step."""
    levels, shapes = config.energy_levels, config.transformations
    many = create(Architecture(), levels.runs, N, M, generator(run.seed, 0, run.device))
    steps, weights, losses = _watch(
        many, uniform(levels.batch), uniform(levels.evaluation), levels, run, "energy levels"
    )
    few = create(
        Architecture(),
        shapes.runs,
        SETS * SIZE,
        SPACE,
        generator(run.seed, 10, run.device),
        std=SMALL,
    )
    shape_steps, shape_weights, shape_losses = _watch(
        few,
        correlated_sets(shapes.batch),
        correlated_sets(shapes.evaluation),
        shapes,
        run,
        "transformations",
    )
    return {
        "level_steps": np.array(steps),
        "level_D": np.array([dimensionality(W) for W in weights], dtype=np.float32),
        "level_loss": np.array(losses),
        "shape_steps": np.array(shape_steps),
        "shape_W": np.array(shape_weights),
        "shape_loss": np.array(shape_losses),
    }


def changes(values: Float[Array, "times ..."]) -> Float[Array, "times ..."]:
    """Change from HALF observations before to HALF after; zero where that is not observed."""
    change = np.zeros(values.shape)
    if len(values) > 2 * HALF:
        change[HALF:-HALF] = values[2 * HALF :] - values[: -2 * HALF]
    return change


def settled(D: Float[Array, "times n"]) -> int:
    """First observation from which on all but a share SETTLED of D_i stay within 0.1 of their end.

    Before it everything moves at once, and any event would coincide with any other.
    """
    moving = (np.abs(D - D[-1]) > 0.1).mean(1) > SETTLED
    return int(np.flatnonzero(moving)[-1]) + 1 if moving.any() else 0


def jumps(D: Float[Array, "times n"], start: int = 0) -> Int[Array, " jumps"]:
    """Observations from `start` on where some D_i changes by more than JUMP, at its fastest."""
    fastest = np.abs(changes(D)).max(1)
    peaks, _ = find_peaks(fastest, height=JUMP, distance=2 * HALF)
    return peaks[peaks >= start]


def is_swap(D: Float[Array, "times n"], at: int) -> bool:
    """Whether another feature changes by more than PARTNER against the one that jumps."""
    change = changes(D)[at]
    jumper = np.abs(change).argmax()
    return bool((-np.sign(change[jumper]) * change).max() > PARTNER)


def steepness(steps: Int[Array, " times"], loss: Float[Array, " times"]) -> Float[Array, " times"]:
    """Return -d log loss / d log step; zero at the edges.

    The difference between the means of the HALF observations after and the HALF before, which
    lets less of the noise of single observations through than the ends of the window would.
    """
    slope = np.zeros(len(loss))
    if len(loss) > 2 * HALF:
        pairs = np.stack([np.log(loss.astype(float)), np.log(steps + 1.0)])
        means = np.lib.stride_tricks.sliding_window_view(pairs, HALF, axis=1).mean(-1)
        fall, span = means[:, : -HALF - 1] - means[:, HALF + 1 :]
        slope[HALF:-HALF] = -fall / span
    return slope


def loss_drops(
    steps: Int[Array, " times"], loss: Float[Array, " times"], start: int = 0
) -> Int[Array, " drops"]:
    """Observations of local maxima of the steepness that are outliers from `start` on.

    An outlier lies OUTLIER robust standard deviations (1.4826 MAD) above the median, and stands
    out from its surroundings by as much.
    """
    slope = steepness(steps, loss)[start : len(loss) - HALF]
    if len(slope) < 3:
        return np.zeros(0, dtype=int)
    middle = np.median(slope)
    threshold = OUTLIER * 1.4826 * np.median(np.abs(slope - middle))
    peaks, _ = find_peaks(slope, height=middle + threshold, prominence=threshold, distance=2 * HALF)
    return peaks + start


def near(these: Sequence[int] | Array, those: Sequence[int] | Array) -> Array:
    """For each of `these` observations, whether one of `those` is within a window of it."""
    distance = np.abs(np.subtract.outer(np.asarray(these), np.asarray(those)))
    return distance.min(axis=1, initial=2 * HALF + 1) <= 2 * HALF


def shifted_coincidences(
    events: Sequence[tuple[Array, Array, int, int]], draws: int, seed: int = 0
) -> Int[Array, " draws"]:
    """How many jumps coincide with drops after each run's drops are moved round the clock.

    Each event is (jumps, drops, first, end) of a run; the drops move by one random number of
    observations within [first, end), so that their number and their gaps stay.
    """
    random = np.random.default_rng(seed)
    totals = np.zeros(draws, dtype=int)
    for jumped, dropped, first, end in events:
        if len(jumped) and len(dropped):
            shift = random.integers(0, end - first, draws)
            moved = first + (dropped[None] - first + shift[:, None]) % (end - first)
            distance = np.abs(jumped[None, :, None] - moved[:, None, :]).min(-1)
            totals += (distance <= 2 * HALF).sum(1)
    return totals


def ends_in_digons(D: Float[Array, "times n"]) -> bool:
    """Whether every D_i, averaged over the last window, is at 0 or at 1/2."""
    end = D[-2 * HALF :].mean(0)
    return bool((np.minimum(np.abs(end), np.abs(end - 0.5)) < LEVEL).all())


def _share(count: int | float, total: int) -> float:
    return float(count) / max(total, 1)


def _falls(loss: Float[Array, " times"], at: Int[Array, " jumps"]) -> list[float]:
    """Return the greatest fall of the loss over a window whose middle lies in each jump's."""
    fall = -changes(loss.astype(float))
    return [float(fall[k - HALF : k + HALF + 1].max()) for k in at.tolist()]


def _energy_levels(arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics and the figure of H1."""
    steps, loss = arrays["level_steps"], arrays["level_loss"]
    D = arrays["level_D"].astype(float)
    runs = range(D.shape[1])
    firsts = [settled(D[:, i]) for i in runs]
    jumped = [jumps(D[:, i], firsts[i]) for i in runs]
    dropped = [loss_drops(steps, loss[:, i], firsts[i]) for i in runs]
    hits = [near(jumped[i], dropped[i]) for i in runs]
    explained = [near(dropped[i], jumped[i]) for i in runs]
    swaps = [
        np.array([is_swap(D[:, i], at) for at in jumped[i].tolist()], dtype=bool) for i in runs
    ]
    events = [(jumped[i], dropped[i], firsts[i], len(steps)) for i in runs]
    digons = [ends_in_digons(D[:, i]) for i in runs]
    total, hit = sum(map(len, jumped)), int(sum(map(sum, hits)))
    baseline = shifted_coincidences(events, SHIFTS)
    # The paper picks a model whose features all become digons; of those, the one that jumps most.
    shown = max(runs, key=lambda i: (digons[i], len(jumped[i]), -i))
    metrics = {
        "jumps": [len(found) for found in jumped],
        "loss_drops": [len(found) for found in dropped],
        "coincident_jumps": [int(found.sum()) for found in hits],
        "runs_with_coincident_jump": _share(sum(map(any, hits)), len(runs)),
        "runs_with_two_jumps": sum(len(found) >= 2 for found in jumped),
        "jumps_at_a_drop": _share(hit, total),
        "jumps_at_a_shifted_drop": _share(float(baseline.mean()), total),
        "chance_of_as_many_by_shift": float((1 + (baseline >= hit).sum()) / (1 + SHIFTS)),
        "drops_at_a_jump": _share(
            float(sum(map(sum, explained))), sum(len(found) for found in dropped)
        ),
        "coincident_swaps": sum(
            int((swap & found).sum()) for swap, found in zip(swaps, hits, strict=True)
        ),
        "runs_ending_in_digons": sum(digons),
        "shown_coincident_jumps": int(hits[shown].sum()),
        "shown_loss_falls": _falls(loss[:, shown], jumped[shown]),
    }
    moves = np.abs(changes(D[:, shown]))[firsts[shown] :].max(0, initial=0)
    return metrics, {
        "step": steps,
        "D": D[:, shown].round(3).T,
        "jumping": np.flatnonzero(moves > JUMP),
        "loss_above_end": loss[:, shown].astype(float) - loss[-2 * HALF :, shown].mean(),
        "settled": steps[[min(first, len(steps) - 1) for first in firsts]],
        "jumps": [steps[found] for found in jumped],
        "drops": [steps[found] for found in dropped],
        "window": int(2 * HALF * steps[1]),
        "shown": shown,
    }


def alignment(W: Float[Array, "*models 3 6"]) -> Float[Array, "*models"]:
    """Mean of -cosine over the best matching of one set's features with the other's.

    1 where features of different sets form antipodal pairs (an octahedron, if the sets are
    orthogonal frames: an antiprism on the sets' triangles); 2/3 where one frame is the mirror
    image of the other, which makes their triangles the ends of a prism.
    """
    across = cosines(W)[..., :SIZE, SIZE:]
    matchings = itertools.permutations(range(SIZE))
    means = [-across[..., range(SIZE), matching].mean(-1) for matching in matchings]
    return np.asarray(np.max(means, axis=0))


def within_sets(W: Float[Array, "*models 3 6"]) -> Float[Array, "*models 2 3"]:
    """Return the cosines between features of one set, a row for each set."""
    rows, columns = np.triu_indices(SIZE, 1)
    cosine = cosines(W)
    blocks = [cosine[..., s : s + SIZE, s : s + SIZE] for s in range(0, SETS * SIZE, SIZE)]
    return np.stack([block[..., rows, columns] for block in blocks], axis=-2)


def directions(W: Float[Array, "3 6"]) -> tuple[int, ...]:
    """In how many directions the features of each set point, the fewer first."""
    # Joined pairs 0, 1, 2 or 3 of three features leave 3, 2, 1 or 1 directions.
    joined = (within_sets(W) > TOGETHER).sum(-1)
    return tuple(sorted(int(count) for count in np.maximum(SIZE - joined, 1)))


def is_octahedron(W: Float[Array, "*models 3 6"]) -> Array:
    """Whether there are three antipodal pairs, each of features from different sets, orthogonal."""
    cosine = cosines(W)
    pairs = (cosine[..., :SIZE, SIZE:] < ANTIPODAL).sum((-1, -2))
    orthogonal = np.abs(within_sets(W)).max((-1, -2)) < OPEN
    return np.asarray((pairs == SIZE) & orthogonal)


def plateaus(
    steps: Int[Array, " times"], loss: Float[Array, " times"], drops: Int[Array, " drops"]
) -> list[int]:
    """Return the observation of least steepness between each two successive drops."""
    slope = steepness(steps, loss)
    pairs = itertools.pairwise(drops.tolist())
    return [first + int(slope[first:last].argmin()) for first, last in pairs]


def _transformations(arrays: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics and the figure of H2."""
    steps, loss = arrays["shape_steps"], arrays["shape_loss"].astype(float)
    W = arrays["shape_W"].astype(float)
    runs, last = range(W.shape[1]), len(steps) - 1
    kinks = [loss_drops(steps, loss[:, i]) for i in runs]
    rests = [plateaus(steps, loss[:, i], kinks[i]) for i in runs]
    visited = [tuple(directions(W[at, i]) for at in [*rests[i], last]) for i in runs]
    final = is_octahedron(W[-1])
    aligned = alignment(W)
    opened = (np.abs(within_sets(W)) < OPEN).all((-1, -2))
    first_open = np.where(opened.any(0), opened.argmax(0), last)
    at_opening = aligned[first_open, runs]
    # The paper's own trajectory: the triangles open as a prism, then turn into the antiprism.
    shown = min(
        runs, key=lambda i: (not final[i], at_opening[i] >= PRISM, -len(rests[i]), at_opening[i])
    )
    common = Counter(visited).most_common()
    metrics = {
        "octahedra": float(final.mean()),
        "loss_kinks": [len(found) for found in kinks],
        "trajectories": sum(count >= 2 for _, count in common),
        "trajectory_counts": [count for _, count in common],
        "opening_as_prism": float((at_opening < PRISM).mean()),
        "opening_as_antiprism": float((at_opening > ANTIPRISM).mean()),
        "alignment_at_opening": np.sort(at_opening),
        "final_alignment": float(np.median(aligned[-1])),
        "collapsed_at_first_plateau": _share(
            sum(directions(W[rests[i][0], i]) == (1, 1) for i in runs if rests[i]), len(runs)
        ),
        "final_loss": float(np.median(loss[-1])),
    }
    moments = sorted({*rests[shown], int(first_open[shown]), last})
    thin = slice(None, None, 3)
    return metrics, {
        "step": steps[thin],
        "loss": loss[thin].T,
        "alignment": aligned[thin].T,
        "opening_step": steps[first_open],
        "opening": at_opening,
        "shown": shown,
        "path": W[:, shown][thin],
        "moments": steps[moments],
        "W": W[moments, shown],
        "names": [_name(W[at, shown]) for at in moments],
        "kinks": steps[kinks[shown]],
    }


def _name(W: Float[Array, "3 6"]) -> str:
    """Return words for the shape that the six features make."""
    if is_octahedron(W):
        return "antipodal pairs:\noctahedron"
    sets = directions(W)
    if sets == (1, 1):
        return "each set one\ndirection"
    if sets == (SIZE, SIZE) and bool((np.abs(within_sets(W)) < OPEN).all()):
        return "triangles open:\n" + ("prism" if alignment(W) < PRISM else "twisted prism")
    return "sets split:\n" + " + ".join(map(str, sets)) + " directions"


def evaluate(config: Parameters, arrays: Arrays) -> Evaluation:
    """Find jumps, swaps and drops in every run, and the shapes that the restarts pass through."""
    levels, levels_figure = _energy_levels(arrays)
    shapes, shapes_figure = _transformations(arrays)
    return Evaluation(
        metrics={"energy_levels": levels, "transformations": shapes},
        figures={
            "energy_level_jumps": levels_figure,
            "geometric_transformations": shapes_figure,
        },
    )


def draw_energy_levels(data: Mapping[str, Any]) -> Canvas:
    """D_i and the loss of one run against the step, and the events of all runs."""
    figure, axes = subplots(3, 1, 5.2, sharex=True, gridspec_kw={"height_ratios": [1.4, 1, 1]})
    levels, loss, events = axes[:, 0]
    step, shown = np.array(data["step"]), data["shown"]
    for level in (0, 0.5):
        levels.axhline(level, color="0.6", linewidth=0.6, linestyle=":")
    levels.plot(step, np.transpose(data["D"]), color="0.72", linewidth=0.4)
    for order, feature in enumerate(data["jumping"]):
        levels.plot(step, data["D"][feature], color=PALETTE[order % len(PALETTE)], linewidth=1.4)
    levels.set(ylabel="dimensionality $D_i$", ylim=(-0.03, 0.8))

    losses = np.array(data["loss_above_end"])
    loss.plot(step, losses, color="black")
    late = losses[step >= data["settled"][shown]]
    margin = 0.35 * (late.max() - late.min() + 1e-9)
    loss.set(ylabel="loss above its end", ylim=(late.min() - margin, late.max() + margin))
    for at in data["jumps"][shown]:
        for axis in (levels, loss):
            axis.axvspan(
                at - data["window"] / 2,
                at + data["window"] / 2,
                color=PALETTE[5],
                alpha=0.25,
                linewidth=0,
            )

    for run, (first, jumped, dropped) in enumerate(
        zip(data["settled"], data["jumps"], data["drops"], strict=True)
    ):
        events.plot([first, step[-1]], [run, run], color="0.85", linewidth=0.8, zorder=1)
        events.plot(jumped, [run] * len(jumped), "o", color=PALETTE[5], markersize=5, zorder=2)
        events.plot(dropped, [run] * len(dropped), "|", color="black", markersize=6, zorder=3)
    events.plot([], [], "o", color=PALETTE[5], markersize=5, label="jump of a $D_i$")
    events.plot(
        [], [], "|", color="black", markersize=6, linestyle="none", label="drop of the loss"
    )
    events.set(xlabel="training step", ylabel="run", yticks=[0, len(data["jumps"]) - 1])
    events.set(xlim=(0, step[-1]), ylim=(-0.7, len(data["jumps"]) - 0.3))
    figure.legend(*events.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    panel_labels(axes)
    return figure


def _upright(W: Float[Array, "3 6"]) -> Float[Array, "3 3"]:
    """Return a rotation that puts the final axis of the first set upright."""
    up = W[:, :SIZE].mean(1)
    basis, _ = np.linalg.qr(np.column_stack([up, W[:, :2]]))
    basis *= np.sign(np.append(basis[:, 0] @ up, [1, 1]))
    return np.array(basis[:, [1, 2, 0]].T)


def draw_transformations(data: Mapping[str, Any]) -> Canvas:
    """The columns of W in space at each stage, above the loss and the alignment of the sets."""
    moments, shown = data["moments"], data["shown"]
    columns = max(2, len(moments))
    figure, axes = subplots(
        2,
        columns,
        3.9,
        subplot_kw={"projection": "3d"},
        gridspec_kw={"height_ratios": [1, 1.7]},
    )
    grid = axes[0, 0].get_gridspec()
    for axis in axes[1]:
        axis.remove()
    view = _upright(np.array(data["W"])[-1])
    step, path = np.array(data["step"]), view @ np.array(data["path"])
    begins = [0, *moments[:-1]]
    for axis, W, name, begin, end, letter in zip(
        axes[0],
        view @ np.array(data["W"]),
        data["names"],
        begins,
        moments,
        "abcdefgh",
        strict=False,
    ):
        trail = path[(step >= begin) & (step <= end)]
        for first, colour in zip((0, SIZE), PALETTE, strict=False):
            members = list(range(first, first + SIZE))
            for i in members:
                axis.plot(*trail[:, :, i].T, color=colour, linewidth=0.6, alpha=0.7)
                axis.plot(*np.transpose([np.zeros(3), W[:, i]]), color=colour, linewidth=0.9)
            axis.plot(*W[:, [*members, first]], "o-", color=colour, linewidth=1.4, markersize=3)
        axis.set(xlim=(-0.82, 0.82), ylim=(-0.82, 0.82), zlim=(-0.7, 0.7))
        axis.set_axis_off()
        axis.view_init(elev=22, azim=-65)
        axis.set_box_aspect((1, 1, 0.85), zoom=1.38)
        axis.set_title(f"$\\bf{{{letter}}}$  step {end}\n{name}", fontsize=7)
    half = -(-columns // 2)
    curves = figure.add_subplot(grid[1, :half])
    turns = figure.add_subplot(grid[1, half:])
    _draw_losses(curves, data)
    for run, (values, begin) in enumerate(
        zip(data["alignment"], data["opening_step"], strict=True)
    ):
        style = {"color": "black", "zorder": 3} if run == shown else {"color": "0.7"}
        after = step >= begin
        turns.plot(step[after], np.array(values)[after], linewidth=0.7, **style)
        turns.plot(begin, data["opening"][run], "o", markersize=2.5, **style)
    for level, word in ((1, "octahedron"), (2 / 3, "prism")):
        turns.axhline(level, color=PALETTE[4], linewidth=0.8, linestyle=":")
        turns.text(step[-1], level + 0.008, word, ha="right", va="bottom", color=PALETTE[4])
    turns.set(xlabel="training step", ylabel="alignment of the sets", xlim=(0, step[-1]))
    turns.set(ylim=(0.6, 1.06))
    # On the right, so that the labels do not push the stages above apart.
    turns.yaxis.tick_right()
    turns.yaxis.set_label_position("right")
    return figure


def _draw_losses(axis: Axes, data: Mapping[str, Any]) -> None:
    """Loss of every restart, the shown one in black with its stages and kinks."""
    shown = data["shown"]
    for run, losses in enumerate(data["loss"]):
        style = {"color": "black", "zorder": 3} if run == shown else {"color": "0.75"}
        axis.plot(data["step"], losses, linewidth=1.2 if run == shown else 0.5, **style)
    for letter, moment in zip("abcdefgh", data["moments"], strict=False):
        axis.axvline(moment, color="0.4", linewidth=0.6, linestyle="--")
        axis.text(
            moment,
            0.98,
            f" {letter} ",
            transform=axis.get_xaxis_transform(),
            ha="right" if moment == data["moments"][-1] else "left",
            va="top",
            weight="bold",
        )
    kinks = np.interp(data["kinks"], data["step"], data["loss"][shown])
    axis.plot(data["kinks"], kinks, "v", color=PALETTE[4], markersize=5, zorder=4, label="kink")
    axis.set(xlabel="training step", ylabel="loss, fixed batch", yscale="log")
    axis.set(xlim=(0, data["step"][-1]))
    axis.legend(loc="center right")


EXPERIMENT = Experiment(
    config=Parameters,
    train=run,
    evaluate=evaluate,
    figures=(
        Figure(
            name="energy_level_jumps",
            title="Single features jump between energy levels, and the loss drops",
            caption="n = 200 features in m = 20 dimensions at density 0.283. (a) Dimensionality "
            "of every feature of one run, those that jump in colour; (b) its loss on a fixed "
            "batch, scaled to the time after settling; (c) the jumps and loss drops found in every "
            "run after its features have settled (grey line). Shown is, of the runs that end "
            "with digons only, the one with the most jumps. Shaded: the window of a jump.",
            original='section "Superposition and Learning Dynamics", Phenomenon 1',
            draw=draw_energy_levels,
        ),
        Figure(
            name="geometric_transformations",
            title="Learning an octahedron as a sequence of geometric transformations",
            caption="Six features in three dimensions, two sets (blue, orange) of three features "
            "that are on or off together. Top: columns of W at the plateaus of the loss, when "
            "both sets are first open, and at the end, with the path since the panel before. "
            "Bottom: loss of all restarts, and how well the sets are aligned from their opening "
            "on: 1 is an octahedron of antipodal pairs, 2/3 a prism. Black is, of the restarts "
            "that open as a prism and end as an octahedron, the one with the most plateaus.",
            original='section "Superposition and Learning Dynamics", Phenomenon 2',
            draw=draw_transformations,
        ),
    ),
)
