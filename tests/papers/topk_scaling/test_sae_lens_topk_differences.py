"""The rows of the README's tables on SAELens, shown on the version that is installed.

`test_row_<number>_*` is a difference from the paper and the authors' code, `test_agreed_<number>_*`
what SAELens does as they do; with a `kind`, of TopK and BatchTopK alike. A difference that fails
here has probably been mended: its message says so, and which row to update.
"""

import re
from dataclasses import fields

import pytest
import torch

from shared.files import ROOT
from shared.saes.batchtopk import BatchTopKConfig
from shared.saes.loading import load_sae
from shared.saes.preprocessing import Normalised, for_activations, normalised, restored
from shared.saes.topk import TopKConfig
from shared.saes.weights import save_sae

README = ROOT / "papers" / "topk_scaling" / "README.md"
D_IN, D_SAE, K, BATCH = 12, 48, 3, 64
K_AUX = D_IN // 2  # of SAELens
AUXILIARY = "auxiliary_reconstruction_loss"


def as_the_paper(row, does):
    return f"SAELens now {does} as the paper: update row {row} of papers/topk_scaling/README.md"


def changed(row, what):
    return f"SAELens no longer {what}: update row {row} of papers/topk_scaling/README.md"


@pytest.fixture(params=["TopK", "BatchTopK"])
def kind(request):
    return request.param


def training_config(kind="TopK", **settings):
    import sae_lens

    sizes = {"d_in": D_IN, "d_sae": D_SAE, "k": K}
    return getattr(sae_lens, f"{kind}TrainingSAEConfig")(**sizes | settings)


def untrained(kind="TopK", **settings):
    """A SAELens autoencoder in training, at its defaults, with weights of this seed."""
    import sae_lens

    torch.manual_seed(0)
    return getattr(sae_lens, f"{kind}TrainingSAE")(training_config(kind, **settings))


def unit(kind="TopK", **settings):
    """The same with rows of unit length, which make decoder norms (rows 11 and 13) no matter."""
    return untrained(kind, decoder_init_norm=1.0, **settings)


