"""Sparse autoencoders: one file per architecture, and the weights of trained ones."""
