"""Toy Models of Superposition (Elhage et al. 2022, arXiv:2209.10652)."""