def inputs(batch=BATCH, seed=1):
    """Off the origin, so that b_dec and means matter."""
    return torch.randn(batch, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.5


def first(count):
    """A mask of so many dead features."""
    return torch.arange(D_SAE) < count


def forward(sae, x, dead=None):
    from sae_lens.saes.sae import TrainStepInput

    return sae.training_forward_pass(TrainStepInput(x, {}, dead, 0, False))


def auxiliary_loss(sae, x, dead):
    return forward(sae, x, dead).losses[AUXILIARY]


def auxiliary_error(sae, x, dead):
    """Mean over inputs of ‖e − ê‖², where e is what x̂ lacks and ê uses every dead feature."""
    out = forward(sae, x, dead)
    estimate = out.hidden_pre[:, dead].relu() @ sae.W_dec[dead]
    return (estimate - (x - out.sae_out)).square().sum(1).mean()


def failure(call):
    """What a call says that fails; nothing if it does not."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def gradient(loss, tensor):
    found = torch.autograd.grad(loss, tensor, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(tensor) if found is None else found


def trainer(sae, steps=20, **settings):
    """SAELens' trainer at its defaults."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(steps * BATCH, BATCH, lr_end=0.0, **settings)
    return SAETrainer(config, sae, iter([inputs(seed=seed) for seed in range(steps)]))


def started(kind, **settings):
    """An autoencoder at its defaults that has seen its first batch, with next to no learning."""
    sae = untrained(kind, **settings)
    trainer(sae, lr=1e-9).step(inputs())
    return sae


def runner_config():
    from sae_lens.config import LanguageModelSAERunnerConfig

    return LanguageModelSAERunnerConfig(sae=training_config(), verbose=False)


def settings_named(pattern):
    """Return the settings of training, of any kind, whose name matches."""
    from sae_lens.config import SAETrainerConfig

    configs = [runner_config(), SAETrainerConfig, training_config(), training_config("BatchTopK")]
    names = {field.name for config in configs for field in fields(config)}
    return {name for name in names if re.search(pattern, name)}


# inputs and the error


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_row_1_normalised_inputs_fail_once_a_feature_is_dead(kind, normalisation):
    sae, x = unit(kind, normalize_activations=normalisation), inputs()
    assert not failure(lambda: forward(sae, x, first(0)))
    message = as_the_paper(1, f"trains with dead features under {normalisation}")
    assert "normalization" in failure(lambda: forward(sae, x, first(1))), message


def test_row_2_the_error_of_normalised_inputs_is_that_of_the_inputs(kind):
    x = 100 * inputs()
    one, ten = (
        forward(unit(kind, normalize_activations="layer_norm"), scale * x).losses["mse_loss"]
        for scale in (1, 10)
    )
    message = as_the_paper(2, "takes the error where inputs are normalised")
    torch.testing.assert_close(ten, 100 * one, rtol=1e-3, atol=0, msg=message)


def test_row_3_the_squared_error_is_a_sum_that_nothing_divides(kind):
    sae, x = unit(kind), inputs()
    out = forward(sae, x)
    torch.testing.assert_close(
        out.losses["mse_loss"],
        (out.sae_out - x).square().sum(1).mean(),
        msg=as_the_paper(3, "divides the squared error by that of predicting the mean"),
    )


# AuxK


def test_row_4_auxk_has_the_weight_one_and_is_not_normalised(kind):
    sae, x, dead = unit(kind), inputs(), first(K_AUX)  # all are used, with a factor (row 5) of 1
    sae.b_enc.data[dead] = 20  # all positive (row 7)
    message = as_the_paper(4, "weighs AuxK by 1/32, or divides it by the variance of the residual")
    found = auxiliary_loss(sae, x, dead)
    torch.testing.assert_close(found, auxiliary_error(sae, x, dead), msg=message)
    sae.b_enc.data *= 3  # all that the loss is of is thrice as large
    torch.testing.assert_close(auxiliary_loss(sae, 3 * x, dead), 9 * found, msg=message)


def test_row_5_auxk_counts_less_where_few_features_are_dead(kind):
    sae, x, dead = unit(kind), inputs(), first(2)
    sae.b_enc.data[dead] = 20
    found = auxiliary_loss(sae, x, dead) / auxiliary_error(sae, x, dead)
    message = as_the_paper(5, "gives AuxK the same weight whatever the number of dead features")
    assert found.item() == pytest.approx(2 / K_AUX, rel=1e-4), message


def test_row_6_k_aux_is_half_of_d_in(kind):
    sae, dead = unit(kind), first(20)
    sae.b_enc.data[dead] = 20
    used = gradient(auxiliary_loss(sae, inputs(1), dead), sae.b_enc) != 0
    message = as_the_paper(6, "has the power of two next to d_in/2 for k_aux, or lets it be chosen")
    assert int(used.sum()) == K_AUX, message
    assert TopKConfig(d_in=D_IN, d_sae=D_SAE, k=K, seed=0).auxiliary_width == 8
    assert not settings_named("k_aux|aux_?k"), message


def test_row_7_auxk_has_no_relu(kind):
    sae, dead = unit(kind), first(K_AUX)
    sae.b_enc.data[dead] = -20
    out = forward(sae, inputs(), dead)
    assert (out.hidden_pre[:, dead] < 0).all()
    message = as_the_paper(7, "applies a ReLU to the activations of AuxK")
    assert gradient(out.losses[AUXILIARY], sae.W_dec)[dead].any(), message
    nothing = (inputs() - out.sae_out).square().sum(1).mean()
    assert out.losses[AUXILIARY] > 2 * nothing, message


def test_row_8_features_die_after_so_many_steps(kind):
    from sae_lens.config import SAETrainerConfig

    def steps_until_dead(batch):
        sae = unit(kind)
        sae.b_enc.data[first(4)] = -100
        run = trainer(sae, dead_feature_window=3)
        for step in range(1, 10):
            run.step(inputs(batch))
            if run.dead_neurons[0]:
                return step
        return None

    message = as_the_paper(8, "counts tokens until a feature is dead")
    assert steps_until_dead(32) == steps_until_dead(128) == 4, message
    config, message = runner_config(), changed(8, "has a window of 1,000 steps by default")
    assert config.dead_feature_window == SAETrainerConfig(1, 1).dead_feature_window == 1000, message
    assert config.dead_feature_window * config.train_batch_size_tokens == 4_096_000, message


def test_row_9_the_least_activation_counts_as_firing(kind):
    sae = unit(kind)
    sae.W_enc.data.zero_()
    sae.b_enc.data[0] = 1e-6
    run = trainer(sae)
    run.step(inputs())
    message = as_the_paper(9, "ignores activations under a thousandth")
    assert run.n_forward_passes_since_fired.tolist() == [0.0] + [1.0] * (D_SAE - 1), message


def test_row_10_auxk_takes_features_for_dead_that_fire_in_the_very_batch(kind):
    x = inputs(4)
    silent = ~forward(unit(kind), x).feature_acts.any(0)
    assert K_AUX < int(silent.sum()) < D_SAE

    def loss(dead):
        run = trainer(unit(kind))
        run.n_forward_passes_since_fired[dead] = 10**6
        return float(run.step(x).losses[AUXILIARY].detach())

    message = as_the_paper(10, "looks for dead features after the batch has been encoded")
    assert loss(first(D_SAE)) != pytest.approx(loss(silent), rel=1e-3), message


# the decoder, and where training starts


def test_row_11_the_decoder_starts_at_a_tenth_of_unit_norm(kind):
    torch.testing.assert_close(
        untrained(kind).W_dec.detach().norm(dim=1),
        torch.full((D_SAE,), 0.1),
        msg=as_the_paper(11, "starts at unit norm"),
    )


def test_row_12_the_decoder_has_free_norms(kind):
    norms = trainer(unit(kind), lr=0.01).fit().W_dec.norm(dim=1)
    assert (norms - 1).abs().max() > 0.05, as_the_paper(12, "keeps decoder rows at unit norm")
    run, along = trainer(unit(kind)), []
    run.optimizer.register_step_pre_hook(
        lambda *_: along.append((run.sae.W_dec.grad * run.sae.W_dec).sum(1))
    )
    run.step(inputs())
    assert along[0].abs().max() > 1e-3, as_the_paper(12, "projects the decoder's gradient")


def test_row_13_features_are_chosen_by_pre_activation_times_decoder_norm(kind):
    sae, x = unit(kind), inputs()
    norms = torch.linspace(0.2, 3, D_SAE)
    sae.W_dec.data *= norms[:, None]
    chosen = forward(sae, x).feature_acts > 0
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    message = as_the_paper(13, "chooses by the pre-activations alone")
    assert (chosen != (sae.activation_fn(z) > 0)).float().mean() > 0.01, message
    weighted = sae.activation_fn(z * norms) > 0
    assert torch.equal(chosen, weighted), changed(13, "chooses by pre-activation times norm")


def test_row_14_the_encoder_is_not_scaled_to_the_inputs(kind):
    x = inputs()

    def share(centred, output):
        return float(output.norm() / centred.norm())

    message = as_the_paper(14, "starts with reconstructions as long as inputs")
    sae = started(kind)
    assert share(x - sae.b_dec, forward(sae, x).sae_out - sae.b_dec) < 0.05, message
    # Nor are they at unit norm, where their length depends on k.
    for k in (1, 12):
        sae = started(kind, decoder_init_norm=1.0, k=k)
        found = share(x - sae.b_dec, forward(sae, x).sae_out - sae.b_dec)
        assert found != pytest.approx(1, abs=0.1), message


def test_row_15_b_dec_starts_at_zero(kind):
    message = as_the_paper(15, "starts b_dec at the geometric median of inputs")
    assert started(kind).b_dec.abs().max() < 1e-6, message


# training


def test_row_16_the_epsilon_of_adam_is_not_to_be_chosen(kind):
    found = trainer(unit(kind)).optimizer.param_groups[0]["eps"]
    assert found == 1e-8, as_the_paper(16, "has Adam's ε at 6.25e-10")
    assert not settings_named("(^|_)eps"), as_the_paper(16, "lets Adam's ε be chosen")


def test_row_17_the_learning_rate_is_the_same_for_every_number_of_features(kind):
    rates = [
        trainer(unit(kind, d_sae=d_sae)).optimizer.param_groups[0]["lr"]
        for d_sae in (D_SAE, 16 * D_SAE)
    ]
    message = as_the_paper(17, "has a learning rate that falls with the number of features")
    assert rates[0] == rates[1], message
    message = changed(17, "has a learning rate of 3e-4 by default")
    assert rates[0] == runner_config().lr == 3e-4, message


def test_row_18_the_gradient_is_clipped_to_norm_one(kind):
    sae = unit(kind)
    run, norms = trainer(sae), []

    def record(*_):
        norms.append(torch.stack([tensor.grad.norm() for tensor in sae.parameters()]).norm())

    run.optimizer.register_step_pre_hook(record)
    run.step(inputs())
    forward(sae, inputs()).loss.backward()
    record()
    clipped, whole = norms
    assert whole > 2
    message = as_the_paper(18, "leaves gradients unclipped")
    torch.testing.assert_close(clipped, torch.tensor(1.0), msg=message)
    assert not settings_named("clip"), as_the_paper(18, "lets clipping be turned off")


def test_row_19_weights_are_not_averaged(kind):
    run, last = trainer(unit(kind), lr=0.01), {}

    def record(*_):
        last.update({name: p.detach().clone() for name, p in run.sae.named_parameters()})

    run.optimizer.register_step_post_hook(record)
    trained = dict(run.fit().named_parameters())
    message = as_the_paper(19, "averages weights over steps")
    assert all(torch.equal(trained[name], tensor) for name, tensor in last.items()), message
    assert not settings_named("(^|_)ema(_|$)|averag"), message


def test_row_20_there_is_no_multi_topk():
    """A second reconstruction would have a loss, and settings."""
    from sae_lens import TrainingSAEConfig
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    message = changed(20, "has the terms and settings of TopK alone (Multi-TopK may be there now)")
    losses = forward(unit(), inputs(), first(K_AUX)).losses
    assert set(losses) == {"mse_loss", AUXILIARY}, message
    base = {field.name for field in fields(TrainingSAEConfig)}
    own = {field.name for field in fields(training_config())} - base
    assert own == {
        "k",
        "use_sparse_activations",
        "aux_loss_coefficient",
        "rescale_acts_by_decoder_norm",
    }, message
    assert not {name for name in SAE_TRAINING_CLASS_REGISTRY if "multi" in name}, message


def test_row_21_an_auxiliary_loss_that_is_no_number_is_not_ignored(kind):
    sae, x, dead = unit(kind), inputs(), first(K_AUX)
    z = torch.zeros(BATCH, D_SAE)
    z[0, 0] = torch.nan
    found = sae.calculate_topk_aux_loss(x, torch.zeros_like(x), z, dead)
    assert found.isnan(), as_the_paper(21, "takes 0 for an auxiliary loss that is no number")
    # Without a division by the residual's variance (row 4), no residual is a harmless case.
    assert sae.calculate_topk_aux_loss(x, x, torch.zeros_like(z), dead) == 0


def test_row_22_contexts_are_longer_and_batches_smaller():
    config = runner_config()
    message = changed(22, "has contexts of 128 tokens and batches of 4,096 by default")
    assert (config.context_size, config.train_batch_size_tokens) == (128, 4096), message


def test_row_23_only_decoding_is_sparse():
    """The gradient at the pre-activations is dense, and so is the product that W_enc gets of it."""
    x = inputs()
    assert not forward(unit(), x).feature_acts.is_sparse, as_the_paper(23, "is sparse by default")
    out = forward(unit(use_sparse_activations=True, rescale_acts_by_decoder_norm=False), x)
    assert out.feature_acts.is_sparse, changed(23, "decodes sparse activations")
    slope = gradient(out.loss, out.hidden_pre)
    message = as_the_paper(23, "computes the encoder's gradient from active features alone")
    assert slope.any(), message
    assert not slope.is_sparse, message
    assert slope.shape == (BATCH, D_SAE), message
    assert ((slope != 0).sum(1) <= K).all()  # a sixteenth of it is not zero
    batchtopk = unit("BatchTopK", use_sparse_activations=True)
    message = as_the_paper(23, "has sparse activations for BatchTopK")
    assert not batchtopk.encode(x).is_sparse, message


def test_row_24_sparse_activations_do_not_train_at_the_default_rescaling():
    """Of a sparse matrix times a vector, this torch lacks the gradient for the vector on a CPU."""

    def step(**settings):
        trainer(unit(use_sparse_activations=True, **settings)).step(inputs())

    assert not failure(lambda: step(rescale_acts_by_decoder_norm=False))
    message = as_the_paper(24, "trains with sparse activations on a CPU (or torch lets it)")
    assert "SparseCPU" in failure(step), message


def test_row_25_the_threshold_of_batchtopk_lags_behind():
    """After ten batches whose least active value is the same, it is a tenth of that."""
    sae, x = unit("BatchTopK"), inputs()
    for _ in range(10):
        f = forward(sae, x).feature_acts
    found = float(sae.topk_threshold / f[f > 0].min())
    message = as_the_paper(25, "corrects the threshold of BatchTopK for its start at 0")
    assert found == pytest.approx(1 - 0.99**10, rel=1e-4), message


# what agrees


@pytest.fixture
def moved(kind):
    """An autoencoder whose every parameter has left its initial value."""
    sae = unit(kind)
    for tensor in sae.parameters():
        tensor.data += 0.3 * torch.randn(
            tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())
        )
    return sae


