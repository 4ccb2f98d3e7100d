"""Towards Monosemanticity (Bricken et al. 2023): dictionaries of a one-layer model's neurons."""
