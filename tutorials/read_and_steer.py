"""Read and steer features in ten minutes, on the models that come with the repository.

A sparse autoencoder writes an activation of a language model as a sum of a few out of many
directions, its features. Here we read them off a text, ask what one of them stands for, push it and
see what the model then writes, and ask which features a prediction is due to. Every part names the
command that does the same in a terminal.

    nox -s tutorials                         runs it all, and keeps figures and numbers
    python -i -m tutorials.read_and_steer    the same, and Python stays open to go on from there
"""

from shared.features.ablate import rank
from shared.features.attribute import METHODS, attribute
from shared.features.compare import METHODS as EXPLAINERS
from shared.features.compare import draw as draw_comparison
from shared.features.compare import study, summary
from shared.features.dictionary import open_dictionary
from shared.features.edits import Edit
from shared.features.examples import Panels, portraits
from shared.features.explain import explain
from shared.features.kinds import half, kind_share
from shared.features.parts import open_target
from shared.features.patch import draw as draw_patching
from shared.features.patch import patch
from shared.features.read import read
from shared.features.steer import Sampling, natural_strength, steer
from shared.features.text import contexts_of, divided
from shared.figures.style import panel_labels, subplots, use_style
from tutorials.record import Record

# %% 1. Open a dictionary. By default it is a TopK autoencoder with 2,048 features of the residual
# stream of `mini_gpt2`, a GPT-2 of four layers that has learnt the text of this repository's
# corpus: documentation and source code of Python packages, and a little of other kinds.

dictionary = open_dictionary()
record = Record("embedded", dictionary)
print(f"{dictionary.name}: {dictionary.d_sae:,} features of {dictionary.site}")

# %% 2. Read a text. A token activates 16 features, each with a strength; the strongest say most.
# `sae read "import numpy as np"` also shows which tokens a feature makes more likely.

TEXT = "import numpy as np\nimport pandas as"
reading = read(dictionary, TEXT, top=3, logits=4)
print(f"\n{TEXT!r}, and the strongest features at each token:")
for token in reading.tokens:
    strongest = ", ".join(f"{one.feature} ({one.strength:.1f})" for one in token.active)
    print(f"  {token.position:2} {token.text!r:12} {strongest}")
quality = reading.quality
print(f"L0 {quality.l0:.0f}, FVU {quality.fvu:.2f}: what the features leave out of this text")

# %% 3. What does a feature stand for? For that we need text. Where kinds of text are labelled, as
# in the corpus, we can look for the feature of a kind: the one whose activation goes with it best.
# It is chosen on the split `select`; all that is said of it after that is about `score`.
#
# Then the experiment: add the feature's direction to the activation while the model continues plain
# prompts, and count the kind in what it writes, by a rule on characters that knows nothing of
# features. Three seeds, each with prompts of its own. `sae kinds arabic` does this for one kind.

KINDS = ("arabic", "hebrew", "base64")
select, score = (contexts_of("embedded", dictionary.model, split=s) for s in ("select", "score"))
shares = {}
for kind in KINDS:
    shares[kind] = kind_share(dictionary, kind, half(select, kind, 120), score, Sampling(32, 1))
    found = shares[kind]
    best = found.gain.mean(0).argmax()
    print(
        f"\n{kind}: feature {found.specific.feature}, correlation "
        f"{found.specific.correlation:.2f}; with strength {found.sweep.strengths[best]:.0f} "
        f"{found.sweep.share[:, best].mean():.0%} of the characters are {kind}, without it "
        f"{found.sweep.plain_share.mean():.1%}; perplexity "
        f"{found.sweep.perplexity[:, best].mean():.0f} for "
        f"{found.sweep.plain_perplexity.mean():.0f}"
    )

with use_style():
    figure, axes = subplots(1, 3, height=2.3)
    panels = (("share of the kind", "share"), ("perplexity", "perplexity"), ("KL (nats)", "kl"))
    for panel, (label, measure) in zip(axes[0], panels, strict=True):
        for kind, marker in zip(KINDS, "os^", strict=True):
            sweep = shares[kind].sweep
            values = getattr(sweep, measure)
            panel.plot(sweep.strengths, values.mean(0), f"-{marker}", label=kind)
            panel.fill_between(sweep.strengths, values.min(0), values.max(0), alpha=0.2)
        panel.set(xlabel="strength", ylabel=label)
        panel.set_ylim(bottom=0)
    axes[0, 0].legend()
    panel_labels(axes)
record.draw(
    figure,
    "steering_kinds",
    {kind: {"share": one.sweep.share, "kl": one.sweep.kl} for kind, one in shares.items()},
    "Steering towards a kind of text",
    "What adding the feature of a kind of text does to continuations of plain prompts: (a) the "
    "share of their characters that is of the kind, by a rule that knows neither model nor "
    "feature; (b) their perplexity to the model as it is; (c) how far predictions move, on texts "
    "sampled without steering. Lines are means of three seeds, bands their range.",
)

# %% 4. See it in words. `sae steer "The function returns" --feature 761` shows the texts side by
# side; without a strength the feature is pushed until it is as long as the activations.

arabic = shares["arabic"].specific.feature
PROMPT = "The function returns"
strength = natural_strength(dictionary, dictionary.tokens(PROMPT), arabic)
texts = steer(dictionary, PROMPT, [Edit(arabic, "add", strength)], Sampling(steps=20, samples=1))
print(f"\n{PROMPT!r} goes on\n  without: {texts.before[0]!r}\n  with:    {texts.after[0]!r}")

# %% 5. Look at the feature over much text: what it fires on, in examples and in numbers, and
# whether a label found by statistics predicts it elsewhere. `sae examples 761` makes a page of
# this; `sae explain 761` finds and scores the label.