def test_agreed_1_the_forward_pass():
    """With fewer than k features where fewer pre-activations are positive."""
    sae, x = unit(), inputs()
    sae.b_dec.data += 0.3
    sae.b_enc.data -= 1.5
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    largest = z.argsort(1, descending=True).argsort(1) < K
    out = forward(sae, x)
    torch.testing.assert_close(out.feature_acts, z.relu() * largest)
    counts = (out.feature_acts > 0).sum(1)
    assert counts.min() < counts.max() == K
    torch.testing.assert_close(out.sae_out, out.feature_acts @ sae.W_dec + sae.b_dec)


def test_agreed_2_the_encoder_starts_as_the_transpose_and_is_not_tied(kind):
    sae = untrained(kind)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    trained = trainer(sae, lr=0.01).fit()
    assert not torch.allclose(trained.W_enc, trained.W_dec.T, atol=0.01)


def test_agreed_3_the_latent_bias_is_that_of_the_authors_code(kind):
    sae = untrained(kind)
    assert not sae.b_enc.any()
    assert trainer(sae, lr=0.01).fit().b_enc.any()


def test_agreed_4_auxk_gives_a_residual_to_dead_features_alone(moved):
    """The residual is taken as given, the estimate has no bias, those alive get no gradient."""
    x, dead = inputs(), first(K_AUX)
    moved.fold_W_dec_norm()
    moved.b_enc.data = torch.where(dead, 10.0, moved.b_enc.data + 20)
    active = forward(moved, x).feature_acts.any(0)
    assert active.any()
    assert not active[dead].any()
    found = auxiliary_loss(moved, x, dead)
    torch.testing.assert_close(found, auxiliary_error(moved, x, dead))
    slopes = gradient(found, moved.W_enc).T, gradient(found, moved.W_dec)
    for slope in (*slopes, gradient(found, moved.b_enc)):
        assert not slope[~dead].any()
        assert slope[dead].any()


