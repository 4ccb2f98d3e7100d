"""The stages of this paper: `python -m papers.topk_scaling --help`."""

from shared.stages import run_paper

EXPERIMENTS = (
    "autoencoders",
    "scores",
    "compute_frontier",
    "joint_scaling",
    "latent_scaling",
    "pareto",
    "gap_by_width",
    "learning_rates",
    "convergence",
    "batch_sizes",
    "dead_latents",
    "downstream",
    "probes",
    "explanations",
    "ablation_sparsity",
    "refinement",
    "progressive_codes",
    "test_time_selection",
    "released_autoencoders",
    "recipe",
)

if __name__ == "__main__":
    run_paper("topk_scaling", EXPERIMENTS)
