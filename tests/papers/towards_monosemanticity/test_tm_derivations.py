"""What stands behind the claims that claims.yaml calls derived; each test names them.

That chance is a half on a 50/50 mix (explainability_logits_control) is tested in
test_explainability.
"""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix
from scipy.special import log_softmax
from scipy.stats import entropy

from papers.towards_monosemanticity.architectural_approaches import closed_form
from papers.towards_monosemanticity.automata import LIFT, transitions
from papers.towards_monosemanticity.base64_splitting import coverage
from papers.towards_monosemanticity.splitting import EDGE, masked_cosine
from papers.towards_monosemanticity.summaries import shuffled_contexts
from papers.towards_monosemanticity.universality import best_partners, paired_pearson
from shared.saes.standard import StandardConfig


@pytest.fixture
def random():
    return np.random.default_rng(0)


def sparse(random, rows, densities):
    """Independent columns, each active on a share of the rows."""
    fires = random.random((rows, len(densities))) < densities
    return csc_matrix(np.where(fires, random.gamma(2, size=fires.shape), 0).astype(np.float32))


def test_more_context_cannot_raise_the_entropy(random):
    """Behind models_beat_bigram: H(next | two tokens) ≤ H(next | one)."""
    for joint in random.dirichlet(np.full(64, 0.3), 20).reshape(-1, 4, 4, 4):
        pair = joint.sum(0)  # previous token and next one
        given_both = entropy(joint.ravel()) - entropy(joint.sum(2).ravel())
        assert given_both <= entropy(pair.ravel()) - entropy(pair.sum(1)) + 1e-12


def test_a_shuffled_unembedding_loses_ln_v_on_average(random):
    """Behind models_shuffled_knows_nothing: over all orders of a matrix's entries."""
    vocabulary, hidden = 3, random.normal(size=2)
    entries = random.normal(size=2 * vocabulary)
    matrices = np.array(list(permutations(entries))).reshape(-1, vocabulary, 2)
    loss = -log_softmax(matrices @ hidden, axis=1).mean(0)
    np.testing.assert_allclose(loss, loss[0])  # whatever the token that comes next
    assert loss[0] > np.log(vocabulary) >= entropy(random.dirichlet(np.ones(vocabulary)))


def test_a_neuron_for_half_of_the_classes_is_best():
    """Behind architecture_best_number_of_classes."""
    assert min(range(5), key=closed_form) == 2


def test_the_penalty_moves_encoders_along_the_bias_where_the_input_is_at_rest():
    """Behind bias_removed_direction_gone: there the gradient is that of (x − b_dec) alone."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(64, 12, generator=random)
    resting = slice(8, 12)
    x[:, resting] = 0
    bias = torch.rand(12, generator=random)
    for subtracted in (True, False):
        config = StandardConfig(d_in=12, d_sae=20, l1=100, pre_encoder_bias=subtracted, seed=0)
        sae = config.create()
        sae.b_dec.copy_(bias)
        sae.b_enc.fill_(1)  # so that every feature fires
        gradients, _ = sae.gradients(x)
        step = -gradients["W_enc_T"][:, resting]
        if subtracted:
            along = torch.nn.functional.cosine_similarity(step, bias[resting][None])
            torch.testing.assert_close(along, torch.ones(20))
        else:
            assert not step.any()


def test_weighting_by_activation_gains_what_purity_rises(random):
    """Behind arabic_expected_value: with cov > 0 the weighted purity is the greater one."""
    activation = random.gamma(1, size=500)
    chance = 0.25 + 0.73 * activation / activation.max()  # rises with activation
    weighted = (activation * chance).sum() / activation.sum()
    gain = np.cov(activation, chance, bias=True)[0, 1] / activation.mean()
    assert weighted - chance.mean() == pytest.approx(gain)
    assert gain > 0


def test_a_rare_proxy_correlates_better_without_what_the_feature_is_silent_on(random):
    """Behind base64_without_hex: the covariance grows by E[f] E[loss], the variance shrinks."""
    for _ in range(20):
        context = random.choice(3, 2000, p=[0.96, 0.02, 0.02])  # text, base64, hex
        proxy = np.where(context > 0, random.gamma(4, size=2000), 0)
        feature = np.where((context != 2) & (random.random(2000) < 0.05), random.random(2000), 0)
        feature[context == 1] += random.random((context == 1).sum())
        narrow = np.where(context == 2, 0, proxy)
        assert np.corrcoef(feature, narrow)[0, 1] > np.corrcoef(feature, proxy)[0, 1]


def test_partners_in_exchanged_contexts_are_uncorrelated_on_the_other_split(random):
    """Behind universality_null."""
    length, split = 20, 400 * 20
    ours = sparse(random, 2 * split, np.full(30, 0.05))
    select, score = ours[:split], ours[split:]
    usable = np.ones(30, dtype=bool)
    partner = best_partners(select, shuffled_contexts(select, length, random), usable, split)
    moved = shuffled_contexts(score, length, random)[:, partner]
    found = paired_pearson(score, moved, split)
    assert abs(found.mean()) < 3 / np.sqrt(split * 30)
    assert paired_pearson(score, score, split) == pytest.approx(1)


def test_masked_cosine_of_independent_features_is_bounded_by_density(random):
    """Behind splitting_more_than_chance: the lower bound on density is EDGE squared."""
    densities = np.array([0.01, 0.04, EDGE**2, 0.5])
    features = sparse(random, 100_000, densities)
    found = masked_cosine(features, sparse(random, 100_000, densities))
    bound = np.sqrt(np.maximum.outer(densities, densities))
    assert (found <= bound).all()
    assert (found[:3, :3] <= EDGE).all()
    assert found[3, 3] > EDGE


def test_independent_children_cover_what_they_cover_of_all_text(random):
    """Behind base64_coverage_over_chance."""
    length, contexts = 20, 2000
    burst = np.repeat(random.random(contexts) < 0.1, length)  # contexts of base64
    rows = np.flatnonzero(burst)
    children = csc_matrix(np.where(burst[:, None], random.random((len(burst), 3)) < 0.6, 0.0))
    moved = shuffled_contexts(children, length, random)
    own, by_chance = (coverage(fires[rows].toarray() > 0)[-1] for fires in (children, moved))
    everywhere = (children.toarray() > 0).any(1).mean()
    assert own == pytest.approx(1 - 0.4**3, abs=0.02)
    assert by_chance == pytest.approx(everywhere, abs=4 * np.sqrt(0.1 * 0.9 / (0.1 * contexts)))


def test_a_feature_that_is_independent_of_the_one_before_fires_at_its_base_rate(random):
    """Behind automata_over_chance."""
    length, densities = 50, np.array([0.02, 0.05, 0.2])
    features = sparse(random, 2000 * length, densities)
    edges = np.argwhere(np.ones((3, 3)))
    probability, base = transitions(features, length, edges)
    both = 2000 * (length - 2) * densities[edges].prod(1)  # times that both fire, expected
    assert (np.abs(probability / base - 1) < 4 / np.sqrt(both)).all()
    assert (probability / base < LIFT).all()
