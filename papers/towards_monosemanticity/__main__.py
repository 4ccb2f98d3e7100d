"""The stages of this paper: `python -m papers.towards_monosemanticity --help`."""

from shared.stages import run_paper

EXPERIMENTS = (
    "dictionaries",
    "firings",
    "language_models",
    "architectural_approaches",
    "loss_recovered",
    "density",
    "pre_encoder_bias",
    "context_features",
    "not_a_neuron",
    "effects",
    "universality",
    "splitting",
    "base64_splitting",
    "motifs",
    "automata",
    "explainability",
    "shuffled_model",
)

if __name__ == "__main__":
    run_paper("towards_monosemanticity", EXPERIMENTS)
