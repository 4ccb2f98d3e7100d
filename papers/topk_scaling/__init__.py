"""Scaling and Evaluating Sparse Autoencoders (Gao et al. 2024)."""
