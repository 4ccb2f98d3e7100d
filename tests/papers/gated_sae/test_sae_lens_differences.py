"""The rows of the README's tables on SAELens, shown on the version that is installed.

`test_row_<number>_*` is a difference from the paper, `test_agreed_<number>_*` what SAELens does as
the paper. A difference that fails here has probably been mended: its message says so, and which row
to update.
"""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from shared.files import ROOT

README = ROOT / "papers" / "gated_sae" / "README.md"
D_IN, D_SAE, BATCH = 8, 32, 64


def as_the_paper(row, does):
    return f"SAELens now {does} as the paper: update row {row} of papers/gated_sae/README.md"


def changed(row, what):
    return f"SAELens no longer {what}: update row {row} of papers/gated_sae/README.md"


def training_sae(kind="Gated", **settings):
    """A SAELens autoencoder in training, with weights of this seed; `decoder_init_norm` is 1."""
    import sae_lens

    torch.manual_seed(0)
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")
    settings = {"d_in": D_IN, "d_sae": D_SAE, "decoder_init_norm": 1.0} | settings
    return getattr(sae_lens, f"{kind}TrainingSAE")(config(**settings))


def inputs(batch=BATCH, seed=1):
    """Off the origin, so that b_dec and means matter."""
    return torch.randn(batch, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.5


def forward(sae, x, dead=None, coefficient=1.0):
    from sae_lens.saes.sae import TrainStepInput

    coefficients = dict.fromkeys(sae.get_coefficients(), coefficient)
    return sae.training_forward_pass(TrainStepInput(x, coefficients, dead, 0, False))


def gradient(loss, tensor):
    found = torch.autograd.grad(loss, tensor, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(tensor) if found is None else found


def trainer(sae, steps=50, lr=0.01, **settings):
    """SAELens' trainer at its defaults, but for a learning rate that shows in 50 steps."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(steps * BATCH, BATCH, lr=lr, lr_end=lr, **settings)
    return SAETrainer(config, sae, iter([inputs(seed=seed) for seed in range(steps)]))


def gates(loss, sae, x):
    """Which features are over the gate's threshold in a penalty, one input at a time."""
    return torch.stack([gradient(loss(one[None]), sae.b_gate) for one in x]) > 0


# Gated SAE


def test_row_1_the_auxiliary_loss_trains_the_decoder():
    sae = training_sae(apply_b_dec_to_input=False)  # so that b_dec is in the decoder alone
    losses = forward(sae, inputs()).losses
    for tensor in (sae.W_dec, sae.b_dec):
        auxiliary = gradient(losses["auxiliary_reconstruction_loss"], tensor).norm()
        main = gradient(losses["mse_loss"], tensor).norm()
        assert auxiliary > 0.5 * main, as_the_paper(1, "stops the auxiliary loss at the decoder")


def test_row_2_the_penalty_trains_the_decoder():
    sae, x = training_sae(), inputs()
    penalty = forward(sae, x).losses["l1_loss"]
    slope = gradient(penalty, sae.W_dec)
    assert slope.norm() > 0.1, as_the_paper(2, "keeps the L1 penalty from W_dec")
    sae.W_dec.data *= 2
    torch.testing.assert_close(
        forward(sae, x).losses["l1_loss"],
        2 * penalty,
        msg=as_the_paper(2, "penalises ReLU(π_gate) whatever the norms of W_dec"),
    )


def test_row_3_the_decoder_has_free_norms():
    before = training_sae()
    torch.testing.assert_close(before.W_dec.norm(dim=1), torch.ones(D_SAE))
    norms = trainer(training_sae()).fit().W_dec.norm(dim=1)
    assert (norms - 1).abs().max() > 0.05, as_the_paper(3, "keeps decoder rows at unit norm")
    sae = training_sae()
    forward(sae, inputs()).loss.backward()
    along = (sae.W_dec.grad * sae.W_dec).sum(1)
    assert along.abs().max() > 0.1, as_the_paper(3, "projects the decoder's gradient")


def test_row_4_the_decoder_starts_at_a_tenth_of_unit_norm():
    from sae_lens import GatedTrainingSAE, GatedTrainingSAEConfig

    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    norms = sae.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(
        norms, torch.full((D_SAE,), 0.1), msg=as_the_paper(4, "starts at unit norm")
    )
    assert torch.equal(sae.W_enc, sae.W_dec.T), changed(4, "starts at W_enc = W_decᵀ")


def test_row_5_the_penalty_reads_other_gates_under_layer_norm():
    sae, x = training_sae(normalize_activations="layer_norm"), inputs(24)
    out = forward(sae, x)
    used = out.feature_acts > 0  # the gate and the magnitude are the same map at the start
    penalised = gates(lambda one: forward(sae, one).losses["l1_loss"], sae, x)
    message = as_the_paper(5, "normalises the input of the penalty's gate too")
    assert (used != penalised).float().mean() > 0.05, message
    scaled = forward(sae, 10 * x)
    torch.testing.assert_close(scaled.feature_acts, out.feature_acts, rtol=1e-3, atol=1e-3)
    assert scaled.losses["l1_loss"] > 5 * out.losses["l1_loss"], message


def test_row_6_dead_features_stay_dead():
    sae = training_sae()
    dead = torch.arange(D_SAE) < 4
    sae.b_gate.data[dead] = -100
    before = {name: tensor.detach().clone() for name, tensor in sae.named_parameters()}
    run = trainer(sae, dead_feature_window=2)
    run.fit()
    for name in ("W_dec", "b_gate", "b_mag", "r_mag"):
        now = getattr(sae, name)
        assert torch.equal(now[dead], before[name][dead]), as_the_paper(6, "resamples")
        assert not torch.equal(now[~dead], before[name][~dead])
    assert torch.equal(run.dead_neurons, dead)  # it has seen them
    with_mask, without = (forward(sae, inputs(), mask).loss for mask in (dead, None))
    assert torch.equal(with_mask, without), changed(6, "leaves its mask of dead features unused")


def test_row_7_the_gradient_is_clipped_to_norm_one():
    sae = training_sae()
    run, norms = trainer(sae), []

    def record(*_):
        norms.append(torch.stack([tensor.grad.norm() for tensor in sae.parameters()]).norm())

    run.optimizer.register_step_pre_hook(record)
    run.step(inputs())
    forward(sae, inputs()).loss.backward()
    record()
    clipped, whole = norms
    assert whole > 2
    torch.testing.assert_close(
        clipped, torch.tensor(1.0), msg=as_the_paper(7, "leaves gradients unclipped")
    )


def test_row_8_adam_has_momentum_and_no_warm_up():
    from sae_lens.config import LanguageModelSAERunnerConfig, SAETrainerConfig

    for config in (LanguageModelSAERunnerConfig, SAETrainerConfig):
        default = {field.name: field.default for field in fields(config)}
        assert default["adam_beta1"] == 0.9, as_the_paper(8, "has β₁ = 0")
        assert default["lr_warm_up_steps"] == 0, as_the_paper(8, "warms the learning rate up")
    run = trainer(training_sae(), lr=0.01)
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert run.optimizer.param_groups[0]["lr"] == 0.01


def test_row_9_a_warm_up_that_is_asked_for_is_linear():
    run, rates = trainer(training_sae(), lr=0.01, lr_warm_up_steps=10), []
    for seed in range(12):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.step(inputs(seed=seed))
    expected = [0.01 * min(1, (step + 1) / 10) for step in range(12)]
    message = as_the_paper(9, "warms the learning rate up along a cosine")
    assert rates == pytest.approx(expected), message


def test_row_10_the_squared_error_is_a_sum_over_d_in():
    sae, x = training_sae(), inputs()
    out = forward(sae, x)
    squares = (out.sae_out - x).square()
    torch.testing.assert_close(
        out.losses["mse_loss"],
        squares.sum(1).mean(),
        msg=as_the_paper(10, "divides the squared error by d_in"),
    )


# its baseline


def test_row_11_the_baseline_is_not_the_papers():
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    untouched = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    torch.testing.assert_close(
        untouched.W_dec.detach().norm(dim=1),
        torch.full((D_SAE,), 0.1),
        msg=as_the_paper(11, "starts its standard autoencoder at unit norm"),
    )
    sae, x = training_sae("Standard"), inputs()
    penalty = forward(sae, x).losses["l1_loss"]
    message = as_the_paper(11, "keeps the L1 penalty of its standard autoencoder from W_dec")
    assert gradient(penalty, sae.W_dec).norm() > 0.1, message
    first, tripled = (forward(sae, scale * x).losses["mse_loss"] for scale in (1, 3))
    torch.testing.assert_close(
        tripled, 9 * first, msg=as_the_paper(11, "divides the squared error by E‖x‖²")
    )
    norms = trainer(training_sae("Standard")).fit().W_dec.norm(dim=1)
    message = as_the_paper(11, "keeps its standard autoencoder's decoder at unit norm")
    assert (norms - 1).abs().max() > 0.05, message


# its evaluation


def test_row_12_gamma_is_averaged_over_batches():
    """On two batches, one large and halved, one small and exact: 0.75 on average, 0.505 pooled."""
    from sae_lens.evals import get_sparsity_and_variance_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    hook, scales = "blocks.0.hook_mlp_out", iter([10.0, 1.0])
    activations = {"x": torch.zeros(0)}

    def run_with_cache(tokens, **_):
        activations["x"] = torch.full((*tokens.shape, D_IN), next(scales))
        return None, {hook: activations["x"]}

    metrics, _ = get_sparsity_and_variance_metrics(
        sae=SimpleNamespace(
            cfg=SimpleNamespace(
                d_sae=D_IN, metadata=SimpleNamespace(hook_name=hook, hook_head_index=None)
            ),
            device="cpu",
            encode=lambda x: x,
            decode=lambda f: torch.where(f > 5, f / 2, f),
        ),
        model=SimpleNamespace(run_with_cache=run_with_cache),
        activation_store=SimpleNamespace(
            get_batch_tokens=lambda prompts: torch.zeros(prompts, 3, dtype=torch.int64)
        ),
        activation_scaler=ActivationScaler(),
        n_batches=2,
        compute_l2_norms=True,
        compute_sparsity_metrics=False,
        compute_variance_metrics=False,
        compute_featurewise_density_statistics=False,
        eval_batch_size_prompts=2,
        model_kwargs={},
        verbose=False,
    )
    pooled = (5**2 + 1**2) / (5 * 10 + 1 * 1)
    averaged = ((5**2) / (5 * 10) + (1**2) / (1 * 1)) / 2
    message = as_the_paper(12, "pools both expectations of γ over all batches")
    found = metrics["relative_reconstruction_bias"]
    assert found == pytest.approx(averaged), message
    assert averaged != pytest.approx(pooled, rel=0.4)


# JumpReLU SAE


def test_row_13_thresholds_and_bandwidth_are_larger():
    sae = training_sae("JumpReLU")
    torch.testing.assert_close(
        sae.threshold.detach(),
        torch.full((D_SAE,), 0.01),
        msg=as_the_paper(13, "starts thresholds at 0.001"),
    )
    x = torch.zeros(1, D_IN)
    sae.b_enc.data.fill_(0.01 + 0.02)  # half a bandwidth is 0.025 here, 0.0005 in the recipe
    slope = gradient(forward(sae, x).losses["l0_loss"], sae.threshold)
    torch.testing.assert_close(
        slope,
        torch.full((D_SAE,), -1 / 0.05),
        msg=as_the_paper(13, "has a bandwidth of 0.001"),
    )


def test_row_14_thresholds_themselves_are_trained():
    sae = training_sae("JumpReLU")
    assert "threshold" in dict(sae.named_parameters()), as_the_paper(14, "trains log θ")
    with torch.no_grad():
        sae.threshold[:4] = -1
    forward(sae, inputs())
    expected = torch.full((D_SAE,), 0.01).index_fill_(0, torch.arange(4), 0)
    torch.testing.assert_close(
        sae.threshold.detach(), expected, msg=changed(14, "clamps thresholds at zero")
    )


def test_row_15_activations_are_not_at_unit_mean_square():
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = training_sae("JumpReLU")
    assert sae.cfg.normalize_activations == "none", as_the_paper(15, "normalises by default")
    x = 7 * torch.randn(500, D_IN, generator=torch.Generator().manual_seed(0)) + 1
    scaler = ActivationScaler()
    scaler.estimate_scaling_factor(D_IN, iter([x]), n_batches_for_norm_estimate=1)
    norms = scaler(x).norm(dim=1)
    message = as_the_paper(15, "scales inputs to a mean squared norm of 1")
    torch.testing.assert_close(norms.mean(), torch.tensor(D_IN**0.5), msg=message)
    assert norms.square().mean() > D_IN, message


def test_row_16_the_jumprelu_recipe_is_another():
    from sae_lens.config import LanguageModelSAERunnerConfig

    sae = training_sae("JumpReLU")
    warm_up = sae.get_coefficients()["l0"].warm_up_steps
    assert warm_up == 0, as_the_paper(16, "warms λ up")
    default = {field.name: field.default for field in fields(LanguageModelSAERunnerConfig)}
    assert default["lr"] == 3e-4, as_the_paper(16, "has a learning rate of 7e-5")
    assert default["adam_beta1"] == 0.9, as_the_paper(16, "has β₁ = 0")
    norms = trainer(training_sae("JumpReLU")).fit().W_dec.norm(dim=1)
    message = as_the_paper(16, "keeps the decoder of JumpReLU at unit norm")
    assert (norms - 1).abs().max() > 0.05, message


# what is missing


def test_row_17_the_ablations_and_inference_time_optimisation_are_missing():
    import sae_lens
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    base = {field.name for field in fields(sae_lens.TrainingSAEConfig)}
    own = {field.name for field in fields(sae_lens.GatedTrainingSAEConfig)} - base
    assert own == {"l1_coefficient", "l1_warm_up_steps"}, as_the_paper(17, "has switches")
    shapes = {name: tuple(p.shape) for name, p in training_sae().named_parameters()}
    encoders = [name for name, shape in shapes.items() if shape == (D_IN, D_SAE)]
    assert encoders == ["W_enc"], as_the_paper(17, "can untie the encoders")
    pursuits = {name for name in SAE_TRAINING_CLASS_REGISTRY if "pursuit" in name}
    assert pursuits == {"matching_pursuit"}, as_the_paper(17, "has another pursuit")
    source = Path(sae_lens.__file__).parent
    mentions = [
        p for p in source.rglob("*.py") if re.search("gradient.?pursuit", p.read_text(), re.I)
    ]
    assert not mentions, as_the_paper(17, "has gradient pursuit")


# what agrees


def closed_form(sae, x):
    """π_gate and f̃ by equations 6 and 7."""
    centred = x - sae.b_dec
    gate = centred @ sae.W_enc + sae.b_gate
    magnitude = centred @ (sae.W_enc * sae.r_mag.exp()) + sae.b_mag
    return gate, (gate > 0) * magnitude.relu()


@pytest.fixture
def moved():
    """A gated autoencoder whose every parameter has left its initial value."""
    sae = training_sae()
    for name in ("b_dec", "b_gate", "b_mag", "r_mag", "W_dec"):
        tensor = getattr(sae, name).data
        tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
    return sae


def test_agreed_1_the_forward_pass(moved):
    x = inputs()
    _, f = closed_form(moved, x)
    out = forward(moved, x)
    torch.testing.assert_close(out.feature_acts, f)
    torch.testing.assert_close(out.sae_out, f @ moved.W_dec + moved.b_dec)


def test_agreed_2_the_terms_of_the_loss(moved):
    """The auxiliary error weighs as much as the other, and its input is centred by b_dec."""
    x = inputs()
    moved.fold_W_dec_norm()  # else the penalty is that of row 2
    gate, _ = closed_form(moved, x)
    out = forward(moved, x, coefficient=0.3)
    losses = out.losses
    error = (out.sae_out - x).square().mean()
    auxiliary_error = (gate.relu() @ moved.W_dec + moved.b_dec - x).square().mean()
    torch.testing.assert_close(
        losses["auxiliary_reconstruction_loss"] / losses["mse_loss"], auxiliary_error / error
    )
    torch.testing.assert_close(losses["l1_loss"], 0.3 * gate.relu().sum(1).mean())
    torch.testing.assert_close(out.loss, sum(losses.values()))


def test_agreed_3_r_mag_starts_at_zero():
    assert not training_sae().r_mag.any()


def test_agreed_4_folding_the_decoder_norms_changes_no_output(moved):
    x = inputs()
    before = moved(x)
    moved.fold_W_dec_norm()
    torch.testing.assert_close(moved(x), before)
    torch.testing.assert_close(moved.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_agreed_5_the_straight_through_estimators():
    """−θ/ε and −1/ε where |z − θ| < ε/2, into θ alone."""
    from sae_lens.saes.jumprelu_sae import JumpReLU, Step

    theta, width = torch.tensor([0.5]).requires_grad_(), 0.1
    z = torch.tensor([[0.4], [0.46], [0.54], [0.6]]).requires_grad_()
    for function, slope in ((JumpReLU, -0.5 / width), (Step, -1 / width)):
        near = [
            gradient(function.apply(z[i : i + 1], theta, width, False).sum(), theta)
            for i in range(4)
        ]
        torch.testing.assert_close(torch.cat(near), torch.tensor([0.0, slope, slope, 0.0]))
    sae = training_sae("JumpReLU", jumprelu_bandwidth=1.0)
    losses = forward(sae, inputs()).losses
    assert gradient(losses["l0_loss"], sae.threshold).any()
    assert not gradient(losses["l0_loss"], sae.W_enc).any()


def test_agreed_6_learning_rate_and_batch():
    from sae_lens.config import LanguageModelSAERunnerConfig

    default = {field.name: field.default for field in fields(LanguageModelSAERunnerConfig)}
    assert default["lr"] == 3e-4
    assert default["train_batch_size_tokens"] == 4096


# the tables


def test_the_readme_has_a_row_for_every_test_and_the_other_way_round():
    """A row starts with its number and ends with the name of its test."""
    rows = re.findall(
        r"^\| *(\d+) *\|.*`(test_(?:row|agreed)_\w+)` *\|$", README.read_text("utf-8"), re.M
    )
    tests = [name for name in globals() if re.match(r"test_(row|agreed)_\d+_", name)]
    assert [name for _, name in rows] == tests
    assert [number for number, _ in rows] == [name.split("_")[2] for name in tests]
    for kind in ("row", "agreed"):
        numbers = [int(n) for n, name in rows if name.startswith(f"test_{kind}_")]
        assert numbers == list(range(1, len(numbers) + 1))