def test_agreed_5_adam_s_momenta_and_a_constant_learning_rate(kind):
    run, rates = trainer(unit(kind), lr=0.01), set()
    for seed in range(12):
        rates.add(run.optimizer.param_groups[0]["lr"])
        run.step(inputs(seed=seed))
    assert rates == {0.01}
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert type(run.optimizer) is torch.optim.Adam


def test_agreed_6_layer_norm_is_the_authors(kind):
    sae, x, f = (
        unit(kind, normalize_activations="layer_norm"),
        3 * inputs() + 2,
        torch.rand(BATCH, D_SAE),
    )
    expected, statistics = normalised(x)
    torch.testing.assert_close(sae.process_sae_in(x), expected)
    torch.testing.assert_close(sae.decode(f), restored(f @ sae.W_dec, statistics))


@pytest.mark.parametrize("config", [TopKConfig, BatchTopKConfig])
def test_agreed_7_our_autoencoders_load_and_give_the_same(tmp_path, config):
    """As the experiments save them, with normalised inputs."""
    from sae_lens import SAE

    x = 5 * inputs() + 3
    sae = config(d_in=D_IN, d_sae=D_SAE, k=K, seed=0).create()
    sae.start(normalised(x)[0])
    sae.gradients(normalised(x)[0])  # from which BatchTopK has its threshold
    save_sae(tmp_path, for_activations(sae.export()), {"hook_name": "resid"})
    theirs, ours = SAE.load_from_disk(tmp_path), load_sae(tmp_path)
    assert isinstance(ours, Normalised)
    assert theirs.cfg.architecture() == {TopKConfig: "topk", BatchTopKConfig: "jumprelu"}[config]
    other = 5 * inputs(seed=2) + 3  # none of whose values is the threshold
    with torch.no_grad():
        f = theirs.encode(other)
        assert 0 < (f > 0).sum(1).float().mean() < 2 * K
        torch.testing.assert_close(ours.encode(other), f)
        torch.testing.assert_close(ours.reconstruct(other), theirs(other))


