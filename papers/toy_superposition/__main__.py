"""The stages of this paper: `python -m papers.toy_superposition --help`."""

from shared.stages import run_paper

EXPERIMENTS = (
    "features_in_two_dimensions",
    "superposition_by_sparsity",
    "linear_models",
    "phase_change",
    "bias_free_surfaces",
    "feature_geometry",
    "polytopes",
    "perturbed_pentagon",
    "correlated_features",
    "learning_dynamics",
    "adversarial_examples",
    "privileged_basis",
    "absolute_value",
    "nonlinear_compression",
    "sae_recovery",
)

if __name__ == "__main__":
    run_paper("toy_superposition", EXPERIMENTS)
