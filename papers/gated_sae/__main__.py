"""The stages of this paper: `python -m papers.gated_sae --help`."""

from shared.stages import run_paper

EXPERIMENTS = (
    "autoencoders",
    "site_autoencoders",
    "scores",
    "pareto",
    "shrinkage",
    "ablations",
    "rescaled_and_shifted",
    "inference_time_optimisation",
    "sites",
    "jumprelu_front",
    "jumprelu_equivalence",
    "activation_shapes",
    "rating_statistics",
    "alive",
)

if __name__ == "__main__":
    run_paper("gated_sae", EXPERIMENTS)
