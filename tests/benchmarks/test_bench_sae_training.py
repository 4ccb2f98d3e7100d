import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.measuring import Peer
from benchmarks.peers.sae_protocol import Clock, Task, read_batches, read_weights, save_weights
from benchmarks.sae_training import (
    OURS,
    RIVALS,
    SETTINGS,
    SUBJECTS,
    Bench,
    Result,
    active,
    against,
    flops,
    geometric_means,
    job_of,
    ours,
    shortened,
    standard_outcome,
    start_states,
    table,
    weights_of,
)
from shared.saes.standard import StandardConfig, summed_error_l1

D_IN, D_SAE, BATCH = 6, 16, 32
SPARSITY = {"standard": 0.01, "gated": 0.01, "topk": 3, "batchtopk": 3}
PEER = """
import json, sys
print("a word on stdout")
for line in sys.stdin:
    task = json.loads(line)
    if task["autocast"]:
        sys.exit("no such package")
    print(json.dumps({"error": "no " + task["architecture"]}), flush=True)
"""


def random_batches(count, seed=0):
    return torch.randn(count, BATCH, D_IN, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def task(tmp_path):
    sae = StandardConfig(d_in=D_IN, d_sae=D_SAE, l1=0.01, seed=1).create()
    save_weights(tmp_path / "start.npz", weights_of(sae))
    np.save(tmp_path / "batches.npy", random_batches(9).numpy())
    return Task(
        architecture="standard",
        start=str(tmp_path / "start.npz"),
        sparsity=0.06,
        active=4,
        lr=1e-2,
        batch=BATCH,
        warm_up=2,
        steps=6,
        autocast=False,
        device="cpu",
        threads=1,
        batches=str(tmp_path / "batches.npy"),
    )


def settings(kind):
    return SUBJECTS[kind].settings(D_IN, D_SAE, SPARSITY[kind])


def started(task, lr=1e-2, kind="standard"):
    return job_of(SUBJECTS[kind].started(**settings(kind), weights=task.start), lr)


def trained(kind):
    """An autoencoder with biases and a state as after training."""
    sae = SUBJECTS[kind].config(**settings(kind)).create("cpu", torch.float32)
    sae.start(random_batches(1)[0])
    generator = torch.Generator().manual_seed(3)
    for name, tensor in sae.parameters.items():
        if tensor.ndim == 1 or name == "W_dec":
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    sae.constrain()
    return sae


def test_a_task_survives_its_line(task):
    assert Task(**json.loads(task.line())) == task


def test_the_clock_times_whole_steps_after_the_warm_up(task):
    clock = Clock(iter(torch.zeros(9, 1, 1)), "cpu")
    list(clock)
    assert len(clock.asked) == 10  # the last request was in vain
    clock.asked = [0.0, 5.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 19.0, 99.0]
    assert clock.seconds_per_step(task) == 1.0
    assert clock.seconds_per_step(replace(task, model="model")) == pytest.approx((19 - 7) / 6)


@pytest.mark.parametrize("kind", list(SUBJECTS))
def test_our_run_starts_from_the_given_weights_and_trains_on_all_batches(kind, task):
    save_weights(Path(task.start), weights_of(trained(kind)))
    _, (still,) = ours([started(task, 1e-30, kind)], read_batches(task.batches), task)
    given = read_weights(task.start)
    assert set(still) == set(given)
    for name, tensor in given.items():
        torch.testing.assert_close(still[name], tensor)
    seconds, (moved,) = ours([started(task, kind=kind)], read_batches(task.batches), task)
    assert seconds > 0
    x, outcome = random_batches(1, seed=7)[0], SUBJECTS[kind].outcome
    assert outcome(moved, x, SPARSITY[kind]).loss < outcome(still, x, SPARSITY[kind]).loss
    with pytest.raises(Exception, match="ends after 5 batches of 9"):
        ours([started(task, kind=kind)], iter(random_batches(5)), task)


@pytest.mark.parametrize("kind", list(SUBJECTS))
def test_the_outcome_is_that_of_the_architecture_whatever_the_norm_of_the_decoder(kind):
    sae, x, subject = trained(kind), random_batches(1)[0], SUBJECTS[kind]
    weights = weights_of(sae)
    f, loss = subject.outcome(weights, x, SPARSITY[kind])
    measured = sae.gradients(x)[1]
    assert active(f) == pytest.approx(float(measured.scalars["l0"]), abs=0.05)
    name = "mse" if subject.knob == "k" else "loss"
    assert loss == pytest.approx(float(measured.scalars[name]), rel=1e-5)
    scale = torch.rand(D_SAE) + 0.5
    for name in set(weights) - {"W_dec", "b_dec", "r_mag"}:
        weights[name] = weights[name] * scale
    weights["W_dec"] = weights["W_dec"] / scale[:, None]
    assert subject.outcome(weights, x, SPARSITY[kind]).loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_topk_gets_the_loss_of_its_peers(kind, task):
    """Which is the sum of squares, neither scaled nor divided."""
    save_weights(Path(task.start), weights_of(trained(kind)))
    sae = started(task, kind=kind).sae.create("cpu", torch.float32)
    x = random_batches(1)[0]
    sae.start(x)
    loss = SUBJECTS[kind].outcome(read_weights(task.start), x, SPARSITY[kind]).loss
    assert float(sae.gradients(x)[1].scalars["loss"]) == pytest.approx(D_IN * loss, rel=1e-5)


def test_peers_get_the_penalty_of_a_summed_error():
    config = StandardConfig(d_in=D_IN, d_sae=D_SAE, l1=0.01, seed=0)
    converted = SUBJECTS["standard"].peer_sparsity(0.01, D_IN)
    assert converted == pytest.approx(summed_error_l1(config))
    assert SUBJECTS["gated"].peer_sparsity(0.01, D_IN) == converted
    whole = SUBJECTS["topk"].peer_sparsity(32 * 4**0.3, D_IN)
    assert (whole, type(whole)) == (49, int)


def test_states_are_untrained_and_trained(tmp_path):
    setting = replace(SETTINGS["small"], d_sae=D_SAE, batch=BATCH, before=40, before_batch=BATCH)

    class Data:
        d_in, folder = D_IN, tmp_path

        def batches(self, batch, count, seed):
            return iter(random_batches(count, seed))

    states = start_states(SUBJECTS["standard"], setting, Data(), "cpu")
    x = random_batches(1, seed=5)[0]
    losses = {k: standard_outcome(read_weights(path), x, 1e-3).loss for k, path in states.items()}
    assert losses["trained"] < losses["untrained"]


@pytest.fixture
def peer(tmp_path, monkeypatch):
    (tmp_path / "stub_driver.py").write_text(PEER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = Peer("stub_driver", sys.executable, tmp_path / "log")
    yield process
    process.close()


def test_a_peer_that_cannot_or_dies_is_reported_and_left_out(task, peer, tmp_path):
    assert peer.ask(replace(task, architecture="gated").line()) == {"error": "no gated"}
    plain, mixed = "sae-lens", "sae-lens, autocast"
    bench = Bench("cpu", tmp_path, {plain: peer, mixed: peer}, rounds=2)
    results, errors = bench.alternate(
        "try",
        {
            OURS: lambda: Result(1.0, {}),
            plain: lambda: bench.ask(plain, task),
            mixed: lambda: bench.ask(mixed, task),
        },
    )
    assert {name: len(done) for name, done in results.items()} == {OURS: 2}
    assert errors == {plain: "no standard", mixed: "no such package"}


def test_a_rival_is_compared_round_by_round():
    mine, theirs = [Result(1.0, {}), Result(2.0, {})], [Result(4.0, {}, "1"), Result(6.0, {}, "1")]
    report = against(mine, theirs, None)
    assert report == {
        "version": "1",
        "milliseconds": [4000.0, 6000.0],
        "ratio": 3.5,
        "ratio_range": [3.0, 4.0],
    }
    close = iter([1.0, 1.0009])
    assert against(mine, theirs, lambda _: next(close))["same_loss"]
    apart = iter([1.0, 1.0011])
    assert not against(mine, theirs, lambda _: next(apart))["same_loss"]


def test_means_are_over_settings_and_only_of_rivals_that_never_failed():
    def report(**ratios):
        rivals = {name: {"ratio": ratio} for name, ratio in ratios.items()}
        return {"untrained": {"rivals": rivals}, "trained": {"rivals": {}}}

    steps = {
        "standard/small": report(**{"sae-lens": 2.0, "sae-lens, autocast": 5.0}),
        "standard/large": report(**{"sae-lens": 8.0}),
    }
    assert geometric_means(steps) == {"untrained": {"sae-lens": 4.0}, "trained": {}}


def test_operations_of_a_dense_step_are_its_matrix_products():
    each = 2 * 4096 * 512 * 4096
    assert flops(SUBJECTS["standard"], SETTINGS["small"], 512) == 5 * each
    assert flops(SUBJECTS["topk"], SETTINGS["small"], 512) == 5 * each
    # Two reconstructions: as many products, and two more for each.
    assert flops(SUBJECTS["gated"], SETTINGS["small"], 512) == 7 * each
    assert flops(SUBJECTS["standard"], shortened(SETTINGS["small"]), 512) == 5 * each / 256


def test_the_table_names_failures_and_losses_that_differ():
    rival = {
        "version": "1.0",
        "milliseconds": [30.0],
        "ratio": 3.0,
        "ratio_range": [2.0, 4.0],
        "loss": 0.1,
        "loss_of_ours": 0.2,
        "same_loss": False,
    }
    one = {
        "milliseconds": [10.0],
        "share_of_matmul_rate": 0.5,
        "active_features": {"before": 20.0},
        "rivals": {"sae-lens": rival},
        "failed": {"eai-sparsify, topk": "no torch"},
    }
    text = table(
        {
            "steps": {"standard/small": {"title": "small", "untrained": one, "trained": one}},
            "training": {},
            "sweep": {},
            "stream": {"title": "stream", "vectors_per_second": 9, "share_of_bare_rate": 0.95},
            "geometric_means": {"trained": {"sae-lens": 3.0}},
        }
    )
    assert "| standard, small, trained (L0 20) | this repository | 10 | 50% of the matmul" in text
    assert "| | sae-lens (1.0) | 30 | 3.0 (2.0 to 4.0) | no (+100.00%) |" in text
    assert "| | eai-sparsify, topk | failed: no torch | | |" in text
    assert "| geometric mean, trained | sae-lens | | 3.0 | |" in text


def test_rivals_that_train_something_else_are_marked():
    assert {name for name, rival in RIVALS.items() if rival.architecture} == {"eai-sparsify, topk"}