def test_agreed_8_its_autoencoders_load_and_give_the_same(tmp_path, moved):
    """Saved, they have unit rows; BatchTopK is a JumpReLU autoencoder then, as ours."""
    from sae_lens import SAE

    x = inputs()
    forward(moved, x)
    moved.save_inference_model(tmp_path)
    theirs, ours = SAE.load_from_disk(tmp_path), load_sae(tmp_path)
    torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(D_SAE))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x))
        torch.testing.assert_close(ours.decode(ours.encode(x)), theirs(x))
        if theirs.cfg.architecture() == "topk":
            torch.testing.assert_close(ours.decode(ours.encode(x)), moved(x))
        else:
            assert theirs.cfg.architecture() == "jumprelu"
            threshold = torch.full((D_SAE,), float(moved.topk_threshold))
            torch.testing.assert_close(ours.threshold, threshold)


def test_agreed_9_batchtopk_takes_the_largest_of_the_batch():
    sae, x = unit("BatchTopK"), inputs() * torch.linspace(0.3, 3, BATCH)[:, None]
    f = forward(sae, x).feature_acts
    z = x @ sae.W_enc
    bound = z.flatten().sort(descending=True).values[K * BATCH - 1]
    torch.testing.assert_close(f, torch.where(z >= bound, z, 0))
    counts = (f > 0).sum(1)
    assert counts.min() < K < counts.max()
    ours = BatchTopKConfig(d_in=D_IN, d_sae=D_SAE, k=K, seed=0).create()
    found = ours._selected(z.detach())[0].times(torch.eye(D_SAE))
    torch.testing.assert_close(found, f.detach())


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
