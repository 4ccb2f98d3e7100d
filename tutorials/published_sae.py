"""The same on GPT-2 small with a published autoencoder, from the Hugging Face hub.

Joseph Bloom's autoencoders of GPT-2 small's residual stream (release "gpt2-small-res-jb" of
SAELens, 24,576 features) are what much of the field's work on GPT-2 stands on, and Neuronpedia has
a page for each of their features. What `read_and_steer` does on small models works on them
unchanged. Here it is asked a question on which GPT-2 was taken apart before: who gets the drink
(indirect object identification, Wang et al. 2022)?

    nox -s tutorials -- gpt2

It needs the hub, or a cache of it, once: 0.5 GB for the model, 0.3 GB for the autoencoder. Another
autoencoder and model, such as local folders: python -m tutorials.published_sae SAE MODEL [RESULTS].
"""

import sys
from pathlib import Path

from shared.features.ablate import rank
from shared.features.attribute import METHODS, attribute
from shared.features.dictionary import open_dictionary
from shared.features.edits import Edit
from shared.features.neuronpedia import link
from shared.features.parts import open_target
from shared.features.patch import draw as draw_patching
from shared.features.patch import patch
from shared.features.read import read
from shared.features.steer import Sampling, natural_strength, steer, sweep
from shared.features.steer import draw as draw_sweep
from shared.files import ROOT
from tutorials.record import Record

# %% 1. Open it. SAELens knows where the release is, which model it belongs to and at which hook.

GIVEN = sys.argv[1:]
SAE = GIVEN[0] if GIVEN else "gpt2-small-res-jb:blocks.8.hook_resid_pre"
MODEL = GIVEN[1] if len(GIVEN) > 1 else None
dictionary = open_dictionary(SAE, MODEL)
record = Record("gpt2", dictionary, Path(GIVEN[2]) if len(GIVEN) > 2 else ROOT)
print(f"{dictionary.name}: {dictionary.d_sae:,} features of {dictionary.site}")

# %% 2. Read the prompt. At the last token stand the features that the answer is made of.

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
RIGHT, WRONG = " Mary", " John"
reading = read(dictionary, CLEAN, top=5, logits=5)
print(f"\n{CLEAN!r}, at the last token:")
about = {one.feature: one for one in reading.features}
for active in reading.tokens[-1].active:
    promoted = " ".join(repr(one.token) for one in about[active.feature].promoted)
    page = link(dictionary, active.feature) or "no page on Neuronpedia"
    print(f"  {active.feature:6} {active.strength:6.1f}  {promoted}  {page}")
print(
    f"CE recovered {reading.quality.recovered_mean:.3f}, FVU {reading.quality.fvu:.3f} on this text"
)

# %% 3. Which features is the answer due to? Removing one at a time tells; gradients come near.

target = open_target(dictionary, RIGHT, WRONG)
attribution = attribute(dictionary, CLEAN, target)
with_ablation = attribution.rank_correlation()[METHODS.index("ablation")]
agreement = dict(zip(METHODS[:-1], with_ablation[:-1], strict=True))
print(f"\nlogit of {RIGHT!r} less that of {WRONG!r}: {attribution.score:.2f}")
print("rank correlation with ablation:", ", ".join(f"{m} {r:.2f}" for m, r in agreement.items()))
for pair in attribution.strongest(5):
    worth = attribution.values[METHODS.index("ablation"), pair]
    at = reading.tokens[attribution.positions[pair] - 1].text
    print(f"  feature {attribution.features[pair]:6} at {at!r}: {worth:+.2f}")
owed = rank(dictionary, CLEAN)[0]
print(f"over the whole text most is owed to feature {owed.feature}: KL {owed.kl:.2f} without it")

# %% 4. Where is the difference between the two prompts carried? The names differ at one token only;
# by layer 8 much of it should have moved to the last one (the paper's name movers are in layers 9
# and 10, and what they attend to is put in place before).

patching = patch(dictionary, CLEAN, CORRUPTED, target)
record.draw(
    draw_patching(patching, 10),
    "indirect_object_patching",
    {"features": patching.features, "denoising": patching.pairs.denoising},
    "Which features tell GPT-2 who gets the drink",
    f"The prompts are {CLEAN!r} and the same with the second John replaced; the score is the "
    f"logit of {RIGHT!r} less that of {WRONG!r}. Left, features of the first prompt are put into "
    "the run of the second; right, the other way round. Colours: the part of the difference that "
    "moves along.",
)

# %% 5. Push the feature that matters most at the last token, and see how the text goes on.

last = [
    p
    for p in attribution.strongest(len(attribution.features))
    if attribution.positions[p] == attribution.last
]
feature = int(attribution.features[last[0] if last else attribution.strongest(1)[0]])
OPENING = "Yesterday I met"
prompt = dictionary.tokens(OPENING)
strength = natural_strength(dictionary, prompt, feature)
texts = steer(dictionary, OPENING, [Edit(feature, "add", strength)], Sampling(steps=20, samples=2))
print(f"\n{OPENING!r} with feature {feature} at strength {strength:.0f}")
for before, after in zip(texts.before, texts.after, strict=True):
    print(f"  without: {before!r}\n  with:    {after!r}")

STRENGTHS = [strength * times for times in (0.25, 0.5, 1, 2)]
found = sweep(dictionary, [prompt] * 3, [feature], "add", STRENGTHS, Sampling(20, 8))
record.draw(
    draw_sweep(found),
    "steering_cost",
    {"strengths": found.strengths, "perplexity": found.perplexity, "kl": found.kl},
    "What steering with one feature costs",
    f"Feature {feature} of {dictionary.name} is added at every position while the model continues "
    f"{OPENING!r}. Points: three seeds of eight texts; line: mean; dashed: without steering.",
)

# %% 6. Keep figures and numbers.

record.finish(
    {
        "attribution": {"score": attribution.score, "rank_correlation": agreement},
        "patching": {"all_features": patching.everywhere.denoising[0]},
    }
)