(portrait,) = portraits(dictionary, half(score, "arabic", 200), [arabic], Panels(top=3))
(explanation,) = explain(dictionary, [arabic])
print(f"\nfeature {arabic} is strongest on")
for example in portrait.top:
    print(f"  {''.join(example.tokens)!r}")

# A feature is also a little active where it should not be. "Active" in the accuracy is any
# activation above zero, "strong" more than half of the greatest.
detection = explanation.detection
if detection is not None:
    print(
        f"label {explanation.label!r} tells windows of 32 tokens where it is active from others "
        f"with accuracy {detection.accuracy:.2f} [{detection.low:.2f}, {detection.high:.2f}] "
        f"(chance 0.5); it finds {detection.strong_recall:.0%} of those where it is strong"
    )

# %% 6. Which features is a prediction due to? The true answer is to remove each and see. It costs a
# forward pass per feature; gradients cost one. How well do the cheap answers rank the features?
# `sae attribute "import numpy as" --target " np"` prints both.

QUESTION, ANSWER = "import numpy as", " np"
target = open_target(dictionary, ANSWER, None)
attribution = attribute(dictionary, QUESTION, target)
with_ablation = attribution.rank_correlation()[METHODS.index("ablation")]
agreement = dict(zip(METHODS[:-1], with_ablation[:-1], strict=True))
print(f"\n{ANSWER!r} after {QUESTION!r}: rank correlation with ablation")
print("  " + ", ".join(f"{method} {r:.2f}" for method, r in agreement.items()))
owed = rank(dictionary, QUESTION)[0]
print(f"  the text owes most to feature {owed.feature}: KL {owed.kl:.2f} without it")

with use_style():
    figure, axes = subplots(1, 3, height=2.1, sharey=True)
    true = attribution.values[METHODS.index("ablation")]
    for panel, method in zip(axes[0], METHODS[:-1], strict=True):
        panel.plot(attribution.values[METHODS.index(method)], true, ".")
        panel.axline((0, 0), slope=1, color="0.5", linewidth=0.8)
        panel.set(xlabel=method)
    axes[0, 0].set_ylabel("ablation (logits)")
    panel_labels(axes)
record.draw(
    figure,
    "attribution",
    {method: attribution.values[METHODS.index(method)] for method in METHODS},
    "Cheap attributions against ablation",
    f"What every active feature is worth to the logit of {ANSWER!r} after {QUESTION!r}, less the "
    "mean of all logits: (a) along the direct path to the logits, (b) by gradient times "
    "activation, (c) by integrated gradients, against what removing it does. Line: equal values.",
)

# %% 7. Where does the model decide? Patching moves features of one prompt into the run of another,
# which predicts something else, and sees how much of the difference moves along. `sae patch`
# draws the same map.

OTHER = "import pandas as"
versus = open_target(dictionary, ANSWER, " pd")
patching = patch(dictionary, QUESTION, OTHER, versus)
print(
    f"\npatching {QUESTION!r} into {OTHER!r}: all features together recover "
    f"{patching.everywhere.denoising[0]:.2f} of the difference of {ANSWER!r} and ' pd'"
)
record.draw(
    draw_patching(patching, 8),
    "patching",
    {"features": patching.features, "denoising": patching.pairs.denoising},
    "Which features carry the difference between two prompts",
    f"The prompts are {QUESTION!r} and {OTHER!r}, the score is the logit of {ANSWER!r} less that "
    "of ' pd'. Left, features of the first prompt are put into the run of the second; right, the "
    "other way round. Colours: the part of the difference that moves along, by feature and token.",
)

# %% 8. Are features a better explanation than others? Probes, LIME, KernelSHAP and patching answer
# a simpler question, which tokens a prediction is due to, and so can features, summed by token.
# Then tokens can be put back in the order that each method gives, and the score should come
# back soon. `sae compare --excerpts 20` does this.

train, held_out = divided("embedded", dictionary.model, None, 200_000)
comparisons = study(dictionary, train, held_out)
mean = summary(comparisons)
print("\nfaithfulness (0 is a random order), and sequences run through the model")
for row, method in enumerate(EXPLAINERS):
    cost = mean.forward[row] + mean.backward[row]
    print(f"  {method:9} {mean.faithfulness.mean[row]:5.2f} {cost:8,.0f}")
record.draw(
    draw_comparison(comparisons),
    "explanations_compared",
    {"methods": EXPLAINERS, "faithfulness": [one.faithfulness for one in comparisons]},
    "Six explanations of the same predictions",
    "Which tokens is a prediction due to? Twenty excerpts of held-out text, twelve tokens each. "
    "Faithfulness is the area between the curves of insertion and deletion over the whole "
    "difference, 0 for a random order; recency, the order of the text, is the control.",
)

# %% 9. Keep figures and numbers. `sae check tutorials` holds the numbers against what is claimed of
# them, and `sae gallery` shows the figures.

faithfulness = {
    method: [one.faithfulness[row] for one in comparisons] for row, method in enumerate(EXPLAINERS)
}
record.finish(
    {
        "steering": {
            kind: {
                "gain": one.gain[:, one.gain.mean(0).argmax()],
                "perplexity": one.sweep.perplexity[:, one.gain.mean(0).argmax()],
                "plain_perplexity": one.sweep.plain_perplexity,
                "correlation": one.specific.correlation,
            }
            for kind, one in shares.items()
        },
        "attribution": {"rank_correlation": agreement},
        "patching": {"all_features": patching.everywhere.denoising[0]},
        "label": {"strong_recall": detection.strong_recall if detection else float("nan")},
        "faithfulness": faithfulness,
    }
)
