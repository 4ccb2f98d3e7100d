"""Improving Dictionary Learning with Gated Sparse Autoencoders (2024), and JumpReLU."""
