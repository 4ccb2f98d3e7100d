"""The stages of this paper: `python -m papers.toy_superposition --help`."""

from shared.stages import run_paper

EXPERIMENTS = ("features_in_two_dimensions",)

if __name__ == "__main__":
    run_paper("toy_superposition", EXPERIMENTS)
