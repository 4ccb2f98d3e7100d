import numpy as np
import pytest
from made_up_dictionaries import VOCABULARY, language_model, text

from papers.towards_monosemanticity import language_models
from papers.towards_monosemanticity.language_models import (
    EXPERIMENT,
    MODELS,
    NGRAMS,
    Parameters,
    context_losses,
    spread,
)
from shared.errors import UserError
from shared.experiment import Run
from shared.figures.style import use_style
from shared.language_models.ngrams import fit
from shared.language_models.train import mean_loss
from shared.stages import rounded

CONFIG = Parameters(contexts=20)


def test_losses_are_those_of_the_whole_contexts():
    contexts = text(3, 21)  # not a multiple of the batch
    losses = context_losses(language_model("a"), contexts.tokens, "a")
    assert len(losses) == 21
    expected = mean_loss(language_model("a").network, contexts)
    assert losses.mean() == pytest.approx(expected, rel=1e-6)


def test_every_model_is_measured_on_the_same_contexts(arrays):
    assert all(len(arrays[name]) == 20 for name in (*MODELS, *NGRAMS))
    chosen = text(1, 40).tokens[spread(40, 20)]
    unigram = fit(text(0, 40).tokens, 1, VOCABULARY).losses(chosen)
    np.testing.assert_allclose(arrays["unigram"], unigram.mean(1))


def test_metrics_compare_the_means(arrays):
    metrics = EXPERIMENT.evaluate(CONFIG, arrays).metrics
    loss = {name: arrays[name].mean() for name in (*MODELS, *NGRAMS)}
    assert metrics["loss"] == pytest.approx(loss)
    assert metrics["below_bigram"] == pytest.approx(
        [loss["bigram"] - loss["a"], loss["bigram"] - loss["b"]]
    )
    assert metrics["gap_of_seeds"] == pytest.approx(abs(loss["a"] - loss["b"]))
    assert metrics["shuffled_above_unigram"] == pytest.approx(loss["s"] - loss["unigram"])
    assert metrics["uniform"] == pytest.approx(np.log(VOCABULARY))


def test_errors_are_those_of_means_over_contexts(arrays):
    metrics = EXPERIMENT.evaluate(CONFIG, arrays).metrics
    error = arrays["a"].std(ddof=1) / np.sqrt(20)
    assert metrics["standard_error"]["a"] == pytest.approx(error)


def test_the_figure_shows_every_model(arrays):
    plotted = rounded(EXPERIMENT.evaluate(CONFIG, arrays).figures)["language_models"]
    with use_style():
        canvas = EXPERIMENT.figures[0].draw(plotted)
    assert len(canvas.axes[0].patches) == len(MODELS) + len(NGRAMS)


def test_contexts_are_spread_evenly():
    assert spread(9, 3).tolist() == [0, 4, 8]
    assert spread(2, 5).tolist() == [0, 1]


def test_a_missing_corpus_is_named(dictionaries_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(language_models, "corpus_folder", lambda _: tmp_path)
    with pytest.raises(UserError, match="validation"):
        EXPERIMENT.train(CONFIG, Run(0, "cpu", folder=dictionaries_folder))
